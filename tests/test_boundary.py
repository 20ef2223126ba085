"""Contour scores against loops over pixels."""

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from carvana_tf.evaluation import ablation, boundary

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)
PAIRS = SHAPES.flatmap(lambda s: st.tuples(hnp.arrays(np.bool_, s), hnp.arrays(np.bool_, s)))


def contour_pixels(mask):
    """Object pixels with a background neighbour inside the photo."""
    found = []
    for y, x in np.argwhere(mask).tolist():
        near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [p for p in near if 0 <= p[0] < mask.shape[0] and 0 <= p[1] < mask.shape[1]]
        if any(not mask[p] for p in inside):
            found.append((y, x))
    return found


def share(pixels, others, tolerance):
    near = [any(math.dist(p, q) <= tolerance for q in others) for p in pixels]
    return sum(near) / len(near) if near else 1.0


@settings(deadline=None, max_examples=80)
@given(PAIRS, st.sampled_from([1.0, 1.5, 2.0, 3.0, 0.2]))
def test_boundary_scores_agree_with_loops_over_pixels(pair, tolerance):
    truth, prediction = pair
    reach = tolerance
    if tolerance < 1:
        reach = math.ceil(tolerance * math.hypot(*truth.shape))
    edge, called = contour_pixels(truth), contour_pixels(prediction)
    precision, recall = share(called, edge, reach), share(edge, called, reach)
    total = precision + recall
    f = 2 * precision * recall / total if total else 0.0
    found = boundary.boundary_scores(truth, prediction, tolerance)
    assert found == pytest.approx((precision, recall, f), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(PAIRS, st.integers(1, 4))
def test_the_band_agrees_with_loops_over_pixels(pair, radius):
    truth, _ = pair
    expected = np.zeros(truth.shape, bool)
    for y, x in itertools.product(*map(range, truth.shape)):
        near = truth[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        expected[y, x] = near.any() and not near.all()
    np.testing.assert_array_equal(boundary.border_band(truth, radius), expected)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_band_dice_is_scikit_learns_inside_the_band(seed):
    random = np.random.default_rng(seed)
    truth = np.zeros((50, 60), bool)
    truth[12 : random.integers(15, 50), 15 : random.integers(18, 60)] = True
    prediction = truth ^ (random.random(truth.shape) < 0.1)
    band = boundary.border_band(truth)
    assert not band.all()
    expected = sklearn.metrics.f1_score(truth[band], prediction[band])
    assert boundary.band_dice(truth, prediction) == pytest.approx(expected, abs=1e-9)


def test_a_shift_within_the_tolerance_is_forgiven_and_a_larger_one_is_not():
    truth = np.zeros((60, 80), bool)
    truth[20:40, 20:60] = True
    assert boundary.boundary_scores(truth, np.roll(truth, 2, axis=1), 2)[2] == 1.0
    assert boundary.boundary_scores(truth, np.roll(truth, 3, axis=1), 2)[2] < 0.8
    assert boundary.boundary_scores(truth, np.roll(truth, 3, axis=1), 3)[2] == 1.0


def test_masks_without_a_contour():
    empty, some = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    some[3:6, 3:6] = True
    assert boundary.boundary_scores(empty, empty) == (1.0, 1.0, 1.0)
    assert boundary.boundary_scores(some, empty) == (1.0, 0.0, 0.0)
    assert boundary.boundary_scores(empty, some) == (0.0, 1.0, 0.0)
    assert boundary.band_dice(empty, some) == 1.0
    assert boundary.band_dice(some, empty) == 0.0


def flood(called):
    """Components of 8 neighbours, by a flood fill."""
    left, found = {tuple(p) for p in np.argwhere(called).tolist()}, []
    while left:
        component, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            component.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front += near
        found.append(component)
    return found


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.6))
def test_dropping_components_agrees_with_a_flood_fill(seed, density):
    random = np.random.default_rng(seed)
    truth = random.random((9, 12)) < density
    grey = random.integers(0, 256, truth.shape).astype(np.uint8)
    sizes = (0, 2, 3, 8, 1000)
    found = ablation.component_dice(grey, truth, sizes)
    for t, threshold in enumerate(ablation.COMPONENT_THRESHOLDS):
        parts = flood(grey > threshold)
        for s, size in enumerate(sizes):
            kept = np.zeros(truth.shape, bool)
            for y, x in itertools.chain(*(part for part in parts if len(part) >= size)):
                kept[y, x] = True
            expected = sklearn.metrics.f1_score(truth.ravel(), kept.ravel(), zero_division=1.0)
            assert found[t, s] == pytest.approx(expected, abs=1e-9)


def test_the_default_threshold_is_among_those_tried_with_components():
    assert 127 in ablation.COMPONENT_THRESHOLDS
