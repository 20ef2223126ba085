"""What the defaults of `train.py` rest on: short trainings that differ in one flag.

CARVANA_DIR=… NUCLEI_DIR=… ENCODER_WEIGHTS=… python benchmarks/defaults.py

Sets are 24 real cars resized to 192x128 (fold 0 of 3), or prepared at 480x320 and
trained on at 192x128, 64 photos of nuclei resized to 128x128 (fold 0 of 5), and 12 rendered cars of
480x320, as the demo has, resized to 120x80 (fold 0 of 4). Dice is that of the last weights on the
held-out fold, at the photos' own size. A trial whose row is there already is left out, so that a
second call goes on where the first was stopped.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import pandas as pd

import scripts
from carvana_tf.cli import Command, main
from carvana_tf.errors import UserError
from carvana_tf.flags import Values, option
from results import PlaceOptions, read_rows, replace_rows

ROOT = Path(__file__).resolve().parents[1]
TABLE = "defaults.csv"
_PRETRAINED = "mobilenet_1_0_imagenet_notop.weights.h5"
# Photos -> what all trials on them share, but for what a trial changes.
_COMMON = {
    "cars": "--size_policy=resize --input_width=192 --input_height=128 --steps_per_epoch=32 "
    "--epochs=2 --batch_size=4 --learning_rate=0.001 --lr_schedule=cosine",
    "nuclei": "--size_policy=resize --input_width=128 --input_height=128 --epochs=12 "
    "--batch_size=4 --learning_rate=0.001 --lr_schedule=cosine",
    # The README's command for one's own photos.
    "nuclei, README": "--size_policy=resize --input_width=256 --input_height=256 --epochs=4 "
    "--batch_size=8 --learning_rate=0.001 --lr_schedule=cosine",
    "prepared cars": "--size_policy=resize --input_width=192 --input_height=128 "
    "--steps_per_epoch=32 --epochs=2 --batch_size=4 --learning_rate=0.001 --lr_schedule=cosine",
    "nuclei, short": "--size_policy=resize --input_width=128 --input_height=128 --epochs=4 "
    "--batch_size=4 --learning_rate=0.001 --lr_schedule=cosine",
    # The demo's own flags, but for the size.
    "rendered": "--size_policy=resize --input_width=120 --input_height=80 --epochs=7 "
    "--batch_size=4 --learning_rate=0.004 --lr_schedule=cosine --warmup_steps=20",
}
_RATES = tuple(f"--learning_rate={rate}" for rate in ("0.00001", "0.0003", "0.001", "0.003"))
# Question, photos, network, and what each trial changes.
TRIALS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("rate", "nuclei", "simple_unet", _RATES),
    ("rate", "nuclei", "unet_classic", _RATES),
    ("rate", "cars", "mobilenet", ("", _RATES[0])),
    ("weights", "cars", "mobilenet", ("--weights=none",)),
    # The rule of `network.bn_momentum` gives 0.8 with photos of nuclei, 0.89 with rendered cars.
    ("momentum", "nuclei, README", "simple_unet", ("", "--bn_momentum=0.99")),
    ("network", "cars", "resnet50", ("",)),
    ("size", "prepared cars", "mobilenet", ("", "--size_policy=crop")),
    (
        "momentum",
        "rendered",
        "simple_unet",
        ("", "--bn_momentum=0.8", "--bn_momentum=0.9", "--bn_momentum=0.99"),
    ),
    ("rate", "rendered", "simple_unet", ("--learning_rate=0.001",)),
    ("rate", "rendered", "mobilenet", ("--learning_rate=0.001", "--learning_rate=0.003")),
    ("batch", "nuclei", "simple_unet", ("--batch_size=1", "--batch_size=8")),
    (
        "momentum",
        "nuclei, short",
        "simple_unet",
        ("", "--bn_momentum=0.9", "--bn_momentum=0.99"),
    ),
    ("rate", "nuclei, short", "vgg", _RATES[1:3]),
    ("rate", "nuclei, short", "ternaus", _RATES[1:3]),
    ("rate", "nuclei, short", "vgg11v1", _RATES[1:3]),
    ("schedule", "nuclei", "simple_unet", ("--lr_schedule=constant",)),
)


@dataclasses.dataclass(frozen=True)
class DefaultsOptions:
    """Which trials run."""

    questions: tuple[str, ...] = option((), "Questions to answer; by default all.")


def run(values: Values) -> None:
    """Adds one row for each trial that has none."""
    place, options = values[PlaceOptions], values[DefaultsOptions]
    table, work = Path(place.out_dir) / TABLE, Path(place.work_dir).resolve() / "defaults"
    for question, photos, network, each in TRIALS:
        if options.questions and question not in options.questions:
            continue
        for changed in each:
            key = {"photos": photos, "network": network, "changed": changed or "nothing"}
            rows = read_rows(table)
            known = len(rows) and (rows[list(key)] == pd.Series(key)).all(axis=1).any()
            if not known:
                row = {"common": _COMMON[photos], **_measure(photos, network, changed, work)}
                replace_rows(table, [row], key)
    print(table.read_text())


def _measure(photos: str, network: str, changed: str, work: Path) -> dict[str, str]:
    common = {flag.partition("=")[0]: flag for flag in _COMMON[photos].split()}
    common |= {flag.partition("=")[0]: flag for flag in changed.split()}
    pretrained = network == "mobilenet" and "--weights" not in common
    encoder = variable("ENCODER_WEIGHTS") / _PRETRAINED if pretrained else "none"
    common.setdefault("--weights", f"--weights={encoder}")
    alias = f"{photos} {changed}".replace(" ", "_").replace("--", "").replace("=", "_")
    epochs = common["--epochs"].partition("=")[2]
    scripts.run(
        *("train.py", *dataset_flags(photos, work), *common.values(), "--fold=0"),
        *(f"--network={network}", f"--net_alias={alias}", f"--models_dir={work / 'models'}"),
        f"--validate_every={epochs}",
    )
    folder = work / "models" / f"{network}-{alias}-fold_0"
    last = pd.read_csv(folder / "log.csv").iloc[-1]
    metadata = json.loads((folder / "last.json").read_text())
    return {
        "start": "ImageNet" if encoder != "none" else "random",
        "val_dice": f"{last['val_dice']:.5f}",
        "compute_dtype": metadata["compute_dtype"],
        "seconds": f"{last['seconds']:.0f}",
    }


def dataset_flags(photos: str, work: Path) -> list[str]:
    """The flags of a set, with its folds made."""
    name = photos.partition(",")[0]
    folds = f"--folds_source={work / f'folds_{name}.csv'.replace(' ', '_')}"
    folder, count = work / "rendered", 4
    if name == "rendered":
        size = ("--width=480", "--height=320", "--test_cars=1")
        scripts.run("tools/make_demo_dataset.py", f"--dataset_dir={folder}", *size)
    elif name == "prepared cars":
        folder, count = work / "prepared", 3
        scripts.run(
            *("tools/prepare_dataset.py", f"--dataset_dir={variable('CARVANA_DIR')}"),
            *("--photo_dirs=train", "--mask_dirs=train_masks", "--size=480x320"),
            f"--output_dir={folder}",
        )
    elif name == "cars":
        folder, count = variable("CARVANA_DIR"), 3
    else:
        folder, count = variable("NUCLEI_DIR"), 5
    dataset = [f"--dataset_dir={folder}", folds]
    if name == "nuclei":
        dataset += ["--train_mask_dir=masks", "--train_data_dir_name=images", "--mask_suffix="]
    scripts.run("make_folds.py", *dataset, f"--n_folds={count}")
    if name == "nuclei":
        dataset += ["--val_mask_dir=masks", "--val_data_dir_name=images"]
    return dataset


def variable(name: str) -> Path:
    """The folder that an environment variable names.

    Raises:
        UserError: It is not set.
    """
    if name not in os.environ:
        raise UserError(f"the variable {name} is not set; name the folder, see CONTRIBUTING.md.")
    return Path(os.environ[name])


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, DefaultsOptions), run)))
