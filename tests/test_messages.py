"""Messages name the cause, and advice that works: it is followed here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from carvana_tf.data.dataset import Naming, find_samples, why_unmatched
from carvana_tf.data.folds import make_folds, read_folds
from carvana_tf.data.images import write_mask, write_photo, write_probability
from carvana_tf.errors import Problems, UserError
from carvana_tf.evaluation import pairs

ROOT = Path(__file__).parents[1]


def run(script, *flags, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, flags)], cwd=cwd, capture_output=True,
        text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def advised(message, flag):
    """The value that a message advises for a flag: the last one it names."""
    return re.findall(rf"--{flag}='([^']*)'", message)[-1]


@pytest.fixture
def camera(tmp_path):
    """Photos of a camera, whose masks are named otherwise, in folders of other names."""
    grey = np.zeros((8, 9), np.uint8)
    grey[2:5, 2:5] = 255
    for i in range(6):
        write_photo(tmp_path / f"data/images/IMG_{i:04d}.jpg", np.dstack([grey] * 3))
        write_mask(tmp_path / f"data/masks/IMG_{i:04d}-seg.png", grey > 0)
        write_probability(tmp_path / f"predicted/IMG_{i:04d}.png", grey)
    return tmp_path


LAYOUT = ("--dataset_dir=data", "--train_mask_dir_name=masks")


def test_advice_on_folds_and_evaluation_leads_to_scores(camera):
    folds = ("make_folds.py", *LAYOUT, "--train_data_dir_name=images")
    refused = run(*folds, cwd=camera)
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1
    suffix = f"--mask_suffix={advised(refused.stderr, 'mask_suffix')}"
    assert suffix == "--mask_suffix=-seg"
    refused = run(*folds, suffix, cwd=camera)
    assert "puts 6 photos into 1 groups" in refused.stderr and "'IMG'" in refused.stderr
    groups = f"--group_pattern={advised(refused.stderr, 'group_pattern')}"
    done = run(*folds, suffix, groups, cwd=camera)
    assert done.returncode == 0, done.stderr
    assert set(read_folds(camera / "data/folds.csv")["fold"]) == set(range(5))
    scoring = ("evaluate.py", *LAYOUT, "--pred_mask_dir=predicted", "--fold=0")
    refused = run(*scoring, groups, cwd=camera)
    assert refused.returncode == 1
    assert advised(refused.stderr, "mask_suffix") == "-seg"
    done = run(*scoring, suffix, groups, "--partial", cwd=camera)
    assert done.returncode == 0, done.stderr


def test_few_groups_are_no_dead_end(tmp_path):
    import pandas as pd

    one = pd.DataFrame({"id": ["IMG"], "area": [5]})
    with pytest.raises(UserError, match="two folds need two groups, see --group_pattern"):
        make_folds(one, 2)
    with pytest.raises(UserError, match="ask for at most 3"):
        make_folds(pd.DataFrame({"id": list("abc"), "area": [1, 2, 3]}), 5)


@pytest.mark.parametrize(
    ("naming", "files", "expected_message"),
    [
        (Naming(), ["notes.txt"], "holds no image"),
        (Naming(mask_extension=".gif"), ["a_1_mask.png"], "none ends in --mask_extension=.gif"),
        (Naming(), ["a_1.png", "a_2.png"], "--mask_suffix='' fits 2 of 3 photos"),
        (Naming(), ["a_1_gt.png", "a_2_gt.png", "b_1_gt.png"], "--mask_suffix='_gt' fits 3 of 3"),
        (Naming(), ["x.png"], "masks of other photos .*'x.png', looked for was 'a_1_mask.png'"),
    ],
)
def test_why_no_mask_was_found(tmp_path, naming, files, expected_message):
    for name in files:
        (tmp_path / name).touch()
    assert re.search(expected_message, why_unmatched(tmp_path, naming, {"a_1", "a_2", "b_1"}))


@pytest.mark.parametrize("extension", ["gif", ".raw"])
def test_an_extension_that_cannot_be_read(extension):
    with pytest.raises(UserError, match=rf"'{extension}' is none of .*with its dot"):
        Naming(mask_extension=extension)


def test_the_cause_of_an_empty_fold(tmp_path):
    truths = {"a_1": tmp_path / "a_1_mask.png"}
    predictions = {"a_1": tmp_path / "a_1.png"}
    with pytest.raises(UserError, match="they are in 1: choose one of these"):
        pairs.match(predictions, truths, Naming(), {"a": 1, "b": 0}, only_fold=0)
    with pytest.raises(UserError, match=r"names none of the 1 photos .*--folds_source"):
        pairs.match(predictions, truths, Naming(), {"x": 0}, only_fold=0)


def test_problems_are_reported_together():
    problems = Problems()
    problems.raise_any()
    problems.attempt(find_samples, Path("/none"), Path("/none"))
    problems.attempt(find_samples, Path("/none"), Path("/none"))
    with pytest.raises(UserError, match=r"^the folder '/none' does not exist"):
        problems.raise_any()
    problems.add("b.")
    with pytest.raises(UserError, match=r"^2 mistakes: \(1\) the folder .* \(2\) b\.$"):
        problems.raise_any()


@pytest.mark.parametrize(
    ("script", "flags", "named"),
    [
        ("make_folds.py", (), ("folder 'data/train' does", "folder 'data/train_masks' does")),
        (
            "tools/check_data.py",
            ("--mask_extension=x", "--train_data_dir_name=train"),
            ("'data/train'", "--mask_extension"),
        ),
        (
            "evaluate.py",
            ("--fold=0", "--min_components=x"),
            ("--pred_mask_dir", "--min_components", "images, masks", "no folds file"),
        ),
        (
            "predict_multithreaded.py",
            ("--weights=a.keras,b.keras", "--predict_on_val", "--pred_tta", "hflip"),
            ("'a.keras'", "'b.keras'", "--pred_mask_dir", "--val_data_dir_name", "no folds file"),
        ),
        (
            "ensemble.py",
            ("--pred_mask_dirs=x,y", "--strategy=median", "--weights=1,2"),
            ("--pred_mask_dir is", "'x'", "'y'", "median"),
        ),
        (
            "generate_encoded_submission.py",
            ("--pred_mask_dir=x", "--pred_sample_csv=s.csv"),
            ("'x'", "'s.csv'"),
        ),
        ("tools/score_submission.py", ("--submission=s.csv",), ("'s.csv'", "--truth_dir")),
    ],
)
def test_all_mistakes_are_named_at_once_without_tensorflow(camera, script, flags, named):
    (camera / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    (camera / "keras.py").write_text("raise SystemExit('Keras was imported')")
    dataset = [] if script.startswith("generate") else ["--dataset_dir=data"]
    command = [sys.executable, str(ROOT / script), *dataset, *flags]
    path = os.pathsep.join(map(str, (camera, ROOT)))
    done = subprocess.run(
        command, cwd=camera, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("error: ")
    for word in named:
        assert word in line


def test_training_reports_all_missing_places_before_keras_is_loaded(tmp_path, camera):
    for package in ("keras", "tensorflow"):
        (tmp_path / "poison" / package).mkdir(parents=True)
        (tmp_path / "poison" / package / "__init__.py").write_text("raise SystemExit(77)")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'poison'}:{ROOT}"}

    def said(*flags):
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), "--dataset_dir=data", *flags],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    status, message = said("--weights=no.keras", "--network", "linknet34", "--pseudo_mask_dir=no")
    assert status == 1 and message.count("\n") == 1
    for part in (
        "6 mistakes", "--train_data_dir_name", "--train_mask_dir_name", "make_folds.py",
        "--weights 'no.keras'", "--pseudo_mask_dir", "--pseudo_data_dir",
    ):  # fmt: skip
        assert part in message
    folders = ["--train_data_dir_name=images", "--train_mask_dir_name=masks"]
    folders += ["--val_data_dir_name=images", "--val_mask_dir_name=masks", "--fold=none"]
    status, message = said(*folders)
    assert status == 1 and advised(message, "mask_suffix") == "-seg"
    # All is in order: now Keras is loaded.
    assert said(*folders, "--mask_suffix=-seg")[0] == 77
