"""Post-processing steps against references that walk pixel by pixel."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from carvana_tf.errors import UserError
from carvana_tf.masks import postprocess

GREYS = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)))
THRESHOLDS = st.integers(0, 254)
NAMES = ["convex_roof", "convex_fill", "largest", "fill_holes", "min_component:3"]
EIGHT = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
FOUR = [(-1, 0), (1, 0), (0, -1), (0, 1)]


def components(mask, steps):
    seen, found = np.zeros(mask.shape, bool), []
    for start in zip(*np.nonzero(mask), strict=True):
        if seen[start]:
            continue
        seen[start] = True
        stack, part = [start], []
        while stack:
            y, x = stack.pop()
            part.append((y, x))
            for dy, dx in steps:
                to = (y + dy, x + dx)
                inside = 0 <= to[0] < mask.shape[0] and 0 <= to[1] < mask.shape[1]
                if inside and mask[to] and not seen[to]:
                    seen[to] = True
                    stack.append(to)
        found.append(part)
    return found


def keep(shape, parts):
    mask = np.zeros(shape, bool)
    for part in parts:
        mask[tuple(zip(*part, strict=True))] = True
    return mask


@settings(deadline=None)
@given(GREYS, st.integers(0, 6), THRESHOLDS)
def test_min_component(grey, pixels, threshold):
    parts = components(grey > threshold, EIGHT)
    expected = keep(grey.shape, [p for p in parts if len(p) >= pixels])
    result = postprocess.min_component(grey, pixels, threshold)
    np.testing.assert_array_equal(result > threshold, expected)
    np.testing.assert_array_equal(result[expected], grey[expected])


@settings(deadline=None)
@given(GREYS, THRESHOLDS)
def test_largest(grey, threshold):
    parts = components(grey > threshold, EIGHT)
    result = postprocess.largest(grey, threshold) > threshold
    biggest = max(map(len, parts), default=0)
    assert result.sum() == biggest
    assert not parts or any((keep(grey.shape, [p]) == result).all() for p in parts)


@settings(deadline=None)
@given(GREYS, THRESHOLDS)
def test_fill_holes(grey, threshold):
    outside = []
    for part in components(grey <= threshold, FOUR):
        edge = any(y in (0, grey.shape[0] - 1) or x in (0, grey.shape[1] - 1) for y, x in part)
        outside += [part] if edge else []
    result = postprocess.fill_holes(grey, threshold) > threshold
    np.testing.assert_array_equal(result, ~keep(grey.shape, outside))


@settings(deadline=None)
@given(GREYS, st.sampled_from(NAMES), THRESHOLDS)
def test_every_step_leaves_unchanged_decisions_their_grey(grey, name, threshold):
    before = grey.copy()
    result = postprocess.parse([name], threshold)(grey)
    np.testing.assert_array_equal(grey, before)
    same = (result > threshold) == (grey > threshold)
    np.testing.assert_array_equal(result[same], grey[same])
    assert set(np.unique(result[~same])) <= {0, 255}


def test_convex_fill_closes_an_l_to_a_triangle():
    grey = np.zeros((30, 30), np.uint8)
    grey[5:25, 5:8] = grey[22:25, 5:25] = 200
    result = postprocess.convex_fill(grey) > 127
    y, x = np.mgrid[:30, :30]
    # The hull of the L's corners (5, 5), (7, 5), (24, 22), (24, 24), (5, 24) as (x, y).
    inside = (x >= 5) & (y >= 5) & (y <= 24) & (x <= 24) & (x - y <= 2)
    np.testing.assert_array_equal(result, inside)


def roof(value, height=128, width=192):
    """A car whose roof, a third of the photo wide, has one grey value."""
    grey = np.zeros((height, width), np.uint8)
    grey[50:110, 30:160] = 255
    grey[20:50, 60:130] = value
    return grey


def test_an_unsure_roof_is_filled_and_a_sure_one_is_not():
    unsure = postprocess.convex_roof(roof(100))
    assert (unsure[20:50, 60:130] > 127).all()
    np.testing.assert_array_equal(unsure[60:], roof(100)[60:])
    for value in (30, 210):
        np.testing.assert_array_equal(postprocess.convex_roof(roof(value)), roof(value))


def test_the_unsure_area_loses_its_upper_rows_alone():
    """As an erosion by two rows and one column, ten times at the published height."""
    grey = np.zeros((1280, 1918), np.uint8)
    grey[140:460, 300:1300] = 220
    grey[140:460, 700:800] = 0  # open above and below: a hull fills it, inside the box
    grey[200:400, 300:1300] = 100
    eroded = cv2.erode((grey == 100).view(np.uint8), (55, 55), iterations=10)
    assert np.flatnonzero(eroded.any(1))[[0, -1]].tolist() == [210, 399]
    notch = postprocess.convex_roof(grey)[:, 750] > 127
    assert np.flatnonzero(notch)[[0, -1]].tolist() == [210 - 50, 399 + 50]


def test_a_small_or_low_unsure_area_is_left():
    small = np.zeros((128, 192), np.uint8)
    small[20:35, 60:80] = 100
    np.testing.assert_array_equal(postprocess.convex_roof(small), small)
    low = roof(100)[::-1].copy()
    np.testing.assert_array_equal(postprocess.convex_roof(low), low)


def test_unlikely_grey_in_the_roof_is_not_filled():
    np.testing.assert_array_equal(postprocess.convex_roof(roof(50))[20:47], roof(50)[20:47])


def test_steps_run_in_order():
    grey = np.zeros((9, 12), np.uint8)
    grey[1:6, 1:6] = 255
    grey[3, 3] = 0
    grey[7, 9] = 255
    result = postprocess.parse(["fill_holes", "min_component:25"])(grey)
    assert (result > 127).sum() == 25
    assert not postprocess.parse(["min_component:25", "fill_holes"])(grey).any()
    np.testing.assert_array_equal(postprocess.parse([])(grey), grey)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("largst", "Did you mean 'largest'"),
        ("min_component", "min_component:500"),
        ("min_component:-3", "min_component:500"),
        ("min_component:a", "min_component:500"),
        ("largest:3", "takes no number"),
    ],
)
def test_wrong_names_are_told(name, message):
    with pytest.raises(UserError, match=message) as caught:
        postprocess.parse([name])
    assert "\n" not in str(caught.value)


AT_ONCE = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from carvana_tf.masks import postprocess
grey = np.kron(np.eye(20, dtype=np.uint8), np.full((3, 3), 255, np.uint8))
steps = [postprocess.parse([name]) for name in ("min_component:4", "largest")]
sys.setswitchinterval(1e-5)  # seconds: threads meet within each other's imports
with ThreadPoolExecutor(8) as pool:
    assert len(list(pool.map(lambda n: steps[n % 2](grey), range(32)))) == 32
"""


def test_the_first_photos_may_come_in_many_threads_at_once():
    subprocess.run([sys.executable, "-c", AT_ONCE], check=True)
