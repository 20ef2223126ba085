"""Outlines and run lengths of annotations, against brute force and pycocotools."""

import tracemalloc

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.path import Path as Outlined
from pycocotools import mask as coco_masks
from skimage.measure import approximate_polygon

from carvana_tf.annotations import runs, shapes
from carvana_tf.annotations.shapes import Outline, Pixels, components, crop, fill_ring, outlines
from carvana_tf.annotations.values import BadAnnotation, points

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


def noise(seed, size, smooth=False):
    random = np.random.default_rng(seed)
    mask = random.random(size) > 0.5
    return scipy.ndimage.binary_opening(mask, iterations=2) if smooth else mask


def painted(rings, size):
    canvas = np.zeros(size, np.bool_)
    for ring in rings:
        fill_ring(canvas, ring)
    return canvas


def test_a_box_of_whole_pixels_is_these_pixels():
    expected = np.zeros((6, 8), np.bool_)
    expected[1:4, 2:7] = True
    assert np.array_equal(painted([shapes.box(2, 1, 7, 4)], (6, 8)), expected)


def test_areas_that_share_an_edge_share_no_pixel():
    left = painted([shapes.box(0, 0, 2.5, 4)], (4, 6))
    right = painted([shapes.box(2.5, 0, 6, 4)], (4, 6))
    assert not (left & right).any()
    assert (left | right).all()


@pytest.mark.parametrize("seed", range(20))
def test_polygons_are_filled_where_a_centre_is_inside(seed):
    random = np.random.default_rng(seed)
    ring = random.uniform(-4, 16, (random.integers(3, 9), 2))
    rows, columns = np.mgrid[:12, :10] + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    # Even-odd by the crossings to the right of each centre.
    inside = np.zeros(len(centres), np.bool_)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        spans = (y0 <= centres[:, 1]) != (y1 <= centres[:, 1])
        x = x0 + (centres[:, 1] - y0) * (x1 - x0) / (y1 - y0)
        inside ^= spans & (x > centres[:, 0])
    assert np.array_equal(painted([ring], (12, 10)).ravel(), inside)


def test_convex_outlines_agree_with_matplotlib():
    ring = shapes.turn(shapes.ellipse(15.3, 11.8, 9, 6.5), 30, 15.3, 11.8)
    rows, columns = np.mgrid[:24, :30] + 0.5
    expected = Outlined(ring).contains_points(np.stack([columns.ravel(), rows.ravel()], axis=1))
    assert np.array_equal(painted([ring], (24, 30)).ravel(), expected)


def test_an_ellipse_has_its_area_and_turns_clockwise():
    mask = painted([shapes.ellipse(100, 80, 70, 40)], (160, 200))
    assert mask.sum() == pytest.approx(np.pi * 70 * 40, rel=1e-3)
    turned = painted([shapes.turn(shapes.box(40, 40, 60, 44), 90, 40, 40)], (80, 80))
    rows, columns = np.nonzero(turned)  # along, then down: seen clockwise
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 59, 36, 39)


def test_holes_are_cut_out_also_where_they_overlap():
    outline = Outline((shapes.box(0, 0, 8, 8),), (shapes.box(1, 1, 5, 5), shapes.box(3, 3, 6, 6)))
    canvas = np.zeros((8, 8), np.bool_)
    outline.paint(canvas, (8, 8))
    expected = np.ones((8, 8), np.bool_)
    expected[1:5, 1:5] = expected[3:6, 3:6] = False
    assert np.array_equal(canvas, expected)


def test_many_lines_are_drawn_in_parts_with_the_same_pixels(monkeypatch):
    ring = np.random.default_rng(0).uniform(0, 40, (50, 2))
    once = painted([ring], (40, 40))
    monkeypatch.setattr(shapes, "_CHUNK", 7)
    assert np.array_equal(painted([ring], (40, 40)), once)


def test_outlines_that_would_take_minutes_are_refused(monkeypatch):
    monkeypatch.setattr(shapes, "_MOST", 50)
    with pytest.raises(BadAnnotation, match="more than 50 rows"):
        painted([np.random.default_rng(0).uniform(0, 40, (50, 2))], (40, 40))


def test_no_area_outside_or_of_too_few_points():
    for ring in ([[-5, -5], [-1, -5], [-1, -1]], [[1, 1], [5, 5]], [[2, 2]], []):
        assert not painted([points(ring)], (6, 6)).any()


