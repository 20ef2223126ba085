"""Augmentation and batches: geometry, repeatability, one draw for all."""

import numpy as np
import pytest

from carvana_tf.data.augment import PRESETS, Augmentation, Transform, draw, recolour, warp
from carvana_tf.data.dataset import Naming, find_samples, with_stacked_channels
from carvana_tf.data.images import write_probability
from carvana_tf.data.loader import TrainingSet, read_pair
from carvana_tf.data.sizing import Sizing
from carvana_tf.errors import UserError

NOTHING = Augmentation()


def training_set(samples, sizing=None, augmentation=NOTHING, **settings):
    sizing = sizing or Sizing("resize", 32, 48, 8)
    return TrainingSet(
        samples, sizing, augmentation, **{"batch_size": 2, "seed": 7, "cache": "auto"} | settings
    )


@pytest.fixture
def samples(make_dataset):
    root = make_dataset()
    return find_samples(root / "train", root / "train_masks", Naming())


def test_no_augmentation_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (21, 30, 3), np.uint8)
    transform = draw(NOTHING, np.random.default_rng(1), image.shape[:2])
    np.testing.assert_array_equal(warp(image, transform, 0, 0, 21, 30), image)
    np.testing.assert_array_equal(recolour(image, transform), image)


def test_a_flip_is_exact():
    image = np.random.default_rng(0).integers(0, 256, (21, 30, 3), np.uint8)
    transform = draw(Augmentation(hflip=1.0), np.random.default_rng(1), image.shape[:2])
    np.testing.assert_array_equal(warp(image, transform, 0, 0, 21, 30), image[:, ::-1])


def test_a_window_is_the_same_part_of_the_whole_warp():
    image = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
    transform = draw(PRESETS["default"], np.random.default_rng(5), image.shape)
    whole = warp(image, transform, 0, 0, 60, 80).astype(int)
    window = warp(image, transform, 11, 23, 32, 32).astype(int)
    assert np.abs(window - whole[11:43, 23:55]).max() <= 2  # rounding of the coordinates


def test_zoom_enlarges_about_the_centre():
    image = np.zeros((41, 41), np.uint8)
    image[15:26, 15:26] = 255
    transform = draw(Augmentation(zoom=(2.0, 2.0)), np.random.default_rng(0), image.shape)
    rows, columns = np.nonzero(warp(image, transform, 0, 0, 41, 41) > 127)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(20, abs=0.5)
    assert columns.max() - columns.min() + 1 == pytest.approx(22, abs=1)


def test_rotation_turns_by_its_angle():
    image = np.zeros((101, 101), np.uint8)
    image[50, 70:90] = 255
    quarter = Transform(np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, 1]]), np.zeros(3, np.float32))
    rows, columns = np.nonzero(warp(image, quarter, 0, 0, 101, 101) > 127)
    assert set(columns) == {50}
    assert len(rows) == 20


def test_colour_changes_leave_stacked_channels_alone():
    image = np.full((4, 4, 5), 100, np.uint8)
    moved = recolour(image, Transform(np.eye(3), np.array([10, -10, 200], np.float32)))
    assert moved[0, 0].tolist() == [110, 90, 255, 100, 100]


def test_a_batch_depends_on_seed_and_step_alone(samples):
    first = training_set(samples, augmentation=PRESETS["default"])
    again = training_set(samples, augmentation=PRESETS["default"], cache="none")
    steps = range(9)
    forward = [first.batch(step) for step in steps]
    backward = {step: again.batch(step) for step in reversed(steps)}
    for step, (photos, masks) in enumerate(forward):
        np.testing.assert_array_equal(photos, backward[step][0])
        np.testing.assert_array_equal(masks, backward[step][1])
    other = training_set(samples, augmentation=PRESETS["default"], seed=8)
    assert any((other.batch(step)[0] != forward[step][0]).any() for step in steps)


def test_every_pass_shows_every_photo_once_in_another_order(samples):
    data = training_set(samples, batch_size=1)
    photos = [data.batch(step)[0].tobytes() for step in range(2 * len(samples))]
    first, second = photos[: len(samples)], photos[len(samples) :]
    assert len(set(first)) == len(samples)
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize(
    ("sizing", "shape"),
    [
        (Sizing("resize", 30, 50, 8), (32, 56)),
        (Sizing("pad", 0, 0, 32), (64, 64)),
        (Sizing("crop", 16, 24, 8), (16, 24)),
    ],
)
def test_batches_fit_the_network(samples, sizing, shape):
    photos, masks = training_set(samples, sizing, PRESETS["default"]).batch(0)
    assert photos.shape == (2, *shape, 3)
    assert photos.dtype == np.uint8
    assert masks.shape == (2, *shape, 1)
    assert masks.dtype == np.float32
    assert masks.min() == 0.0
    assert masks.max() == 1.0


def test_photo_and_mask_get_the_same_draw(samples):
    data = training_set(samples, Sizing("pad", 0, 0, 8), PRESETS["default"], batch_size=1)
    for step in range(8):
        photos, masks = data.batch(step)
        bright = photos[0].mean(-1) > 110
        inside = masks[0, ..., 0] > 0.5
        assert 2 * (bright & inside).sum() / (bright.sum() + inside.sum()) > 0.97


def test_stacked_channels_follow_the_photo(samples, tmp_path):
    for sample in samples:
        _, mask = read_pair(sample)
        target = tmp_path / "stack" / "0" / f"{sample.stem}.png"
        write_probability(target, mask.astype(np.uint8) * 255)
    stacked = with_stacked_channels(samples, tmp_path / "stack", 1)
    photos, masks = training_set(stacked, Sizing("crop", 24, 32, 8), PRESETS["default"]).batch(0)
    assert photos.shape[-1] == 4
    np.testing.assert_array_equal(photos[..., 3] > 127, masks[..., 0] > 0.5)


def test_a_mask_of_another_size_is_named(samples):
    write_probability(samples[0].mask.with_suffix(".png"), np.zeros((9, 9), np.uint8))
    samples[0].mask.unlink()
    wrong = find_samples(samples[0].photo.parent, samples[0].mask.parent)[0]
    with pytest.raises(UserError, match=r"_mask\.png' is 9x9 but its photo is 56x40"):
        read_pair(wrong)


def test_a_crop_larger_than_a_photo_is_refused(samples):
    with pytest.raises(UserError, match="larger than"):
        training_set(samples, Sizing("crop", 64, 32, 8))
