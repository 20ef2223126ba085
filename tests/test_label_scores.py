"""Scores of labels and the labels that are answered, against loops over classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carvana_tf.tasks.labels.scores import choose, ranking_scores, sigmoid_scores


def ranked(logits):
    return sorted(range(len(logits)), key=lambda c: (-logits[c], c))


def brute(logits, top_k, beyond):
    """Ids and ranking scores of one photo, class by class."""
    order = ranked(logits)
    best, others = order[:top_k], order[beyond:]
    values = np.asarray(logits, np.float64)
    # exp(x) / (exp(x) + sum exp(x_r)), with the exponentials taken relative to x.
    with np.errstate(over="ignore"):
        scores = [1 / (1 + sum(np.exp(values[r] - values[c]) for r in others)) for c in best]
    return best, scores


@pytest.mark.parametrize(
    ("classes", "top_k", "scored", "beyond"),
    [
        *((400, 150, 150, 150), (151, 150, 150, 150), (150, 150, 150, 75)),
        *((9, 150, 9, 4), (9, 4, 4, 4), (2, 150, 2, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "far"])
def test_ranking_scores_are_those_of_the_formula(classes, top_k, scored, beyond, kind):
    random = np.random.default_rng(classes)
    logits = random.normal(0, 2, (2, 3, classes)).astype(np.float32)
    if kind == "ties":
        logits = np.rint(logits)
    elif kind == "equal":
        logits[:] = 1.5
    elif kind == "far":
        logits = 1e4 * np.sign(logits)
    indices, scores = ranking_scores(logits, top_k)
    assert indices.shape == scores.shape == (2, 3, scored)
    assert (indices.dtype, scores.dtype) == (np.int32, np.float32)
    for place in np.ndindex(2, 3):
        best, expected = brute(logits[place], scored, beyond)
        assert indices[place].tolist() == best
        np.testing.assert_allclose(scores[place], expected, rtol=2e-6, atol=1e-30)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 14))
@settings(max_examples=200, deadline=None)
def test_of_equal_logits_the_lower_ids_are_taken(logits, top_k):
    indices, _ = sigmoid_scores(np.float32(logits), top_k)
    assert indices.tolist() == ranked(logits)[:top_k]


def test_sigmoid_scores_are_of_the_logits_alone():
    logits = np.float32([[0, 2, -1e4, 1e4, -3]])
    indices, scores = sigmoid_scores(logits, 3)
    assert indices.tolist() == [[3, 1, 0]]
    np.testing.assert_allclose(scores, [[1, 1 / (1 + np.exp(-2)), 0.5]], rtol=1e-6)
    indices, scores = sigmoid_scores(logits)
    assert indices.tolist() == [[3, 1, 0, 4, 2]]
    assert scores[0, -1] == 0


def test_the_only_class_is_sure():
    indices, scores = ranking_scores(np.float32([[-7], [3]]))
    assert indices.tolist() == [[0], [0]] and scores.tolist() == [[1], [1]]


@pytest.mark.parametrize("function", [ranking_scores, sigmoid_scores])
@pytest.mark.parametrize("logits", [[1, np.nan, 0], [np.inf, 0, 1], []])
def test_what_cannot_be_ranked_is_refused(function, logits):
    with pytest.raises(ValueError):
        function(np.float32(logits))
    with pytest.raises(ValueError):
        function(np.float32([1, 2, 3]), 0)


@pytest.mark.parametrize(
    ("scores", "answer"),
    [
        ([0.9, 0.8, 0.7, 0.56, 0.2], (1, 3, 5, 7)),  # the worst first
        ([0.9, 0.8, 0.7, 0.55, 0.2], (3, 5, 7)),  # at the threshold is not above it
        ([0.9, 0.8, 0.7, 0.6, 0.58, 0.57, 0.56], (9, 1, 3, 5, 7)),
        ([0.5, 0.4, 0.3], (5, 7)),
        ([0.9, 0.1, 0.0], (5, 7)),
        ([0.9], (7,)),
        ([], ()),
    ],
)
def test_labels_above_the_threshold_are_answered_within_bounds(scores, answer):
    assert choose(np.array([7, 5, 3, 1, 9, 11, 13][: len(scores)]), np.float32(scores)) == answer


def test_bounds_of_an_answer():
    indices, scores = np.arange(4), np.float32([0.9, 0.8, 0.2, 0.1])
    assert choose(indices, scores, 0.5, least=0, most=1) == (0,)
    assert choose(indices, scores, 0.95, least=0) == ()
    assert choose(indices, scores, 0.0, least=4) == (3, 2, 1, 0)
    with pytest.raises(ValueError, match="at least 3 and at most 2"):
        choose(indices, scores, least=3, most=2)
