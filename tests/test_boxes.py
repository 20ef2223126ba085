"""Boxes around objects."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import write_photo, write_probability
from carvana_tf.errors import UserError
from carvana_tf.masks.boxes import Box, cut, find_box, padded_frame, paste, read_boxes

ROOT = Path(__file__).parents[1]


def test_the_frame_of_the_competition_pads_a_pixel_each_side():
    assert padded_frame(1280, 1918, 64) == Box(-1, 0, 1920, 1280)


def test_the_largest_component_counts_and_the_threshold_is_strict():
    grey = np.zeros((60, 80), np.uint8)
    grey[2:6, 2:6] = 255
    grey[20:30, 40:60] = 101
    grey[50:59, 0:80] = 100
    assert find_box(grey, threshold=100, margin=0, multiple=1) == Box(40, 20, 20, 10)
    assert find_box(grey, threshold=100, margin=3, multiple=1) == Box(37, 17, 26, 16)


def test_an_empty_mask_gives_the_whole_frame():
    assert find_box(np.zeros((30, 50), np.uint8), threshold=100, margin=4, multiple=16) == Box(
        -7, -1, 64, 32
    )


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_boxes_hold_the_object_and_stay_in_the_frame(data):
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top, height - 1)), data.draw(st.integers(left, width - 1))
    multiple, margin = data.draw(st.integers(1, 32)), data.draw(st.integers(0, 40))
    grey = np.zeros((height, width), np.uint8)
    grey[top : bottom + 1, left : right + 1] = 200
    frame = padded_frame(height, width, multiple)
    box = find_box(grey, threshold=100, margin=margin, multiple=multiple)
    assert box.width % multiple == 0 and box.height % multiple == 0
    assert frame.left <= box.left and box.left + box.width <= frame.left + frame.width
    assert frame.top <= box.top and box.top + box.height <= frame.top + frame.height
    # The margin is there wherever the frame has room for it.
    assert box.left <= max(left - margin, frame.left)
    assert box.top <= max(top - margin, frame.top)
    assert box.left + box.width >= min(right + 1 + margin, frame.left + frame.width)
    assert box.top + box.height >= min(bottom + 1 + margin, frame.top + frame.height)


def test_the_script_writes_a_row_per_mask(tmp_path):
    grey = np.zeros((40, 60), np.uint8)
    grey[10:20, 30:40] = 255
    write_probability(tmp_path / "masks" / "b.png", grey)
    write_probability(tmp_path / "masks" / "a.png", np.zeros((40, 60), np.uint8))
    command = [sys.executable, str(ROOT / "tools" / "find_bounding_boxes.py")]
    command += [f"--pred_mask_dir={tmp_path / 'masks'}", f"--boxes_csv={tmp_path / 'boxes.csv'}"]
    command += ["--margin=0", "--multiple=10"]
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    subprocess.run(command, check=True, env=env, capture_output=True)
    rows = list(csv.reader((tmp_path / "boxes.csv").open()))
    assert rows == [
        ["id", "left", "top", "width", "height"],
        ["a", "0", "0", "60", "40"],
        ["b", "30", "10", "10", "10"],
    ]


@settings(deadline=None, max_examples=100)
@given(st.integers(-6, 19), st.integers(-6, 14), st.integers(1, 30), st.integers(1, 30))
def test_a_box_is_cut_with_reflection_and_pasted_back(left, top, width, height):
    image = np.random.default_rng(0).integers(1, 256, (15, 20, 3), np.uint8)
    box = Box(left, top, width, height)
    if left + width <= 0 or top + height <= 0:
        with pytest.raises(UserError, match=r"'a\.jpg'.*lies outside its 20x15 pixels"):
            cut(image, box, Path("a.jpg"))
        return
    inner = image[max(top, 0) : top + height, max(left, 0) : left + width]
    margins = [(max(-low, 0), max(low + size - length, 0))
               for low, size, length in ((top, height, 15), (left, width, 20))]  # fmt: skip
    expected = np.pad(inner, (*margins, (0, 0)), mode="reflect")
    pixels = cut(image, box, Path("a.jpg"))
    np.testing.assert_array_equal(pixels, expected)
    pasted = paste(pixels[..., 0].copy(), box, 15, 20)
    whole = np.zeros((15, 20), np.uint8)
    rows, columns = np.s_[max(top, 0) : top + height], np.s_[max(left, 0) : left + width]
    whole[rows, columns] = image[rows, columns, 0]
    np.testing.assert_array_equal(pasted, whole)


@pytest.fixture
def samples(tmp_path):
    write_photo(tmp_path / "a_1.png", np.zeros((60, 126, 3), np.uint8))
    return [Sample("a_1", "a", tmp_path / "a_1.png")]


@pytest.mark.parametrize(
    "text",
    [
        "id,left,top,width,height\nb_1,0,0,9,9\na_1,-1,2,64,30\n",
        "id,height,width,top,left\na_1,30,64,2,-1\n\n",
        # The padded frame starts one pixel left of the photo and two above it.
        "filename,y_start,y_end,x_start,x_end\na_1.jpg,4,34,0,64\n",
    ],
)
def test_tables_of_both_forms_are_read(tmp_path, samples, text):
    (tmp_path / "boxes.csv").write_text(text)
    assert read_boxes(tmp_path / "boxes.csv", samples) == {"a_1": Box(-1, 2, 64, 30)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,left,top,width,height\nb_1,0,0,9,9\n", "no box for 1 of 1 photos.*'a_1'"),
        ("", "is empty"),
        ("id,rle\na_1,3\n", "it has 'id,rle'"),
        ("id,left,top,width,height\na_1,0,0,9\n", "line 2"),
        ("id,left,top,width,height\na_1,0,0,9,x\n", "line 2"),
        ("id,left,top,width,height\na_1,0,0,0,9\n", "'a_1' has a box of 0x9 pixels"),
    ],
)
def test_tables_that_are_wrong_are_refused(tmp_path, samples, text, message):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_boxes(tmp_path / "boxes.csv", samples)


def test_a_table_that_is_missing(tmp_path, samples):
    with pytest.raises(UserError, match=r"none\.csv"):
        read_boxes(tmp_path / "none.csv", samples)


def test_boxes_as_system_001_published_them(tmp_path, samples):
    grey = np.zeros((60, 126), np.uint8)
    grey[20:30, 40:60] = 255
    write_probability(tmp_path / "masks" / "a_1.png", grey)
    command = [sys.executable, str(ROOT / "tools" / "find_bounding_boxes.py"), "--margin=3"]
    command += [f"--pred_mask_dir={tmp_path / 'masks'}", f"--boxes_csv={tmp_path / 'boxes.csv'}"]
    command += ["--format=published", "--image_extension=.jpg", "--img_width", "1918"]
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    subprocess.run(command, check=True, env=env, capture_output=True)
    header, (name, *numbers) = csv.reader((tmp_path / "boxes.csv").open())
    assert header == ["filename", "y_start", "y_end", "x_start", "x_end"] and name == "a_1.jpg"
    top, bottom, left, right = map(int, numbers)
    # The frame is 128x64, the photo starts in its column 1 and row 2.
    assert (bottom - top, right - left) == (64, 64)
    assert top == 0 and left <= 40 + 1 - 3 and right >= 60 + 1 + 3
    box = find_box(grey, threshold=100, margin=3, multiple=64)
    assert read_boxes(tmp_path / "boxes.csv", samples) == {"a_1": box}
    refused = subprocess.run([*command, "--multiple=32"], env=env, capture_output=True, text=True)
    assert refused.returncode == 1 and "--multiple=32" in refused.stderr
