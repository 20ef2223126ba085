"""Functions and scripts in processes of their own, which start fast and may crash.

They are forked from one process that has imported Keras and run no operation: an import costs
seconds, and an operation starts threads that a fork would not have.
"""

import contextlib
import faulthandler
import gc
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path

import pytest

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["keras", "carvana_tf.training.run", "matplotlib.pyplot"])
LIMIT = 600
"""Seconds after which a process counts as hanging."""
UNOPTIMISED = "--xla_backend_optimization_level=0"
"""For `XLA_FLAGS`: to compile takes JAX longer than the few steps of a test."""


def start_apart(log: Path, function: Callable, *arguments: object) -> BaseProcess:
    """Starts a process for an importable function; its output goes to a file."""
    process = _SERVER.Process(target=_target, args=((log, log), _variables(), function, arguments))
    process.start()
    return process


def start_script_apart(log: Path, script: Path, *flags: str, cwd: Path) -> BaseProcess:
    """Starts a script as its command line does, as the leader of a process group."""
    return start_apart(log, _script_of_group, script, flags, cwd)


def start_recipe_apart(log: Path, script: Path, *flags: str, cwd: Path) -> BaseProcess:
    """Starts a script as `start_script_apart` does; the commands that it starts are forked, too."""
    return start_apart(log, _recipe, script, flags, cwd)


def kill_with_steps(process: BaseProcess) -> None:
    """Sends SIGKILL to a process of `start_recipe_apart` and to the command that it has started.

    No other process of this module may run.
    """
    number = number_of(process)
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, signal.SIGSTOP)  # so that it starts no other
        server = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1]
        for sibling in Path(f"/proc/{server}/task/{server}/children").read_text().split():
            os.kill(int(sibling), signal.SIGKILL)
    process.join()


def kill_group(process: BaseProcess) -> None:
    """Sends SIGKILL to a script of `start_script_apart` and to all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(number_of(process), signal.SIGKILL)
    process.kill()  # where it was too young to lead a group
    process.join()


def number_of(process: BaseProcess) -> int:
    """The process number of a process that was started."""
    if process.pid is None:
        raise ValueError(f"{process.name} was not started")
    return process.pid


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


def finish_script_apart(script: Path, *flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script as `subprocess.run` does that captures output and checks nothing.

    The commands that it starts are forked, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = (Path(folder) / "output", Path(folder) / "errors")
        arguments = (logs, _variables(), _recipe, (script, flags, cwd))
        process = _SERVER.Process(target=_target, args=arguments)
        process.start()
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            process.join()
        said = [log.read_text(errors="replace") if log.is_file() else "" for log in logs]
        return subprocess.CompletedProcess([str(script), *flags], process.exitcode or 0, *said)


def _signal(number: int) -> str:
    return f"crashes with {signal.Signals(number).name}"


def _variables() -> dict[str, str]:
    """The environment of now; the server has that of its start."""
    return dict(os.environ)


def _target(
    logs: tuple[Path, Path],
    environment: Mapping[str, str],
    function: Callable,
    arguments: tuple[object, ...],
) -> None:
    for descriptor, log in enumerate(logs, start=1):
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_TRUNC)
        os.dup2(output, descriptor)
        os.close(output)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    faulthandler.enable(sys.stderr)
    _adopt(environment)
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


def _recipe(path: Path, flags: tuple[str, ...], cwd: Path) -> None:
    from carvana_tf import child

    # A child would start a server of its own, although it knows the address of this one.
    setattr(forkserver._forkserver, "ensure_running", lambda: None)  # noqa: B010
    ours = types.SimpleNamespace(**vars(subprocess) | {"Popen": _Forked})
    setattr(child, "subprocess", ours)  # noqa: B010
    _script(path, flags, cwd)


class _Forked:
    """What `carvana_tf.child` uses of `subprocess.Popen`; the fork server starts the command."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int], **_
    ) -> None:
        read, write = os.pipe()
        self.stdout = os.fdopen(read, "rb")
        handles = [_Descriptor(number) for number in (write, *pass_fds)]
        self._process = _SERVER.Process(target=_step, args=(handles, command, env, os.getcwd()))
        self._process.start()
        os.close(write)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.stdout.close()
        self._process.join()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(number_of(self._process), number)


def _adopt(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


class _Descriptor:
    """A file descriptor that another process gets a copy of."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self):
        return _unchanged, (DupFd(self.number),)


def _unchanged(handle):
    return handle


def _step(
    handles: list, command: Sequence[str], environment: Mapping[str, str], folder: str
) -> None:
    os.setsid()
    printed, *_held = [handle.detach() for handle in handles]
    for number in (1, 2):
        os.dup2(printed, number)
    os.close(printed)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0, closefd=False), write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0, closefd=False), write_through=True)
    _adopt(environment)
    gc.freeze()
    os.chdir(folder)
    sys.argv = list(command[command.index("carvana_tf") :])
    runpy.run_module("carvana_tf", run_name="__main__")
