"""What post-processing gains, against the steps applied by hand."""

import json

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from carvana_tf.data.images import write_mask, write_probability
from carvana_tf.errors import UserError
from carvana_tf.evaluation import ablation, measure, scores
from carvana_tf.evaluation.pairs import Pair
from carvana_tf.masks import postprocess

NAMES = ("fill_holes", "min_component:9")


@pytest.fixture
def pairs(tmp_path):
    """Six photos in three groups: a box with a hole, and specks next to it in the first ones."""
    made = []
    for i in range(6):
        truth = np.zeros((40, 50), bool)
        truth[8 + i : 30, 10:40] = True
        grey = truth * np.uint8(200)
        grey[15, 20 : 22 + i] = 90
        if i < 4:
            grey[1:3, 1 : 3 + i] = 255
        write_mask(tmp_path / f"truth/{i}.png", truth)
        write_probability(tmp_path / f"masks/{i}.png", grey)
        files = tmp_path / f"masks/{i}.png", tmp_path / f"truth/{i}.png"
        made.append((Pair(f"p{i}", f"g{i // 2}", 0, *files), grey, truth))
    return made


def test_gains_are_those_of_the_steps_applied_by_hand(pairs):
    steps = ablation.variants(NAMES)
    assert [step.text for step in steps] == [*NAMES, ",".join(NAMES)]
    settings = measure.MeasureSettings(steps=steps)
    found = measure.measure([pair for pair, _, _ in pairs], settings, threads=2)
    by_hand = [
        lambda grey: grey,
        postprocess.fill_holes,
        lambda grey: postprocess.min_component(grey, 9),
        lambda grey: postprocess.min_component(postprocess.fill_holes(grey), 9),
    ]
    expected = np.array(
        [
            [sklearn.metrics.f1_score(t.ravel(), step(g).ravel() > 127) for step in by_hand]
            for _, g, t in pairs
        ]
    )
    np.testing.assert_allclose(found.photos["dice"], expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(found.after, expected[:, 1:], atol=1e-12)

    rows = ablation.summarise(found.photos, found.after, steps, seed=4)
    json.dumps(rows)
    for i, row in enumerate(rows, start=1):
        difference = expected[:, i] - expected[:, 0]
        assert row["difference"] == pytest.approx(difference.mean(), abs=1e-12)
        assert row["better"] == pytest.approx((difference > 0).mean())
        groups = found.photos["group"]
        assert row["interval"] == pytest.approx(
            scores.bootstrap_interval(difference, groups, seed=4)
        )
    assert rows[2]["difference"] > max(rows[0]["difference"], rows[1]["difference"]) > 0
    assert "with fill_holes: mean Dice +" in ablation.describe(rows[0], 6)
    table = ablation.per_photo(found.photos, found.after, steps)
    assert table.columns.tolist() == ["id", "group", "fold", "dice", *NAMES, ",".join(NAMES)]


def test_one_step_is_not_shown_twice_and_unknown_ones_are_refused():
    assert [step.text for step in ablation.variants(["largest"])] == ["largest"]
    assert ablation.variants(()) == ()
    with pytest.raises(UserError, match="Did you mean 'largest'"):
        ablation.variants(["largst"])


def test_an_empty_mask_of_nothing_is_right():
    empty = np.zeros((4, 5), np.uint8)
    assert ablation.dice(empty, empty > 0, ablation.variants(["largest"])) == 1.0


def test_all_masks_that_cannot_be_scored_are_named(pairs):
    files = [pair for pair, _, _ in pairs]
    files[1].prediction.write_bytes(b"")
    write_probability(files[4].prediction, np.zeros((3, 3), np.uint8))
    with pytest.raises(UserError, match=r"2 of 6 masks .*/1\.png' is empty.*/4\.png' is 3x3"):
        measure.measure(files, measure.MeasureSettings(), threads=2)


def test_groups_without_views_have_no_interval():
    photos = pd.DataFrame({"id": ["a"], "group": ["a"], "fold": [0], "dice": [0.5]})
    (row,) = ablation.summarise(photos, np.array([[0.75]]), ablation.variants(["largest"]))
    assert row["interval"] is None and row["difference"] == 0.25
    assert "no interval of one group" in ablation.describe(row, 1)
