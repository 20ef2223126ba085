"""Measures contenders side by side: alternating rounds in one run, others' load rejected.

Each contender lives in a process of its own, so that the thread pools of TensorFlow,
OpenVINO and PyTorch do not meet. It is a function at the top of a module, named by text
("peers.torch_predict:predict_smp") so that only its own process imports it, that prepares
what it needs and then loops over the rounds it is given; what stands in the loop is
measured:

    def decode(rounds: Rounds, folder: str) -> None:
        paths = sorted(Path(folder).iterdir())
        for _ in rounds:
            for path in paths:
                cv2.imread(str(path))
"""

import contextlib
import dataclasses
import functools
import importlib
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import load
from carvana_tf.errors import unknown_name
from carvana_tf.flags import option

_PREPARED, _DONE, _FAILED = "prepared", "done", "failed"
_PATIENCE = 20.0  # seconds for a process to end by itself


@dataclasses.dataclass(frozen=True)
class RoundOptions:
    """How often contenders run, and how quiet the machine has to be."""

    rounds: int = option(5, "Rounds that count, of each contender.", lower=1)
    warmups: int = option(1, "Rounds before them that do not count.", lower=0)
    foreign: float = option(
        0.08,
        "Repeat a round in which other programs used more than this share of all cores.",
        lower=0.0,
        upper=1.0,
    )
    retries: int = option(
        5, "Repetitions of a disturbed round; then the least disturbed one counts.", lower=0
    )
    contenders: tuple[str, ...] = option(
        (), "Names of the contenders to run; all by default. Ratios of missing ones are left out."
    )


class Rounds:
    """The rounds a contender is asked for; iterating gives the name of the task of each."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __iter__(self) -> Iterator[str]:
        self._connection.send((_PREPARED, 0.0))
        while (task := self._connection.recv()) is not None:
            start = time.perf_counter()
            yield task
            self._connection.send((_DONE, time.perf_counter() - start))


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: As tables call it, and `--contenders`: without commas.
        function: "module:function", called as `function(rounds, *arguments)`.
        arguments: What can be pickled.
        items: Photos, masks, … of one round.
        task: What a round yields; contenders that differ in nothing else but name and
            items share a process, and distinguish their tasks by it.
    """

    name: str
    function: str
    arguments: tuple[Any, ...]
    items: int
    task: str = ""


@dataclasses.dataclass(frozen=True)
class Round:
    """One measured round.

    Attributes:
        seconds: Of the contender's loop body.
        foreign: Share of all cores that other programs used meanwhile, 0..1.
    """

    seconds: float
    foreign: float


@dataclasses.dataclass(frozen=True)
class Timing:
    """The rounds of one contender that count.

    Attributes:
        name: The contender's.
        items: Of one round.
        rounds: In the order they were run.
        disturbed: How many of them others disturbed to the end of the retries.
    """

    name: str
    items: int
    rounds: tuple[Round, ...]
    disturbed: int

    @property
    def seconds(self) -> float:
        """The median of the rounds."""
        return statistics.median(each.seconds for each in self.rounds)

    @property
    def rate(self) -> float:
        """Items per second, of the median round."""
        return self.items / self.seconds


def measure(contenders: Sequence[Contender], options: RoundOptions) -> list[Timing]:
    """Runs the contenders in turn (A B C A B C …), warm-ups first.

    A contender that fails, for want of its package for example, is reported and left out.

    Raises:
        UserError: `options` names a contender that there is not.
    """
    for name in options.contenders:
        if name not in (known := [contender.name for contender in contenders]):
            raise unknown_name("--contenders", name, known)
    chosen = [c for c in contenders if not options.contenders or c.name in options.contenders]
    counted: dict[str, list[Round]] = {}
    with contextlib.ExitStack() as stack:
        workers: dict[tuple, _Worker] = {}
        for contender in chosen:
            key = (contender.function, contender.arguments)
            if key not in workers:
                workers[key] = stack.enter_context(_Worker(*key))
            for _ in range(options.warmups):
                workers[key].run(contender.task)
        for number in range(1, options.rounds + 1):
            for contender in chosen:
                worker = workers[contender.function, contender.arguments]
                once = functools.partial(worker.run, contender.task)
                result = quietest(once, options.foreign, options.retries)
                if result is None:
                    continue
                counted.setdefault(contender.name, []).append(result)
                _tell(f"round {number}: {contender.name} {result.seconds:.3f} s")
        for worker in workers.values():
            if worker.failure:
                _tell(f"a contender failed and is left out:\n{worker.failure}")
    return [
        Timing(
            contender.name,
            contender.items,
            tuple(rounds),
            sum(each.foreign > options.foreign for each in rounds),
        )
        for contender in chosen
        if len(rounds := counted.get(contender.name, [])) == options.rounds
    ]


def quietest(once: Callable[[], Round | None], foreign: float, retries: int) -> Round | None:
    """Repeats a round until others used at most `foreign` of the cores meanwhile.

    Returns:
        That round or, after so many retries, the least disturbed; None where it fails.
    """
    best: Round | None = None
    for _ in range(1 + retries):
        current = once()
        if current is None:
            return None
        if best is None or current.foreign < best.foreign:
            best = current
        if best.foreign <= foreign:
            break
        _tell(f"disturbed: others used {current.foreign:.0%} of the cores")
    return best


def in_own_process(function: str, *arguments: Any) -> Any:
    """What "module:function" returns when called in a fresh process: its memory goes with it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_call, (function, *arguments))


class _Worker:
    """A process that runs a contender's rounds one at a time, on request."""

    def __init__(self, function: str, arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # No daemon: a contender may have worker processes of its own.
        self._process = context.Process(target=_serve, args=(theirs, function, arguments))
        self._theirs = theirs
        self.failure = ""

    def __enter__(self) -> "_Worker":
        self._process.start()
        self._theirs.close()
        self._receive()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._connection.close()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.terminate()

    def run(self, task: str) -> Round | None:
        """One round, or None once the process has failed."""
        if self.failure:
            return None
        before = load.snapshot(self._process.pid or 0, os.getpid())
        self._connection.send(task)
        seconds = self._receive()
        after = load.snapshot(self._process.pid or 0, os.getpid())
        if self.failure:
            return None
        return Round(seconds, load.foreign_share(before, after, os.cpu_count() or 1))

    def _receive(self) -> float:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            kind, value = _FAILED, "the process ended unexpectedly, perhaps for want of memory"
        if kind == _FAILED:
            self.failure = value
            return 0.0
        return value


def _call(function: str, *arguments: Any) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


def _serve(connection: Connection, function: str, arguments: tuple[Any, ...]) -> None:
    try:
        _call(function, Rounds(connection), *arguments)
    except Exception:
        with contextlib.suppress(OSError):
            connection.send((_FAILED, traceback.format_exc(limit=-3)))


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
