"""tools/suggest_photos.py: the photos whose masks disagree, against the definition."""

import csv
import json

import cv2
import numpy as np
import pytest
from scipy.stats import entropy

from carvana_tf import commands
from carvana_tf.data.images import read_photo, write_mask, write_photo, write_probability
from carvana_tf.errors import UserError
from carvana_tf.evaluation import pictures, suggestions
from carvana_tf.evaluation.disagreement import BAND, SIDE, measure, shrunk
from carvana_tf.evaluation.suggestions import Candidate, Suggestion

SIZE = 60, 90


def call(name, *arguments):
    return commands.find(name).call(arguments)


def box(shift=0, size=SIZE, side=30):
    grey = np.zeros(size, np.uint8)
    grey[10 : 10 + side, 10 + shift : 10 + shift + side] = 255
    return grey


def bits(p):
    return entropy([p, 1 - p], base=2)


def definition(greys, threshold=127):
    """The mean, pixel by pixel, in a band found by measuring distances."""
    height, width = greys[0].shape
    radius = max(2, np.ceil(BAND * np.hypot(height, width)))
    near = np.zeros(SIZE, bool)
    rows, columns = np.mgrid[:height, :width]
    for grey in greys:
        for value in (True, False):
            found = np.zeros(SIZE, bool)
            for row, column in np.argwhere((grey > threshold) != value):
                found |= np.maximum(abs(rows - row), abs(columns - column)) <= radius
            near |= ((grey > threshold) == value) & found
    if not near.any():
        near[:] = True
    p = np.stack([grey[near] / 255 for grey in greys])
    shared = bits(p.mean(0))
    return np.mean(shared - bits(p).mean(0) if len(greys) > 1 else shared)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_score_is_that_of_its_definition(count):
    random = np.random.default_rng(count)
    greys = [
        np.clip(cv2.GaussianBlur(box(int(shift)), (0, 0), 2) + random.integers(0, 20, SIZE), 0, 255)
        for shift in random.integers(0, 9, count)
    ]
    greys = [grey.astype(np.uint8) for grey in greys]
    assert measure(greys, [127] * count).score == pytest.approx(definition(greys), abs=1e-9)


def test_scores_of_masks_without_a_contour():
    unsure, sure, full = (np.full(SIZE, value, np.uint8) for value in (100, 1, 255))
    assert measure([unsure], [127]).score == pytest.approx(bits(100 / 255))
    assert measure([unsure, unsure], [127, 127]).score == 0
    assert measure([sure, full], [127, 127]).score == pytest.approx(definition([sure, full]))
    assert measure([sure], [127]).empty == (0,)


def test_equal_shifts_score_alike_whatever_the_size_of_the_object():
    scores, dices = [], []
    for side in (40, 160):
        found = measure([box(0, (200, 300), side), box(4, (200, 300), side)], [127, 127])
        scores.append(found.score)
        dices.append(found.least[2])
    assert scores[0] == pytest.approx(scores[1], rel=0.15)
    assert 1 - dices[0] > 3 * (1 - dices[1])


def test_large_masks_are_compared_small():
    assert shrunk(np.zeros((3000, 4000), np.uint8)).shape == (768, SIDE)
    assert shrunk(box()).shape == SIZE


def suggestion(stem, group, score):
    candidate = Candidate(stem, group, None, (), (), ())
    found = measure([box()], [127])
    object.__setattr__(found, "score", score)
    return Suggestion(candidate, found)


def test_the_highest_scores_are_taken_but_few_of_a_group():
    found = [
        suggestion(stem, stem[0], score)
        for stem, score in {"a1": 0.9, "a2": 0.8, "b1": 0.1, "c2": 0.5, "c1": 0.5}.items()
    ]

    def chosen(count, per_group):
        return [one.candidate.stem for one in suggestions.choose(found, count, per_group)]

    assert chosen(9, 1) == ["a1", "c1", "b1"]
    assert chosen(2, 1) == ["a1", "c1"]
    assert chosen(9, 2) == ["a1", "a2", "c1", "c2", "b1"]


