"""Trainings planned by tools/plan.py against trainings with hand-chosen flags of the same minutes.

CARVANA_DIR=… NUCLEI_DIR=… ENCODER_WEIGHTS=… python benchmarks/plan.py

Photos are 64 of nuclei (fold 0 of 5), 24 real cars prepared at 480x320 (fold 0 of 3) and 12
rendered cars of that size (fold 0 of 4). Dice is that of the last weights on the fold that is held
out. Minutes are of a processor core, start and validation included, so that what else the machine
does counts little; the plan is made with --nomeasure for the same reason. A trial whose row is
there already is left out.
"""

import dataclasses
import json
import sys
from pathlib import Path

import pandas as pd

import defaults
import scripts
from carvana_tf.cli import Command, main
from carvana_tf.flags import Values, option, read_flagfile
from results import PlaceOptions, read_rows, replace_rows

TABLE = "plan.csv"
_WEIGHTS = "tf_efficientnet_lite0.safetensors"
_PRETRAINED = "--network=efficientnet_lite0 --batch_size=4 --learning_rate=0.003 --patience=0"
# Photos -> how they were trained by hand.
_BY_HAND = {
    "nuclei": f"{_PRETRAINED} --size_policy=crop --input_width=256 --input_height=256 --epochs=15 "
    "--validate_every=15",
    "prepared cars": f"{_PRETRAINED} --size_policy=resize --input_width=240 --input_height=160 "
    "--warmup_steps=20 --epochs=1 --steps_per_epoch=330",
    "rendered": f"{_PRETRAINED} --size_policy=resize --input_width=240 --input_height=160 "
    "--warmup_steps=20 --epochs=9 --validate_every=9",
}
PLANNED, BY_HAND = "plan", "by hand"


@dataclasses.dataclass(frozen=True)
class PlanningOptions:
    """How long the trainings are."""

    minutes: float = option(2.0, "Minutes of the plan, on all cores.", lower=0.1)


def run(values: Values) -> None:
    """Adds one row for each trial that has none."""
    place, options = values[PlaceOptions], values[PlanningOptions]
    table, work = Path(place.out_dir) / TABLE, Path(place.work_dir).resolve() / "plan"
    for photos, flags in _BY_HAND.items():
        for chosen in (BY_HAND, PLANNED):
            key = {"photos": photos, "chosen": chosen}
            rows = read_rows(table)
            if len(rows) and (rows[list(key)] == pd.Series(key)).all(axis=1).any():
                continue
            dataset = defaults.dataset_flags(photos, work)
            given = flags.split()
            if chosen == PLANNED:
                given = _plan(dataset, options.minutes, work / f"{photos}.flags")
            replace_rows(table, [_train(dataset, given, work / "models" / chosen)], key)
    print(table.read_text())


def _plan(dataset: list[str], minutes: float, target: Path) -> list[str]:
    """The flags that the command proposes, without those of the dataset."""
    named = [flag for flag in dataset if not flag.startswith("--val_")]
    scripts.run(
        *("tools/plan.py", *named, f"--minutes={minutes}", "--nomeasure", "--overwrite"),
        *(f"--flags_out={target}", f"--weights={_encoder()}"),
    )
    names = {flag.partition("=")[0] for flag in dataset}
    return [flag for flag in read_flagfile(target) if flag.partition("=")[0] not in names]


def _train(dataset: list[str], flags: list[str], models: Path) -> dict[str, object]:
    flags = [flag for flag in flags if not flag.startswith("--weights=")]
    network = next(flag.partition("=")[2] for flag in flags if flag.startswith("--network="))
    before = scripts.processor_seconds()
    scripts.run(
        *("train.py", *dataset, *flags, f"--weights={_encoder()}", "--fold=0", "--restart"),
        f"--models_dir={models}",
    )
    spent = scripts.processor_seconds() - before
    folder = models / f"{network}-fold_0"
    return {
        "flags": " ".join(flags),
        "processor_minutes": round(spent / 60, 1),
        "dice": round(float(pd.read_csv(folder / "log.csv").iloc[-1]["val_dice"]), 4),
        "compute_dtype": json.loads((folder / "last.json").read_text())["compute_dtype"],
    }


def _encoder() -> Path:
    return defaults.variable("ENCODER_WEIGHTS") / _WEIGHTS


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, PlanningOptions), run)))
