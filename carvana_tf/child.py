"""Another command as a child process that is interrupted together with this one."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from carvana_tf.interrupt import Handler

_CODE = str(Path(__file__).resolve().parents[1])
"""Where this package is: a child imports the same one, be it installed or not."""


class Child(Handler):
    """A context that runs commands, and hands Ctrl-C and SIGTERM on to the one that runs.

    The child is in a session of its own, so that a terminal's Ctrl-C reaches it once:
    a second one would end it at once.
    """

    def __init__(self) -> None:
        """Installs nothing yet."""
        self._child: subprocess.Popen | None = None
        self._interrupted = False

    def run(
        self, line: Sequence[str], log: BinaryIO | None = None, held: Sequence[int] = ()
    ) -> int:
        """Runs a command to its end.

        Args:
            line: The command's name and its flags.
            log: Gets what is printed, as the console does.
            held: File descriptors the child shall hold.

        Returns:
            Its exit status, minus the number of the signal that ended it.

        Raises:
            KeyboardInterrupt: This process was interrupted, and the child has ended.
        """
        status = 0 if self._interrupted else self._follow(line, log, held)
        if self._interrupted:
            raise KeyboardInterrupt
        return status

    def _follow(self, line: Sequence[str], log: BinaryIO | None, held: Sequence[int]) -> int:
        path = filter(None, [_CODE, os.environ.get("PYTHONPATH")])
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "carvana_tf", *line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(path)},
            pass_fds=held,
            start_new_session=True,
        )
        streams = [sys.stdout.buffer, *([] if log is None else [log])]
        with self._child as child:
            if self._interrupted:  # during the start
                child.send_signal(signal.SIGTERM)
            while printed := child.stdout.read1(1 << 16):  # type: ignore[union-attr]
                for stream in streams:
                    stream.write(printed)
                    stream.flush()
        self._child = None
        return child.returncode

    def handle(self, number, frame) -> None:
        """Hands the signal on."""
        self._interrupted = True
        if self._child is not None:
            self._child.send_signal(number)