# The command.

SHIFTS = {'a, "x"_1': 0, 'a, "x"_2': 3, "b_1": 1, "b_2": 7, "=c_1": 5, "d_1": 9, "e_1": 2}


@pytest.fixture
def tree(monkeypatch, tmp_path):
    """Photos with masks of two folds, which differ by `SHIFTS`; `d_1` has ground truth."""
    monkeypatch.chdir(tmp_path)
    for stem, shift in SHIFTS.items():
        write_photo(tmp_path / f"input/test/{stem}.jpg", np.zeros((*SIZE, 3), np.uint8))
        for i, grey in enumerate((box(), box(shift))):
            soft = cv2.GaussianBlur(grey, (0, 0), 1 + 0.3 * shift)
            write_probability(tmp_path / f"fold_{i}/{stem}.png", soft)
    write_mask(tmp_path / "input/train_masks/d_1_mask.png", box() > 0)
    return tmp_path


FOLDS = "--pred_mask_dirs=fold_0,fold_1"


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_and_the_sheet(tree, capsys):
    assert call("suggest_photos", FOLDS, "--out_dir=out") == 0
    rows = table(tree / "out/suggestions.csv")
    assert list(rows[0]) == list(suggestions.COLUMNS)
    assert [(row["rank"], row["photo"], row["group"]) for row in rows] == [
        ("1", "b_2.jpg", "b"), ("2", "=c_1.jpg", "=c"), ("3", "a, \"x\"_2.jpg", 'a, "x"'),
        ("4", "e_1.jpg", "e"),
    ]  # fmt: skip
    masks = [cv2.imread(str(tree / f"fold_{i}/b_2.png"), cv2.IMREAD_GRAYSCALE) for i in (0, 1)]
    assert float(rows[0]["score"]) == pytest.approx(definition(masks), abs=1e-4)
    assert rows[0]["why"].startswith("lowest Dice of two masks 0.7")
    sheet = read_photo(tree / "out/suggestions.jpg")
    # Two rows of two photos, each next to a part of it.
    height, width = (n for n in SIZE)
    assert sheet.shape == (26 + 2 * (height + 26), 8 + 4 * (width + 8), 3)
    printed = capsys.readouterr().out
    assert "6 photos, 1 others have ground truth in 'input/train_masks'" in printed
    assert "4 photos of 4 groups; for more of a group give --per_group" in printed


def test_the_next_command_exports_these_photos(tree, capsys):
    call("suggest_photos", FOLDS, "--out_dir=out", "--count=2")
    line = capsys.readouterr().out.splitlines()[-1]
    _, _, command = line.partition("carvana-tf ")
    name, *arguments = command.split()
    assert call(name, *arguments) == 0
    assert sorted(path.name for path in (tree / "out/to_correct").iterdir()) == [
        "=c_1.json", "b_2.json",
    ]  # fmt: skip
    document = json.loads((tree / "out/to_correct/b_2.json").read_text())
    assert (tree / "out/to_correct" / document["imagePath"]).resolve().name == "b_2.jpg"


def test_probabilities_of_one_folder(tree, capsys):
    write_probability(tree / "fold_1/e_1.png", np.full(SIZE, 110, np.uint8))
    assert call("suggest_photos", "--pred_mask_dir=fold_1", "--out_dir=out") == 0
    rows = table(tree / "out/suggestions.csv")
    assert [row["photo"] for row in rows[:2]] == ["e_1.jpg", "b_2.jpg"]
    assert rows[0]["why"] == "no object found; 100% of the photo are unsure (from 0.1 to 0.9)"
    assert float(rows[0]["score"]) == pytest.approx(bits(110 / 255), abs=1e-4)


def test_an_object_that_one_mask_lacks_comes_first(tree):
    write_probability(tree / "fold_1/e_1.png", np.zeros(SIZE, np.uint8))
    assert call("suggest_photos", FOLDS, "--out_dir=out", "--count=1") == 0
    (row,) = table(tree / "out/suggestions.csv")
    assert (row["photo"], row["why"]) == ("e_1.jpg", "no object in fold_1, but in others")


