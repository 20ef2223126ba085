"""Cross-fitted figures against brute force over pixels, folds and settings."""

import json

import numpy as np
import pandas as pd
import pytest
import skimage
import sklearn.metrics
import sklearn.model_selection
from hypothesis import given, settings
from hypothesis import strategies as st

from carvana_tf.errors import UserError
from carvana_tf.evaluation import ablation, crossfit, scores
from carvana_tf.evaluation.counts import Counts, histograms

SIZES = (0, 4, 9)


def make_photos(number, seed=0, shape=(11, 13)):
    """Blobs whose grey values are shifted: the best threshold is not the default."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(number):
        truth = np.zeros(shape, bool)
        truth[2:8, 3 : random.integers(6, 12)] = True
        grey = np.where(truth, 150, 60) + random.integers(-60, 80, shape)
        pairs.append((grey.clip(0, 255).astype(np.uint8), truth))
    return pairs


def counts_of(pairs):
    parts = [histograms(*pair) for pair in pairs]
    return Counts(np.stack([b for b, _ in parts]), np.stack([f for _, f in parts]))


def brute_dice(called, truth):
    return sklearn.metrics.f1_score(truth.ravel(), called.ravel(), zero_division=1.0)


def brute_crossfit(table, groups):
    """Best on the other groups by scikit-learn's own splitter; `table[photo][setting]`."""
    table = np.array(table)
    values = np.zeros(len(table))
    for train, test in sklearn.model_selection.LeaveOneGroupOut().split(table, groups=groups):
        means = [sum(table[i][k] for i in train) / len(train) for k in range(table.shape[1])]
        values[test] = table[test, int(np.argmax(means))]
    return values


def test_thresholds_agree_with_scikit_learn_pixel_by_pixel():
    pairs = make_photos(7)
    folds = np.array([0, 0, 1, 1, 1, 2, 5])
    table = [[brute_dice(grey > t, truth) for t in range(256)] for grey, truth in pairs]
    candidates = crossfit.of_thresholds(counts_of(pairs).dice)
    np.testing.assert_allclose(candidates.scores, table, atol=1e-9, rtol=0)
    fitted = crossfit.fit(candidates, folds)
    np.testing.assert_allclose(fitted.values, brute_crossfit(table, folds), atol=1e-9, rtol=0)
    naive = np.mean(table, axis=0)
    assert candidates.scores[:, fitted.naive].mean() == pytest.approx(naive.max(), abs=1e-9)
    assert set(fitted.chosen) == {0, 1, 2, 5}


