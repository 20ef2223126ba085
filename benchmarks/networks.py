"""Networks trained for the same minutes on the same fold of real photos, and their scores.

CARVANA_DIR=/path/to/carvana python benchmarks/networks.py --minutes=5

Each row is written when it is done; a second call goes on with those that are missing.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

import inputs
from carvana_tf import cli, flags
from carvana_tf.errors import UserError, unknown_name
from carvana_tf.files import read_json
from carvana_tf.flags import option
from harness import in_own_process
from results import PlaceOptions, print_table, read_rows, replace_rows

ROOT = Path(__file__).resolve().parents[1]
CALIBRATION = 5  # steps that are timed, after as many that are not
ENCODER_WEIGHTS = "ENCODER_WEIGHTS"
_MOBILENET_FILE = "mobilenet_1_0_imagenet_notop.weights.h5"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        learning_rate: The highest of the schedule.
        pretrained: Whether the encoder starts from `ENCODER_WEIGHTS` and stays frozen.
    """

    learning_rate: float
    pretrained: bool = False


# The decoders after a frozen encoder, and networks normalised after each convolution, take
# a high rate; those without batch normalisation diverge with it.
RECIPES = {
    "mobilenet": Recipe(0.004, pretrained=True),
    "simple_unet": Recipe(0.003),
    "unet_bn": Recipe(0.002),
    "unet_classic": Recipe(0.0005),
    "linknet34": Recipe(0.002),
    "resnet50": Recipe(0.001),
    "mobilenetv3large": Recipe(0.002),
    "efficientnetv2b0": Recipe(0.002),
    "ternaus": Recipe(0.0003),
}


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """What only this benchmark needs."""

    networks: tuple[str, ...] = option(tuple(RECIPES), "Networks, in the order they are run.")
    minutes: float = option(5.0, "Training time of each network.", lower=0.01)
    fold: int = option(0, "Fold that is held out.", lower=0)
    n_folds: int = option(3, "How many folds the photos are dealt into.", lower=2)
    input_width: int = option(240, "Width of the resized photos.", lower=32)
    input_height: int = option(160, "Height of the resized photos.", lower=32)
    batch_size: int = option(4, "Photos per batch.", lower=1)


_PLACE = flags.define(PlaceOptions)
_NETWORKS = flags.define(NetworkOptions)


def main() -> None:
    """Deals the folds, then trains, predicts and scores what has no row yet."""
    place, options = _PLACE.read(), _NETWORKS.read()
    for name in options.networks:
        if name not in RECIPES:
            raise unknown_name("--networks", name, RECIPES)
    data = place.data_dir or os.environ.get(inputs.VARIABLE)
    if not data:
        raise UserError(f"this benchmark needs real photos: set {inputs.VARIABLE} or --data_dir.")
    bench = _Bench(Path(data).resolve(), Path(place.work_dir).resolve() / "networks", options)
    table = Path(place.out_dir) / "networks.csv"
    for name in options.networks:
        key = {"network": name, "setting": bench.setting}
        if _has_row(table, key):
            print(f"{name}: has its row in {table}")
            continue
        replace_rows(table, [bench.run(name)], key)
    rows = read_rows(table)
    print_table(rows.drop(columns=["hardware", "software"]).to_dict("records"))


def _has_row(table: Path, key: dict[str, str]) -> bool:
    rows = read_rows(table)
    return len(rows) > 0 and bool((rows[list(key)] == pd.Series(key)).all(axis=1).any())


