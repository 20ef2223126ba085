"""Trains a network on one fold, on all folds in turn, or on everything.

python train.py --network=resnet50 --fold=0

Each run gets a folder in --models_dir with best.keras and last.keras (each with a
readable .json next to it; best.keras only with validation), log.csv, and the state
from which an interrupted run goes on: give the same command again.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from carvana_tf import machines, parallel, remote
from carvana_tf.child import ending
from carvana_tf.cli import Command
from carvana_tf.errors import Problems, UserError
from carvana_tf.filenames import CONSOLE
from carvana_tf.files import make_folder
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
    if options.run.parallel != parallel.NONE:
        problems.attempt(parallel.places, options.run.gpu)
    if options.run.parallel != parallel.NONE or options.run.ray_address:
        machines.refuse("--parallel and --ray_address train each run on one", problems)
    else:
        problems.attempt(machines.find)


def _options(values: Values) -> TrainingOptions:
    options = values[TrainingOptions]
    return dataclasses.replace(options, dataset=grouped(options.dataset, values, _task(options)))


def _task(options: TrainingOptions) -> Task:
    return TASKS[options.task.task]


def run(values: Values) -> None:
    """Runs what --fold asks for."""
    from carvana_tf import devices, replicas
    from carvana_tf.training.run import train_split

    options = _options(values)
    run, task = options.run, _task(options).of_training(options)
    if run.parallel != parallel.NONE or run.ray_address:
        _run_at_once(options, task, values.arguments)
        return
    names, note = devices.select(run.gpu)
    if note and values.is_set("gpu"):
        print(note)
    used = ", ".join(map(devices.name_of, names))
    print(f"device{'s' * (len(names) > 1)}: {used}, {devices.compute_dtype(run.dtype)}")
    if together := machines.find():
        print(f"{together}; waits until all are there, Ctrl-C ends it")
        replicas.join(together)
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
        if together and together.number:
            print(f"{name}: models at {together.addresses[0]}")
        else:
            print(f"{name}: models in {result['folder']}")


def _run_at_once(options: TrainingOptions, task: Task, arguments: Sequence[str]) -> None:
    """Trains one run on each device, here or on a cluster, each by this command in a process.

    Args:
        options: Of all runs.
        task: What is predicted.
        arguments: Of this command.

    Raises:
        UserError: Runs have failed; the others are done.
        KeyboardInterrupt: There was one, and all processes have ended.
    """
    folder = Path(options.run.models_dir)
    names = {split.name: options.run_name(split.name) for split in find_splits(options, task)}
    logs = {fold: make_folder(folder / name) / CONSOLE for fold, name in names.items()}
    begun = {fold: log.stat().st_size if log.is_file() else 0 for fold, log in logs.items()}
    alone = [f"--parallel={parallel.NONE}", "--ray_address="]
    executing = remote.executing(folder, options.run.gpu, options.run.ray_address)
    with executing as (execute, at_once), ThreadPoolExecutor(at_once) as threads:
        runs = {
            fold: threads.submit(
                execute,
                ["train", *arguments, f"--fold={fold}", *alone],
                logs[fold],
                f"fold {fold}",
            )
            for fold in names
        }
        # Not for ever: another thread may have received a signal that this one handles.
        while wait(runs.values(), timeout=1).not_done:
            pass
        statuses = {fold: each.result() for fold, each in runs.items()}
    failed = [fold for fold, status in statuses.items() if status]
    if failed:
        first = failed[0]
        why = _last_error(logs[first], begun[first]) or f"it {ending(statuses[first])}"
        raise UserError(
            f"{len(failed)} of {len(names)} runs failed, the first is {names[first]} (see "
            f"'{logs[first]}'): {why.rstrip('.')}; the same command goes on with these."
        )


def _last_error(log: Path, start: int) -> str:
    """What a command reports at its end, in a log that others may have begun; "" for nothing."""
    lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    return next((line[7:] for line in reversed(lines) if line.startswith("error: ")), "")


COMMAND = Command(
    __doc__,
    (TrainingOptions, InertOptions),
    run,
    validate,
    check_flags,
    loads=("carvana_tf.training.run",),
)
