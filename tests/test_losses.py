"""Losses and metrics against formulas written out in NumPy float64."""

import inspect
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_references import REFERENCES, contour_distance
from processes import UNOPTIMISED

from carvana_tf.errors import UserError
from carvana_tf.tasks.masks import losses, metrics
from carvana_tf.tasks.masks.losses import boundaries

# Leaves pixels farther from a contour than any band or cut-off. One size for most masks: JAX
# compiles each operation for each size.
SIZE = (70, 150)


def rectangle(top, bottom, left, right, size=SIZE):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


MASKS = {
    "random": lambda random: random.random(SIZE) > 0.5,
    "empty": lambda _: np.zeros(SIZE, bool),
    "full": lambda _: np.ones(SIZE, bool),
    "single pixel": lambda _: rectangle(33, 34, 20, 21),
    "hole of a pixel": lambda _: ~rectangle(33, 34, 20, 21),
    "inside": lambda _: rectangle(20, 50, 30, 60),
    "touches a corner": lambda _: rectangle(0, 30, 100, 150),
    "one pixel high": lambda _: rectangle(0, 1, 3, 9, (1, 14)),
    "soft": lambda random: random.random(SIZE),
}
NAMES = sorted(losses.LOSSES)


@pytest.mark.parametrize("name", NAMES)
def test_the_table_has_the_keywords_of_each_loss(name):
    parameters = inspect.signature(losses.get(name)).parameters.values()
    keywords = {p.name: type(p.default) for p in parameters if p.kind == p.KEYWORD_ONLY}
    assert losses.LOSSES[name][1] == tuple(keywords)
    assert {each for each in keywords if keywords[each] is int} == {*keywords} & {*losses._WHOLE}


def batch_of(kind, extreme=False):
    """Two photos of the same truth and different predictions, float32[2, H, W, 1]."""
    random = np.random.default_rng(3)
    truth = np.stack([MASKS[kind](random)] * 2)[..., None].astype(np.float32)
    prediction = random.random(truth.shape).astype(np.float32)
    return truth, np.rint(prediction) if extreme else prediction


def values(loss, truth, prediction):
    return keras.ops.convert_to_numpy(loss(truth, prediction))


def gradient(loss, truth, prediction):
    """Of the sum over the photos, in whichever backend runs."""
    if keras.backend.backend() == "jax":
        jax = pytest.importorskip("jax")
        return np.asarray(jax.grad(lambda p: loss(truth, p).sum())(prediction))
    tf = pytest.importorskip("tensorflow")
    variable = tf.Variable(prediction)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loss(truth, variable))
    return tape.gradient(total, variable, unconnected_gradients="zero").numpy()


def test_every_loss_has_a_reference():
    assert sorted(REFERENCES) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("extreme", [False, True])
def test_loss_matches_the_formula_photo_by_photo(name, kind, extreme):
    truth, prediction = batch_of(kind, extreme)
    received = values(losses.get(name), truth, prediction)
    expected = [
        REFERENCES[name](t[..., 0], p[..., 0]) for t, p in zip(truth, prediction, strict=True)
    ]
    assert received.shape == (2,)
    assert received.dtype == np.float32
    np.testing.assert_allclose(received, expected, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bce_dice", {"bce_weight": 1.5, "dice_weight": 0.25, "smooth": 3.0}),
        ("dice", {"smooth": 5.0}),
        ("crossentropy_boot", {"beta": 0.7}),
        ("boot_soft", {"beta": 0.6, "bce_weight": 1.0, "dice_weight": 0.5}),
        ("boot_hard", {"beta": 0.6, "bce_weight": 1.0, "dice_weight": 0.5}),
        ("online_bootstrapping", {"pixels": 100, "threshold": 0.4}),
        ("online_bootstrapping", {"pixels": 300, "threshold": 0.8}),
        ("dice_coef_loss_border", {"border_weight": 0.5, "dice_weight": 0.2}),
        ("bce_dice_loss_border", {"border_weight": 0.5, "dice_weight": 0.2}),
        ("weighted_bce_dice", {"boundary_weight": 7.0}),
        ("log_dice", {"smooth": 4.0}),
        ("weighted_log_dice", {"boundary_weight": 7.0}),
        ("distance_weighted", {"strength": 3.0, "sigma": 2.5}),
        ("jaccard", {"smooth": 2.0}),
        ("bce_jaccard", {"bce_weight": 0.3, "jaccard_weight": 2.0, "smooth": 2.0}),
        ("focal", {"alpha": 0.6, "gamma": 0.5}),
        ("focal", {"alpha": 0.5, "gamma": 0.0}),
        ("tversky", {"alpha": 0.5, "beta": 0.5, "smooth": 2.0}),
    ],
)
@pytest.mark.parametrize("kind", ["random", "inside"])
def test_parameters_reach_the_formula(name, parameters, kind):
    truth, prediction = batch_of(kind)
    received = values(losses.get(name, **parameters), truth, prediction)
    expected = [
        REFERENCES[name](t[..., 0], p[..., 0], **parameters)
        for t, p in zip(truth, prediction, strict=True)
    ]
    np.testing.assert_allclose(received, expected, rtol=3e-5, atol=1e-6)
    assert np.isfinite(gradient(losses.get(name, **parameters), truth, np.rint(prediction))).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", MASKS)