def test_components_agree_with_scikit_learn_on_the_masks_themselves():
    pairs = make_photos(6, 7)
    folds = np.array([0, 1, 2, 0, 1, 2])

    def cleaned(grey, threshold, size):
        labels = skimage.measure.label(grey > threshold, connectivity=2)
        areas = np.bincount(labels.ravel())
        areas[0] = 0
        return (labels > 0) & (areas >= size)[labels]

    table = [
        [brute_dice(cleaned(g, t, s), truth) for t in ablation.COMPONENT_THRESHOLDS for s in SIZES]
        for g, truth in pairs
    ]
    dice = np.stack([ablation.component_dice(*pair, SIZES) for pair in pairs])
    candidates = crossfit.of_components(dice, SIZES)
    np.testing.assert_allclose(candidates.scores, table, atol=1e-9, rtol=0)
    fitted = crossfit.fit(candidates, folds)
    np.testing.assert_allclose(fitted.values, brute_crossfit(table, folds), atol=1e-9, rtol=0)
    assert candidates.settings[0] == (int(ablation.COMPONENT_THRESHOLDS[0]), 0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_a_photo_takes_no_part_in_the_choice_of_its_own_setting(seed, fold):
    random = np.random.default_rng(seed)
    values, folds = random.random((12, 256)), np.arange(12) % 4
    before = crossfit.fit(crossfit.of_thresholds(values), folds)
    changed = values.copy()
    changed[folds == fold] = random.random((3, 256))
    after = crossfit.fit(crossfit.of_thresholds(changed), folds)
    assert after.chosen[fold] == before.chosen[fold]


def test_among_equals_the_nearest_to_the_default_and_the_smallest_size_win():
    flat = crossfit.of_thresholds(np.ones((4, 256)))
    assert set(crossfit.fit(flat, np.array([0, 0, 1, 1])).chosen.values()) == {127}
    many = crossfit.of_components(np.ones((4, len(ablation.COMPONENT_THRESHOLDS), 3)), SIZES)
    fitted = crossfit.fit(many, np.array([0, 0, 1, 1]))
    assert {many.settings[i] for i in fitted.chosen.values()} == {(127, 0)}
    assert many.settings[fitted.naive] == (127, 0)


def test_one_fold_cannot_be_cross_fitted():
    with pytest.raises(ValueError, match="two folds"):
        crossfit.fit(crossfit.of_thresholds(np.ones((2, 256))), np.array([3, 3]))


def photo_table(pairs, folds):
    names = [f"g{i // 2}" for i in range(len(pairs))]
    stems = [f"{name}_{i % 2}" for i, name in enumerate(names)]
    return scores.per_photo(stems, names, folds, counts_of(pairs), 127)


def test_figures_by_hand_and_photos_of_no_fold_left_out():
    pairs = make_photos(10, 3)
    folds = [0, 0, 1, 1, 0, 0, 1, 1, None, None]
    photos = photo_table(pairs, folds)
    dice = counts_of(pairs).dice
    table, (summary,) = crossfit.run([crossfit.of_thresholds(dice)], photos)
    expected = brute_crossfit(dice[:8], folds[:8])
    assert summary["photos"] == 8
    assert summary["mean_dice"] == pytest.approx(expected.mean(), abs=1e-9)
    assert summary["used_mean_dice"] == pytest.approx(dice[:8, 127].mean(), abs=1e-9)
    gains = expected - dice[:8, 127]
    assert summary["gain"] == pytest.approx(gains.mean(), abs=1e-9)
    groups = photos["group"][:8]
    assert summary["interval"] == pytest.approx(scores.bootstrap_interval(expected, groups))
    assert summary["gain_interval"] == pytest.approx(scores.bootstrap_interval(gains, groups))
    assert summary["naive_mean_dice"] == pytest.approx(dice[:8].mean(0).max(), abs=1e-9)
    assert summary["optimism"] == pytest.approx(dice[:8].mean(0).max() - expected.mean(), abs=1e-9)
    assert table["photos"].tolist() == [4, 4]
    means = [expected[np.array(folds[:8]) == fold].mean() for fold in (0, 1)]
    assert table["crossfitted_dice"].tolist() == pytest.approx(means, abs=1e-9)
    assert summary["thresholds"] == sorted(set(table["threshold"]))
    json.dumps(summary)
    assert f"{summary['gain']:+.5f}" in crossfit.describe(summary)


def test_the_naive_threshold_flatters_pure_noise():
    # Nothing can be learned from noise: what the naive figure shows above 0 is optimism.
    random = np.random.default_rng(0)
    noise = random.normal(0.0, 1.0, (40, 256))
    fitted = crossfit.fit(crossfit.of_thresholds(noise), np.arange(40) % 4)
    assert noise[:, fitted.naive].mean() > 0.3
    assert abs(fitted.values.mean()) < 0.3


@pytest.mark.parametrize(
    ("folds", "out_of_fold", "message"),
    [
        ([0, 1], True, None),
        ([0, 1], None, None),
        ([0, 1], False, "not out of fold"),
        ([2, 2], True, "two folds, here are 1"),
        ([None, None], None, "two folds, here are 0"),
    ],
)
def test_when_nothing_can_be_cross_fitted(folds, out_of_fold, message):
    photos = pd.DataFrame({"fold": pd.array(folds, dtype="Int64")})
    manifest = None if out_of_fold is None else type("M", (), {"out_of_fold": out_of_fold})()
    found = crossfit.obstacle(photos, manifest)
    assert found is None if message is None else message in found


def test_sizes_of_components_are_read_from_words():
    assert ablation.parse_sizes(()) == ()
    assert ablation.parse_sizes(("1000", "100")) == (0, 100, 1000)
    with pytest.raises(UserError, match=r"--min_components has '-5'"):
        ablation.parse_sizes(("-5",))