@pytest.mark.parametrize(
    "value",
    [None, "x", {}, [[1, 2], [3]], [1, 2, 3], [[1, 2, 3]], [["a", 2]], [[np.nan, 1]], [[1e300, 1]],
     [[None, 1]], [10**400, 1], [[[1, 2]], [[3, 4]]]],
)  # fmt: skip
def test_points_that_are_none_are_refused(value):
    with pytest.raises(BadAnnotation, match="point"):
        points(value)


def rows_of_paths(mask, tolerance):
    parts = outlines(mask, tolerance)
    with_holes = np.zeros_like(mask)
    for part in parts:
        Outline((part.outer,), part.holes).paint(with_holes, mask.shape)
    return with_holes, painted([part.ring() for part in parts], mask.shape)


@settings(max_examples=150, deadline=None)
@given(MASKS, st.sampled_from([0.0, 0.3, 0.35]))
def test_outlines_give_the_pixels_again(mask, tolerance):
    for again in rows_of_paths(mask, tolerance):
        assert np.array_equal(again, mask)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (40, 60)])
def test_outlines_of_full_masks(size):
    full = np.ones(size, np.bool_)
    (part,) = outlines(full, 0.3)
    assert not part.holes
    assert np.array_equal(painted([part.outer], size), full)
    assert outlines(~full, 0.3) == []


@pytest.mark.parametrize("tolerance", [0.0, 0.3, 1.0, 5.0])
def test_points_are_dropped_as_by_scikit_image(tolerance):
    random = np.random.default_rng(5)
    lines = [random.normal(0, 1, (size, 2)).cumsum(axis=0) for size in (2, 3, 50, 200)]
    lines.append(np.concatenate([lines[2], lines[2][:1]]))  # closed
    for line, found in zip(lines, shapes.simplify(lines, tolerance), strict=True):
        assert np.array_equal(found, approximate_polygon(line, tolerance))


def test_a_larger_tolerance_leaves_fewer_points_and_stays_near():
    mask = painted([shapes.ellipse(50, 40, 30, 20)], (80, 100))
    exact, rough = (outlines(mask, tolerance)[0].outer for tolerance in (0.3, 1.0))
    assert len(rough) < len(exact) < len(outlines(mask, 0)[0].outer)
    changed = painted([rough], mask.shape) ^ mask
    inside = scipy.ndimage.distance_transform_edt(mask)
    outside = scipy.ndimage.distance_transform_edt(~mask)
    assert np.maximum(inside, outside)[changed].max(initial=0) <= 1.5


def test_polygons_are_within_half_a_pixel_of_cocos():
    mask = noise(3, (60, 80), smooth=True)
    for part in outlines(mask, 0.3):
        ours = painted([part.outer], mask.shape)
        encoded = coco_masks.frPyObjects([part.outer.ravel().tolist()], *mask.shape)
        theirs = coco_masks.decode(encoded)[..., 0].astype(bool)
        # Pixels that differ have their centre within half a pixel (a diagonal: 0.71) of the line.
        ring = np.concatenate([part.outer, part.outer[:1]])
        for row, column in np.argwhere(ours != theirs):
            assert distance((column + 0.5, row + 0.5), ring) <= 0.71


def distance(point, ring):
    a, b = ring[:-1], ring[1:]
    along = b - a
    lengths = np.maximum((along**2).sum(axis=1), 1e-12)
    share = np.clip(((point - a) * along).sum(axis=1) / lengths, 0, 1)
    return np.hypot(*(a + share[:, None] * along - point).T).min()


def test_parts_are_cropped_and_placed():
    mask = np.zeros((9, 12), np.bool_)
    mask[1:3, 2:5] = mask[3, 5] = mask[7, 0:2] = True
    canvas = np.zeros_like(mask)
    found = components(mask)
    assert [(part.left, part.top, part.mask.shape) for part in found] == [
        (2, 1, (3, 4)), (0, 7, (1, 2)),
    ]  # fmt: skip
    for part in found:
        part.paint(canvas, mask.shape)
    assert np.array_equal(canvas, mask)
    whole = crop(mask)
    assert (whole.left, whole.top, whole.mask.shape) == (0, 1, (7, 6))


def test_bitmaps_are_clipped_and_scaled():
    canvas = np.zeros((4, 4), np.bool_)
    Pixels(np.ones((3, 3), np.bool_), 2, -1).paint(canvas, (4, 4))
    expected = np.zeros((4, 4), np.bool_)
    expected[:2, 2:] = True
    assert np.array_equal(canvas, expected)
    large = np.zeros((8, 8), np.bool_)
    Pixels(expected).paint(large, (4, 4))
    assert np.array_equal(large, expected.repeat(2, axis=0).repeat(2, axis=1))
    Outline((shapes.box(0, 2, 4, 4),)).paint(large, (4, 4))
    assert large[4:].all()


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_compressed_run_lengths_are_those_of_pycocotools(mask):
    theirs = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = runs.counts_of(mask.T.ravel())
    assert runs.compress(counts) == theirs["counts"].decode()
    expanded = runs.expand(theirs["counts"].decode())
    assert np.array_equal(runs.columns(expanded, *mask.shape), mask)


