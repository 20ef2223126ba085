"""Trains many networks on one fold of real photos, each with the same processor time.

CARVANA_DIR=/path/to/carvana ENCODER_WEIGHTS=/path/to/weights python benchmarks/networks.py

Two short trainings separate a network's processor seconds per step and those of start-up and
validation, from which follows how many steps it gets. `processor_minutes` is what it really
took, all included. Processor time, unlike minutes on the wall, hardly depends on what else the
machine does. A second call goes on after the last row of the table.
"""

import csv
import dataclasses
import json
import os
import sys
from pathlib import Path

import pandas as pd

import scripts
from carvana_tf import devices
from carvana_tf.cli import Command, main
from carvana_tf.errors import UserError
from carvana_tf.files import write_text
from carvana_tf.flags import Values, option
from carvana_tf.models import model_file

ROOT = Path(__file__).resolve().parents[1]
# Steps of two short trainings; their difference has neither start-up nor decoding in it.
_CALIBRATION = (70, 120)
_PRETRAINED = "mobilenet_1_0_imagenet_notop.weights.h5"
_FROZEN = ("--freeze_till_layer=decoder_stage1_up", "--freeze_encoder_bn")
# Networks without batch normalisation take smaller steps.
_RATES = {"unet_classic": 0.0005, "ternaus": 0.0003, "vgg11v1": 0.0003, "vgg": 0.0003}


@dataclasses.dataclass(frozen=True)
class NetworksOptions:
    """What is compared."""

    networks: tuple[str, ...] = option(
        (
            *("mobilenet", "simple_unet", "unet_bn", "unet_classic", "linknet34", "resnet50"),
            *("mobilenetv3large", "efficientnetv2b0", "ternaus"),
        ),
        "Networks, comma-separated.",
    )
    processor_minutes: float = option(5.0, "Processor minutes of training for each.", lower=0.1)
    input_width: int = option(240, "Width the photos are resized to.", lower=32)
    input_height: int = option(160, "Height the photos are resized to.", lower=32)
    batch_size: int = option(4, "Photos per batch.", lower=1)
    fold: int = option(0, "Fold of three that is held out.", lower=0)
    work_dir: str = option("runs/networks", "Folder for models and masks.")
    results_csv: str = option(str(ROOT / "benchmarks/networks.csv"), "Table to write.")


def run(values: Values) -> None:
    """Adds one row for each network that has none."""
    options = values[NetworksOptions]
    photos = os.environ.get("CARVANA_DIR")
    if not photos:
        raise UserError("set CARVANA_DIR to a folder with train/ and train_masks/.")
    work, table = Path(options.work_dir), Path(options.results_csv)
    dataset = [f"--dataset_dir={photos}", f"--folds_source={work / 'folds.csv'}"]
    scripts.run("make_folds.py", *dataset, "--n_folds=3")
    rows = list(csv.DictReader(table.open())) if table.is_file() else []
    for network in options.networks:
        if not any(row["network"] == network for row in rows):
            rows.append(_measure(network, options, dataset, work))
            write_text(table, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    print(pd.DataFrame(rows).to_string(index=False))


def _measure(network: str, options: NetworksOptions, dataset: list[str], work: Path) -> dict:
    arguments = [*dataset, f"--network={network}", f"--batch_size={options.batch_size}"]
    arguments += [f"--input_width={options.input_width}", f"--input_height={options.input_height}"]
    arguments += ["--size_policy=resize", "--bn_momentum=0.9", "--lr_schedule=cosine"]
    arguments += ["--warmup_steps=20", f"--learning_rate={_RATES.get(network, 0.004)}"]
    encoder = _encoder(network)
    arguments += [f"--weights={encoder}", *_FROZEN] if encoder else ["--weights=none"]
    fold = f"--fold={options.fold}"
    seconds, once = _costs([*arguments, fold], work / "calibration")
    steps = max(30, round((60 * options.processor_minutes - once) / seconds))
    models = work / "models"
    before = scripts.processor_seconds()
    scripts.run(
        *("train.py", *arguments, fold, f"--models_dir={models}"),
        *("--epochs=1", f"--steps_per_epoch={steps}"),
    )
    spent = scripts.processor_seconds() - before
    model = models / f"{network}-fold_{options.fold}" / "last.keras"
    masks = work / "masks" / network
    scripts.run(
        *("predict_multithreaded.py", *dataset, fold, "--predict_on_val", "--overwrite"),
        *(f"--weights={model}", f"--pred_mask_dir={masks}"),
    )
    scripts.run("evaluate.py", *dataset, fold, f"--pred_mask_dir={masks}")
    scores = json.loads((masks / "evaluation" / "summary.json").read_text())
    timings = json.loads((masks / "timings.json").read_text())
    network_seconds = sum(r["seconds"] for r in timings["stages"] if r["stage"] == "network")
    return {
        "network": network,
        "encoder_weights": "imagenet, frozen" if encoder else "none",
        "parameters": model_file.load(model)[0].count_params(),
        "steps": steps,
        "processor_seconds_per_step": round(seconds, 3),
        "processor_minutes": round(spent / 60, 2),
        "mean_dice": round(scores["mean_dice"], 5),
        "low": round(scores["interval"][0], 5),
        "high": round(scores["interval"][1], 5),
        "minimum_dice": round(scores["min_dice"], 5),
        "network_seconds_per_photo": round(network_seconds / timings["photos"], 4),
        "machine": devices.describe(),
    }


def _encoder(network: str) -> str | None:
    """The pretrained weights at hand: those of the MobileNet."""
    folder = os.environ.get("ENCODER_WEIGHTS")
    return str(Path(folder) / _PRETRAINED) if folder and network == "mobilenet" else None


def _costs(arguments: list[str], models: Path) -> tuple[float, float]:
    """Processor seconds of a step, and of start-up and validation."""
    spent = []
    for steps in _CALIBRATION:
        before = scripts.processor_seconds()
        scripts.run(
            *("train.py", *arguments, f"--models_dir={models}", "--overwrite"),
            *("--epochs=1", f"--steps_per_epoch={steps}"),
        )
        spent.append(scripts.processor_seconds() - before)
    few, many = _CALIBRATION
    seconds = (spent[1] - spent[0]) / (many - few)
    return seconds, spent[0] - few * seconds


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (NetworksOptions,), run)))
