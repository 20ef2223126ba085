"""Other commands as child processes that are interrupted together with this one."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from carvana_tf.interrupt import Handler

_CODE = str(Path(__file__).resolve().parents[1])
"""Where this package is: a child imports the same one, be it installed or not."""


class Child(Handler):
    """A context that runs commands, and hands Ctrl-C and SIGTERM on to those that run.

    A child is in a session of its own, so that a terminal's Ctrl-C reaches it once:
    a second one would end it at once.
    """

    def __init__(self) -> None:
        """Installs nothing yet."""
        self._children: set[subprocess.Popen] = set()
        self._signalled: set[subprocess.Popen] = set()
        self._interrupted = False
        # The handler runs in the main thread, which may be within the block.
        self._lock = threading.RLock()

    def run(
        self,
        line: Sequence[str],
        log: BinaryIO | None = None,
        held: Sequence[int] = (),
        environment: Mapping[str, str | None] | None = None,
        label: str = "",
    ) -> int:
        """Runs a command to its end; several threads may do so at once.

        Args:
            line: The command's name and its flags.
            log: Gets what is printed, as the console does.
            held: File descriptors the child shall hold.
            environment: Variables that differ from those of this process; None: not set.
            label: Stands before each line on the console, where several commands run.

        Returns:
            Its exit status, minus the number of the signal that ended it.

        Raises:
            KeyboardInterrupt: This process was interrupted, and the child has ended.
        """
        status = 0
        if not self._interrupted:
            status = self._follow(line, log, held, environment or {}, label)
        if self._interrupted:
            raise KeyboardInterrupt
        return status

    def _follow(
        self,
        line: Sequence[str],
        log: BinaryIO | None,
        held: Sequence[int],
        environment: Mapping[str, str | None],
        label: str,
    ) -> int:
        path = filter(None, [_CODE, os.environ.get("PYTHONPATH")])
        ours = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(path)}
        variables = {**os.environ, **ours, **environment}
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "carvana_tf", *line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in variables.items() if value is not None},
            pass_fds=held,
            start_new_session=True,
        ) as child:
            with self._lock:
                self._children.add(child)
                if self._interrupted and child not in self._signalled:  # during the start
                    child.send_signal(signal.SIGTERM)
            console = Console(label)
            while printed := child.stdout.read1(1 << 16):  # type: ignore[union-attr]
                console.write(printed)
                if log is not None:
                    log.write(printed)
                    log.flush()
            console.write(b"\n" if label else b"")
        with self._lock:
            self._children.remove(child)
        return child.returncode

    def handle(self, number, frame) -> None:
        """Hands the signal on."""
        with self._lock:
            self._interrupted = True
            for child in self._children:
                child.send_signal(number)
                self._signalled.add(child)


class Console:
    """Standard output; with a label only whole lines are written, those of a bar included."""

    def __init__(self, label: str) -> None:
        self._label = label.encode()
        self._rest = b""

    def write(self, printed: bytes) -> None:
        """Writes what a command has printed."""
        if self._label:
            *whole, self._rest = re.split(rb"[\r\n]+", self._rest + printed)
            lines = [line.rstrip() for line in whole]
            printed = b"".join(b"[%s] %s\n" % (self._label, line) for line in lines if line)
        if printed:
            sys.stdout.buffer.write(printed)
            sys.stdout.buffer.flush()


def ending(status: int) -> str:
    """How a command ended that did not do what it should, in a few words."""
    if status == 0:
        return "ended without a product"
    if status == -signal.SIGKILL:
        return "was killed, perhaps as memory ran out"
    return f"ended with status {status}"
