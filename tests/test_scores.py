"""Tables and the bootstrap interval."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from carvana_tf.evaluation import scores
from carvana_tf.evaluation.counts import Counts, histograms


@pytest.fixture
def photos():
    return pd.DataFrame(
        {
            "id": ["a_1", "a_2", "b_1", "c_1"],
            "group": ["a", "a", "b", "c"],
            "fold": pd.array([0, 0, 1, None], dtype="Int64"),
            "dice": [0.9, 0.7, 1.0, 0.5],
            "accuracy": [0.95, 0.85, 1.0, 0.75],
        }
    )


def random_counts(photos, seed=0):
    random = np.random.default_rng(seed)
    parts = [
        histograms(random.integers(0, 256, (5, 6)).astype(np.uint8), random.random((5, 6)) < 0.5)
        for _ in range(photos)
    ]
    return Counts(np.stack([b for b, _ in parts]), np.stack([f for _, f in parts]))


def test_per_photo_takes_the_column_of_the_threshold():
    counts = random_counts(3)
    table = scores.per_photo(["a_1", "a_2", "b_1"], ["a", "a", "b"], [0, 0, None], counts, 90)
    assert table["id"].tolist() == ["a_1", "a_2", "b_1"]
    assert table["fold"].isna().tolist() == [False, False, True]
    for name in ("dice", "accuracy", "iou", "precision", "recall", "tp", "fp", "fn", "tn"):
        np.testing.assert_array_equal(table[name], getattr(counts, name)[:, 90])
    assert (table[["tp", "fp", "fn", "tn"]].sum(axis=1) == 30).all()


def test_per_group_averages_photos_and_puts_the_worst_first(photos):
    table = scores.per_group(photos)
    assert table["group"].tolist() == ["c", "a", "b"]
    assert table["photos"].tolist() == [1, 2, 1]
    assert table["mean_dice"].tolist() == pytest.approx([0.5, 0.8, 1.0])
    assert table["min_dice"].tolist() == [0.5, 0.7, 1.0]


def test_per_fold_leaves_out_photos_without_a_fold(photos):
    table = scores.per_fold(photos)
    assert table["fold"].tolist() == [0, 1]
    assert table["groups"].tolist() == [1, 1]
    assert table["mean_dice"].tolist() == pytest.approx([0.8, 1.0])
    assert len(scores.per_fold(photos.assign(fold=pd.array([None] * 4, dtype="Int64")))) == 0


def test_contour_scores_are_averaged_where_measured():
    counts, contours = random_counts(4), np.random.default_rng(0).random((4, 4))
    names = (["a_1", "a_2", "b_1", "b_2"], ["a", "a", "b", "b"], [0, 0, 1, 1])
    photos = scores.per_photo(*names, counts, views=["1", "2", "1", "2"], contours=contours)
    np.testing.assert_array_equal(photos["boundary_f"], contours[:, 2])
    groups = scores.per_group(photos).set_index("group")
    assert groups["mean_boundary_f"]["b"] == pytest.approx(contours[2:, 2].mean())
    assert scores.per_fold(photos)["mean_band_dice"][0] == pytest.approx(contours[:2, 3].mean())
    summary = scores.summarise(photos, scores.threshold_curve(counts), 127)
    for table in (groups, scores.per_view(photos), scores.per_fold(photos)):
        assert table["mean_accuracy"].mean() == pytest.approx(photos["accuracy"].mean())
    assert summary["mean_accuracy"] == pytest.approx(photos["accuracy"].mean())
    assert summary["mean_boundary_f"] == pytest.approx(contours[:, 2].mean())
    assert "mean_boundary_f" not in scores.per_group(scores.per_photo(*names, counts))


def test_per_view_compares_groups_and_is_empty_where_no_two_share_a_view(photos):
    photos["view"] = pd.array(["1", "2", "1", None], dtype="string")
    table = scores.per_view(photos)
    assert table["view"].tolist() == ["1", "2"]
    assert table["photos"].tolist() == [2, 1]
    assert table["mean_dice"].tolist() == pytest.approx([0.95, 0.7])
    photos["view"] = pd.array(["1", "2", "3", None], dtype="string")
    assert len(scores.per_view(photos)) == 0


def test_threshold_curve_is_the_mean_over_photos():
    counts = random_counts(4)
    curve = scores.threshold_curve(counts)
    assert curve["threshold"].tolist() == list(range(256))
    for threshold in (0, 100, 255):
        expected = sum(counts.dice[i, threshold] for i in range(4)) / 4
        assert curve["mean_dice"][threshold] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("best", "expected"), [((3,), 3), ((100, 120, 200), 120), (tuple(range(256)), 127)]
)
def test_best_threshold_is_the_nearest_to_the_default_among_equals(best, expected):
    dice = np.zeros(256)
    dice[list(best)] = 0.9
    curve = pd.DataFrame({"threshold": range(256), "mean_dice": dice})
    assert scores.best_threshold(curve) == expected


def test_interval_is_the_same_for_the_same_seed_and_another_for_another():
    random = np.random.default_rng(0)
    values, groups = random.random(30), [str(i // 3) for i in range(30)]
    first = scores.bootstrap_interval(values, groups, seed=1)
    assert first == scores.bootstrap_interval(values, groups, seed=1)
    assert first != scores.bootstrap_interval(values, groups, seed=2)


def test_interval_does_not_depend_on_the_size_of_its_steps(monkeypatch):
    random = np.random.default_rng(0)
    values, groups = random.random(30), [str(i // 3) for i in range(30)]
    expected = scores.bootstrap_interval(values, groups)
    monkeypatch.setattr(scores, "_DRAWS", 7 * 10)
    assert scores.bootstrap_interval(values, groups) == expected


def test_interval_resamples_groups_not_photos():
    # Ten groups of sixteen equal photos are ten observations, not 160.
    of_group = np.random.default_rng(5).random(10)
    values = np.repeat(of_group, 16)
    low, high = scores.bootstrap_interval(values, np.repeat(np.arange(10), 16).astype(str))
    single = scores.bootstrap_interval(values, [str(i) for i in range(160)])
    assert high - low > 3 * (single[1] - single[0])
    # Resampling ten equal groups is resampling ten values.
    assert (low, high) == pytest.approx(
        scores.bootstrap_interval(of_group, [str(i) for i in range(10)])
    )


def test_interval_of_many_values_is_close_to_the_normal_one():
    values = np.random.default_rng(6).normal(size=2000)
    low, high = scores.bootstrap_interval(values, [str(i) for i in range(2000)])
    half = 1.96 * values.std() / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=0.004)
    assert high == pytest.approx(values.mean() + half, abs=0.004)


def test_unequal_groups_weigh_by_their_photos():
    # Drawn are aa, ab, ba or bb; the mean of ab is over all four photos.
    values, groups = [1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]
    assert scores.bootstrap_interval(values, groups, level=0.4) == (0.75, 0.75)
    assert scores.bootstrap_interval(values, groups, level=0.9) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("value", "truths", "kind"),
    [
        (255, (100, 300), "all object"),  # Dice of the constant itself
        (0, (100, 300), "all object"),  # and worse
        (255, (0, 0), "all background"),
        (0, (0, 0), None),  # right: there is nothing
        (None, (100, 300), None),
    ],
)
def test_masks_no_better_than_constant_ones_are_reported(value, truths, kind):
    foreground, background = (np.zeros((2, 256), np.int64) for _ in "ab")
    for i, true in enumerate(truths):
        foreground[i, 255 if value is None else value] = true
        background[i, 0 if value is None else value] = 400 - true
    table = scores.per_photo("xy", "xy", [0, 1], Counts(background, foreground))
    found = scores.useless(table)
    assert (found is None) == (kind is None)
    if kind is not None:
        best = np.mean([2 * true / (400 + true) for true in truths]) if any(truths) else 1.0
        assert f"{kind} ({best:.5f})" in found


def test_a_single_group_has_no_interval(photos):
    assert all(map(math.isnan, scores.bootstrap_interval([0.9, 0.8], ["a", "a"])))
    one = photos.iloc[:2].assign(iou=0.5, precision=0.5, recall=0.5)
    curve = pd.DataFrame({"threshold": range(256), "mean_dice": np.linspace(0, 1, 256)})
    summary = scores.summarise(one, curve, 127)
    assert summary["interval"] is None
    assert "NaN" not in json.dumps(summary)
    assert (summary["photos"], summary["groups"], summary["best_threshold"]) == (2, 1, 255)
    assert summary["mean_dice"] == pytest.approx(0.8)
