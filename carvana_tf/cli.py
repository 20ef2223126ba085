"""How every script starts and ends: flags parsed once, mistakes reported in one line."""

from carvana_tf.starting import INTERRUPTED, loaded

import errno
import re
import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging

from carvana_tf import environment
from carvana_tf.data.names import printable
from carvana_tf.errors import UserError
from carvana_tf.failures import describe, is_out_of_memory
from carvana_tf.files import FULL_DISK
from carvana_tf.flags import check_flagfiles, joined
from carvana_tf.interrupt import repeat_lost_ones
from carvana_tf.memory import keep_freed_memory

_FAULTS = (errno.EBADF, errno.EFAULT)
"""Errors of the system that a fault of this program causes."""


def run(main: Callable[[], int | None]) -> None:
    """Parses the command line, runs `main` and exits.

    The exit status is what `main` returned (None is 0), 1 for a `UserError`, a bad flag
    or an error of the system, as a full disk, 130 after Ctrl-C, and after SIGTERM where work is
    then ended in order.
    `--help` and `--flagfile` are absl's; with its `--verbosity=1` errors have a traceback.
    """
    for note in _NOTES:
        print(f"note: {printable(note)}", file=sys.stderr)
    keep_freed_memory()
    repeat_lost_ones()
    app.run(lambda _: _guarded(main), flags_parser=_parse)


def check_first(check: Callable[[], None], known: flags.FlagValues = flags.FLAGS) -> None:
    """Runs a check of the flags defined so far, before the rest of a script is imported.

    For scripts whose imports take seconds: a mistake is reported at once. All flags are parsed
    again by `run`.

    Args:
        check: Raises UserError.
        known: The flags it reads; by default the program's.
    """
    if any(argument.lstrip("-").startswith("help") for argument in sys.argv[1:]):
        return
    known.set_gnu_getopt(True)  # values of flags that are not defined yet are no end
    try:
        check_flagfiles(sys.argv[1:])
        known([sys.argv[0], *joined(known, sys.argv[1:])], known_only=True)
        check()
    except flags.Error as error:
        _tell(f"{error} (--help lists the flags)")
        sys.exit(1)
    except Exception as error:
        if not _reported(error):
            raise
        sys.exit(1)
    finally:
        known.set_gnu_getopt(False)
        known.unparse_flags()
        for name in known:
            known[name].unparse()


def _guarded(main: Callable[[], int | None]) -> None:
    try:
        loaded()
        status = main() or 0
    except KeyboardInterrupt:
        _tell("interrupted; what was finished is kept.")
        status = INTERRUPTED
    except Exception as error:
        if not _reported(error):
            raise
        status = 1
    sys.exit(status)


def _reported(error: Exception) -> bool:
    """Reports an error in one line, unless it is a fault of this program."""
    if isinstance(error, UserError):
        message = str(error)
    elif isinstance(error, OSError) and error.strerror and error.errno not in _FAULTS:
        where = f" for '{error.filename}'" if error.filename else ""
        fix = "make room" if error.errno in FULL_DISK else "correct that"
        message = f"{error.strerror}{where}; {fix} and run the command again."
    elif is_out_of_memory(error):
        message = (
            f"out of memory ({describe(error)}); close other programs, lower --threads, or use a "
            "machine with more of it, and run the command again."
        )
    else:
        return False
    if logging.level_debug():
        traceback.print_exception(error)
    _tell(message)
    return True


def _parse(argv: list[str]) -> list[str]:
    try:
        check_flagfiles(argv[1:])
        rest = flags.FLAGS([argv[0], *joined(flags.FLAGS, argv[1:])])
        if len(rest) > 1:
            raise flags.Error(f"'{rest[1]}' is no flag; flags are written --name=value.")
    except UserError as error:
        _tell(str(error))
        sys.exit(1)
    except flags.Error as error:
        _tell(f"{error} (--help lists the flags)")
        sys.exit(1)
    if "max_pixels" in flags.FLAGS:
        from carvana_tf.data.decoding import limit_pixels  # OpenCV, in a settled environment

        limit_pixels(int(flags.FLAGS.max_pixels))
    return rest


def _tell(message: str) -> None:
    line = re.sub(r"\s*[\r\n]\s*", " ", message.strip())
    print(f"error: {printable(line)}", file=sys.stderr)


def _prepare() -> list[str]:
    try:
        return environment.prepare()
    except UserError as error:
        _tell(str(error))
        sys.exit(1)


# Now, because scripts import this module first: what is loaded after it reads the environment.
_NOTES = _prepare()
