"""Throughput of two shards on a core each, next to one process on one core.

python benchmarks/scale.py --photos=96 --rounds=3
"""

import contextlib
import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import inputs
from carvana_tf.cli import Command, main
from carvana_tf.errors import UserError
from carvana_tf.flags import Values, option
from harness import in_own_process
from results import PlaceOptions, print_table, replace_rows

TARGET = 1.8


@dataclasses.dataclass(frozen=True)
class ScaleOptions:
    """What only this benchmark needs."""

    network: str = option("simple_unet", "The network, with random weights, for photos of 480x320.")
    engine: str = option("keras", "Value of --engine.")
    photos: int = option(96, "Photos of a round.", lower=2)
    rounds: int = option(3, "Rounds of each, in turn.", lower=1)


class Measured(NamedTuple):
    """Of all processes of a round together."""

    photos: int
    seconds: float
    processor: float


def run(values: Values) -> None:
    """Measures one process and two in turn.

    Photos per second count what else the machine did, too; photos per second of processor time
    hardly do: two undisturbed cores give twice what one of the two processes makes of a second.
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
    found: dict[int, list[Measured]] = {1: [], 2: []}
    for number in range(options.rounds + 1):
        for count, measured in found.items():
            each = together(cores[:count], [*flags, "--gpu=", "--threads=1"], work / "masks")
            if number:  # the first round converts and checks the network
                measured.append(each)
    one, two = found[1], found[2]
    rates = {count: [m.photos / m.seconds for m in found[count]] for count in found}
    efforts = {count: [m.photos / m.processor for m in found[count]] for count in found}
    wall = statistics.median(rates[2]) / statistics.median(rates[1])
    effort = 2 * statistics.median(efforts[2]) / statistics.median(efforts[1])
    row: dict[str, Any] = {
        "what": f"2 shards to 1, {options.network}, {options.engine}",
        "photos": options.photos,
        "rounds": options.rounds,
        "one_photos_per_second": round(statistics.median(rates[1]), 3),
        "two_photos_per_second": round(statistics.median(rates[2]), 3),
        "ratio": round(wall, 2),
        "ratio_by_processor_time": round(effort, 2),
        "busy_one": round(statistics.median(m.processor / m.seconds for m in one), 2),
        "busy_two": round(statistics.median(m.processor / m.seconds for m in two), 2),
        "target": TARGET,
    }
    print_table([row])
    replace_rows(Path(place.out_dir) / "devices.csv", [row], {"what": row["what"]})


def together(cores: Sequence[int], flags: Sequence[str], out: Path) -> Measured:
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
    return Measured(
        sum(int(photos) for photos, *_ in found),
        max(float(seconds) for _, seconds, _ in found),
        sum(float(spent) for *_, spent in found),
    )


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
