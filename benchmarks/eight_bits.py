"""What bfloat16 and 8 bits cost in out-of-fold Dice, on real photos.

bash benchmarks/out_of_fold.sh
CARVANA_DIR=/path/to/carvana python benchmarks/eight_bits.py

Every photo is predicted at the networks' own size by the one that has not seen it, in float32
by Keras, in bfloat16 and in 8 bits by OpenVINO; 8 bits are calibrated on photos of all folds,
without their masks.
"""

import dataclasses
import os
import sys
from pathlib import Path

import scripts
from carvana_tf.cli import Command, main
from carvana_tf.errors import UserError
from carvana_tf.flags import Values, option
from carvana_tf.models import model_file
from results import PlaceOptions, print_table, replace_rows

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


def run(values: Values) -> None:
    """Predicts all photos three times and compares the masks' scores, photo by photo."""
    place, options = values[PlaceOptions], values[BitsOptions]
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
            scripts.run("predict_multithreaded.py", *dataset, *how, *which)
        scripts.join_folds(parts, work / name)
    rows = [
        _compare(dataset, work, one, other)
        for one, other in ((INT8, BFLOAT16), (BFLOAT16, FLOAT32), (INT8, FLOAT32))
    ]
    print_table(rows)
    replace_rows(Path(place.out_dir) / "eight_bits.csv", rows, {"what": _setting(weights)})


def _setting(weights: Path) -> str:
    metadata = model_file.read_metadata(weights)
    size = "whole"
    if metadata["size_policy"] == "resize":
        size = f"resized to {metadata['input_width']}x{metadata['input_height']}"
    return f"{metadata['network']}, real photos {size}"


def _compare(dataset: list[str], work: Path, one: str, other: str) -> dict[str, object]:
    """One row: the Dice of both and their paired difference."""
    out, names = work / f"{one}_and_{other}", ("dice", "other_dice")
    row = scripts.compare(dataset, work / one, work / other, out, names)
    return {
        "masks": one,
        "compared_with": other,
        **row,
        "most_loss": MOST,
        "reached": "yes" if -float(str(row["difference"])) < MOST else "no",
    }


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, BitsOptions), run)))
