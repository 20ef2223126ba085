"""Proposes the flags of a training for these photos, this machine and so many minutes.

python tools/plan.py --dataset_dir=input --minutes=30

It looks at photos and masks, times a few training steps, and writes plan.flags, with a comment on
each flag: why it has this value. Change what you know better, and train with it:

python train.py --flagfile=plan.flags
"""

import dataclasses
import itertools
import os
import shlex
import textwrap
import time
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

from carvana_tf import flags
from carvana_tf.cli import Command, show
from carvana_tf.data import facts as dataset_facts
from carvana_tf.data.cache import available_memory
from carvana_tf.data.dataset import Sample, find_samples
from carvana_tf.data.facts import Facts
from carvana_tf.data.folds import read_folds, split
from carvana_tf.data.layout import FOLD_COUNT
from carvana_tf.data.names import printable
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.failures import OutOfMemory
from carvana_tf.filenames import LAST, PLAN
from carvana_tf.files import write_text
from carvana_tf.flags import Values, option
from carvana_tf.models.encoders import IMAGENET, RANDOM
from carvana_tf.models.networks import NETWORKS, find
from carvana_tf.options import DatasetOptions, masks_folder, photos_folder, run_name
from carvana_tf.training import proposal
from carvana_tf.training.options import RunOptions
from carvana_tf.training.proposal import Budget, Proposal, Start

if typing.TYPE_CHECKING:
    from carvana_tf.training.timing import Timing

