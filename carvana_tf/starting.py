"""Imported before all else by every command: Ctrl-C while packages load ends it in one line.

Loading takes seconds, in which Python's own handler would print the stack of some import, or
an extension would turn the exception into another. Nothing is lost then: the process ends.
Standard streams are open from here on.
"""

import os
import signal
import sys
import threading
from pathlib import Path

INTERRUPTED = 130


def _open_streams() -> None:
    """Gives closed standard streams somewhere to go, as after `command 2>&-`.

    Else the next file that is opened gets their number, and what libraries print.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


_open_streams()
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
