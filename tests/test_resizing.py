"""From a photo's size to the network's and exactly back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carvana_tf.data.images import equalise
from carvana_tf.data.resizing import Resizer, input_size, small_crop

LENGTHS = st.integers(1, 70)
STRIDES = st.sampled_from([1, 2, 8, 32, 64])


@settings(deadline=None)
@given(LENGTHS, LENGTHS, STRIDES, st.sampled_from(["pad", "crop"]))
def test_whole_photos_come_back_exactly(height, width, stride, policy):
    image = np.random.default_rng(height).random((height, width), np.float32)
    resizer = Resizer(policy, 64, 64, stride)
    padded = resizer.whole(image)
    assert padded.shape == (-(-height // stride) * stride, -(-width // stride) * stride)
    np.testing.assert_array_equal(resizer.restore(padded, height, width), image)


@settings(deadline=None)
@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS, STRIDES)
def test_a_constant_survives_resizing(height, width, rows, columns, stride):
    resizer = Resizer("resize", rows, columns, stride)
    padded = resizer.whole(np.full((height, width), 0.3, np.float32))
    assert padded.shape[0] % stride == padded.shape[1] % stride == 0
    assert padded.shape[0] - rows < stride and padded.shape[1] - columns < stride
    restored = resizer.restore(padded, height, width)
    assert restored.shape == (height, width) and restored.dtype == np.float32
    np.testing.assert_allclose(restored, 0.3, rtol=1e-5)


def test_resizing_to_the_same_size_is_padding():
    image = np.random.default_rng(0).random((20, 30), np.float32)
    resizer = Resizer("resize", 20, 30, 32)
    np.testing.assert_array_equal(resizer.whole(image), Resizer("pad", 0, 0, 32).whole(image))
    np.testing.assert_array_equal(resizer.restore(resizer.whole(image), 20, 30), image)


def test_padding_reflects_with_the_odd_pixel_at_the_end():
    row = np.array([[1, 2, 3, 4, 5]], np.uint8)
    padded = Resizer("pad", 0, 0, 8).pad(np.repeat(row, 8, axis=0))
    np.testing.assert_array_equal(padded[0], np.pad(row[0], (1, 2), mode="reflect"))


def test_the_published_padding_of_1918_columns():
    padded = Resizer("pad", 0, 0, 64).pad(np.zeros((1280, 1918), np.uint8))
    assert padded.shape == (1280, 1920)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("policy", ["pad", "resize"])
def test_channels_are_kept(channels, policy):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    whole = Resizer(policy, 16, 24, 32).whole(image)
    assert whole.shape == (32, 32, channels)
    for channel in range(channels):
        np.testing.assert_array_equal(
            whole[..., channel],
            Resizer(policy, 16, 24, 32).whole(np.ascontiguousarray(image[..., channel])),
        )


def test_an_image_that_fits_is_not_copied():
    image = np.zeros((64, 32, 3), np.uint8)
    assert Resizer("pad", 0, 0, 32).whole(image) is image


@pytest.mark.parametrize(
    ("resizer", "seen"),
    [(Resizer("pad", 0, 0, 32), (1280, 1918)), (Resizer("resize", 512, 768, 32), (512, 768))],
)
def test_a_scale_changes_what_the_network_sees(resizer, seen):
    assert resizer.at_scale(1.0, 1280, 1918) == resizer
    larger = resizer.at_scale(1.25, 1280, 1918)
    assert (larger.height, larger.width) == (round(1.25 * seen[0]), round(1.25 * seen[1]))
    assert resizer.at_scale(0.001, 1280, 1918).height == 1
    whole = larger.whole(np.zeros((1280, 1918, 3), np.uint8))
    assert whole.shape[0] % 32 == whole.shape[1] % 32 == 0
    assert larger.restore(np.zeros(whole.shape[:2], np.float32), 1280, 1918).shape == (1280, 1918)


@pytest.mark.parametrize("policy", ["pad", "resize"])
def test_photos_are_equalised_and_nothing_else(policy):
    random = np.random.default_rng(0)
    photo = random.integers(90, 110, (40, 56, 4), np.uint8)
    plain = Resizer(policy, 24, 32, 8)
    equalising = Resizer(policy, 24, 32, 8, clahe=True)
    result = equalising.whole(photo)
    np.testing.assert_array_equal(result, plain.whole(equalise(photo)))
    assert result[..., :3].std() > 2 * plain.whole(photo)[..., :3].std()
    np.testing.assert_array_equal(result[..., 3], plain.whole(photo)[..., 3])
    mask = random.integers(0, 256, (40, 56), np.uint8)
    np.testing.assert_array_equal(equalising.whole(mask), plain.whole(mask))


@pytest.mark.parametrize(
    ("policy", "sizes", "flags", "expected"),
    [
        ("resize", [(1280, 1918)], {}, (320, 480)),
        ("resize", [(1918, 1280)] * 3 + [(1280, 1918)], {}, (480, 320)),
        ("resize", [(256, 256), (256, 320), (520, 696)], {}, (256, 320)),
        ("resize", [(20, 30)], {}, (32, 32)),
        ("resize", [(10, 9000)], {}, (32, 8992)),
        ("resize", [(1280, 1918)], {"width": 960}, (640, 960)),
        ("resize", [(1280, 1918)], {"height": 100}, (100, 160)),
        ("resize", [(1280, 1918)], {"height": 77, "width": 55}, (77, 55)),
        ("crop", [(1280, 1918)], {}, (1024, 1024)),
        ("crop", [(1280, 1918), (300, 2000)], {}, (288, 1024)),
        ("crop", [(300, 2000)], {"width": 64}, (288, 64)),
        ("pad", [(300, 2000)], {}, (0, 0)),
    ],
)
def test_what_flags_leave_open_follows_from_the_photos(policy, sizes, flags, expected):
    assert input_size(policy, sizes, 32, **flags) == expected


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(1280, 1918)] * 3, None),
        ([(1280, 1918)] * 3 + [(1000, 1000)], None),  # 992 of 1024
        ([(1280, 1918)] * 3 + [(300, 280)], (3, (1024, 1024))),
        ([(1280, 1918), (1280, 200), (1280, 1918)], (1, (1024, 1024))),
        ([(300, 280)] * 4 + [(1280, 1918)], None),  # most are small
    ],
)
def test_a_small_photo_that_shrinks_the_crop_of_all_is_found(sizes, expected):
    assert small_crop(sizes, input_size("crop", sizes, 32), 32) == expected
