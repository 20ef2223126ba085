"""Paired differences between two mask folders."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carvana_tf.errors import UserError
from carvana_tf.evaluation import compare, scores
from carvana_tf.evaluation.pairs import Pair
from carvana_tf.masks.open_folder import MaskFolder


def table(stems, dice):
    return pd.DataFrame(
        {
            "id": stems,
            "group": [stem[0] for stem in stems],
            "fold": pd.array([0] * len(stems), dtype="Int64"),
            "dice": dice,
            "boundary_f": np.array(dice) / 2,
            "band_dice": np.array(dice) / 4,
        }
    )


def folder(*stems):
    return MaskFolder(Path("other"), {stem: Path(f"other/{stem}.png") for stem in stems}, None)


def test_photos_are_paired_by_name_and_the_largest_difference_comes_first():
    ours = table(["a_1", "a_2", "b_1", "b_2"], [0.9, 0.8, 0.7, 0.6])
    other = table(["b_1", "a_2", "a_1"], [0.75, 0.8, 0.5])
    found = compare.per_photo(ours, other)
    assert found["id"].tolist() == ["a_1", "b_1", "a_2"]
    assert found["dice_difference"].tolist() == pytest.approx([0.4, -0.05, 0.0])
    assert found["boundary_f_difference"].tolist() == pytest.approx([0.2, -0.025, 0.0])
    assert found["dice_other"].tolist() == [0.5, 0.75, 0.8]


def test_summary_by_hand():
    random = np.random.default_rng(0)
    stems = [f"{group}_{view}" for group in "abcdef" for view in (1, 2, 3)]
    ours, other = table(stems, random.random(18)), table(stems, random.random(18))
    summary = compare.summarise(compare.per_photo(ours, other), 20, folder(*stems), seed=3)
    differences = ours["dice"] - other["dice"]
    dice = summary["measures"][0]
    assert dice["measure"] == "dice"
    assert dice["difference"] == pytest.approx(differences.mean(), abs=1e-12)
    assert dice["better"] == pytest.approx((differences > 0).sum() / 18)
    assert dice["better"] + dice["worse"] == pytest.approx(1.0)
    assert dice["interval"] == pytest.approx(
        scores.bootstrap_interval(differences, ours["group"], seed=3)
    )
    assert summary["notes"] == ["2 scored photos have no mask there and are not compared."]
    assert "18 photos better" in compare.describe(summary)
    json.dumps(summary)


def test_equal_folders_do_not_differ():
    ours = table(["a_1", "b_1"], [0.9, 0.8])
    dice = compare.summarise(compare.per_photo(ours, ours), 2, folder(), 0)["measures"][0]
    assert (dice["difference"], dice["better"], dice["worse"]) == (0.0, 0.0, 0.0)
    assert dice["interval"] == [0.0, 0.0]


def test_pairing_is_surer_than_two_intervals():
    # All photos are better by a little: two intervals overlap, that of the pairs excludes 0.
    random = np.random.default_rng(1)
    stems = [f"{chr(97 + i)}_1" for i in range(20)]
    dice = random.random(20) * 0.5
    low, _ = scores.bootstrap_interval(dice + 0.01, stems)
    assert low < dice.mean()
    summary = compare.summarise(
        compare.per_photo(table(stems, dice + 0.01), table(stems, dice)), 20, folder()
    )
    assert summary["measures"][0]["interval"][0] > 0.009


def test_pairs_take_the_others_predictions_and_our_truth():
    ours = [Pair(s, "a", 0, Path(f"{s}.png"), Path(f"{s}.gif")) for s in ("a_1", "a_2")]
    (pair,) = compare.pairs_of(folder("a_2", "b_1"), ours)
    assert (pair.stem, pair.prediction, pair.truth) == (
        "a_2",
        Path("other/a_2.png"),
        Path("a_2.gif"),
    )
    with pytest.raises(UserError, match=r"holds none of the 2 scored photos.*'a_1'"):
        compare.pairs_of(folder("x"), ours)
