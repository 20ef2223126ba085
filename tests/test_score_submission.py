"""tools/score_submission.py: every row decoded and scored."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from carvana_tf.data.dataset import Naming, list_masks
from carvana_tf.data.images import write_mask
from carvana_tf.errors import UserError
from carvana_tf.evaluation import boundary, rows
from carvana_tf.masks import rle

ROOT = Path(__file__).parent.parent
STEMS = [f"{car}_{view}" for car in "abc" for view in (1, 2)]


def score_script(*flags, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/score_submission.py"), *flags],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def work(tmp_path):
    """Truth of six sizes, a wrong answer to each, and the lines of a submission."""
    random = np.random.default_rng(0)
    truths, answers = {}, {}
    for i, stem in enumerate(STEMS):
        truth = np.zeros((20 + i, 31), bool)
        truth[4:15, 6:25] = True
        truths[stem], answers[stem] = truth, truth ^ (random.random(truth.shape) < 0.1)
        write_mask(tmp_path / "truth" / f"{stem}_mask.png", truth)
    lines = [f"{stem}.jpg,{rle.encode_text(mask)}" for stem, mask in answers.items()]
    return tmp_path, truths, answers, ["img,rle_mask", *lines]


def score(folder, lines, **options):
    (folder / "s.csv").write_text("\n".join(lines) + "\n")
    return rows.score(folder / "s.csv", list_masks(folder / "truth", Naming()), Naming(), **options)


def test_scores_agree_with_scikit_learn(work):
    folder, truths, answers, lines = work
    found = score(folder, lines, threads=2)
    assert (found.without_truth, found.without_row) == ([], [])
    functions = {
        "dice": sklearn.metrics.f1_score,
        "iou": sklearn.metrics.jaccard_score,
        "precision": sklearn.metrics.precision_score,
        "recall": sklearn.metrics.recall_score,
    }
    for row in found.photos.to_dict("records"):
        truth, answer = truths[row["id"]], answers[row["id"]]
        for name, function in functions.items():
            expected = function(truth.ravel(), answer.ravel())
            assert row[name] == pytest.approx(expected, abs=1e-9)
        tn, fp, fn, tp = sklearn.metrics.confusion_matrix(truth.ravel(), answer.ravel()).ravel()
        assert [row[name] for name in ("tn", "fp", "fn", "tp")] == [tn, fp, fn, tp]
        assert row["boundary_f"] == boundary.boundary_scores(truth, answer)[2]
        assert row["band_dice"] == boundary.band_dice(truth, answer)


def test_an_empty_text_is_an_empty_mask(work):
    folder, _, _, _ = work
    write_mask(folder / "truth/void_mask.png", np.zeros((5, 6), bool))
    found = score(folder, ["img,rle_mask", "a_1.jpg,", "void.jpg,"])
    assert found.photos["dice"].tolist() == [0.0, 1.0]
    assert found.without_row == STEMS[1:]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a_1.jpg,1 999999", "'a_1.jpg' of '.*s.csv': .*pixels outside"),
        ("a_1.jpg,5 x", "'x', which is no whole number"),
        ("z.jpg,1 2", "no row of '.*s.csv' has a ground-truth mask .*'z.jpg'"),
    ],
)
def test_bad_rows_are_named(work, line, message):
    with pytest.raises(UserError, match=message):
        score(work[0], ["img,rle_mask", line])


@pytest.mark.parametrize("second", ["a_1.jpg", "a_1.png"])
def test_a_photo_may_not_be_there_twice(work, second):
    with pytest.raises(UserError, match=r"more than once|both stand for"):
        score(work[0], ["img,rle_mask", "a_1.jpg,1 1", f"{second},2 2"])


def test_script_reads_plain_and_gzip_alike(work):
    folder, _, answers, lines = work
    text = "\n".join([*lines, "stranger.jpg,1 1"]) + "\n"
    (folder / "s.csv").write_text(text)
    (folder / "s.csv.gz").write_bytes(gzip.compress(text.encode()))
    flags = ("--truth_dir=truth", "--scores_csv=scores.csv", "--threads=2")
    plain = score_script("--submission=s.csv", *flags, cwd=folder)
    assert plain.returncode == 0, plain.stderr
    packed = score_script("--submission=s.csv.gz", *flags, cwd=folder)
    assert packed.stdout == plain.stdout
    assert "not scored, no ground truth: 1 (stranger.jpg)" in plain.stdout
    table = pd.read_csv(folder / "scores.csv")
    assert table["id"].tolist() == list(answers)
    last = plain.stdout.splitlines()[-1]
    assert last.startswith(f"mean Dice {table['dice'].mean():.5f} (95 % interval ")
    assert last.endswith(", 6 photos)")


def test_script_refuses_a_submission_that_lacks_photos_unless_told(work):
    folder, _, _, lines = work
    (folder / "s.csv").write_text("\n".join(lines[:-1]) + "\n")
    refused = score_script("--submission=s.csv", "--truth_dir=truth", cwd=folder)
    assert refused.returncode == 1
    assert "1 ground-truth masks have no row in 's.csv': c_2" in refused.stderr
    done = score_script("--submission=s.csv", "--truth_dir=truth", "--partial", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "not scored, no row: 1 (c_2)" in done.stdout
    missing = score_script("--truth_dir=truth", cwd=folder)
    assert missing.stderr.splitlines() == [
        "error: --submission is missing; name the file to score."
    ]