def test_long_runs_are_compressed_as_by_pycocotools():
    mask = np.zeros((700, 900), np.uint8)
    mask[100:600, 300] = mask[0, 450:] = mask[650, 3] = 1
    theirs = coco_masks.encode(np.asfortranarray(mask))["counts"].decode()
    counts = runs.counts_of(mask.T.ravel().astype(bool))
    assert runs.compress(counts) == theirs
    assert np.array_equal(runs.expand(theirs), counts)


@pytest.mark.parametrize("text", ["\x00", "o", "é", "0" * 3 + "~~", "o" * 9 + "0", " 1", "\ud800"])
def test_damaged_texts_are_refused(text):
    with pytest.raises(BadAnnotation):
        runs.columns(runs.expand(text), 3, 4)


@pytest.mark.parametrize(
    "counts",
    [[13], [6, 5], [12, -1, 1], [10**30], [2**62, 2**62, 2**62, 2**62, 12], [1.5] * 8, ["12"],
     [[12]], None, "x", {}, [True] * 12, [[1], [1, 2]]],
)  # fmt: skip
def test_run_lengths_of_another_size_are_refused(counts):
    with pytest.raises(BadAnnotation, match="run length"):
        runs.fill(counts, 12)


def slow_brush(data):
    """The values of Label Studio's coding, bit by bit, as thi.ng/rle-pack describes it."""
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def read(count):
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    number, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values = []
    while len(values) < number:
        repeats = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if repeats else [read(word) for _ in range(length)]
    return values


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_brush_strokes_come_back(mask):
    written = runs.write_brush(mask)
    rgba = np.repeat(mask.ravel(), 4).astype(int) * 255
    assert slow_brush(written) == rgba.tolist()
    assert np.array_equal(runs.read_brush(written, *mask.shape), mask)


def test_long_brush_strokes_come_back():
    mask = np.zeros((150, 210), np.bool_)
    mask[60:, 20:] = True
    mask[0, 5] = True
    assert np.array_equal(runs.read_brush(runs.write_brush(mask), *mask.shape), mask)
    assert np.array_equal(runs.read_brush(runs.write_brush(~mask), *mask.shape), ~mask)


def test_brush_strokes_of_label_studio_itself():
    # label_studio_converter.brush.mask2rle of [[0, 255, 0], [255, 0, 255]].
    written = [0, 0, 0, 24, 57, 27, 252, 96, 17, 255, 198, 1, 31, 252, 96, 17, 255, 128]
    mask = np.array([[0, 1, 0], [1, 0, 1]], np.bool_)
    assert np.array_equal(runs.read_brush(written, 2, 3), mask)


def brush_of_values(values):
    """Literal runs of eight values, as browsers write soft edges."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for start in range(0, len(values), 8):
        part = values[start : start + 8]
        bits += f"000{len(part) - 1:03b}" + "".join(f"{value:08b}" for value in part)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def test_soft_brush_strokes_are_cut_at_half_of_their_opacity():
    opacity = [0, 40, 60, 120, 100, 61]
    rgba = [value for alpha in opacity for value in (9, 200, 7, alpha)]
    found = runs.read_brush(brush_of_values(rgba), 2, 3)
    assert found.ravel().tolist() == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    "data",
    [None, "x", [1, 2], [256] * 20, [1.5] * 20, [-1] * 20, [255] * 30, runs.write_brush(
        np.ones((4, 4), np.bool_)), runs.write_brush(np.ones((2, 3), np.bool_))[:8]],
)  # fmt: skip
def test_damaged_brush_strokes_are_refused(data):
    with pytest.raises(BadAnnotation, match="brush"):
        runs.read_brush(data, 2, 3)


def test_claims_of_many_pixels_take_no_memory():
    tracemalloc.start()
    for attack in (
        lambda: runs.fill([0, 10**12], 100),
        lambda: runs.columns(runs.expand("o" * 6 + "0"), 10, 10),
        lambda: runs.read_brush([255, 255, 255, 255, *[255] * 12], 10, 10),
    ):
        with pytest.raises(BadAnnotation):
            attack()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
