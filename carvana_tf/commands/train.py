"""Trains a network on one fold, on all folds in turn, or on everything.

python train.py --network=resnet50 --fold=0

Each run gets a folder in --models_dir with best.keras and last.keras (each with a
readable .json next to it; best.keras only with validation), log.csv, and the state
from which an interrupted run goes on: give the same command again.
"""

import dataclasses

from carvana_tf.cli import Command
from carvana_tf.errors import Problems
from carvana_tf.flags import Values
from carvana_tf.options import InertOptions
from carvana_tf.tasks import TASKS, Task
from carvana_tf.tasks.options import grouped
from carvana_tf.training.options import TrainingOptions
from carvana_tf.training.splits import check_paths, find_splits


def check_flags(values: Values, problems: Problems) -> None:
    """Adds that there is no such loss or score; all else is checked where the options are made."""
    options = values[TrainingOptions]
    problems.attempt(_task(options).check, options.loss.loss_function, options.length.monitor)


def validate(values: Values, problems: Problems) -> None:
    """Adds what is missing or does not fit in folders, masks, folds and weights."""
    check_flags(values, problems)
    options = _options(values)
    check_paths(options, _task(options), problems)


def _options(values: Values) -> TrainingOptions:
    options = values[TrainingOptions]
    return dataclasses.replace(options, dataset=grouped(options.dataset, values, _task(options)))


def _task(options: TrainingOptions) -> Task:
    return TASKS[options.task.task]


def run(values: Values) -> None:
    """Runs what --fold asks for."""
    from carvana_tf import devices
    from carvana_tf.training.run import train_split

    options = _options(values)
    run, task = options.run, _task(options).of_training(options)
    names, note = devices.select(run.gpu)
    if note and values.is_set("gpu"):
        print(note)
    used = ", ".join(map(devices.name_of, names))
    print(f"device{'s' * (len(names) > 1)}: {used}, {devices.compute_dtype(run.dtype)}")
    for split in find_splits(options, task):
        name = options.run_name(split.name)
        print(f"{name}: {len(split.training)} training, {len(split.validation)} validation photos")
        try:
            result = train_split(options, split, task, names)
        except KeyboardInterrupt:
            flag = "--restart" if run.restart else "--from_epoch" if run.from_epoch else ""
            without = flag and f" without {flag}"
            print(f"{name}: interrupted; the same command{without} goes on from here.")
            raise
        if not result["trained"]:
            print(f"{name}: already trained; --restart trains it again.")
        if best := task.describe_best(result["rows"], options.length.monitor):
            print(f"{name}: {best}")
        print(f"{name}: models in {result['folder']}")


COMMAND = Command(
    __doc__,
    (TrainingOptions, InertOptions),
    run,
    validate,
    check_flags,
    loads=("carvana_tf.training.run",),
)