def test_a_damaged_mask_is_listed_and_the_rest_is_done(tree, capsys):
    (tree / "fold_0/b_2.png").write_bytes(b"no image")
    write_photo(tree / "input/test/=c_1.jpg", np.zeros((9, 8, 3), np.uint8))
    with pytest.raises(UserError, match="2 photos were not compared; all are listed in 'out/bad"):
        call("suggest_photos", FOLDS, "--out_dir=out")
    rows = table(tree / "out/suggestions.csv")
    assert [row["photo"] for row in rows] == ['a, "x"_2.jpg', "e_1.jpg", "b_1.jpg"]
    assert "is 90x60 but its photo is 8x9" in capsys.readouterr().err


def test_contours_are_drawn_in_the_colours_of_the_legend():
    photo = np.full((*SIZE, 3), 255, np.uint8)
    drawn = pictures.contours(photo, [box() > 0, box(20) > 0], *SIZE)
    for i, column in enumerate((10, 59)):
        distances = np.abs(drawn[25, column] - np.array(((255, 255, 255), *pictures.MEMBERS)))
        assert distances.sum(1).argmin() == 1 + i
    sheet = pictures.contact_sheet([("t", [drawn])], 2, [("one", pictures.MEMBERS[3])])
    np.testing.assert_array_equal(sheet[52 : 52 + SIZE[0], 8 : 8 + SIZE[1]], drawn)
    assert (sheet[:26] == pictures.MEMBERS[3]).all(-1).any()


MISTAKES = {
    (): "2 mistakes: .*--pred_mask_dirs is missing.*--out_dir is missing",
    ("--pred_mask_dirs=none", "--out_dir=o"): "--pred_mask_dirs: 'none' does not exist",
    ("--pred_mask_dirs=fold_0,./fold_0", "--out_dir=o"): "names a folder twice",
    (FOLDS, "--out_dir=o", "--test_data_dir=no"): "the folder 'input/no' does not exist",
    (FOLDS, "--out_dir=o", "--train_mask_dir_name=no"): "'input/no' does not exist",
    (FOLDS, "--out_dir=o", "--group_pattern=("): "--group_pattern",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_mistakes_are_one_line(tree, arguments):
    with pytest.raises(UserError, match=MISTAKES[arguments]):
        call("suggest_photos", *arguments)
    assert not (tree / "o").exists()


def test_photos_and_masks_that_are_missing(tree):
    (tree / "input/test/e_1.jpg").unlink()
    with pytest.raises(UserError, match="1 masks of 'fold_0' have no photo in 'input/test'"):
        call("suggest_photos", FOLDS, "--out_dir=out")
    (tree / "fold_1/e_1.png").unlink()
    with pytest.raises(UserError, match="'fold_1' lacks 1 of 7 photos"):
        call("suggest_photos", FOLDS, "--out_dir=out")
    # The photos that have both masks.
    assert call("suggest_photos", FOLDS, "--out_dir=out", "--force") == 0
    assert len(table(tree / "out/suggestions.csv")) == 3
    for path in (tree / "fold_1").glob("[!d]*.png"):
        path.unlink()
    with pytest.raises(UserError, match="none of 6 photos without ground truth has a mask of ev"):
        call("suggest_photos", FOLDS, "--out_dir=out", "--force")


def test_a_list_of_photos_without_masks_is_refused(tree):
    given = ("--pred_mask_dir=fold_0", "--photo_dir=input/test", "--out_dir=o")
    (tree / "list.csv").write_text("rank,photo\n1,none_1.jpg\n2,b_1.jpg\n")
    with pytest.raises(UserError, match=r"1 of 2 photos in --photo_list='list.csv' have no mask"):
        call("export_masks", *given, "--photo_list=list.csv")
    (tree / "list.csv").write_text("id\nb_1\n")
    with pytest.raises(UserError, match="has no column 'photo'"):
        call("export_masks", *given, "--photo_list=list.csv")
