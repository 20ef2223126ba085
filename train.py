"""Trains a segmentation network on one fold, on all folds in turn, or on everything.

python train.py --network=resnet50 --fold=0

Each run gets a folder in --models_dir with best.keras and last.keras (each with a
readable .json beside it; best.keras only with validation), log.csv, and the state
from which an interrupted run goes on: give the same command again.
"""

import carvana_tf.starting  # noqa: F401

from carvana_tf import cli, flags, places
from carvana_tf.options import DatasetOptions, InertOptions, TrainingPlaces

if __name__ == "__main__":
    with flags.apart() as known:
        found, named = flags.define(DatasetOptions), flags.define(TrainingPlaces)
    cli.check_first(lambda: places.check_training(found.read(), named.read()), known)

# From here on TensorFlow is loaded, which takes seconds.
from carvana_tf.training.options import TrainingOptions

_DATASET = flags.define(DatasetOptions)
_TRAINING = flags.define(TrainingOptions)
_INERT = flags.define(InertOptions)


def check_flags() -> None:
    """Refuses what no data is needed to refuse.

    Raises:
        UserError: A name is unknown, or flags contradict each other.
    """
    from carvana_tf.training.run import check

    check(_TRAINING.read())


def main() -> None:
    """Runs what --fold asks for."""
    dataset, options = _DATASET.read(), _TRAINING.read()
    from carvana_tf import devices
    from carvana_tf.training.run import train_split
    from carvana_tf.training.splits import find_splits

    device, note = devices.select_one(options.gpu)
    if note and _TRAINING.given("gpu"):
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


if __name__ == "__main__":
    cli.run(main)
