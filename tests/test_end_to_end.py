"""Every script in the README's order, as a user runs them."""

import csv
import gzip
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from processes import UNOPTIMISED, finish_script_apart, run_script_apart

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(tmp_path):
    """Runs a script in a folder of its own; returns what it printed."""

    def run(name: str, *args: str, backend: str = "tensorflow") -> str:
        if backend == "tensorflow":
            done = finish_script_apart(ROOT / name, *args, cwd=tmp_path)
        else:
            done = subprocess.run(
                [sys.executable, str(ROOT / name), *args],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=os.environ
                | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "XLA_FLAGS": UNOPTIMISED},
            )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return run


def brute_force_dice(folder: Path, masks: Path) -> float:
    """Mean Dice by plain counting, with OpenCV alone."""
    scores = []
    for path in sorted(folder.glob("*.png")):
        prediction = cv2.imread(str(path), 0) > 127
        truth = cv2.imread(str(masks / f"{path.stem}_mask.gif"), 0) > 127
        total = prediction.sum() + truth.sum()
        scores.append(2 * (prediction & truth).sum() / total if total else 1.0)
    return float(np.mean(scores))


def decode(text: str, size: int) -> np.ndarray:
    flat = np.zeros(size, bool)
    numbers = [int(number) for number in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        flat[start - 1 : start - 1 + length] = True
    return flat


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_from_photos_to_a_submission(make_dataset, script, tmp_path, backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    root = make_dataset(groups=4, views=2)
    (root / "folds.csv").unlink()
    script("make_folds.py", f"--dataset_dir={root}", "--n_folds=2")
    script("tools/check_data.py", f"--dataset_dir={root}")
    common = (f"--dataset_dir={root}", "--fold=1")
    script(
        "train.py",
        *(*common, "--network=unet_tiny", "--smoke", "--size_policy=resize"),
        *("--models_dir=models", "--epochs=2", "--learning_rate=0.01"),
        backend=backend,
    )
    script(
        "predict_multithreaded.py",
        *(*common, "--predict_on_val", "--weights=models/unet_tiny-fold_1-smoke/best.keras"),
        *("--pred_mask_dir=masks", "--pred_tta=hflip", "--pred_batch_size=2"),
        backend=backend,
    )
    masks = tmp_path / "masks"
    predicted = {path.stem for path in masks.glob("*.png")}
    with (root / "folds.csv").open(newline="") as handle:
        fold = {row["id"] for row in csv.DictReader(handle) if row["fold"] == "1"}
    assert predicted == {f"{group}_{view:02d}" for group in fold for view in (1, 2)}

    message = script("evaluate.py", *common, "--pred_mask_dir=masks", backend=backend)
    summary = json.loads((masks / "evaluation" / "summary.json").read_text())
    expected = brute_force_dice(masks, root / "train_masks")
    assert summary["mean_dice"] == pytest.approx(expected, abs=1e-12)
    assert message.strip().splitlines()[-1].startswith(f"mean Dice {expected:.5f}")

    script("generate_encoded_submission.py", "--pred_mask_dir=masks", "--submissions_dir=out")
    (submission,) = (tmp_path / "out").iterdir()
    with gzip.open(submission, "rt", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == len(predicted)
    for row in rows:
        mask = cv2.imread(str(masks / f"{Path(row['img']).stem}.png"), 0) > 127
        np.testing.assert_array_equal(decode(row["rle_mask"], mask.size), mask.ravel())


@pytest.mark.slow
def test_a_second_domain_needs_flags_alone(tmp_path):
    nuclei = os.environ.get("NUCLEI_DIR")
    if not nuclei:
        pytest.skip("NUCLEI_DIR is not set")

    def script(name, *flags):
        return run_script_apart(name, tmp_path / "log", ROOT / name, *flags, cwd=tmp_path)

    naming = (f"--dataset_dir={nuclei}", "--mask_suffix=", "--folds_source=folds.csv")
    masks = ("--train_data_dir_name=images", "--train_mask_dir=masks")
    script("make_folds.py", *naming, *masks, f"--folds_out={tmp_path / 'folds.csv'}", "--n_folds=4")
    script("tools/check_data.py", *naming, *masks)
    script(
        "train.py",
        *(*naming, *masks, "--val_data_dir_name=images", "--val_mask_dir=masks", "--smoke"),
        *("--network=unet_tiny", "--size_policy=resize", "--models_dir=models"),
    )
    script(
        "predict_multithreaded.py",
        *(*naming, "--predict_on_val", "--val_data_dir_name=images", "--fold=0"),
        *("--weights=models/unet_tiny-fold_0-smoke/best.keras", "--pred_mask_dir=masks"),
    )
    message = script(
        "evaluate.py",
        *(*naming, "--train_mask_dir=masks", "--photo_dir=images", "--fold=0"),
        "--pred_mask_dir=masks",
    )
    assert "mean Dice" in message
