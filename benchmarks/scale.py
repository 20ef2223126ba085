"""Throughput of two shards on a core each, next to one process on one core.

python benchmarks/scale.py --photos=96 --rounds=3
python benchmarks/scale.py --contender=ray --photos=720 --rounds=2
"""

import contextlib
import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import inputs
from carvana_tf.cli import Command, main
from carvana_tf.errors import UserError
from carvana_tf.evaluation import timings
from carvana_tf.filenames import TIMINGS
from carvana_tf.flags import Values, option
from carvana_tf.shards import Shard
from harness import in_own_process
from results import PlaceOptions, print_table, replace_rows

TARGET = 1.8


@dataclasses.dataclass(frozen=True)
class ScaleOptions:
    """What only this benchmark needs."""

    network: str = option("simple_unet", "The network, with random weights, for photos of 480x320.")
    engine: str = option("keras", "Value of --engine.")
    contender: str = option(
        "shards",
        "What divides the photos: processes that start together, without what comes before the "
        "first photo, or a Ray cluster, with and without that.",
        choices=("shards", "ray"),
    )
    photos: int = option(96, "Photos of a round.", lower=2)
    rounds: int = option(3, "Rounds of each, in turn.", lower=1)


class Measured(NamedTuple):
    """Of all processes of a round together; processor seconds are 0 where they are not known."""

    photos: int
    seconds: float
    processor: float = 0.0


def run(values: Values) -> None:
    """Measures one process and two in turn.

    Photos per second count what else the machine did, too; photos per second of processor time,
    which only shards have, hardly do: two undisturbed cores give twice what one of the two
    processes makes of a second.
    """
    place, options = values[PlaceOptions], values[ScaleOptions]
    work = Path(place.work_dir).resolve() / "scale"
    chosen, kind = inputs.samples(place.data_dir, work.parent, min(options.photos, 8))
    photos = inputs.photo_folder(chosen, work / inputs.short(kind, options.photos), options.photos)
    model = work / f"{options.network}.keras"
    in_own_process("inputs:make_model", str(model), options.network, None, (320, 480))
    flags = [f"--weights={model}", f"--test_data_dir={photos}", f"--engine={options.engine}"]
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise UserError("two shards on a core each need two cores.")
    measure = on_ray if options.contender == "ray" else together
    found: dict[str, dict[int, list[Measured]]] = {}
    for number in range(options.rounds + 1):
        for count in (1, 2):
            each = measure(cores[:count], [*flags, "--gpu=", "--threads=1"], work / "masks")
            for what, one in each.items() if number else ():  # the first converts the network
                found.setdefault(what, {1: [], 2: []})[count].append(one)
    rows = [
        {"what": f"2 {what} to 1, {options.network}, {options.engine}", **_row(options, one, two)}
        for what, (one, two) in ((what, by_count.values()) for what, by_count in found.items())
    ]
    print_table(rows)
    for row in rows:
        replace_rows(Path(place.out_dir) / "devices.csv", [row], {"what": row["what"]})


def _row(options: ScaleOptions, one: Sequence[Measured], two: Sequence[Measured]) -> dict[str, Any]:
    """What rounds of one process and of two come to."""
    rates = [statistics.median(m.photos / m.seconds for m in each) for each in (one, two)]
    row: dict[str, Any] = {
        "photos": options.photos,
        "rounds": options.rounds,
        "one_photos_per_second": round(rates[0], 3),
        "two_photos_per_second": round(rates[1], 3),
        "ratio": round(rates[1] / rates[0], 2),
        "ratio_by_processor_time": "",
        "busy_one": "",
        "busy_two": "",
        "target": TARGET,
    }
    if all(m.processor for m in (*one, *two)):
        efforts = [statistics.median(m.photos / m.processor for m in each) for each in (one, two)]
        row["ratio_by_processor_time"] = round(2 * efforts[1] / efforts[0], 2)
        for name, each in (("busy_one", one), ("busy_two", two)):
            row[name] = round(statistics.median(m.processor / m.seconds for m in each), 2)
    return row


def on_ray(cores: Sequence[int], flags: Sequence[str], out: Path) -> dict[str, Measured]:
    """One command on a Ray cluster with a worker for each core, pinned to it.

    Measured are the whole command, from its start to its end, and the workers' own time, from
    their first photo to their last.
    """
    shutil.rmtree(out, ignore_errors=True)
    script = Path(__file__).parents[1] / "predict_multithreaded.py"
    with ray_cluster(cores) as address, pinned(cores):
        start = time.perf_counter()
        command = [sys.executable, str(script), *flags, f"--pred_mask_dir={out}"]
        subprocess.run(
            [*command, f"--ray_address={address}", f"--num_shards={len(cores)}"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - start
    parts = [Shard(number, len(cores)).folder(out) for number in range(len(cores))]
    each = [timings.read(part / TIMINGS) for part in parts]
    photos = sum(one["photos"] for one in each)
    return {
        "Ray workers": Measured(photos, seconds),
        "Ray workers, without their start,": Measured(photos, max(one["seconds"] for one in each)),
    }


@contextlib.contextmanager
def ray_cluster(cores: Sequence[int]) -> Iterator[str]:
    """The address of a cluster on this machine, with a worker for each core, pinned to it."""
    from ray.cluster_utils import Cluster

    # Else workers, and they alone, let all other programs go first.
    system = {"worker_niceness": 0}
    with pinned(cores[:1]):
        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": system}
        made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for core in cores[1:]:
            with pinned([core]):
                made.add_node(num_cpus=1)
        yield made.address
    finally:
        made.shutdown()


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Processes that are started inside stay on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def together(cores: Sequence[int], flags: Sequence[str], out: Path) -> dict[str, Measured]:
    """As many shards as cores, each pinned to one, that start at the same time."""
    shutil.rmtree(out, ignore_errors=True)
    with contextlib.ExitStack() as opened:
        processes = []
        for number, core in enumerate(cores):
            shard = [f"--num_shards={len(cores)}", f"--shard={number}"]
            command = [sys.executable, "-m", "ours.shard", str(core), *flags, *shard]
            process = subprocess.Popen(
                [*command, f"--pred_mask_dir={out}"],
                cwd=Path(__file__).parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            processes.append(opened.enter_context(process))
        for process in processes:
            _find(process, "ready")
        for process in processes:
            print(file=process.stdin, flush=True)
        found = [_find(process, "measured").split()[1:] for process in processes]
    return {
        "shards": Measured(
            sum(int(photos) for photos, *_ in found),
            max(float(seconds) for _, seconds, _ in found),
            sum(float(spent) for *_, spent in found),
        )
    }


def _find(process: subprocess.Popen, word: str) -> str:
    said = list[str]()
    for line in _lines(process):
        if line.startswith(word):
            return line
        said.append(line)
    raise UserError(f"a shard ended early: {' '.join(said[-3:])}")


def _lines(process: subprocess.Popen) -> Iterator[str]:
    while process.stdout is not None and (line := process.stdout.readline()):
        yield line.strip()


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, ScaleOptions), run)))
