"""Metrics of labels against sorting all pairs, and against sets of one photo."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from carvana_tf.tasks.labels.metrics import (
    THRESHOLDS,
    GlobalAveragePrecision,
    MeanF2,
    of_answer,
    per_photo,
)
from carvana_tf.tasks.labels.scores import choose, ranking_scores, sigmoid_scores


def photos(kind, classes, count=12):
    """Logits `float32[count, K]`, and the positive classes of each."""
    random = np.random.default_rng(classes + len(kind))
    truth = random.random((count, classes)) < min(0.3, 8 / classes)
    if kind == "none positive":
        truth[:] = False
    elif kind == "all positive":
        truth[:] = True
    elif kind == "some without":
        truth[::3] = False
    logits = (random.normal(-1, 2, truth.shape) + 2 * truth).astype(np.float32)
    if kind == "ties":
        logits = np.rint(logits)
    return logits, [np.flatnonzero(row) for row in truth]


KINDS = ("usual", "none positive", "all positive", "some without", "ties")
SIZES = (1, 7, 150, 400)


def fill(metric, indices, scores, positives):
    for row in zip(indices, scores, positives, strict=True):
        metric.update(*row)
    return metric


def exact_gap(indices, scores, positives):
    """Down the sorted list of all pairs; equal scores are taken together."""
    pairs = [
        (score, index in set(right.tolist()))
        for ids, values, right in zip(indices.tolist(), scores, positives, strict=True)
        for index, score in zip(ids, values, strict=True)
    ]
    total = sum(map(len, positives))
    value, seen, found = 0.0, 0, 0
    for score in sorted({score for score, _ in pairs}, reverse=True):
        hits = [hit for other, hit in pairs if other == score]
        seen, found = seen + len(hits), found + sum(hits)
        value += sum(hits) * found / seen
    return value / total if total else 0.0


@pytest.mark.parametrize("function", [ranking_scores, sigmoid_scores])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", SIZES)
def test_gap_is_that_of_all_sorted_pairs(function, kind, classes):
    logits, positives = photos(kind, classes)
    indices, scores = function(logits)
    received = fill(GlobalAveragePrecision(), indices, scores, positives).result()
    assert received == pytest.approx(exact_gap(indices, scores, positives), abs=1e-3)
    if kind == "ties" and function is sigmoid_scores:
        # Their few values are in bins of their own, so nothing is lost.
        assert received == pytest.approx(exact_gap(indices, scores, positives), abs=1e-12)


@pytest.mark.parametrize("kind", ["usual", "some without", "ties"])
def test_gap_is_that_of_scikit_learn_where_all_classes_have_scores(kind):
    logits, positives = photos(kind, 120, count=200)
    indices, scores = sigmoid_scores(logits)
    hits = np.stack([np.isin(*row) for row in zip(indices, positives, strict=True)])
    received = fill(GlobalAveragePrecision(), indices, scores, positives).result()
    assert received == pytest.approx(
        average_precision_score(hits.ravel(), scores.ravel()), abs=2e-4
    )


def test_positives_without_a_score_are_missed():
    gap = GlobalAveragePrecision()
    gap.update(np.array([4, 9]), np.float32([0.9, 0.8]), np.array([9, 300, 2, 300]))
    assert gap.positives == 3
    assert gap.result() == pytest.approx(1 / 2 / 3)
    gap.update(np.array([], int), np.float32([]), np.array([1]))
    assert gap.result() == pytest.approx(1 / 2 / 4)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.5, 0.50001), (0.0, 1e-9), (1e-6, 1.001e-6), (0.99999, 0.999991), (1 - 2**-24, 1.0)],
)
def test_scores_that_differ_by_more_than_a_bin_are_told_apart(low, high):
    gap = GlobalAveragePrecision()
    gap.update(np.array([1, 0]), np.float32([high, low]), np.array([1]))
    assert gap.result() == 1  # one half where both are one place


def test_equal_scores_share_the_precision_after_all_of_them():
    gap = GlobalAveragePrecision()
    gap.update(np.arange(4), np.full(4, 0.25, np.float32), np.array([0, 3]))
    assert gap.result() == 0.5


@pytest.mark.parametrize("metric", [GlobalAveragePrecision, MeanF2])
def test_parts_can_be_merged_in_any_order(metric):
    logits, positives = photos("usual", 30)
    rows = list(zip(*ranking_scores(logits), positives, strict=True))
    whole, parts = metric(), [metric(), metric()]
    for number, row in enumerate(rows):
        whole.update(*row)
        parts[number % 2].update(*row)
    parts[1].merge(parts[0])
    assert parts[1].result() == pytest.approx(whole.result(), abs=1e-15)


def set_f2(answered, positives):
    """As the published system: sets of one photo."""
    answered, positives = set(answered), set(positives)
    right = len(answered & positives)
    precision = right / len(answered) if answered else 1.0
    recall = right / len(positives) if positives else 1.0
    divisor = 4 * precision + recall
    return precision, recall, 5 * precision * recall / divisor if divisor else 0.0


@pytest.mark.parametrize("function", [ranking_scores, sigmoid_scores])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", SIZES)
def test_f2_is_the_mean_of_that_of_sets(function, kind, classes):
    logits, positives = photos(kind, classes)
    indices, scores = function(logits)
    means = []
    for threshold in np.linspace(0, 0.95, 20).astype(np.float32):
        expected = [
            set_f2([i for i, s in zip(ids, values, strict=True) if s > threshold], right.tolist())
            for ids, values, right in zip(indices.tolist(), scores, positives, strict=True)
        ]
        received = [
            per_photo(*row, threshold) for row in zip(indices, scores, positives, strict=True)
        ]
        np.testing.assert_allclose(received, expected, rtol=1e-12)
        means.append(np.mean([f2 for _, _, f2 in expected]))
    metric = fill(MeanF2(), indices, scores, positives)
    np.testing.assert_allclose(metric.means(), means, rtol=1e-12)
    best = int(np.argmax(means))
    assert metric.result() == (pytest.approx(means[best]), pytest.approx(0.05 * best))


def test_f2_of_empty_sets():
    some, none = np.array([3]), np.array([], int)
    assert of_answer(none, none) == (1, 1, 1)
    assert of_answer(some, none) == (0, 1, 0)
    assert of_answer(none, some) == (1, 0, 0)
    assert of_answer(some, np.array([5])) == (0, 0, 0)
    assert of_answer(np.array([3, 4]), np.array([4, 5, 6, 4])) == (
        *(0.5, pytest.approx(1 / 3)),
        pytest.approx(5 / 6 / (2 + 1 / 3)),
    )


def test_a_score_at_the_threshold_is_not_answered():
    metric = MeanF2()
    metric.update(np.array([0]), np.float32([0.15]), np.array([0]))
    assert metric.means().tolist() == [1.0] * 3 + [0.0] * 17
    assert metric.result() == (1.0, 0.0)
    assert per_photo(np.array([0]), np.float32([0.15]), np.array([0]), 0.15).f2 == 0


@pytest.mark.parametrize(("least", "most"), [(2, 5), (0, 1), (3, 3)])
def test_f2_with_the_bounds_of_a_submission(least, most):
    logits, positives = photos("usual", 40)
    indices, scores = ranking_scores(logits)
    metric = fill(MeanF2(least=least, most=most), indices, scores, positives)
    for threshold, mean in zip(THRESHOLDS, metric.means(), strict=True):
        expected = [
            of_answer(np.array(choose(ids, values, threshold, least, most), int), right).f2
            for ids, values, right in zip(indices, scores, positives, strict=True)
        ]
        assert mean == pytest.approx(np.mean(expected))


def test_what_cannot_be_counted_is_refused():
    for values in ([0.5, 0.6], [1.5, 0.2], [0.5, np.nan], [0.5]):
        for metric in (MeanF2(), GlobalAveragePrecision()):
            with pytest.raises(ValueError):
                metric.update(np.array([1, 2]), np.float32(values), np.array([1]))
    with pytest.raises(ValueError, match="no photo"):
        MeanF2().result()
    with pytest.raises(ValueError, match="differ"):
        MeanF2().merge(MeanF2(most=5))
    assert GlobalAveragePrecision().result() == 0
