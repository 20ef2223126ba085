"""Trains a segmentation network on one fold, on all folds in turn, or on everything.

python train.py --network=resnet50 --fold=0

Each run gets a folder in --models_dir with best.keras and last.keras (each with a
readable .json beside it; best.keras only with validation), log.csv, and the state
from which an interrupted run goes on: give the same command again.
"""

from carvana_tf import places
from carvana_tf.cli import Command
from carvana_tf.errors import Problems
from carvana_tf.flags import Values
from carvana_tf.options import DatasetOptions, InertOptions
from carvana_tf.training.options import TrainingOptions


def check_flags(values: Values, problems: Problems) -> None:
    """Adds what no data is needed to refuse: unknown names, and flags that contradict others."""
    from carvana_tf import devices  # noqa: F401  (starts the backend without its messages)
    from carvana_tf.training.run import check

    problems.attempt(check, values[TrainingOptions])


def validate(values: Values, problems: Problems) -> None:
    """Adds what is missing or does not fit in folders, masks, folds and weights."""
    problems.attempt(places.check_training, values[DatasetOptions], values[TrainingOptions])


def run(values: Values) -> None:
    """Runs what --fold asks for."""
    from carvana_tf import devices
    from carvana_tf.training.run import train_split
    from carvana_tf.training.splits import find_splits

    dataset, options = values[DatasetOptions], values[TrainingOptions]
    device, note = devices.select_one(options.gpu)
    if note and values.is_set("gpu"):
        print(note)
    print(f"device: {devices.name_of(device)}, {devices.compute_dtype(options.dtype)}")
    for split in find_splits(dataset, options):
        name = options.run_name(split.name)
        print(f"{name}: {len(split.training)} training, {len(split.validation)} validation photos")
        try:
            result = train_split(dataset, options, split)
        except KeyboardInterrupt:
            given = "--restart" if options.restart else "--from_epoch" if options.from_epoch else ""
            without = given and f" without {given}"
            print(f"{name}: interrupted; the same command{without} goes on from here.")
            raise
        if not result["trained"]:
            print(f"{name}: already trained; --restart trains it again.")
        scored = [row for row in result["rows"] if "val_dice" in row]
        if scored:
            choose = max if options.monitor == "val_dice" else min
            best = choose(scored, key=lambda row: row[options.monitor])  # the first of equals
            told = "best" if options.monitor == "val_dice" else "least loss:"
            dice, epoch = best["val_dice"], best["epoch"]
            print(f"{name}: {told} validation Dice {dice:.5f} (epoch {epoch:.0f})")
        print(f"{name}: models in {result['folder']}")


COMMAND = Command(
    __doc__,
    (DatasetOptions, TrainingOptions, InertOptions),
    run,
    validate,
    check_flags,
    loads=("carvana_tf.training.run",),
)
