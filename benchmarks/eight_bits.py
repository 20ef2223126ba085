"""What bfloat16 and 8 bits cost in out-of-fold Dice, on real photos.

bash benchmarks/out_of_fold.sh
CARVANA_DIR=/path/to/carvana python benchmarks/eight_bits.py

Every photo is predicted at the networks' own size by the one that has not seen it, in float32
by Keras, in bfloat16 and in 8 bits by OpenVINO; 8 bits are calibrated on photos of all folds,
without their masks.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

from carvana_tf import cli, flags
from carvana_tf.errors import UserError
from carvana_tf.flags import option
from carvana_tf.models import model_file
from results import PlaceOptions, print_table, replace_rows

ROOT = Path(__file__).resolve().parents[1]
MOST = 0.0001  # Dice that 8 bits may cost
FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
ENGINES = {
    FLOAT32: ("--engine=keras", "--dtype=float32"),
    BFLOAT16: ("--engine=openvino", "--dtype=bfloat16"),
    INT8: ("--engine=openvino-int8", "--dtype=bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class BitsOptions:
    """What only this benchmark needs."""

    folds: str = option(
        "runs/out_of_fold/products/folds.csv", "The folds the networks were trained on."
    )
    weights: str = option(
        "runs/out_of_fold/products/models/mobilenet-mobilenet-fold_{fold}/last.keras",
        "The network of each fold; {fold} becomes its number.",
    )
    n_folds: int = option(3, "How many folds there are.", lower=1)


_PLACE = flags.define(PlaceOptions)
_BITS = flags.define(BitsOptions)


def main() -> None:
    """Predicts all photos three times and compares the masks' scores, photo by photo."""
    place, options = _PLACE.read(), _BITS.read()
    data = place.data_dir or os.environ.get("CARVANA_DIR")
    if not data:
        raise UserError("--data_dir is missing; name a folder with train/ and train_masks/.")
    dataset = [f"--dataset_dir={data}", f"--folds_source={Path(options.folds).resolve()}"]
    work = Path(place.work_dir).resolve() / "eight_bits"
    for name, engine in ENGINES.items():
        parts = [work / f"{name}_{fold}" for fold in range(options.n_folds)]
        for fold, part in enumerate(parts):
            weights = Path(options.weights.replace("{fold}", str(fold))).resolve()
            which = (f"--fold={fold}", f"--weights={weights}", f"--pred_mask_dir={part}")
            how = (*engine, "--predict_on_val", "--gpu=", "--overwrite")
            _run("predict_multithreaded.py", *dataset, *how, *which)
        folders = ",".join(map(str, parts))
        whole = (f"--pred_mask_dirs={folders}", f"--pred_mask_dir={work / name}")
        _run("ensemble.py", *whole, "--overwrite")
    rows = [
        _compare(dataset, work, one, other)
        for one, other in ((INT8, BFLOAT16), (BFLOAT16, FLOAT32), (INT8, FLOAT32))
    ]
    print_table(rows)
    replace_rows(Path(place.out_dir) / "eight_bits.csv", rows, {"what": _setting(weights)})


def _setting(weights: Path) -> str:
    told = model_file.read_metadata(weights)
    size = "whole"
    if told["size_policy"] == "resize":
        size = f"resized to {told['input_width']}x{told['input_height']}"
    return f"{told['network']}, real photos {size}"


def _compare(dataset: list[str], work: Path, one: str, other: str) -> dict[str, object]:
    """One row: the Dice of both and their paired difference."""
    out = work / f"{one}_and_{other}"
    folders = (f"--pred_mask_dir={work / one}", f"--compare_mask_dir={work / other}")
    _run("evaluate.py", *dataset, *folders, f"--out_dir={out}")
    comparison = json.loads((out / "summary.json").read_text())["comparison"]
    dice = comparison["measures"][0]
    low, high = dice["interval"]
    return {
        "masks": one,
        "compared_with": other,
        "photos": comparison["photos"],
        "dice": round(dice["mean"], 6),
        "other_dice": round(dice["mean_other"], 6),
        "difference": round(dice["difference"], 6),
        "low": round(low, 6),
        "high": round(high, 6),
        "most_loss": MOST,
        "reached": "yes" if -dice["difference"] < MOST else "no",
    }


def _run(script: str, *arguments: str) -> None:
    """Runs a script of the toolkit; what was predicted before is not predicted again."""
    done = subprocess.run([sys.executable, script, *arguments], cwd=ROOT)
    if done.returncode:
        raise UserError(f"{script} ended with status {done.returncode}, see above.")


if __name__ == "__main__":
    cli.run(main)
