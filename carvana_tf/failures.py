"""Errors of the libraries below as one line that names the files; which mean lack of memory."""

import contextlib
import errno
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import ParamSpec, TypeVar

from carvana_tf.data.names import printable
from carvana_tf.errors import UserError
from carvana_tf.files import FULL_DISK

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

_NAMED = 4  # how many files a message names

# Each library has a class and words of its own: TensorFlow and JAX, OpenCV, Pillow and libjpeg,
# OpenVINO, ONNX Runtime and oneDNN.
_WANT_OF_MEMORY = re.compile(
    r"RESOURCE_?EXHAUSTED|OOM when allocating|out of memory|out_of_memory|bad_?alloc|bad allocation"
    r"|(in|not )(sufficient|enough) memory|fail(ed|ure) to (re)?alloc|"
    r"(cannot|can't|could ?n[o']t|unable to) allocate|could not create a memory object",
    re.IGNORECASE,
)

# TensorFlow has a class for each status; JAX's errors start with it; PyTorch's name the library
# that failed. A wrong program or input has another status (INVALID_ARGUMENT).
_OF_DEVICE = re.compile(
    r"(InternalError|UnavailableError|AbortedError|UnknownError|DataLossError|AcceleratorError)\b"
    r"|\w+: (INTERNAL|UNAVAILABLE|ABORTED|UNKNOWN|DATA_LOSS|DEADLINE_EXCEEDED):"
    r"|\w*RuntimeError: .*\b(CUDA|cuDNN|CUDNN|CUBLAS|HIP)(_ERROR|_STATUS| error)"
)


class SystemFailure(UserError):
    """The system failed, which says nothing of a file: the next one would fail as well."""


class OutOfMemory(SystemFailure):
    """Memory was not enough.

    Attributes:
        pixels: Of the largest input, where a network was running; else None.
    """

    def __init__(self, message: str, pixels: int | None = None) -> None:
        super().__init__(message)
        self.pixels = pixels


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error of any library, or one that it was raised from, means lack of memory."""
    while error is not None:
        if isinstance(error, (MemoryError, OutOfMemory)) or _says_so(error):
            return True
        error = error.__cause__
    return False


def _says_so(error: BaseException) -> bool:
    if isinstance(error, UserError):
        return False  # its words are ours
    if isinstance(error, OSError) and error.errno is not None:  # Pillow's has none
        return error.errno == errno.ENOMEM
    text = f"{type(error).__name__}: {error}"
    return _WANT_OF_MEMORY.search(text) is not None


def is_device_error(error: BaseException | None) -> bool:
    """Whether an error of a backend, or one that it was raised from, says that a device failed."""
    while error is not None:
        text = f"{type(error).__name__}: {error}"
        if not isinstance(error, (UserError, OSError)) and _OF_DEVICE.match(text):
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def named(doing: str, *paths: Path | str) -> Iterator[None]:
    """A block whose errors name the files it works on.

    Args:
        doing: What it does to them ("reading").
        paths: The files; the first few are named.

    Raises:
        OutOfMemory: Memory was not enough.
        UserError: The block's own, as it is; or any other exception, in one line. A full disk
            stays what it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise
        names = list_names(paths)
        if is_out_of_memory(error):
            raise OutOfMemory(f"out of memory while {doing} {names}") from error
        raise UserError(f"{doing} {names} failed: {describe(error)}.") from error


def optional(
    what: str, function: Callable[Arguments, Result], *args: Arguments.args, **kw: Arguments.kwargs
) -> Result | None:
    """What a function returns, of which a result shows less where it cannot.

    Args:
        what: What the result is without then ("pictures").
        function: Reads or draws it.
        args: Its arguments.
        kw: Its named arguments.

    Returns:
        None where it raised a UserError, which is printed as one line of warning.
    """
    try:
        return function(*args, **kw)
    except UserError as error:
        line = " ".join(f"warning: no {what}: {error}".splitlines())
        print(printable(line), file=sys.stderr)
        return None


def installed(package: str, what: str, extra: str, otherwise: str = "") -> ModuleType:
    """Imports a package that not every installation has.

    Args:
        package: The module's name.
        what: What needs it, for the message ("'photos.parquet'").
        extra: What pip calls the extra that installs it.
        otherwise: What else can be done; ends the message.

    Raises:
        UserError: It is not installed, or broken.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{what} needs '{package}' ({error}); pip install -e '.[{extra}]'{otherwise}"
        ) from error


def list_names(paths: Sequence[Path | str]) -> str:
    """The first few files, and how many more there are."""
    return first_few([f"'{path}'" for path in paths], _NAMED)


def first_few(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list and how many more there are, for messages."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def describe(error: BaseException) -> str:
    """An exception in one line: its type and the start of its text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0][:200].rstrip(".") if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