def test_gradient_is_finite_even_at_certainty(name, kind):
    assert np.isfinite(gradient(losses.get(name), *batch_of(kind, extreme=True))).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["random", "inside", "empty", "soft"])
def test_gradient_is_that_of_the_formula(name, kind):
    truth, prediction = batch_of(kind)
    # Away from the steps at 0.5 (hard bootstrapping) and at 0.3 (hard examples).
    prediction = np.where(truth > 0.5, 0.62 + 0.3 * prediction, 0.02 + 0.2 * prediction)
    prediction[:, ::3] = 0.55
    received = gradient(losses.get(name), truth, prediction)[0, ..., 0]
    random = np.random.default_rng(6)
    t, p = truth[0, ..., 0], prediction[0, ..., 0].astype(np.float64)
    for y, x in random.integers(0, t.shape, (6, 2)):
        if abs(abs(t[y, x] - p[y, x]) - 0.3) < 0.01:
            continue
        step = np.zeros_like(p)
        step[y, x] = 1e-5
        slope = (REFERENCES[name](t, p + step) - REFERENCES[name](t, p - step)) / 2e-5
        assert received[y, x] == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [kind for kind in MASKS if kind != "soft"])
def test_a_perfect_prediction_costs_nothing_and_its_opposite_something(name, kind):
    truth, _ = batch_of(kind)
    np.testing.assert_allclose(values(losses.get(name), truth, truth), 0.0, atol=2e-6)
    assert (values(losses.get(name), truth, 1 - truth) > 0.5).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_photo_weighs_the_same_whatever_its_batch(name):
    random = np.random.default_rng(5)
    truth = random.random((4, 24, 30, 1)) > np.array([0.2, 0.5, 1.0, 0.0])[:, None, None, None]
    truth = truth.astype(np.float32)
    prediction = random.random(truth.shape).astype(np.float32)
    loss = losses.get(name)
    alone = [values(loss, truth[i : i + 1], prediction[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(values(loss, truth, prediction), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_low_precision_is_widened(name):
    truth, prediction = batch_of("random")
    prediction = prediction.astype(np.float16)
    received = values(losses.get(name), truth.astype(bool), prediction)
    assert received.dtype == np.float32
    expected = values(losses.get(name), truth, prediction.astype(np.float32))
    np.testing.assert_array_equal(received, expected)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="sizes are known in JAX")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(None, None, None, 1), (None, 70, 150, 1), (2, 70, 150, 1)])
def test_sizes_may_be_unknown_when_the_step_is_compiled(name, shape):
    tf = pytest.importorskip("tensorflow")
    loss = losses.get(name)
    known = None not in shape

    @tf.function(input_signature=[tf.TensorSpec(shape)] * 2, jit_compile=known)
    def step(truth, prediction):
        with tf.GradientTape() as tape:
            tape.watch(prediction)
            value = loss(truth, prediction)
        return value, tape.gradient(value, prediction)

    for kind in ("inside", "touches a corner") if shape[1] else ("inside", "random", "empty"):
        truth, prediction = batch_of(kind)
        value, slope = step(truth, prediction)
        np.testing.assert_allclose(value, values(loss, truth, prediction), rtol=1e-5, atol=1e-6)
        expected = gradient(loss, truth, prediction)
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="for the JAX backend")
@pytest.mark.parametrize("name", NAMES)
def test_jax_compiles_it(name):
    jax = pytest.importorskip("jax")
    truth, prediction = batch_of("inside")
    compiled = np.asarray(jax.jit(losses.get(name))(truth, prediction))
    expected = values(losses.get(name), truth, prediction)
    np.testing.assert_allclose(compiled, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_every_loss_is_the_same_in_jax():
    pytest.importorskip("jax")
    # Gradients at another size would compile everything once more.
    selected = "formula or (certainty and not high) or widened or jax_compiles"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", selected, "-m", "not slow", __file__],
        env=os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": UNOPTIMISED},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_hard_examples_are_counted_per_photo():
    random = np.random.default_rng(8)
    truth = (random.random((2, 250, 200, 1)) > 0.5).astype(np.float32)
    prediction = np.clip(1 - truth + 0.6 * random.random(truth.shape) - 0.3, 0, 1)
    prediction = prediction.astype(np.float32)  # 50,000 hard pixels, of which 32,768 count
    prediction[1] = 0.9 * truth[1] + 0.05  # none
    received = values(losses.get("online_bootstrapping"), truth, prediction)
    expected = REFERENCES["online_bootstrapping"](truth[0, ..., 0], prediction[0, ..., 0])
    np.testing.assert_allclose(received, [expected, 0.0], rtol=1e-5)
    slope = gradient(losses.get("online_bootstrapping"), truth, prediction)
    assert np.count_nonzero(slope[0]) <= 32768
    assert not slope[1].any()


@pytest.mark.parametrize(
    ("height", "side"),
    [
        *[(128, 11), (256, 21), (512, 21), (1024, 41), (1280, 51)],  # published
        *[(8, 3), (64, 7), (400, 21), (586, 23), (768, 31), (1600, 63)],
    ],
)
def test_boundary_window_is_the_published_or_between(height, side):
    truth = np.zeros((1, height, 3, 1), np.float32)
    truth[:, height // 2 :] = 1
    weights = keras.ops.convert_to_numpy(boundaries.boundary_weights(truth, 3.0))[0, :, 0, 0]
    near = weights > 1.5 * weights.min()
    assert near.sum() == side - 1
    assert near[height // 2] and near[height // 2 - 1]
    assert weights.mean() == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(weights[near], 3.0 * weights.min(), rtol=1e-6)


def test_border_band_is_that_of_the_metrics():
    truth = np.stack([MASKS[kind](None) for kind in ("inside", "single pixel", "touches a corner")])
    bands = keras.ops.convert_to_numpy(boundaries.border_band(truth[..., None]))
    for mask, band in zip(truth, bands[..., 0], strict=True):
        np.testing.assert_array_equal(band, metrics.border_band(mask))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.02, 0.5, 0.98]),
)
def test_contour_distances_are_exact_up_to_the_limit(seed, height, width, limit, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    squared = boundaries.contour_distance_squared(mask[None, ..., None], limit)
    squared = keras.ops.convert_to_numpy(squared)[0, ..., 0]
    expected = contour_distance(mask) ** 2
    within = expected <= limit**2 + 0.5
    np.testing.assert_allclose(squared[within], expected[within], rtol=1e-6)
    assert (squared[~within] > limit**2).all()


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'bce_dice'"):
        losses.get("bce_dise")


def test_an_unknown_parameter_names_the_nearest():
    with pytest.raises(UserError, match=r"'bce_dice': parameter .* mean 'bce_weight'"):
        losses.get("bce_dice", bce_wieght=1.0)
    with pytest.raises(UserError, match="'crossentropy' takes no parameters; drop 'smooth'"):
        losses.get("crossentropy", smooth=1.0)


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("focal", "focal", {}),
        ("bce_dice:bce_weight=1,dice_weight=1", "bce_dice", {"bce_weight": 1, "dice_weight": 1}),
        ("online_bootstrapping: pixels = 1e2", "online_bootstrapping", {"pixels": 100}),
    ],
)
def test_parameters_from_the_flag(text, name, parameters):
    truth, prediction = batch_of("random")
    received = values(losses.parse(text), truth, prediction)
    np.testing.assert_array_equal(
        received, values(losses.get(name, **parameters), truth, prediction)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bce_dise:bce_weight=1", "Did you mean 'bce_dice'"),
        ("bce_dice:bce_wait=1", "Did you mean 'bce_weight'"),
        ("bce_dice:name=1", "parameter 'name' is unknown"),
        ("bce_dice:", "cannot go on with ''"),
        ("bce_dice:smooth", "cannot go on with 'smooth'"),
        ("dice:smooth=0", "'smooth' must be greater than 0"),
        ("bce_dice:smooth=much", "cannot go on with 'smooth=much'"),
        ("bce_dice:smooth=nan", "cannot go on with 'smooth=nan'"),
        ("bce_dice:smooth=-1", "cannot go on with 'smooth=-1'"),
        ("bce_dice:smooth=1,smooth=2", "cannot go on with 'smooth=2'"),
        ("online_bootstrapping:pixels=1.5", "'pixels' must be a whole number"),
    ],
)
def test_a_loss_that_does_not_parse_is_told(text, message):
    with pytest.raises(UserError, match=message) as caught:
        losses.parse(text)
    assert "\n" not in str(caught.value)


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
    assert scores["accuracy"] == pytest.approx(2 / 4)
    assert scores["dice_coef_clipped"] == pytest.approx(50.0)
    assert scores["dice_coef"] == pytest.approx((2 * 1.3 + 1) / (2 + 2.0 + 1))
    assert scores["dice_coef_border"] == pytest.approx(scores["dice_coef"])
    expected = -sum(math.log(p) for p in (0.9, 0.4, 0.4, 0.9)) / 4
    assert scores["binary_crossentropy"] == pytest.approx(expected, rel=1e-5)
