"""Carries steps out, each in a process of its own, and remembers them."""

import contextlib
import dataclasses
import resource
import shlex
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from pathlib import Path
from shutil import rmtree

from carvana_tf import files, remote
from carvana_tf.child import Child, ending
from carvana_tf.errors import UserError
from carvana_tf.evaluation import timings
from carvana_tf.failures import optional
from carvana_tf.filenames import TIMINGS
from carvana_tf.recipe.fingerprints import Contents, fingerprint
from carvana_tf.recipe.steps import PRODUCTS, Step

COMMANDS = "commands.sh"
LOGS = "logs"
STEPS = "steps"
PROCESSOR = "processor_seconds"
"""In `TIMINGS`, those of each step where they are known."""
# Records hold digests of command lines as they were when each command was a script.
_SCRIPTS = {
    "make_folds": "make_folds.py",
    "train": "train.py",
    "predict": "predict_multithreaded.py",
    "ensemble": "ensemble.py",
    "evaluate": "evaluate.py",
    "encode": "generate_encoded_submission.py",
}

# Runs a command line, with a file for what it prints; returns the exit status.
Execute = Callable[[Sequence[str], Path], int]


class Runner:
    """Does what is not done, and goes on after a failure with what does not need it.

    Attributes:
        failures: Why each step that is not done was not, by its name.
    """

    def __init__(
        self,
        out: Path,
        planned: Sequence[Step],
        execute: Execute,
        overwrite: bool = False,
        at_once: int = 1,
        serial: bool = False,
    ) -> None:
        """Nothing is done yet.

        Args:
            out: Folder for records, logs and all products.
            planned: All steps there will be, for the display of what is left.
            execute: Runs a command line.
            overwrite: Do costly steps again whose recipe or data have changed.
            at_once: How many steps may run at the same time, each in a thread that calls `execute`.
            serial: Whether `execute` starts a child of this process, one after the other: only
                then is it known how long each uses the processor.
        """
        self.failures: dict[str, str] = {}
        self._out = out
        self._planned = planned
        self._execute = execute
        self._overwrite = overwrite
        self._count = 0
        self._numbers: dict[str, int] = {}
        self._broken: dict[Path, str] = {}
        self._contents = Contents(out / STEPS / "contents")
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._at_once = at_once
        self._serial = serial
        self._lock = threading.Lock()  # held but while a step runs

    def run(self, steps: Sequence[Step]) -> bool:
        """Does steps in order, or at the same time; those that were done before are skipped.

        Returns:
            Whether all of them are done.

        Raises:
            UserError: A costly step was done with other settings, and `overwrite` is off. Where
                steps run at the same time it is one of the `failures`.
            KeyboardInterrupt: A step was interrupted.
        """
        if self._at_once > 1:
            self._run_at_once(steps)
        else:
            for step in steps:
                self._one(step)
        return not any(step.name in self.failures for step in steps)

    def _run_at_once(self, steps: Sequence[Step]) -> None:
        """Does each step as soon as those that make its inputs are done or have failed."""
        makers = {step.product: number for number, step in enumerate(steps)}
        order = TopologicalSorter(
            {
                number: [makers[path] for path in step.inputs if path in makers]
                for number, step in enumerate(steps)
            }
        )
        order.prepare()
        running: dict[Future[None], int] = {}
        with ThreadPoolExecutor(self._at_once) as pool:
            while order.is_active():
                # As far as possible in the order in which they stand.
                for number in sorted(order.get_ready()):
                    running[pool.submit(self._try, steps[number])] = number
                # Not for ever: another thread may have received a signal that this one handles.
                finished, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in finished:
                    number = running.pop(future)
                    try:
                        future.result()
                    except BaseException:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise
                    order.done(number)

    def _try(self, step: Step) -> None:
        try:
            self._one(step)
        except UserError as error:
            with self._lock:
                self._fail(step, str(error))

    def _one(self, step: Step) -> None:
        with self._lock:
            record = self._begin(step)
        if record is None:
            return
        started = _Clock.now()
        log = files.make_folder(self._out / LOGS) / f"{step.name}.log"
        status = self._execute(step.line, log)
        with self._lock:
            self._end(step, record, _Clock.now() - started, status, log)

    def _begin(self, step: Step) -> "_Record | None":
        """What is to be remembered of a step; None where it is done, or cannot be."""
        self._count += 1
        missing = [self._broken[path] for path in step.inputs if path in self._broken]
        if missing:
            self._fail(step, f"needs '{missing[0]}'")
            return None
        record = _Record.of(step, self._contents)
        file = self._out / STEPS / f"{step.name}.json"
        before = _Record.read(file)
        if before is not None and not record.agrees(before):
            self._clear(step, file)
            before = None
        if before is not None and before.done and step.product.exists():
            if before != record:  # it was written by a version without contents
                files.write_json(file, dataclasses.asdict(record))
            return None
        files.write_json(file, dataclasses.asdict(dataclasses.replace(record, done=False)))
        if step.owns.is_dir():  # a killed step may have left something half written
            files.remove_leftovers(step.owns)
        self._numbers[step.name] = self._count
        print(f"\n{self._label(step)}: {shlex.join(step.line)}", flush=True)
        return record

    def _end(self, step: Step, record: "_Record", spent: "_Clock", status: int, log: Path) -> None:
        """Remembers what became of a step."""
        self._keep_times(step, spent)
        seconds = spent.seconds
        if status == 0 and step.product.exists():
            files.write_json(self._out / STEPS / f"{step.name}.json", dataclasses.asdict(record))
            self._seconds[step.command].append(seconds)
            print(f"{self._label(step)}: {_span(seconds)}, {self._left()} left", flush=True)
        else:
            self._fail(step, f"{ending(status)}, see {log}")

    def _keep_times(self, step: Step, spent: "_Clock") -> None:
        """Adds to what the step took in earlier attempts, for the report."""
        file = self._out / TIMINGS
        found = optional("times of earlier steps", timings.read, file) or {}
        times, processor = timings.seconds(found), timings.seconds(found.get(PROCESSOR))
        # A sum in which an attempt is missing is no figure of the step.
        known = self._serial and (step.name in processor or step.name not in times)
        before = processor.pop(step.name, 0.0)
        if known:
            processor[step.name] = round(before + spent.processor, 1)
        times[step.name] = round(times.get(step.name, 0.0) + spent.seconds, 1)
        files.write_json(file, times | ({PROCESSOR: processor} if processor else {}))

    def _clear(self, step: Step, file: Path) -> None:
        """Removes what another recipe, or other data, made in the place of a step's product."""
        if step.costly and not self._overwrite:
            raise UserError(
                f"'{step.owns}' was made by other flags or from other data; --overwrite makes "
                "such results again, or choose another --out_dir."
            )
        # The record goes last: without it the remains would pass for this step's.
        if step.owns.is_dir():
            rmtree(step.owns)
        step.owns.unlink(missing_ok=True)
        file.unlink()

    def _fail(self, step: Step, why: str) -> None:
        self.failures[step.name] = why
        self._broken[step.product] = step.name
        print(f"{self._label(step)}: {why}", file=sys.stderr, flush=True)

    def _label(self, step: Step) -> str:
        number = self._numbers.get(step.name, self._count)
        return f"[{number}/{len(self._planned)}] {step.name}"

    def _left(self) -> str:
        """What the steps ahead take, if each takes what those of its command took so far."""
        known = {command: sum(spent) / len(spent) for command, spent in self._seconds.items()}
        usual = sum(known.values()) / len(known)
        ahead = self._planned[self._count :]
        return _span(sum(known.get(step.command, usual) for step in ahead) / self._at_once)


