"""Counts at every threshold against loops over pixels and against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.evaluation import counts
from carvana_tf.evaluation.counts import Counts, dice, dice_from_counts, histograms

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)
PAIRS = SHAPES.flatmap(
    lambda shape: st.tuples(hnp.arrays(np.uint8, shape), hnp.arrays(np.bool_, shape))
)


def brute_force(grey, truth, threshold):
    """tp, fp, fn, tn by looking at each pixel."""
    found = {"tp": 0, "fp": 0, "fn": 0, "tn": 0}
    for value, real in zip(grey.ravel().tolist(), truth.ravel().tolist(), strict=True):
        called = value > threshold
        found[("t" if called == real else "f") + ("p" if called else "n")] += 1
    return found


def counts_of(*pairs):
    parts = [histograms(grey, truth) for grey, truth in pairs]
    return Counts(np.stack([b for b, _ in parts]), np.stack([f for _, f in parts]))


@settings(deadline=None, max_examples=40)
@given(PAIRS)
def test_every_threshold_agrees_with_a_loop_over_pixels(pair):
    grey, truth = pair
    of_photo = counts_of((grey, truth))
    for threshold in {0, 1, 126, 127, 128, 254, 255, *grey.ravel().tolist()}:
        expected = brute_force(grey, truth, threshold)
        for name, value in expected.items():
            assert getattr(of_photo, name)[0, threshold] == value
        whole = 2 * expected["tp"] + expected["fp"] + expected["fn"]
        dice = 2 * expected["tp"] / whole if whole else 1.0
        assert of_photo.dice[0, threshold] == pytest.approx(dice, abs=1e-15)


def test_scikit_learn_agrees_on_all_ratios_at_all_thresholds():
    random = np.random.default_rng(3)
    truth = random.random((7, 9)) < 0.4
    grey = random.integers(0, 256, (7, 9)).astype(np.uint8)
    of_photo = counts_of((grey, truth))
    functions = {
        "dice": sklearn.metrics.f1_score,
        "iou": sklearn.metrics.jaccard_score,
        "precision": sklearn.metrics.precision_score,
        "recall": sklearn.metrics.recall_score,
    }
    for threshold in range(256):
        called = (grey > threshold).ravel()
        accuracy = sklearn.metrics.accuracy_score(truth.ravel(), called)
        assert of_photo.accuracy[0, threshold] == pytest.approx(accuracy, abs=1e-12)
        for name, function in functions.items():
            expected = function(truth.ravel(), called, zero_division=1.0)
            assert getattr(of_photo, name)[0, threshold] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(SHAPES, st.integers(0, 255))
def test_empty_truth_scores_one_exactly_where_nothing_is_called(shape, grey):
    curve = Counts(*histograms(np.full(shape, grey, np.uint8), np.zeros(shape, bool))).dice
    np.testing.assert_array_equal(curve, (np.arange(256) >= grey).astype(float))


@settings(deadline=None)
@given(SHAPES, st.integers(0, 255))
def test_full_truth_scores_one_exactly_where_all_is_called(shape, grey):
    curve = Counts(*histograms(np.full(shape, grey, np.uint8), np.ones(shape, bool))).dice
    np.testing.assert_array_equal(curve, (np.arange(256) < grey).astype(float))


@settings(deadline=None)
@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 255))
def test_single_pixel_among_called_pixels(row, column, threshold):
    truth = np.zeros((8, 8), bool)
    truth[row, column] = True
    grey = np.full((8, 8), 255, np.uint8)
    expected = 2 / (1 + 64) if threshold < 255 else 0.0
    assert Counts(*histograms(grey, truth)).dice[threshold] == pytest.approx(expected, abs=1e-15)


def test_default_threshold_is_a_probability_of_at_least_a_half():
    probabilities = np.array([[0.49, 0.4999, 0.5, 0.51]])
    grey = np.rint(255 * probabilities).astype(np.uint8)
    of_photo = counts_of((grey, np.ones(grey.shape, bool)))
    assert of_photo.tp[0, DEFAULT_THRESHOLD] == (probabilities >= 0.5).sum()


def test_photos_of_different_sizes_do_not_mix():
    random = np.random.default_rng(1)
    pairs = [
        (random.integers(0, 256, shape).astype(np.uint8), random.random(shape) < 0.5)
        for shape in ((3, 4), (10, 2), (1, 1))
    ]
    together = counts_of(*pairs)
    for i, pair in enumerate(pairs):
        np.testing.assert_array_equal(together.dice[i], counts_of(pair).dice[0])


def test_large_photos_are_counted_in_strips_without_loss(monkeypatch):
    random = np.random.default_rng(2)
    grey = random.integers(0, 256, (23, 10)).astype(np.uint8)
    truth = random.random((23, 10)) < 0.5
    whole = histograms(grey, truth)
    monkeypatch.setattr(counts, "_EXACT", 30)
    for strips, expected in zip(histograms(grey, truth), whole, strict=True):
        np.testing.assert_array_equal(strips, expected)
    np.testing.assert_array_equal(whole[1], np.bincount(grey[truth], minlength=256))


def test_dice_of_masks_is_that_of_their_counts_and_of_nothing_1():
    first, second = np.zeros((2, 3, 4), bool)
    assert dice(first, second) == 1.0
    first[0], second[:2] = True, True
    assert dice(first, second) == dice_from_counts(4, 12) == 2 * 4 / 12
    assert dice(first, first & False) == 0.0
    assert dice_from_counts([0, 0, 3], [0, 5, 8]).tolist() == [1.0, 0.0, 0.75]
