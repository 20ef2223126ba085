"""Tiles against the whole image."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from carvana_tf.errors import UserError
from carvana_tf.inference import tiling, tta
from carvana_tf.inference.tiling import Tiling


@pytest.mark.parametrize(
    ("size", "overlap", "stride"), [(32, 8, 8), (32, 24, 8), (16, 0, 1), (24, 10, 2), (8, 7, 1)]
)
def test_weights_sum_to_one_whatever_the_length(size, overlap, stride):
    for length in range(stride, 6 * size, stride):
        sides = tiling.tile_sides(length, Tiling(size, overlap), stride)
        total = np.zeros(length)
        for side in sides:
            assert side.pixels.stop - side.pixels.start == min(size, length)
            assert side.pixels.start % stride == 0
            assert side.weights.min() >= 0
            total[side.pixels] += side.weights
        np.testing.assert_allclose(total, 1, atol=1e-6)
        for before, after in itertools.pairwise(sides):
            shared = before.pixels.stop - after.pixels.start
            assert shared >= overlap
            outer = overlap // 4
            assert not before.weights[len(before.weights) - outer :].any()
            assert not after.weights[:outer].any()


def test_no_more_tiles_than_are_needed():
    assert len(tiling.tile_sides(32, Tiling(32, 8), 8)) == 1
    assert len(tiling.tile_sides(40, Tiling(32, 8), 8)) == 2
    assert len(tiling.tile_sides(56, Tiling(32, 8), 8)) == 2
    assert len(tiling.tile_sides(64, Tiling(32, 8), 8)) == 3


def test_the_window_is_smooth():
    weights = tiling.tile_sides(512, Tiling(256, 128), 32)[0].weights
    steps = np.abs(np.diff(weights))
    assert steps.max() < 2 / 64
    assert np.abs(np.diff(steps)).max() < 0.01


class Network:
    """Blurs what it has pooled, 4 pixels far; beyond the edge of its input it sees zeros."""

    def __init__(self):
        self.shapes = []
        kernel = np.random.default_rng(5).random((9, 9))
        self.kernel = kernel / kernel.sum()

    def __call__(self, batch):
        self.shapes.append(batch.shape)
        return np.stack([self.one(image) for image in batch])

    def one(self, image):
        grey = image[..., 0].astype(np.float64) / 255 + image[..., 2] / 1000
        height, width = grey.shape
        pooled = grey.reshape(height // 4, 4, width // 4, 4).max((1, 3))
        spread = np.repeat(np.repeat(pooled, 4, 0), 4, 1)
        return ndimage.correlate(spread + grey, self.kernel, mode="constant").astype(np.float32)


@pytest.mark.parametrize("name", ["none", "hflip", "flips"])
@pytest.mark.parametrize("shape", [(40, 96), (72, 44), (100, 24), (32, 32)])
def test_tiles_give_what_the_whole_image_gives(name, shape):
    images = list(np.random.default_rng(3).integers(0, 256, (2, *shape, 3), np.uint8))
    flips = tta.VIEWS[name].flips
    whole = tta.merge(Network()(tta.stack(images, flips)), flips)
    network = Network()
    tiled = tiling.predict(network, images, flips, Tiling(32, 16), stride=4, batch_size=3)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)
    assert tiled.dtype == np.float32
    sizes = {min(shape[0], 32), min(shape[1], 32)}
    assert {side for s in network.shapes for side in s[1:3]} == sizes
    assert max(s[0] for s in network.shapes) <= 3


def test_no_overlap_cuts_hard():
    image = np.random.default_rng(4).integers(0, 256, (24, 40, 3), np.uint8)

    def network(batch):
        return batch[..., 0] / np.float32(255)

    tiled = tiling.predict(network, [image], (None,), Tiling(16, 0), stride=8, batch_size=1)
    np.testing.assert_allclose(tiled[0], image[..., 0] / 255, atol=1e-6)


def test_neighbours_that_disagree_are_blended():
    image = np.zeros((8, 64, 3), np.uint8)
    calls = iter([0.0, 1.0])
    tiled = tiling.predict(
        lambda batch: np.full(batch.shape[:3], next(calls), np.float32),
        [image],
        (None,),
        Tiling(40, 16),
        stride=8,
        batch_size=1,
    )
    row = tiled[0, 0]
    assert (tiled == row).all()
    assert (np.diff(row) >= 0).all()
    assert np.diff(row).max() < 0.25
    assert not row[:28].any()
    assert (row[36:] == 1).all()


def test_too_large_for_one_tile_on_one_side_only():
    assert Tiling(32, 8).covers(32, 32)
    assert not Tiling(32, 8).covers(33, 1)
    assert not Tiling(32, 8).covers(1, 33)


def test_flags():
    assert tiling.from_flags(0, None, [32]) is None
    assert tiling.from_flags(256, None, [32]) == Tiling(256, 64)
    assert tiling.from_flags(192, 70, [32, 64]) == Tiling(192, 128)
    assert str(Tiling(256, 64)) == "256 overlap 64"


@pytest.mark.parametrize(
    ("size", "overlap", "strides", "message"),
    [
        (1000, None, [32], r"--tile_size=1000 .* 32.* nearest is 992"),
        (100, None, [32, 64], r"--tile_size=100 .* 64.* nearest is 128"),
        (5, None, [32], r"nearest is 32"),
        (64, 64, [32], r"--tile_overlap=64 .* less than --tile_size=64"),
        (64, 33, [32], r"--tile_overlap=33 .*less than --tile_size=64"),
        (0, 8, [32], "--tile_overlap=8 needs --tile_size"),
    ],
)
def test_flags_that_do_not_fit(size, overlap, strides, message):
    with pytest.raises(UserError, match=message):
        tiling.from_flags(size, overlap, strides)
