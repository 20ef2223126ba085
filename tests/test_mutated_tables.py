"""The short form of tests/faults/tables.py, and the bounds that it cannot see."""

import gzip
import os

import pytest
from faults import tables as faults

from carvana_tf import files, flags
from carvana_tf.data.tables import read_table
from carvana_tf.errors import UserError
from carvana_tf.masks import boxes
from carvana_tf.recipe import recipe


@pytest.mark.parametrize("kind", faults.READERS)
def test_mutated_files_are_refused_by_name_or_read(tmp_path, kind):
    step = len(faults.READERS)
    first = list(faults.READERS).index(kind)
    for number in range(first, first + 2 * step * len(faults.MUTATIONS), step):
        result = faults.read(*faults.make(number, tmp_path))
        assert result.outcome in ("refused", "loaded"), result


@pytest.mark.parametrize("kind", faults.READERS)
def test_sound_files_are_read(tmp_path, kind):
    reader = faults.READERS[kind]
    path = tmp_path / f"sound{reader.suffix.removesuffix('.gz')}"
    path.write_text(reader.sound)
    reader.read(path)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["one line", "blank lines", "zeros"])
def test_what_grows_a_thousandfold_is_refused(tmp_path, number):
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(faults.packed_bomb(number))
    with pytest.raises(UserError, match="made to fill memory"):
        list(read_table(path)[1])


def test_packed_blank_lines_of_a_long_table_are_read(tmp_path):
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"\n" * 100_000 + b"1,2\n"))
    assert list(read_table(path)[1]) == [(100_002, ["1", "2"])]


@pytest.mark.parametrize("width", [10**5, 10**9, 10**18])
def test_boxes_far_beyond_their_photo_are_refused(tmp_path, width):
    path = tmp_path / "boxes.csv"
    path.write_text(faults.BOXES.replace("32,32", f"{width},32"))
    with pytest.raises(UserError, match=r"boxes\.csv"):
        faults.with_boxes(path)


def test_a_box_may_reach_to_the_next_multiple_of_a_stride():
    photo = faults.np.zeros((40, 60, 3), faults.np.uint8)
    assert boxes.cut(photo, boxes.Box(-2, -12, 64, 64), "a.jpg").shape == (64, 64, 3)


@pytest.mark.parametrize(
    "text", [f"a: {'[' * 2000}", "a: &a [*a]", "a: &a [x, x]\n" * 3 + "b: *c", "2024-13-45: 1"]
)
def test_recipes_that_cannot_be_are_one_line(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"r\.yaml") as caught:
        recipe.read(path)
    assert "\n" not in str(caught.value)


def test_aliases_are_allowed_where_they_are_few(tmp_path):
    path = tmp_path / "r.yaml"
    flags_ = "{network: simple_unet, epochs: 2}"
    path.write_text(
        f"members:\n  - {{name: a, flags: &common {flags_}}}\n  - {{name: b, flags: *common}}\n"
    )
    one, other = recipe.read(path).members
    assert one.stages == other.stages


def test_pipes_are_not_opened(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for read in (files.read_json, recipe.read, flags.read_flagfile, read_table):
        with pytest.raises(UserError, match="no regular file"):
            read(path)


def test_flag_files_that_name_one_another_too_often_are_refused(tmp_path):
    for n in range(20):
        (tmp_path / f"{n}.flags").write_text(f"--flagfile={tmp_path}/{n + 1}.flags\n" * 2)
    (tmp_path / "20.flags").write_text("--epochs=1\n")
    with pytest.raises(UserError, match="name one another"):
        flags.read_flagfile(tmp_path / "0.flags")
    assert flags.read_flagfile(tmp_path / "18.flags") == ["--epochs=1"] * 4
