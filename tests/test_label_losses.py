"""Losses of labels against formulas written out class by class in NumPy float64."""

import inspect
import subprocess
import sys

import keras
import numpy as np
import pytest

from carvana_tf.errors import UserError
from carvana_tf.tasks.labels import losses

NAMES = sorted(losses.LOSSES)


def ranking(truth, logits):
    """Of a batch: the published sum over positive classes divided by their number."""
    costs = []
    for t, x in zip(truth, logits.astype(np.float64), strict=True):
        negatives = x[t == 0]
        for c in np.flatnonzero(t):
            rivals = np.append(negatives, x[c])
            highest = rivals.max()
            costs.append(highest + np.log(np.exp(rivals - highest).sum()) - x[c])
    return sum(costs) / max(len(costs), 1)


def log_sigmoid(x):
    return np.minimum(x, 0) - np.log1p(np.exp(-abs(x)))


def bce(truth, logits):
    x = logits.astype(np.float64)
    return -np.where(truth == 1, log_sigmoid(x), log_sigmoid(-x)).mean(axis=1)


def focal(truth, logits, alpha=0.25, gamma=2.0):
    sign = np.where(truth == 1, 1, -1)
    logarithm = log_sigmoid(sign * logits.astype(np.float64))
    weight = np.where(truth == 1, alpha, 1 - alpha)
    return (-weight * (1 - np.exp(logarithm)) ** gamma * logarithm).mean(axis=1)


def values(loss, truth, logits):
    return keras.ops.convert_to_numpy(loss(truth, logits))


def gradient(loss, truth, logits):
    if keras.backend.backend() == "jax":
        jax = pytest.importorskip("jax")
        return np.asarray(jax.grad(lambda x: loss(truth, x).sum())(logits))
    tf = pytest.importorskip("tensorflow")
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loss(truth, variable))
    return tape.gradient(total, variable).numpy()


def batch(kind, classes=11, photos=5):
    random = np.random.default_rng(len(kind))
    truth = (random.random((photos, classes)) < 0.3).astype(np.float32)
    if kind == "none":
        truth[:] = 0
    elif kind == "all":
        truth[:] = 1
    elif kind == "each":
        truth[0], truth[1] = 0, 1
    logits = random.normal(0, 3, truth.shape).astype(np.float32)
    return truth, np.round(logits) if kind == "ties" else logits


KINDS = ("some", "none", "all", "each", "ties")


@pytest.mark.parametrize("kind", KINDS)
def test_mean_of_ranking_is_the_published_value_of_the_batch(kind):
    truth, logits = batch(kind)
    received = values(losses.get("ranking"), truth, logits)
    assert received.dtype == np.float32 and received.shape == (5,)
    assert received.mean() == pytest.approx(ranking(truth, logits), rel=1e-5, abs=1e-7)
    # One photo alone: its own mean over positives.
    alone = values(losses.get("ranking"), truth[:1], logits[:1])
    assert alone[0] == pytest.approx(ranking(truth[:1], logits[:1]), rel=1e-5, abs=1e-7)


def test_ranking_of_a_photo_is_its_share_of_the_batch():
    truth, logits = batch("each")
    received = values(losses.get("ranking"), truth, logits)
    positives = truth.sum(axis=1)
    own = [ranking(truth[i : i + 1], logits[i : i + 1]) for i in range(5)]
    np.testing.assert_allclose(received, own * positives * 5 / positives.sum(), rtol=1e-5)
    assert received[0] == received[1] == 0  # no label; no class that is none


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [1, 11])
def test_bce_and_focal_match_their_formulas(kind, classes):
    truth, logits = batch(kind, classes)
    np.testing.assert_allclose(
        values(losses.get("bce"), truth, logits), bce(truth, logits), rtol=1e-5
    )
    for parameters in ({}, {"gamma": 0.5, "alpha": 0.7}, {"gamma": 0.0, "alpha": 0.5}):
        np.testing.assert_allclose(
            values(losses.get("focal", **parameters), truth, logits),
            focal(truth, logits, **parameters),
            rtol=1e-5,
        )


@pytest.mark.parametrize("name", [*NAMES, "focal:gamma=0.5"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_finite_for_far_logits(name, kind):
    truth, logits = batch(kind)
    loss = losses.parse(name)
    for far in (1e4 * np.sign(logits), 1e4 * (2 * truth - 1), 1e4 * (1 - 2 * truth), 0 * logits):
        far = far.astype(np.float32)
        assert np.isfinite(values(loss, truth, far)).all()
        assert np.isfinite(gradient(loss, truth, far)).all()
    right = values(loss, truth, (1e4 * (2 * truth - 1)).astype(np.float32))
    assert not right.any()


@pytest.mark.parametrize("name", [*NAMES, "focal:gamma=0.5,alpha=0.6"])
@pytest.mark.parametrize("kind", ["some", "each"])
def test_gradient_is_that_of_the_formula(name, kind):
    truth, logits = batch(kind)
    logits[2, :3] = 0  # a head that starts at zero has such
    formula = {
        "ranking": lambda x: len(x) * ranking(truth, x),
        "bce": lambda x: bce(truth, x).sum(),
        "focal": lambda x: focal(truth, x).sum(),
    }.get(name, lambda x: focal(truth, x, 0.6, 0.5).sum())
    received = gradient(losses.parse(name), truth, logits)
    for at in [(0, 0), (0, 5), (1, 2), (2, 0), (2, 1), (2, 7), (4, 10)]:
        step = np.zeros(logits.shape)
        step[at] = 1e-5
        slope = (formula(logits + step) - formula(logits - step)) / 2e-5
        assert received[at] == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_low_precision_is_widened(name):
    truth, logits = batch("some")
    narrow = logits.astype(np.float16)
    received = values(losses.get(name), truth.astype(bool), narrow)
    assert received.dtype == np.float32
    expected = values(losses.get(name), truth, narrow.astype(np.float32))
    np.testing.assert_array_equal(received, expected)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="sizes are known in JAX")
@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_photos_may_be_unknown(name):
    tf = pytest.importorskip("tensorflow")
    truth, logits = batch("some")
    loss = losses.get(name)
    step = tf.function(loss, input_signature=[tf.TensorSpec((None, 11))] * 2)
    np.testing.assert_allclose(step(truth, logits), values(loss, truth, logits), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_table_has_the_keywords_of_each_loss(name):
    parameters = inspect.signature(losses.get(name)).parameters.values()
    keywords = tuple(p.name for p in parameters if p.kind == p.KEYWORD_ONLY)
    assert losses.LOSSES[name][1] == keywords


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rankin", "Did you mean 'ranking'"),
        ("ranking:alpha=1", "takes no parameters"),
        ("focal:gama=1", "Did you mean 'gamma'"),
        ("focal:gamma", "as focal:gamma=2,alpha=0.25"),
        ("focal:gamma=1,gamma=2", "cannot go on"),
        ("bce_dice", "Known: ranking, bce, focal"),
    ],
)
def test_mistakes_are_named_with_their_fix(text, message):
    for function in (losses.check, losses.parse):
        with pytest.raises(UserError, match=message):
            function(text)


def test_names_are_known_without_keras():
    code = (
        "import sys; from carvana_tf.tasks.labels import losses; losses.check('focal:gamma=1');"
        "sys.exit('keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
