"""Which prediction meets which truth, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from carvana_tf.data.dataset import Naming
from carvana_tf.data.images import UnreadableImage, write_mask, write_probability
from carvana_tf.errors import UserError
from carvana_tf.evaluation import pairs

FOLDS = {"a": 0, "b": 1}


def paths(*stems):
    return {stem: Path(f"{stem}.png") for stem in stems}


def match(predictions, truths, folds=FOLDS, **options):
    return pairs.match(paths(*predictions), paths(*truths), Naming(), folds, **options)


def test_what_has_no_partner_is_named():
    matching = match(["b_1", "x_1", "a_1"], ["a_1", "b_1", "b_2"])
    assert [(p.stem, p.group, p.fold) for p in matching.pairs] == [("a_1", "a", 0), ("b_1", "b", 1)]
    assert matching.without_truth == ["x_1"]
    assert matching.without_prediction == ["b_2"]


@pytest.mark.parametrize(
    ("stem", "pattern", "expected"),
    [
        ("fff9b3a5373f_07", None, "07"),
        ("car2_12", None, "12"),
        ("car", None, None),
        ("photo-3", r"^(photo)", "3"),
        ("left_a1_x", r"_(a\d)", None),
    ],
)
def test_the_view_is_the_number_after_the_group(stem, pattern, expected):
    naming = Naming(group_pattern=pattern) if pattern else Naming()
    assert pairs.view(stem, naming) == expected


def test_pairs_know_their_view():
    assert [pair.view for pair in match(["a_1", "a_x"], ["a_1", "a_x"]).pairs] == ["1", None]


def test_a_fold_is_scored_alone():
    matching = match(["a_1", "b_1"], ["a_1", "b_1", "b_2"], only_fold=0, whole_folds=[0])
    assert [pair.stem for pair in matching.pairs] == ["a_1"]
    assert matching.without_truth == matching.without_prediction == []


def test_a_table_may_list_photos_instead_of_groups():
    assert match(["a_1"], ["a_1"], {"a_1": 3}).pairs[0].fold == 3
    assert match(["a_1"], ["a_1"], {}).pairs[0].fold is None


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((["x"], ["a_1"]), {}, "none of 1 predictions has a ground-truth mask.*'x_mask.gif'"),
        (
            (["b_1"], ["b_1"]),
            {"only_fold": 0},
            "is in --fold=0; they are in 1",
        ),
        ((["b_1"], ["b_1", "b_2"]), {"whole_folds": {1}}, "1 photos of fold 1 .*'b_2'.*--partial"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(UserError, match=message):
        match(*arguments, **options)


def make_pair(folder, stem, grey, truth):
    write_probability(folder / f"{stem}.png", grey)
    write_mask(folder / f"{stem}_mask.png", truth)
    return pairs.Pair(stem, stem, None, folder / f"{stem}.png", folder / f"{stem}_mask.png")


def test_sizes_that_differ_are_both_named(tmp_path):
    pair = make_pair(tmp_path, "p", np.zeros((4, 6), np.uint8), np.zeros((6, 4), bool))
    expected = r"p\.png' is 6x4, but its ground truth '.*p_mask\.png' is 4x6"
    with pytest.raises(UserError, match=expected):
        pairs.read_pair(pair)


def test_an_empty_file_is_named(tmp_path):
    pair = make_pair(tmp_path, "p", np.zeros((4, 6), np.uint8), np.zeros((4, 6), bool))
    pair.prediction.write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"p\.png' is empty \(0 bytes\)"):
        pairs.read_pair(pair)