class _Bench:
    """The runs of one call, in one folder."""

    def __init__(self, data: Path, work: Path, options: NetworkOptions) -> None:
        self._options = options
        self._work = work / f"{options.minutes:g}_minutes"
        self._dataset = [f"--dataset_dir={data}", f"--folds_source={self._work / 'folds.csv'}"]
        self.setting = (
            f"{options.minutes:g} minutes, {options.input_width}x{options.input_height}, "
            f"batch {options.batch_size}, fold {options.fold} of {options.n_folds}"
        )

    def run(self, name: str) -> dict[str, Any]:
        """Trains one network and scores it: its row."""
        if not (self._work / "folds.csv").is_file():
            _script("make_folds.py", *self._dataset, f"--n_folds={self._options.n_folds}")
        steps, each = self._steps(name)
        print(f"{name}: {each:.2f} s per step, {steps} steps", flush=True)
        fold = f"--fold={self._options.fold}"
        folder = self._train(name, "full", 1, steps, fold)
        model = folder / "best.keras"
        masks = self._work / "predicted_masks" / name
        _script(
            "predict_multithreaded.py", *self._dataset, fold, "--predict_on_val", "--overwrite",
            f"--weights={model}", f"--pred_mask_dir={masks}",
        )  # fmt: skip
        _script("evaluate.py", *self._dataset, fold, f"--pred_mask_dir={masks}")
        summary = read_json(masks / "evaluation" / "summary.json")
        low, high = summary["interval"] or (float("nan"), float("nan"))
        timings = read_json(masks / "timings.json")
        return {
            "encoder_weights": "imagenet, frozen" if RECIPES[name].pretrained else "random",
            "parameters": in_own_process("inputs:count_parameters", str(model)),
            "learning_rate": RECIPES[name].learning_rate,
            "steps": steps,
            "seconds_per_step": round(each, 3),
            "training_seconds": float(_log(folder)["seconds"].iloc[-1]),
            "validation_photos": summary["photos"],
            "mean_dice": round(summary["mean_dice"], 5),
            "low": round(low, 5),
            "high": round(high, 5),
            "seconds_per_photo": round(timings["seconds"] / timings["photos"], 3),
        }

    def _steps(self, name: str) -> tuple[int, float]:
        """How many steps fill the minutes, start-up included, and seconds per step.

        Two epochs of a few steps, without validation: the first has the start-up, too.
        """
        folder = self._train(name, "calibration", 2, CALIBRATION, "--fold=none")
        first, both = _log(folder)["seconds"]
        each = max(both - first, 0.1) / CALIBRATION
        start_up = max(0.0, first - CALIBRATION * each)
        return max(1, round((60 * self._options.minutes - start_up) / each)), each

    def _train(self, name: str, alias: str, epochs: int, steps: int, fold: str) -> Path:
        recipe, options = RECIPES[name], self._options
        models = self._work / "models"
        arguments = [
            *self._dataset, fold, f"--models_dir={models}", f"--network={name}",
            f"--net_alias={alias}", f"--epochs={epochs}", f"--steps_per_epoch={steps}",
            "--size_policy=resize", f"--input_width={options.input_width}",
            f"--input_height={options.input_height}", f"--batch_size={options.batch_size}",
            f"--learning_rate={recipe.learning_rate}", "--lr_schedule=cosine",
            f"--warmup_steps={min(20, epochs * steps // 2)}", "--bn_momentum=0.9", "--overwrite",
        ]  # fmt: skip
        if recipe.pretrained:
            frozen = ("--freeze_till_layer=decoder_stage1_up", "--freeze_encoder_bn")
            arguments += [f"--weights={_encoder_weights()}", *frozen]
        _script("train.py", *arguments)
        return models / f"{name}-{alias}-fold_{fold.removeprefix('--fold=')}"


def _encoder_weights() -> Path:
    given = os.environ.get(ENCODER_WEIGHTS)
    if not given:
        raise UserError(
            f"mobilenet needs {ENCODER_WEIGHTS}: the ImageNet encoder's file, or its folder."
        )
    path = Path(given).resolve()
    return path / _MOBILENET_FILE if path.is_dir() else path


def _log(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "log.csv")


def _script(name: str, *arguments: str) -> None:
    """Runs one of the toolkit's scripts; what it prints is shown.

    Raises:
        UserError: It failed.
    """
    status = subprocess.run([sys.executable, str(ROOT / name), *arguments], cwd=ROOT, check=False)
    if status.returncode:
        raise UserError(f"{name} ended with status {status.returncode}, see above.")


if __name__ == "__main__":
    cli.run(main)
