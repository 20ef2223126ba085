"""evaluate.py as a user runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carvana_tf import commands
from carvana_tf.data.images import read_mask, read_photo, write_mask, write_photo, write_probability
from carvana_tf.errors import UserError
from carvana_tf.files import digest_of_lines
from carvana_tf.masks import manifest

ROOT = Path(__file__).parent.parent
STEMS = [f"{car}_{view}" for car in "abc" for view in (1, 2)]


def evaluate(*flags, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), "--dataset_dir=input", *flags],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def dice_of(grey, truth):
    called = grey > 127
    return 2 * (called & truth).sum() / (called.sum() + truth.sum())


@pytest.fixture
def work(tmp_path):
    """A folder with six photos, their truth, folds and predictions; car c lacks view 2."""
    random = np.random.default_rng(0)
    expected = {}
    for i, stem in enumerate(STEMS):
        shape = (30, 40 + i)
        truth = np.zeros(shape, bool)
        truth[5:20, 5:30] = True
        grey = np.where(truth, 200, 40).astype(np.uint8)
        grey[random.random(shape) < 0.02 * (i + 1)] = 128
        write_mask(tmp_path / "input/train_masks" / f"{stem}_mask.png", truth)
        write_photo(tmp_path / "input/train" / f"{stem}.jpg", np.full((*shape, 3), 99, np.uint8))
        if stem != "c_2":
            write_probability(tmp_path / "masks" / f"{stem}.png", grey)
            expected[stem] = dice_of(grey, truth)
    (tmp_path / "input/folds.csv").write_text("id,fold\na,0\nb,0\nc,1\n")
    return tmp_path, expected


def write_manifest(work, stems, out_of_fold=True, name="masks"):
    model = {"file": "m.keras", "digest": "0" * 64, "network": "unet", "fold": 1}
    models = (model | {"training_groups": "1" * 64},)
    values = (
        models,
        out_of_fold,
        "none",
        "keras",
        "float32",
        len(stems),
        digest_of_lines(list(stems)),
    )
    made = manifest.Manifest(*values, manifest.ENCODING, "1")
    manifest.write(work / name, made)


def test_products_agree_with_scores_by_hand(work):
    folder, expected = work
    result = evaluate("--pred_mask_dir=masks", "--partial", cwd=folder)
    assert result.returncode == 0, result.stderr
    out = folder / "masks/evaluation"
    photos = pd.read_csv(out / "per_photo.csv")
    assert dict(zip(photos["id"], photos["dice"], strict=True)) == pytest.approx(expected)
    mean = float(np.mean(list(expected.values())))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["mean_dice"] == pytest.approx(mean)
    assert summary["truth_without_prediction"] == ["c_2"]
    low, high = summary["interval"]
    assert low <= mean <= high
    lines = result.stdout.splitlines()
    assert lines[-1] == (f"mean Dice {mean:.5f} (95 % interval {low:.5f}..{high:.5f}, 5 photos)")
    assert lines[-2] == "comparison -> masks/evaluation/comparison.jpg"
    assert "not scored, no prediction: 1 (c_2)" in lines
    folds = pd.read_csv(out / "per_fold.csv")
    assert folds["photos"].tolist() == [4, 1]
    assert pd.read_csv(out / "per_group.csv")["photos"].sum() == 5
    assert len(pd.read_csv(out / "threshold_curve.csv")) == 256
    views = pd.read_csv(out / "per_view.csv")
    assert views["photos"].tolist() == [3, 2]
    chosen = pd.read_csv(out / "crossfit.csv")
    assert chosen["fold"].tolist() == [0, 1] and chosen["photos"].tolist() == [4, 1]
    # Noise is grey 128 and the object 200: on either side any threshold between is best.
    assert chosen["threshold"].tolist() == [128, 128]
    crossfitted = np.average(chosen["crossfitted_dice"], weights=chosen["photos"])
    assert summary["crossfit"][0]["mean_dice"] == pytest.approx(crossfitted)
    assert "threshold chosen on the other folds: mean Dice" in result.stdout
    assert not (out / "comparison.csv").exists()
    assert read_photo(out / "comparison.jpg").shape[1] == 1500
    page = (out / "report.html").read_text()
    assert "Reliability of the probabilities" in page and "report_files" in page
    files = {path.name for path in (out / "report_files").iterdir()}
    kinds = ("photo.jpg", "truth.png", "prediction.png", "errors.png", "outlines.png", "thumb.jpg")
    assert files == {f"{row:05d}-{kind}" for row in range(5) for kind in kinds}


def test_one_fold_without_photos_and_stale_products(work):
    folder, expected = work
    out = folder / "out"
    out.mkdir()
    (out / "comparison.jpg").write_text("stale")
    result = evaluate(
        "--pred_mask_dir=masks", "--fold=0", "--photo_dir=nowhere", "--out_dir=out", cwd=folder
    )
    assert result.returncode == 0, result.stderr
    photos = pd.read_csv(out / "per_photo.csv")
    assert photos["id"].tolist() == ["a_1", "a_2", "b_1", "b_2"]
    assert photos["dice"].mean() == pytest.approx(np.mean([expected[s] for s in photos["id"]]))
    assert "not scored, of other folds: 1 predictions" in result.stdout
    assert "no pictures: 'input/nowhere'" in result.stdout
    assert not (out / "comparison.jpg").exists()


def test_without_folds_the_fold_table_is_skipped(work):
    folder, _ = work
    (folder / "input/folds.csv").unlink()
    write_probability(folder / "masks/stranger.png", np.zeros((3, 3), np.uint8))
    result = evaluate("--pred_mask_dir=masks", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "no table per fold: there is no folds file 'folds.csv'." in result.stdout
    assert "not scored, no ground truth: 1 (stranger)" in result.stdout
    assert not (folder / "masks/evaluation/per_fold.csv").exists()
    refused = evaluate("--pred_mask_dir=masks", "--fold=0", cwd=folder)
    assert refused.returncode == 1 and "no folds file" in refused.stderr


def test_two_folders_are_compared_photo_by_photo(work):
    folder, expected = work
    for stem in list(expected)[:4]:
        truth = read_mask(folder / f"input/train_masks/{stem}_mask.png")
        write_probability(folder / "sure" / f"{stem}.png", truth * np.uint8(255))
    result = evaluate(
        "--pred_mask_dir=sure", "--compare_mask_dir=masks", "--min_components=2,5", cwd=folder
    )
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(folder / "sure/evaluation/comparison.csv")
    assert set(table["id"]) == set(list(expected)[:4])
    for stem, difference in zip(table["id"], table["dice_difference"], strict=True):
        assert difference == pytest.approx(1.0 - expected[stem])
    assert table["dice_difference"].is_monotonic_decreasing
    assert "against masks: mean Dice +" in result.stdout
    assert "100.0 % of 4 photos better" in result.stdout
    assert "no cross-fitted threshold: it needs photos of two folds, here are 1." in result.stdout
    out = folder / "sure/evaluation"
    assert 'href="comparison.html">Comparison with masks' in (out / "report.html").read_text()
    assert "There: masks" in (out / "comparison.html").read_text()
    assert len(list((out / "comparison_files").iterdir())) == 4 * 5
    refused = evaluate("--pred_mask_dir=masks", "--compare_mask_dir=none", cwd=folder)
    assert refused.returncode == 1 and "'none' does not exist" in refused.stderr


def test_masks_in_and_out_of_fold_are_compared_by_force_alone(work):
    folder, expected = work
    shutil.copytree(folder / "masks", folder / "known")
    write_manifest(folder, expected)
    write_manifest(folder, expected, out_of_fold=False, name="known")
    given = ("--pred_mask_dir=masks", "--compare=known", "--partial")
    refused = evaluate(*given, cwd=folder)
    assert refused.returncode == 1
    assert "'masks' is out of fold and 'known' is not" in refused.stderr
    done = evaluate(*given, "--force", cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "masks/evaluation/summary.json").read_text())
    assert "'known' is not" in summary["forced"][0]


def test_components_are_tried_where_asked_for(work):
    folder, _ = work
    result = evaluate(
        "--pred_mask_dir=masks", "--min_components=3,2", "--postprocess=largest,fill_holes",
        cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    chosen = pd.read_csv(folder / "masks/evaluation/crossfit.csv")
    assert chosen["chosen"].tolist() == ["threshold"] * 2 + ["threshold, component size"] * 2
    assert set(chosen["min_component"]) <= {0, 2, 3}
    summary = json.loads((folder / "masks/evaluation/summary.json").read_text())
    assert [fit["photos"] for fit in summary["crossfit"]] == [5, 5]
    # Noise next to the object is dropped, and every photo has some.
    gains = {row["steps"]: row for row in summary["postprocess"]}
    assert list(gains) == ["largest", "fill_holes", "largest,fill_holes"]
    assert gains["largest"]["better"] == 1 and gains["largest"]["interval"][0] > 0
    assert f"with largest: mean Dice {gains['largest']['difference']:+.5f}" in result.stdout
    table = pd.read_csv(folder / "masks/evaluation/postprocess.csv")
    assert (table["largest"] > table["dice"]).all()
    assert "whether its masks are out of fold is not known" in result.stdout
    page = (folder / "masks/evaluation/report.html").read_text()
    assert "<h2>Post-processing</h2>" in page and "not known to be out of fold" in page


def test_masks_that_are_not_out_of_fold_are_not_cross_fitted(work):
    folder, expected = work
    write_manifest(folder, expected, out_of_fold=False)
    result = evaluate("--pred_mask_dir=masks", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "no cross-fitted threshold: the masks are not out of fold." in result.stdout
    assert "the masks of 'masks' are NOT out of fold" in result.stdout
    assert not (folder / "masks/evaluation/crossfit.csv").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--pred_mask_dir is missing"),
        (("--pred_mask_dir=input",), "holds no mask"),
        (("--pred_mask_dir=masks", "--fold=7"), "--fold=7 does not exist"),
        (("--pred_mask_dir=masks", "--fold=1"), "1 photos of fold 1 have no prediction"),
        (("--pred_mask_dir=masks", "--threshold=256"), "threshold"),
        (("--pred_mask_dir=masks", "--min_components=a"), "--min_components has 'a'"),
    ],
)
def test_mistakes_are_told_in_one_line(work, flags, message):
    result = evaluate(*flags, cwd=work[0])
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_an_out_of_fold_folder_must_hold_its_whole_fold(work):
    folder, expected = work
    write_manifest(folder, expected)
    refused = evaluate("--pred_mask_dir=masks", cwd=folder)
    assert refused.returncode == 1
    assert "1 photos of fold 1 have no prediction, the first is 'c_2'" in refused.stderr


def test_a_manifest_of_other_photos_is_refused(work):
    write_manifest(work[0], STEMS)
    refused = evaluate("--pred_mask_dir=masks", "--partial", cwd=work[0])
    assert refused.returncode == 1
    assert "lists 6 photos, but 'masks' holds 5 masks" in refused.stderr
    assert "--force" in refused.stderr
    forced = evaluate("--pred_mask_dir=masks", "--partial", "--force", cwd=work[0])
    assert forced.returncode == 0 and "warning: " in forced.stderr
    summary = json.loads((work[0] / "masks/evaluation/summary.json").read_text())
    assert "lists 6 photos" in summary["forced"][0]


def test_real_photos(tmp_path):
    dataset = os.environ.get("CARVANA_DIR")
    if not dataset:
        pytest.skip("CARVANA_DIR is not set")
    masks = sorted((Path(dataset) / "train_masks").glob("*_mask.gif"))[:4]
    for path in masks:
        stem = path.stem.removesuffix("_mask")
        write_probability(tmp_path / "masks" / f"{stem}.png", read_mask(path) * np.uint8(255))
    result = evaluate(f"--dataset_dir={dataset}", "--pred_mask_dir=masks", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("mean Dice 1.00000")


DAMAGED = {
    "input/train/a_1.png": "the same name as a_1.jpg",
    "input/folds.csv": "id,fold\na,x\n",
    "masks/timings.json": "{",
}


@pytest.mark.parametrize("times", ["{", "[1]", '{"stages": 3, "seconds": [2]}'])
def test_a_report_does_without_what_cannot_be_read(work, monkeypatch, capsys, times):
    folder, expected = work
    monkeypatch.chdir(folder)
    for name, text in {**DAMAGED, "masks/timings.json": times}.items():
        (folder / name).write_text(text)
    assert commands.find("evaluate").call(["--pred_mask_dir=masks"]) == 0
    printed = capsys.readouterr()
    warnings = [line for line in printed.err.splitlines() if line.startswith("warning: no ")]
    assert warnings[0].startswith("warning: no table per fold: ") and "folds.csv" in warnings[0]
    assert warnings[1].startswith("warning: no pictures: 'input/train/a_1.jpg' and 'a_1.png' diff")
    of_times = [line for line in warnings[2:] if "timings.json" in line]
    assert len(of_times) == len(warnings) - 2 == (0 if "stages" in times else 1)
    assert "lacks photos" not in printed.out
    out = folder / "masks/evaluation"
    photos = pd.read_csv(out / "per_photo.csv")
    assert dict(zip(photos["id"], photos["dice"], strict=True)) == pytest.approx(expected)
    assert "There are no pictures" in (out / "report.html").read_text()
    with pytest.raises(UserError, match=r"folds\.csv"):
        commands.find("evaluate").call(["--pred_mask_dir=masks", "--fold=0"])
