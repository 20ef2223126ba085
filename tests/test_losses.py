"""Losses, metrics and schedules against formulas written out in NumPy float64."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carvana_tf.errors import UserError
from carvana_tf.training import losses, metrics, schedules


def numpy_dice(truth, prediction):
    truth, prediction = truth.astype(np.float64), prediction.astype(np.float64)
    return (2 * (truth * prediction).sum() + 1) / (truth.sum() + prediction.sum() + 1)


def numpy_crossentropy(truth, prediction):
    p = np.clip(prediction.astype(np.float64), 1e-7, 1 - 1e-7)
    return -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()


REFERENCES = {
    "dice": lambda t, p: 1 - numpy_dice(t, p),
    "crossentropy": numpy_crossentropy,
    "bce_dice": lambda t, p: 0.2 * numpy_crossentropy(t, p) + 0.8 * (1 - numpy_dice(t, p)),
}


def masks(kind, random):
    truth = np.zeros((3, 8, 10, 1), np.float32)
    if kind == "full":
        truth[:] = 1
    elif kind == "single":
        truth[:, 3, 4] = 1
    elif kind == "random":
        truth[:] = random.random(truth.shape) > 0.5
    return truth


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
@pytest.mark.parametrize("kind", ["random", "empty", "full", "single"])
@pytest.mark.parametrize("extreme", [False, True])
def test_loss_matches_the_formula_photo_by_photo(name, kind, extreme):
    random = np.random.default_rng(3)
    truth = masks(kind, random)
    prediction = random.random(truth.shape).astype(np.float32)
    if extreme:
        prediction = np.rint(prediction)
    values = keras.ops.convert_to_numpy(losses.get(name)(truth, prediction))
    expected = [REFERENCES[name](t, p) for t, p in zip(truth, prediction, strict=True)]
    assert values.shape == (3,)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
@pytest.mark.parametrize("kind", ["random", "empty", "full", "single"])
def test_gradient_is_finite_even_at_certainty(name, kind):
    tf = pytest.importorskip("tensorflow")
    random = np.random.default_rng(4)
    truth = masks(kind, random)
    prediction = tf.Variable(np.rint(random.random(truth.shape)).astype(np.float32))
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(losses.get(name)(truth, prediction))
    assert np.isfinite(tape.gradient(value, prediction).numpy()).all()


def test_empty_truth_and_empty_prediction_is_a_perfect_score():
    nothing = np.zeros((1, 4, 4, 1), np.float32)
    assert float(losses.dice(nothing, nothing)[0]) == 0.0
    assert metrics.hard_dice(nothing > 0, nothing > 0) == 1.0


def test_a_photo_weighs_the_same_whatever_its_batch():
    random = np.random.default_rng(5)
    truth, prediction = random.random((2, 4, 8, 8, 1)).astype(np.float32)
    together = keras.ops.convert_to_numpy(losses.dice(truth, prediction))
    alone = [
        float(losses.dice(truth[i : i + 1], prediction[i : i + 1])[0]) for i in range(len(truth))
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'bce_dice'"):
        losses.get("bce_dise")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
def test_border_band_is_ten_pixels_on_each_side(seed, height, width):
    truth = np.random.default_rng(seed).random((height, width)) > 0.9
    band = metrics.border_band(truth)
    for y in range(height):
        for x in range(width):
            window = truth[max(0, y - 10) : y + 11, max(0, x - 10) : x + 11]
            assert band[y, x] == (window.any() and not window.all())


def test_photo_metrics_by_hand():
    truth = np.array([[True, True, False, False]])
    probabilities = np.array([[0.9, 0.4, 0.6, 0.1]], np.float32)
    scores = metrics.photo_metrics(truth, probabilities)
    assert scores["dice"] == pytest.approx(2 * 1 / (2 + 2))
    assert scores["dice_coef_clipped"] == pytest.approx(50.0)
    assert scores["dice_coef"] == pytest.approx((2 * 1.3 + 1) / (2 + 2.0 + 1))
    assert scores["dice_coef_border"] == pytest.approx(scores["dice_coef"])
    expected = -sum(math.log(p) for p in (0.9, 0.4, 0.4, 0.9)) / 4
    assert scores["binary_crossentropy"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("triangular", [1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 1.0]),
        ("triangular2", [1.0, 2.0, 3.0, 2.0, 1.0, 1.5, 2.0, 1.5, 1.0]),
        ("exp_range", [1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 1.0]),
    ],
)
def test_cyclical_rate(mode, expected):
    rate = schedules.build("constant", 0.1, 100, 0, f"1,3,2,{mode}")
    values = [float(keras.ops.convert_to_numpy(rate(step))) for step in range(9)]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_cosine_rises_then_falls_to_zero():
    rate = schedules.build("cosine", 0.4, 110, 10, None)
    values = [float(keras.ops.convert_to_numpy(rate(step))) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(values, [0.0, 0.2, 0.4, 0.2, 0.0], atol=1e-6)


@pytest.mark.parametrize("text", ["", "1,2,3", "a,b,c,triangular", "1,2,0,triangular", "1,2,3,tri"])
def test_a_clr_that_does_not_parse_is_named(text):
    with pytest.raises(UserError, match="--clr"):
        schedules.build("constant", 0.1, 10, 0, text)
