"""By how much a model's score flatters where it was chosen by its score on the same fold.

CARVANA_DIR=… ENCODER_WEIGHTS=… python benchmarks/best_or_last.py

Three folds of real cars, photos resized to 192x128, `mobilenet` with a frozen ImageNet encoder,
validated after every epoch: `best.keras` (the epoch of the best Dice on the held-out fold) and
`last.keras` predict the held-out fold, and are compared photo by photo. The interval is a 95 %
bootstrap over cars.
"""

import dataclasses
import os
import sys
from pathlib import Path

import scripts
from carvana_tf.cli import Command, main
from carvana_tf.errors import UserError
from carvana_tf.flags import Values, option
from results import PlaceOptions, print_table, replace_rows

FOLDS = 3
STEPS = 16
_PRETRAINED = "mobilenet_1_0_imagenet_notop.weights.h5"


@dataclasses.dataclass(frozen=True)
class BestOptions:
    """What only this benchmark needs."""

    schedules: tuple[str, ...] = option(("cosine", "constant"), "Each --lr_schedule to measure.")
    epochs: int = option(8, "Epochs of each training.", lower=2)


def run(values: Values) -> None:
    """Trains, predicts and compares; a second call goes on where the first was stopped."""
    place, options = values[PlaceOptions], values[BestOptions]
    data = place.data_dir or os.environ.get("CARVANA_DIR")
    encoder = os.environ.get("ENCODER_WEIGHTS")
    if not data or not encoder:
        raise UserError("CARVANA_DIR or ENCODER_WEIGHTS is not set; see CONTRIBUTING.md.")
    work = Path(place.work_dir).resolve() / "best_or_last"
    dataset = [f"--dataset_dir={data}", f"--folds_source={work / 'folds.csv'}"]
    scripts.run("make_folds.py", *dataset, f"--n_folds={FOLDS}")
    for schedule in options.schedules:
        for fold in range(FOLDS):
            _train(dataset, work, schedule, fold, options.epochs, Path(encoder) / _PRETRAINED)
        row = _compare(dataset, work, schedule)
        print_table([row])
        setting = f"{schedule}, {options.epochs} epochs"
        replace_rows(Path(place.out_dir) / "best_or_last.csv", [row], {"setting": setting})


def _name(schedule: str, fold: int) -> str:
    return f"mobilenet-{schedule}-fold_{fold}"


def _train(
    dataset: list[str], work: Path, schedule: str, fold: int, epochs: int, encoder: Path
) -> None:
    scripts.run(
        *("train.py", *dataset, "--network=mobilenet", "--decoder=linknet"),
        *(f"--net_alias={schedule}", f"--models_dir={work / 'models'}", f"--fold={fold}"),
        *(f"--weights={encoder}", "--freeze_encoder_bn"),
        *("--freeze_till_layer=decoder_stage1_conv1", "--batch_size=4"),
        *("--size_policy=resize", "--input_width=192", "--input_height=128"),
        *("--learning_rate=0.004", f"--lr_schedule={schedule}", f"--steps_per_epoch={STEPS}"),
        *(f"--epochs={epochs}", "--validate_every=1"),
    )
    for which in ("best", "last"):
        scripts.run(
            *("predict_multithreaded.py", *dataset, f"--fold={fold}", "--predict_on_val"),
            f"--weights={work / 'models' / _name(schedule, fold) / which}.keras",
            f"--pred_mask_dir={work / 'masks' / f'{schedule}_{which}_{fold}'}",
            *("--engine=keras", "--overwrite"),
        )


def _compare(dataset: list[str], work: Path, schedule: str) -> dict[str, object]:
    """One row: the Dice of both on all photos and their paired difference."""
    best, last = (work / "masks" / f"{schedule}_{which}" for which in ("best", "last"))
    for whole in (best, last):
        parts = [whole.with_name(f"{whole.name}_{fold}") for fold in range(FOLDS)]
        scripts.join_folds(parts, whole)
    names = ("dice_of_best", "dice_of_last")
    return scripts.compare(dataset, best, last, work / f"{schedule}_scores", names)


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, BestOptions), run)))
