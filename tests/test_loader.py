"""Batches: repeatability, sizes, one draw for photo, mask and stacked channels."""

import dataclasses

import numpy as np
import pytest

from carvana_tf.data.dataset import Naming, find_samples, with_stacked_channels
from carvana_tf.data.images import write_probability
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.presets import PRESETS, Augmentation
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.tasks import MASKS
from carvana_tf.tasks.masks import read_pair

NOTHING = Augmentation()


def training_set(samples, resizer=None, augmentation=NOTHING, **settings):
    resizer = resizer or Resizer("resize", 32, 48, 8)
    return TrainingSet(
        samples,
        resizer,
        augmentation,
        MASKS,
        **{"batch_size": 2, "seed": 7, "cache": "auto"} | settings,
    )


@pytest.fixture
def samples(make_dataset):
    root = make_dataset()
    return find_samples(root / "train", root / "train_masks", Naming())


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
    ("resizer", "shape"),
    [
        (Resizer("resize", 30, 50, 8), (32, 56)),
        (Resizer("pad", 0, 0, 32), (64, 64)),
        (Resizer("crop", 16, 24, 8), (16, 24)),
    ],
)
def test_batches_fit_the_network(samples, resizer, shape):
    photos, masks = training_set(samples, resizer, PRESETS["default"]).batch(0)
    assert photos.shape == (2, *shape, 3)
    assert photos.dtype == np.uint8
    assert masks.shape == (2, *shape, 1)
    assert masks.dtype == np.float32
    assert masks.min() == 0.0
    assert masks.max() == 1.0


@pytest.mark.parametrize("policy", ["pad", "resize"])
def test_training_equalises_as_validation_does(samples, policy):
    resizer = Resizer(policy, 24, 32, 8, clahe=True)
    data = training_set(samples, resizer, PRESETS["none"], batch_size=1)
    photo, mask = read_pair(data.samples[data.pick(0)[1]])
    photos, masks = data.batch(0)
    np.testing.assert_array_equal(photos[0], resizer.whole(photo))
    expected = resizer.whole(mask.astype(np.uint8) * 255) / 255
    np.testing.assert_allclose(masks[0, ..., 0], expected, atol=1e-6)


def test_photo_and_mask_get_the_same_draw(samples):
    data = training_set(samples, Resizer("pad", 0, 0, 8), PRESETS["default"], batch_size=1)
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
    photos, masks = training_set(stacked, Resizer("crop", 24, 32, 8), PRESETS["default"]).batch(0)
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
        training_set(samples, Resizer("crop", 64, 32, 8))


def test_pseudo_labelled_samples_are_spread_in_their_share(samples):
    """A quarter of the draws, each list through and through before it comes again."""
    hand, predicted = samples[:3], samples[3:5]
    training = training_set(hand, pseudo=predicted, pseudo_share=0.25)
    assert training.samples == [*hand, *predicted]
    drawn = [training.pick(g)[1] for g in range(24)]
    for block in range(0, 24, 4):
        assert sum(index >= 3 for index in drawn[block : block + 4]) == 1
    of_hand = [index for index in drawn if index < 3]
    of_predicted = [index for index in drawn if index >= 3]
    assert all(sorted(of_hand[i : i + 3]) == [0, 1, 2] for i in range(0, 18, 3))
    assert all(sorted(of_predicted[i : i + 2]) == [3, 4] for i in range(0, 6, 2))
    # 3 hand-made masks are 3/4 of 4 draws: two batches of two.
    assert training.steps_per_pass() == 2


def test_by_default_every_sample_is_drawn_as_often(samples):
    training = training_set(samples[:5], pseudo=samples[5:])
    assert training.steps_per_pass() == 4
    assert sorted(training.pick(g)[1] for g in range(8)) == list(range(8))
    alone = training_set(samples[:5])
    order = [alone.pick(g) for g in range(10)]
    assert [training.pick(g) for g in range(16) if training.pick(g)[1] < 5] == order


def test_predicted_masks_stay_soft(samples, tmp_path):
    values = np.arange(40 * 56, dtype=np.uint8).reshape(40, 56)
    write_probability(tmp_path / "soft.png", values)
    soft = dataclasses.replace(samples[0], mask=tmp_path / "soft.png", soft=True)
    _, masks = training_set([soft], Resizer("pad", 0, 0, 8), batch_size=1).batch(0)
    np.testing.assert_array_equal(masks[0, ..., 0], values.astype(np.float32) / 255)
    wrong = dataclasses.replace(soft, mask=tmp_path / "wrong.png")
    write_probability(tmp_path / "wrong.png", values[:5])
    with pytest.raises(UserError, match=r"wrong\.png' is 56x5 but its photo is 56x40"):
        training_set([wrong], batch_size=1).batch(0)