_WEIGHTS = Path("weights")
_MOST_TIMINGS = 2
_CLOSE = 1.5  # batches of up to so many times the pixels need no timing of their own


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What the training may take, and where the plan is written."""

    minutes: float = option(
        30.0, "Minutes that the training of one fold may take, start included.", lower=0.1
    )
    flags_out: str = option(PLAN, "File to write.")
    overwrite: bool = option(False, "Replace the file.")
    network: str | None = option(
        None,
        f"Network, instead of the one that is chosen: {', '.join(proposal.PRETRAINED)} where it "
        f"can have weights of ImageNet, else {proposal.FROM_SCRATCH}.",
    )
    weights: str | None = option(
        None,
        "What to start from: a file, 'imagenet' (downloaded) or 'none'. By default a file in "
        "'weights' that is named after its network, else 'imagenet' if it can be downloaded, "
        "else 'none'.",
    )
    measure: bool = option(
        True,
        "Time a few steps of a training, which takes about a minute; --nomeasure takes an estimate "
        "by the number of cores.",
    )
    train_data_dir_name: str = photos_folder()
    train_mask_dir_name: str = masks_folder()
    gpu: str = option("0", "GPU to time the steps on; empty means none.")
    threads: int = option(4, "Threads that read masks.", lower=1)


def validate(values: Values, problems: Problems) -> None:
    """Adds what is missing, and a file that may not be written."""
    dataset, options = values[DatasetOptions], values[PlanOptions]
    for flag in ("train_data_dir_name", "train_mask_dir_name"):
        problems.attempt(dataset.existing_folder, getattr(options, flag), flag)
    problems.attempt(lambda: dataset.naming)
    problems.attempt(lambda: dataset.reading)
    if options.network is not None:
        problems.attempt(find, options.network)
    problems.add(
        f"--gpu={options.gpu}: steps are timed, and a plan is made, for one device; name one.",
        "," in options.gpu,
    )
    weights = options.weights or RANDOM
    if weights not in (RANDOM, IMAGENET):
        problems.add(f"--weights '{weights}' {absent(weights)}", not Path(weights).is_file())
    target = Path(options.flags_out)
    problems.add(
        f"--flags_out='{target}' is there already; give another name, or --overwrite.",
        target.exists() and not options.overwrite,
    )
    folder = target.parent
    problems.add(
        f"--flags_out='{target}' cannot be written into '{folder}'; name a folder that can be.",
        not (folder.is_dir() and os.access(folder, os.W_OK)) or target.is_dir(),
    )


def run(values: Values) -> None:
    """Looks, times, writes the flag file, and says what to do next."""
    from carvana_tf import devices

    loading = time.process_time()  # almost all of it was spent on loading the backend
    dataset, options = values[DatasetOptions], values[PlanOptions]
    photos, masks = options.train_data_dir_name, options.train_mask_dir_name
    samples = find_samples(
        dataset.folder(photos), dataset.folder(masks), dataset.naming, dataset.reading
    )
    target = Path(options.flags_out)
    devices.select(options.gpu)
    facts = dataset_facts.measure(samples, options.threads, target.parent)
    trained, validated, has_folds = _count(dataset, samples)
    start = _find_start(options)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    estimate = proposal.estimated(start.network, cores or 1)
    budget = Budget(options.minutes, available_memory(), estimate)
    if options.measure:
        budget = _measure(samples, facts, start, budget, values, loading)
    proposal.refuse_short(budget)
    shape = proposal.choose_shape(facts, start.network, budget)
    proposed = proposal.propose(facts, start, shape, budget, trained, validated)
    write_text(target, _text(proposed, values, facts))
    _summarize(proposed, target, values, has_folds=has_folds)


def _count(dataset: DatasetOptions, samples: Sequence[Sample]) -> tuple[int, int, bool]:
    """Photos of a fold to train on and to validate on, and whether there are folds."""
    path = Path(dataset.dataset_dir) / dataset.folds_source
    if path.is_file():
        folds = read_folds(path)
        training, validation = split(samples, samples, folds, int(folds["fold"].min()))
        return len(training), len(validation), True
    validated = max(round(len(samples) / FOLD_COUNT), 1)
    return max(len(samples) - validated, 1), validated, False


def _find_start(options: PlanOptions) -> Start:
    """The network, and weights that fit it.

    Raises:
        UserError: Those that were asked for fit none.
    """
    from carvana_tf.training.timing import why_unfit

    given, named = options.weights, [options.network] if options.network else []
    networks = named or [*proposal.PRETRAINED]
    if given == RANDOM:
        network = options.network or proposal.FROM_SCRATCH
        return Start(network, RANDOM, "It learns from random weights quickly.")
    if given not in (None, IMAGENET):
        networks = named or [*networks, *(n for n in NETWORKS if n not in networks)]
        for network in networks:
            if not (problem := why_unfit(network, given)):
                return Start(network, given, f"The weights '{given}' are of its encoder.")
        if named:
            raise UserError(problem)
        raise UserError(f"--weights '{given}' fits no network; --network=NAME says why not.")
    if given is None and options.network and not find(options.network).source:
        return Start(options.network, RANDOM, "Nobody has pretrained weights of it.")
    if given is None:
        files = sorted(path for path in _WEIGHTS.glob("*") if path.is_file())
        for network, path in itertools.product(networks, files):
            if network in path.name and not why_unfit(network, str(path)):
                return Start(network, str(path), f"'{_WEIGHTS}' has weights of its encoder.")
    problem = f"Keras has no weights of {' or '.join(networks)}"
    for network in networks:
        if find(network).source == "keras" and not (problem := why_unfit(network, IMAGENET)):
            return Start(network, IMAGENET, "Keras has weights of its encoder.")
    if given == IMAGENET:
        raise UserError(problem)
    print(printable(f"note: no pretrained weights, which would make better masks: {problem}"))
    network = options.network or proposal.FROM_SCRATCH
    return Start(network, RANDOM, "There are no pretrained weights here for a better one.")


def _measure(
    samples: Sequence[Sample],
    facts: Facts,
    start: Start,
    budget: Budget,
    values: Values,
    loading: float,
) -> Budget:
    """The budget with measured speed, and with the memory that a step was found to have."""
    from carvana_tf.training.timing import time_steps

    timings: dict[int, Timing] = {}
    while len(timings) < _MOST_TIMINGS:
        shape = proposal.choose_shape(facts, start.network, budget)
        if any(max(n, shape.pixels) <= _CLOSE * min(n, shape.pixels) for n in timings):
            break
        size = f"{shape.width}x{shape.height}, batch {shape.batch}"
        print(f"timing a few steps of {start.network} at {size}")
        try:
            timing = time_steps(samples, values[DatasetOptions], start, shape)
        except OutOfMemory as error:
            if shape.batch == 1:
                raise
            budget = dataclasses.replace(budget, memory=proposal.memory_of(shape) / 2)
            print(f"out of memory; smaller batches are tried ({printable(str(error))})")
            continue
        timings[shape.pixels] = timing
        print(f"{timing.step:.2f} seconds a step, {timing.start + loading:.0f} seconds to start")
        least = min(timings.values(), key=lambda t: t.start)
        steps = [(pixels, each.step) for pixels, each in timings.items()]
        speed = proposal.fitted(steps, least.start + loading, least.save)
        budget = dataclasses.replace(budget, speed=speed)
    return budget


def _text(proposed: Proposal, values: Values, facts: Facts) -> str:
    """The flag file."""
    dataset, options = values[DatasetOptions], values[PlanOptions]
    name = Path(options.flags_out)
    lines = [
        *_comment(
            f"A training of {facts.photos} photos in {facts.groups} groups, planned for "
            f"{options.minutes:g} minutes a fold by carvana-tf plan. Change what you know better."
        ),
        "#",
        f"#   python train.py --flagfile={printable(str(name))}",
        "",
        "# The photos.",
        f"--dataset_dir={dataset.dataset_dir}",
        *_given(values),
    ]
    for choice in proposed.choices:
        lines += ["", *_comment(choice.reason), f"--{choice.flag}={choice.value}"]
    return "\n".join(lines) + "\n"


def _layout(values: Values) -> Iterator[str]:
    """The flags of the dataset that this command line has, besides --dataset_dir."""
    for name in (*flags.defaults(DatasetOptions), "train_data_dir_name", "train_mask_dir_name"):
        if values.is_set(name) and name != "dataset_dir":
            yield f"--{name}={values.flag(name)}"


def _given(values: Values) -> Iterator[str]:
    """The same flags, those of validation that follow from them, and that of the device."""
    for flag in _layout(values):
        yield flag
        if flag.startswith("--train_"):
            yield flag.replace("--train_", "--val_", 1)
    if values.is_set("gpu"):
        yield f"--gpu={values.flag('gpu')}"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(printable(text), 96)]


def _summarize(proposed: Proposal, target: Path, values: Values, *, has_folds: bool) -> None:
    chosen = {choice.flag: choice.value for choice in proposed.choices}
    shape = proposed.shape
    size = f"{shape.policy} {shape.width}x{shape.height}, batch {shape.batch}"
    print(
        f"{chosen['network']}, {size}, {proposed.steps} steps, about "
        f"{proposed.seconds / 60:.1f} minutes -> {printable(str(target))}"
    )
    if not has_folds:
        layout = [f"--dataset_dir={values[DatasetOptions].dataset_dir}", *_layout(values)]
        show(f"next: python make_folds.py {shlex.join(layout)}")
    show(f"next: python train.py --flagfile={shlex.quote(str(target))}")
    folder = run_name(str(chosen["network"]), "", "0", smoke=False)
    print(f"its model: {Path(RunOptions.models_dir) / folder / LAST}")


COMMAND = Command(
    __doc__,
    (PlanOptions, DatasetOptions),
    run,
    validate,
    loads=("carvana_tf.training.timing",),
)
