"""Imported before all else by every script: Ctrl-C while packages load ends it in one line.

Loading takes seconds, in which Python's own handler would print the stack of some import, or
an extension would turn the exception into another. Nothing is lost then: the process ends.
"""

import os
import signal
import sys
import threading
from pathlib import Path

INTERRUPTED = 130
# TensorFlow's start holds back what is written to the usual one.
_STDERR = os.dup(2)
_SCRIPTS = Path(__file__).resolve().parents[1]


def _end(number: int, frame: object) -> None:
    os.write(_STDERR, b"error: interrupted while starting; nothing was done.\n")
    os._exit(INTERRUPTED)


def _is_script() -> bool:
    """Whether the program is one of ours, and not one that imports them as a library."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    folder = Path(program or "").resolve().parent
    return program is not None and folder in (_SCRIPTS, _SCRIPTS / "tools")


def loaded() -> None:
    """Gives Ctrl-C back to Python: from here on there is something to end in order."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# In `command &` Ctrl-C is ignored, and stays so.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    and _is_script()
):
    signal.signal(signal.SIGINT, _end)
