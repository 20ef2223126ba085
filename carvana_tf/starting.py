"""Imported before all else by every command: Ctrl-C while packages load ends it in one line.

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
_PACKAGE = Path(__file__).resolve().parent


def _end(number: int, frame: object) -> None:
    os.write(_STDERR, b"error: interrupted while starting; nothing was done.\n")
    os._exit(INTERRUPTED)


def _is_command() -> bool:
    """Whether the program is one of ours, and not one that imports the package as a library."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    if program is None:
        return False
    path, checkout = Path(program).resolve(), _PACKAGE.parent
    return path.name == "carvana-tf" or path.parent in (_PACKAGE, checkout, checkout / "tools")


def loaded() -> None:
    """Gives Ctrl-C back to Python: from here on there is something to end in order."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# In `command &` Ctrl-C is ignored, and stays so.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    and _is_command()
):
    signal.signal(signal.SIGINT, _end)
