"""tools/show_augmentation.py as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from carvana_tf.data.images import read_photo
from carvana_tf.evaluation.pictures import PREDICTION

ROOT = Path(__file__).parents[1]


def show(*flags, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/show_augmentation.py"), "--dataset_dir=input", *flags],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_sheet_of_outlined_photos_that_repeats(make_dataset):
    work = make_dataset(groups=2).parent
    flags = ("--augmentation=000-aug1:rotation=5..15", "--samples=10", "--columns=4", "--tile=56")
    sheets = []
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        run = show(*flags, f"--out={name}", f"--seed={seed}", cwd=work)
        assert run.returncode == 0, run.stderr
        assert "rotation=5..15" in run.stdout
        sheets.append(read_photo(work / name))
    first, again, other = sheets
    # Three rows of four 56x40 photos with gaps of 6; ten of the twelve places are taken.
    assert first.shape == (3 * 46 + 6, 4 * 62 + 6, 3)
    tiles = [first[6 + 46 * r :, 6 + 62 * c :][:40, :56] for r in range(3) for c in range(4)]
    lines = [(np.abs(tile - np.float32(PREDICTION)) < 40).all(-1).sum() for tile in tiles]
    assert min(lines[:10]) > 20
    assert all((tile == 255).all() for tile in tiles[10:])
    np.testing.assert_array_equal(first, again)
    assert first.shape == other.shape
    assert (first != other).any()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--out=sheet.gif", "--out must end in .jpg or .png, received 'sheet.gif'"),
        ("--augmentation=000-aug9", "000-aug9"),
        ("--augmentation=none:zoom=9", "low..high within 0.05..20"),
    ],
)
def test_mistakes_are_told_in_one_line(make_dataset, flag, message):
    run = show(flag, cwd=make_dataset().parent)
    assert run.returncode == 1
    assert message in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
