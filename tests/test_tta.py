"""Views of photos against NumPy's flips and the formulas in float64."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from carvana_tf.inference import tta

BY_NAME = {
    "none": [lambda x: x],
    "hflip": [lambda x: x, np.fliplr],
    "flips": [lambda x: x, np.fliplr, np.flipud, lambda x: x[::-1, ::-1]],
}


def random_images(count, *shape):
    return list(np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8))


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("channels", [3, 6])
def test_stack_holds_every_flip_of_every_image(name, channels):
    images = random_images(2, 3, 5, channels)
    stacked = tta.stack(images, tta.VIEWS[name].flips)
    expected = [turn(image) for turn in BY_NAME[name] for image in images]
    np.testing.assert_array_equal(stacked, expected)


def test_a_single_image_as_it_is_is_not_copied():
    (image,) = random_images(1, 4, 4, 3)
    assert np.shares_memory(tta.stack([image], (None,)), image)


@hypothesis.given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from(list(BY_NAME))
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_merging_takes_the_mean_of_the_flips_undone(count, height, width, name):
    flips = tta.VIEWS[name].flips
    values = np.random.default_rng(1).random((len(flips) * count, height, width), np.float32)
    groups = values.reshape(len(flips), count, height, width)
    undone = [[turn(x) for x in group] for turn, group in zip(BY_NAME[name], groups, strict=True)]
    kept = values.copy()
    np.testing.assert_allclose(tta.merge(values, flips), np.mean(undone, axis=0), atol=1e-6)
    np.testing.assert_array_equal(values, kept)


@pytest.mark.parametrize("code", [None, 1, 0, -1])
def test_a_flip_is_a_view_and_its_own_inverse(code):
    (image,) = random_images(1, 3, 4, 3)
    np.testing.assert_array_equal(tta.flip(tta.flip(image, code), code), image)
    assert np.shares_memory(tta.flip(image, code), image)


def test_flips_with_scales_are_all_combinations():
    views = tta.VIEWS["flips+scales"]
    assert views.scales == (0.75, 1.0, 1.25)
    assert len(set(views.flips)) == 4


def test_logits_are_averaged_by_the_formula():
    p = np.random.default_rng(2).random((3, 50)).astype(np.float32)
    mean = sum(tta.to_average(one, "logit") for one in p) / 3
    odds = np.log(p.astype(np.float64) / (1 - p)).mean(axis=0)
    np.testing.assert_allclose(tta.from_average(mean, "logit"), 1 / (1 + np.exp(-odds)), atol=1e-5)


def test_certain_probabilities_have_finite_logits_and_stay():
    p = np.array([0, 1, 0.5], np.float32)
    logits = tta.to_average(p, "logit")
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(tta.from_average(logits, "logit"), p, atol=2e-6)
    assert tta.from_average((logits[:1] + logits[1:2]) / 2, "logit") == pytest.approx(0.5, abs=1e-2)


def test_nan_stays_nan():
    assert np.isnan(tta.to_average(np.array([np.nan], np.float32), "logit"))


def test_manifests_tell_all_ways_apart():
    assert tta.describe("hflip", "probability") == "hflip"
    assert tta.describe("flips+scales", "logit") == "flips+scales(0.75,1,1.25), mean of logits"
    described = {tta.describe(name, average) for name in tta.VIEWS for average in tta.AVERAGES}
    assert len(described) == len(tta.VIEWS) * len(tta.AVERAGES)
