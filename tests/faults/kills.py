"""SIGKILL at random times: what is lost, what stays behind, and whether the end is the same.

python tests/faults/kills.py [COMMAND=COUNT ...]

Each command is run, killed with all that it started, and run again until it ends by itself; then
it starts over, until it was killed often enough.
"""

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import processes
from faults import folders
from faults.commands import COMMANDS, OUT, ROOT, SAVE_SECONDS, prepare, remove_results, undisturbed

# Of the length of an undisturbed run, within which each kill comes.
WINDOW = {"recipe": 0.25}
COUNTS = {"preparing": 30, "training": 50, "prediction": 50, "ensembling": 30, "encoding": 30}
COUNTS |= {"recipe": 30, "labelling": 30, "cutting": 30, "importing": 15, "exporting": 15}
COUNTS |= {"decoding": 15, "rendering": 15, "evaluation": 15, "conversion": 15}
STEPS = "steps.txt"


class Killed(NamedTuple):
    """What became of a command's runs.

    Attributes:
        kills: How often it was killed.
        runs: How often it came to its end.
        wrong: What was not as it should be.
        redone: The longest time of training whose steps a kill lost, in seconds; the time that
            it takes to write a state is part of it.
    """

    kills: int
    runs: int
    wrong: list[str]
    redone: float


def observed_training(flags: tuple[str, ...], work: Path) -> None:
    """`train.py` with a record of when each step ended, and whether a state was due then."""
    from carvana_tf.training import loop

    ends = loop._Saver.on_train_batch_end

    def on_train_batch_end(saver, batch, logs=None):
        due = time.monotonic() - saver._saved >= SAVE_SECONDS
        with (work / STEPS).open("a") as record:
            record.write(f"{saver._run.progress.step} {time.time()} {due:d}\n")
        ends(saver, batch, logs)

    loop._Saver.on_train_batch_end = on_train_batch_end
    processes._script_of_group(ROOT / "train.py", flags, work)


def kill(name: str, count: int, work: Path, *more: str, seed: int = 80) -> Killed:
    """Kills a command `count` times, at random times after its start; `more` are further flags."""
    command = COMMANDS[name]
    length, expected = undisturbed(command, work, *more)
    longest = WINDOW.get(name, 1.0) * length
    chance = random.Random(seed)
    kills, runs, wrong, redone = 0, 0, [], 0.0
    while kills < count or (work / OUT).exists():
        log = work / "console.log"
        if name == "training":
            flags = (*command.flags, *more)
            process = processes.start_apart(log, observed_training, flags, work)
        else:
            process = command.start(work, *more)
        process.join(chance.uniform(0, longest) if kills < count else None)
        if process.exitcode is None:
            processes.kill_group(process)
            kills += 1
            wrong += [f"kill {kills}: {each}" for each in folders.truncated(work / OUT)]
            seconds, unsaved = _lost(work)
            redone = max(redone, seconds)
            if unsaved:
                wrong.append(f"kill {kills}: more than one interval between states was lost")
            continue
        if process.exitcode:
            wrong.append(f"after kill {kills}: {log.read_text(errors='replace')[-500:]}")
            break
        runs += 1
        if left := folders.leftovers(work / OUT):
            wrong.append(f"run {runs}: left {left}")
        if folders.contents(work / OUT) != expected:
            wrong.append(f"run {runs}: other results than an undisturbed one")
        remove_results(work)
        (work / STEPS).unlink(missing_ok=True)
    return Killed(kills, runs, wrong, redone)


def _lost(work: Path) -> tuple[float, int]:
    """What is done again after a kill.

    Returns:
        The seconds between the last step of the state and the last step done, and how many
        states should have been written in between; the one that a kill interrupts is none.
    """
    if not (work / STEPS).is_file():
        return 0.0, 0
    from carvana_tf.training import state

    steps = {}
    for line in (work / STEPS).read_text().splitlines():
        if len(words := line.split()) == 3:  # the last may be a part of one
            steps[int(words[0])] = (float(words[1]), int(words[2]))
    (folder,) = (work / OUT).iterdir()
    saved = state.load(folder)
    step = saved.progress.step if saved else 0
    later = [each for number, each in sorted(steps.items()) if number > step]
    kept = [f"{n} {at} {due}\n" for n, (at, due) in steps.items() if n <= step]
    (work / STEPS).write_text("".join(kept))
    if not later:
        return 0.0, 0
    begun = steps.get(step, later[0])[0]  # the first lost step began when the saved one ended
    return later[-1][0] - begun, sum(due for _, due in later[:-1])


def main() -> int:
    """Prints a row for each command, and everything that was wrong."""
    given = dict(word.partition("=")[::2] for word in sys.argv[1:])
    counts = {name: int(count) for name, count in given.items()} or COUNTS
    wrong = []
    print(f"{'command':<12}{'kills':>6}{'whole runs':>12}{'wrong':>7}{'most seconds redone':>21}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(work)
        for name, count in counts.items():
            killed = kill(name, count, work)
            wrong += killed.wrong
            redone = f"{killed.redone:.2f}" if name == "training" else ""
            row = f"{name:<12}{killed.kills:>6}{killed.runs:>12}{len(killed.wrong):>7}{redone:>21}"
            print(row, flush=True)
    print(f"states of training are saved every {SAVE_SECONDS} s")
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
