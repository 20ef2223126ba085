"""Two processes that write into one folder at the same time.

python tests/faults/two_processes.py [TIMES]

Half of the pairs run the same command twice, half of them commands with different results. The
folder must end as one undisturbed run leaves it, and a process that gives way must say so in one
line.
"""

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from faults import folders
from faults.commands import COMMANDS, OUT, prepare, remove_results, undisturbed


class Paired(NamedTuple):
    """What became of a command's pairs: how many there were, in how many one gave way, and why
    others were wrong."""

    pairs: int
    gave_way: int
    wrong: list[str]


def pair(name: str, times: int, work: Path, seed: int = 80) -> Paired:
    """Starts a command twice, `times` times, the second after a random part of the first's time."""
    command = COMMANDS[name]
    length, expected = undisturbed(command, work)
    other = undisturbed(command, work, command.other)[1] if command.other else None
    chance = random.Random(seed)
    gave_way, wrong = 0, []
    for number in range(times):
        differ = bool(command.other) and number % 2 == 1
        more = ((), (command.other,) if differ else ())
        logs = ("first.log", "second.log")
        started = []
        for flags, log in zip(more, logs, strict=True):
            started.append(command.start(work, *flags, log=log))
            time.sleep(chance.choice([0.0, 0.5 * chance.random()]) * length)
        said = []
        for process, log in zip(started, logs, strict=True):
            process.join()
            said.append((work / log).read_text(errors="replace"))
        failed = [i for i, process in enumerate(started) if process.exitcode]
        gave_way += bool(failed)
        wrong += [f"pair {number}: {each}" for each in _wrong(failed, said, work)]
        held = folders.contents(work / OUT)
        allowed = [expected, other] if differ else [expected]
        if held not in allowed:
            wrong.append(f"pair {number}: other results than one undisturbed run's: {said}")
        if not failed and differ:
            wrong.append(f"pair {number}: two runs with different results both succeeded: {said}")
        remove_results(work)
    return Paired(times, gave_way, wrong)


def _wrong(failed: list[int], said: list[str], work: Path) -> list[str]:
    found = [f"left {path}" for path in folders.leftovers(work / OUT)]
    if len(failed) == 2:
        found.append(f"both failed: {said}")
    for index in failed:
        last = said[index].strip().rpartition("\n")[2]
        if "Traceback" in said[index] or OUT not in last:
            found.append(f"gave way without a word of the folder: {said[index][-500:]}")
    return found


def main() -> int:
    """Prints a row for each command, and everything that was wrong."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    names = sys.argv[2:] or list(COMMANDS)
    wrong = []
    print(f"{'command':<12}{'pairs':>7}{'one gave way':>14}{'wrong':>7}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(work)
        for name in names:
            paired = pair(name, times, work)
            wrong += paired.wrong
            row = f"{name:<12}{paired.pairs:>7}{paired.gave_way:>14}{len(paired.wrong):>7}"
            print(row, flush=True)
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
