"""One threshold from post-processing to the submission, whichever scripts the masks go through."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics

from carvana_tf import commands
from carvana_tf.data.images import read_grey, read_mask, write_probability
from carvana_tf.errors import UserError
from carvana_tf.files import digest_of_lines, read_json, write_json
from carvana_tf.masks import manifest, postprocess, rle

FITTED = 90
NAMES = ("--pred_sample_csv=", "--image_extension=.jpg")


def call(script, *arguments):
    """Runs a script's command in this process."""
    name = next(name for name, each in commands.SCRIPTS.items() if each == script)
    return commands.find(name).call(arguments)


@pytest.fixture
def work(make_dataset, tmp_path, monkeypatch):
    """Out-of-fold masks of eight photos: the car, a dim speck, and a bright one in a dim ring."""
    root = make_dataset()
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(3)
    stems = sorted(path.stem for path in (root / "train").iterdir())
    for stem in stems:
        truth = read_mask(root / "train_masks" / f"{stem}_mask.gif")
        grey = np.where(truth, random.integers(100, 256, truth.shape), 20).astype(np.uint8)
        grey[:3, :4] = 110
        grey[-5:, -5:], grey[-4:-1, -4:-1] = 80, 200
        write_probability(tmp_path / "raw" / f"{stem}.png", grey)
    model = {"file": "a", "digest": "1", "network": "n", "fold": None, "training_groups": None}
    described = manifest.Manifest(
        models=(model,),
        out_of_fold=True,
        tta="none",
        engine="keras",
        dtype="float32",
        photos=len(stems),
        photos_digest=digest_of_lines(stems),
        encoding=manifest.ENCODING,
        version="1",
    )
    manifest.write(tmp_path / "raw", described)
    call(
        "ensemble.py",
        "--pred_mask_dirs=raw",
        "--pred_mask_dir=fixed",
        "--postprocess=largest",
        f"--threshold={FITTED}",
    )
    return root


def decoded(path, size):
    with gzip.open(path, "rt", newline="") as handle:
        return {row["img"]: rle.decode(row["rle_mask"], *size) for row in csv.DictReader(handle)}


def encode(name, *arguments):
    flag = f"--submission_name={name}"
    call("generate_encoded_submission.py", *NAMES, flag, *arguments)
    return Path("submissions") / name


def test_the_submission_is_the_post_processed_masks(work):
    for path in sorted(Path("raw").glob("*.png")):
        raw, fixed = read_grey(path), read_grey(Path("fixed") / path.name)
        expected = postprocess.largest(raw, FITTED) > FITTED
        assert (raw > FITTED).sum() > expected.sum()  # there was something to remove
        np.testing.assert_array_equal(fixed > FITTED, expected)
    masks = decoded(encode("a.csv.gz", "--pred_mask_dir=fixed"), raw.shape)
    np.testing.assert_array_equal(masks[f"{path.stem}.jpg"], expected)
    assert manifest.read(Path("fixed")).threshold == FITTED
    assert manifest.read(Path("raw")).threshold is None


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("generate_encoded_submission.py", ("--pred_mask_dir=fixed", *NAMES)),
        ("evaluate.py", ("--pred_mask_dir=fixed", "--dataset_dir=input")),
        ("evaluate.py", ("--pred_mask_dir=raw", "--compare=fixed", "--dataset_dir=input")),
        ("tools/find_bounding_boxes.py", ("--pred_mask_dir=fixed",)),
        ("ensemble.py", ("--pred_mask_dirs=fixed", "--pred_mask_dir=o", "--postprocess=largest")),
        ("ensemble.py", ("--pred_mask_dirs=raw,fixed", "--pred_mask_dir=o", "--force")),
    ],
)
def test_another_threshold_is_refused_and_force_records_it(work, script, arguments, capsys):
    threshold = f"--threshold={FITTED - 30}"
    refused = [each for each in arguments if each != "--force"]
    if "--force" not in arguments:  # without it these two have a problem of their own
        with pytest.raises(UserError, match=f"contradicts.*'fixed'.*grey > {FITTED}.*--force"):
            call(script, *refused, threshold)
        assert not Path("o").exists() and not Path("submissions").exists()
    call(script, *refused, threshold, "--force")
    assert f"grey > {FITTED}" in capsys.readouterr().err
    records = [
        *Path("submissions").glob("*.forced.json"),
        *Path().glob("boxes.csv.forced.json"),
        *Path().glob("*/evaluation/summary.json"),
        *Path("o").glob("manifest.json"),
    ]
    assert f"grey > {FITTED}" in records[0].read_text()