@dataclasses.dataclass(frozen=True)
class _Clock:
    """Seconds, and processor seconds of the child processes that have ended."""

    seconds: float
    processor: float

    @staticmethod
    def now() -> "_Clock":
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return _Clock(time.monotonic(), used.ru_utime + used.ru_stime)

    def __sub__(self, earlier: "_Clock") -> "_Clock":
        return _Clock(self.seconds - earlier.seconds, self.processor - earlier.processor)


@dataclasses.dataclass(frozen=True)
class _Record:
    """What is remembered of a step: its command, the digest of that and its inputs, its end.

    `digest` is by names and sizes, as earlier versions wrote it; they had no `contents`.
    """

    command: list[str]
    digest: str
    done: bool = True
    contents: str | None = None

    @staticmethod
    def of(step: Step, contents: Contents) -> "_Record":
        inputs = [f"{path} {fingerprint(path)}" for path in step.inputs]
        command, *flags = step.line
        line = shlex.join([_SCRIPTS.get(command, command), *flags])
        return _Record(
            step.line,
            files.digest_of_lines([line, *inputs]),
            contents=files.digest_of_lines([f"{path} {contents.of(path)}" for path in step.inputs]),
        )

    def agrees(self, before: "_Record") -> bool:
        """Whether what was done before is what is to be done."""
        return self.digest == before.digest and before.contents in (None, self.contents)

    @staticmethod
    def read(file: Path) -> "_Record | None":
        return _Record(**files.read_json(file)) if file.is_file() else None


def as_shell(steps: Sequence[Step]) -> str:
    """All command lines as a shell script; what is not fitted yet stands as <from FILE>."""
    lines = ["#!/bin/sh", "# What the recipe runs, in this order.", "set -e"]
    lines += [shlex.join(["python", "-m", "carvana_tf", *step.line]) for step in steps]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def alone(out: Path) -> Iterator[int]:
    """Waits until no other run, nor a step of a killed one, works in a folder, and tidies it.

    Yields:
        A file descriptor that keeps others out as long as any process holds it.
    """
    with files.held(out, wait=True) as handle:
        for name in (STEPS, LOGS, *PRODUCTS):
            files.remove_leftovers(out / name)
        yield handle


class Processes(Child):
    """Runs each command line in a child."""

    def __init__(self, held: int) -> None:
        """Installs nothing yet; use it as a context.

        Args:
            held: File descriptor the children shall hold.
        """
        super().__init__()
        self._held = held

    def __call__(self, line: Sequence[str], log: Path) -> int:
        """An `Execute`: what the child prints goes to the console and to the end of `log`.

        Raises:
            KeyboardInterrupt: This process was interrupted, and the child has ended.
        """
        with log.open("ab") as handle:
            return self.run(line, handle, (self._held,))


@contextlib.contextmanager
def executing(
    out: Path, held: int, gpu: str | None = None, ray_address: str = ""
) -> Iterator[tuple[Execute, int]]:
    """What runs the steps, and how many at the same time.

    Args:
        out: Folder for all products.
        held: Of `alone`.
        gpu: Numbers of GPUs, each for a step at a time; None: one step after the other.
        ray_address: Of the cluster whose machines do the steps; empty: this machine does.

    Raises:
        UserError: There are no such GPUs, or the cluster cannot be used.
    """
    if gpu is None and not ray_address:
        with Processes(held) as execute:
            yield execute, 1
    else:
        gpu = "0" if gpu is None else gpu
        with remote.executing(out, gpu, ray_address, (held,)) as several:
            yield several


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
