"""Runs of the toolkit's scripts, and the scores of what they predicted."""

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from carvana_tf.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, *arguments: str) -> None:
    """Runs a script of the toolkit in the working folder, and shows its command.

    Raises:
        UserError: It failed.
    """
    command = [sys.executable, str(ROOT / script), *arguments]
    print("+", " ".join(command[1:]), flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise UserError(f"{script} ended with status {done.returncode}, see above.")


def processor_seconds() -> float:
    """Processor time of all scripts that have ended, which other programs hardly change."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def join_folds(parts: Sequence[Path], whole: Path) -> None:
    """Puts the masks of each fold into one folder."""
    folders = ",".join(map(str, parts))
    run("ensemble.py", f"--pred_mask_dirs={folders}", f"--pred_mask_dir={whole}", "--overwrite")


def compare(
    dataset: Sequence[str], one: Path, other: Path, out: Path, names: tuple[str, str]
) -> dict[str, object]:
    """The mean Dice of two mask folders and their paired difference with its interval.

    Args:
        dataset: Flags of the dataset and its folds.
        one: A mask folder.
        other: Another one of the same photos.
        out: Folder for the scores.
        names: What the columns of the two means are called.
    """
    folders = (f"--pred_mask_dir={one}", f"--compare_mask_dir={other}", f"--out_dir={out}")
    run("evaluate.py", *dataset, *folders, "--gallery_photos=0")
    comparison = json.loads((out / "summary.json").read_text())["comparison"]
    dice = comparison["measures"][0]
    low, high = dice["interval"]
    values = dict(zip(names, (dice["mean"], dice["mean_other"]), strict=True))
    values |= {"difference": dice["difference"], "low": low, "high": high}
    rounded = {name: round(value, 6) for name, value in values.items()}
    return {"photos": comparison["photos"], **rounded}