def test_scores_and_gains_are_those_of_the_threshold(work, capsys):
    common = (f"--dataset_dir={work}", "--boundary_tolerance=1")
    call("evaluate.py", "--pred_mask_dir=fixed", "--compare=raw", *common)
    message = capsys.readouterr().out
    after = read_json(Path("fixed/evaluation/summary.json"))
    flag = (f"--threshold={FITTED}", "--postprocess=largest")
    call("evaluate.py", "--pred_mask_dir=raw", *flag, *common)
    before = read_json(Path("raw/evaluation/summary.json"))
    scores = {True: [], False: []}
    for path in sorted(Path("raw").glob("*.png")):
        truth = read_mask(work / "train_masks" / f"{path.stem}_mask.gif").ravel()
        raw = read_grey(path)
        for fixed, grey in ((False, raw), (True, postprocess.largest(raw, FITTED))):
            scores[fixed].append(sklearn.metrics.f1_score(truth, grey.ravel() > FITTED))
    assert after["threshold"] == before["threshold"] == FITTED
    assert after["mean_dice"] == pytest.approx(np.mean(scores[True]))
    assert before["mean_dice"] == pytest.approx(np.mean(scores[False]))
    gain = np.mean(scores[True]) - np.mean(scores[False])
    assert gain > 0
    assert before["postprocess"][0]["difference"] == pytest.approx(gain)
    assert after["comparison"]["measures"][0]["difference"] == pytest.approx(gain)
    # No other threshold is recommended: it would bring back what was removed.
    assert after["best_threshold"] == FITTED and after["crossfit"] == []
    assert "other masks at any other threshold" in message
    assert before["crossfit"]


def test_folders_of_two_thresholds_do_not_combine(work):
    arguments = ("--pred_mask_dirs=raw", "--pred_mask_dir=other", "--postprocess=largest")
    call("ensemble.py", *arguments)
    made = read_json(Path("other/manifest.json"))
    assert made["threshold"] == 127
    made["models"][0]["digest"] = "2"
    write_json(Path("other/manifest.json"), made)
    with pytest.raises(UserError, match=f"grey > {FITTED}.*'other' at 127"):
        call("ensemble.py", "--pred_mask_dirs=fixed,other", "--pred_mask_dir=o")


def test_manifests_from_before_thresholds_have_the_usual_one(work):
    made = json.loads(Path("fixed/manifest.json").read_text())
    del made["threshold"]
    write_json(Path("fixed/manifest.json"), made)
    assert manifest.read(Path("fixed")).threshold == 127
    made["ensemble"] = None
    write_json(Path("fixed/manifest.json"), made)
    assert manifest.read(Path("fixed")).threshold is None


def test_a_vote_keeps_its_threshold(work):
    call("ensemble.py", "--pred_mask_dirs=raw", "--pred_mask_dir=v", "--strategy=vote")
    assert manifest.read(Path("v")).threshold == 127
    call("tools/find_bounding_boxes.py", "--pred_mask_dir=fixed")
    by_fitted = Path("boxes.csv").read_bytes()
    call("tools/find_bounding_boxes.py", "--pred_mask_dir=fixed", f"--threshold={FITTED}")
    assert Path("boxes.csv").read_bytes() == by_fitted
