"""Functions and scripts in processes of their own, which start fast and may crash.

They are forked from one process that has imported Keras and run no operation: an import costs
seconds, and an operation starts threads that a fork would not have.
"""

import contextlib
import faulthandler
import gc
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["keras", "carvana_tf.training.run", "matplotlib.pyplot"])
LIMIT = 600
"""Seconds after which a process counts as hanging."""


def start_apart(log: Path, function: Callable, *arguments: object) -> BaseProcess:
    """Starts a process for an importable function; its output goes to a file."""
    process = _SERVER.Process(target=_target, args=(log, function, arguments))
    process.start()
    return process


def start_script_apart(log: Path, script: Path, *flags: str, cwd: Path) -> BaseProcess:
    """Starts a script as its command line does, as the leader of a process group."""
    return start_apart(log, _script_of_group, script, flags, cwd)


def kill_group(process: BaseProcess) -> None:
    """Sends SIGKILL to a script of `start_script_apart` and to all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # where it was too young to lead a group
    process.join()


def run_apart(name: str, log: Path, function: Callable, *arguments: object) -> str:
    """Runs an importable function in a process of its own.

    Args:
        name: Of what is tested, for the message.
        log: File for what the process prints.
        function: Raises, or ends the process with a status that is not 0, to fail.
        arguments: Of the function; they are pickled.

    Returns:
        What it printed.
    """
    process = start_apart(log, function, *arguments)
    process.join(LIMIT)
    hangs = process.is_alive()
    if hangs:
        process.kill()
        process.join()
    said = log.read_text(errors="replace") if log.is_file() else ""
    if hangs or process.exitcode:
        code = process.exitcode or 0
        how = "hangs" if hangs else _signal(-code) if code < 0 else f"ends with status {code}"
        pytest.fail(f"{name} {how}:\n{said[-3000:]}", pytrace=False)
    return said


def run_script_apart(name: str, log: Path, script: Path, *flags: str, cwd: Path) -> str:
    """Runs a script of the toolkit as its command line does."""
    return run_apart(name, log, _script, script, flags, cwd)


def _signal(number: int) -> str:
    return f"crashes with {signal.Signals(number).name}"


def _target(log: Path, function: Callable, arguments: tuple[object, ...]) -> None:
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    faulthandler.enable(sys.stderr)
    gc.freeze()  # the imports stay: to look at them costs time, and copies the server's pages
    function(*arguments)


def _script_of_group(path: Path, flags: tuple[str, ...], cwd: Path) -> None:
    os.setsid()
    _script(path, flags, cwd)


def _script(path: Path, flags: tuple[str, ...], cwd: Path) -> None:
    os.chdir(cwd)
    sys.argv = [str(path), *flags]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
