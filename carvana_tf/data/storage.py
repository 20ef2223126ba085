"""Photos that are no local files: URLs of any storage that fsspec knows, as s3://bucket/a.jpg.

A storage that does not answer is asked again. What is then not there, or not given, says as much
of the storage as of the photo: after `MOST_FAILURES` photos in a row the run ends.
"""

import re
import threading
import time
from urllib.parse import urlsplit

from carvana_tf.data.decoding import UnreadableImage
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory, SystemFailure, describe, installed, is_out_of_memory

EXTRA = "remote"
MOST_FAILURES = 100
"""Photos in a row that a storage may fail to give, unless it says that there is no such file."""
ATTEMPTS = 3
DELAY = 1.0
"""Seconds before the second attempt; each further one waits twice as long."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def scheme(path: str) -> str:
    """The scheme of a URL ("s3"), and "" of a local path."""
    match = _URL.match(path)
    return match[1].lower() if match else ""


def file_name(path: str) -> str:
    """The last part of a path or URL, which has the photo's stem and extension."""
    if scheme(path) in ("http", "https"):
        path = urlsplit(path).path
    return path.rstrip("/").rpartition("/")[2]


def check(url: str) -> None:
    """Refuses URLs of a storage that cannot be read here; connects to nothing.

    Raises:
        UserError: fsspec does not know its scheme, or lacks a package for it.
    """
    fsspec = installed("fsspec", f"'{url}'", EXTRA)
    try:
        fsspec.get_filesystem_class(scheme(url))
    except ImportError as error:
        raise UserError(
            f"'{url}' needs a package that is not installed ({describe(error)}); pip install -e "
            f"'.[{EXTRA}]'"
        ) from error
    except ValueError as error:
        raise UserError(
            f"'{url}' is of no storage that fsspec knows ({describe(error)}); correct its scheme."
        ) from error


def read(url: str) -> bytes:
    """The content of a file; any thread may call it.

    Raises:
        UnreadableImage: There is no such file, or the storage does not give it.
        SystemFailure: It has given none of the last `MOST_FAILURES`.
        UserError: As of `check`.
    """
    check(url)
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(DELAY * 2 ** (attempt - 1))
        try:
            data = _fetch(url)
            _failures.end()
            return data
        except _NO_FILE as error:
            _failures.end()
            raise UnreadableImage(f"cannot read '{url}': there is no such file.") from error
        except Exception as error:  # each storage has errors of its own
            if is_out_of_memory(error):
                raise OutOfMemory(f"out of memory while reading '{url}'") from error
            problem = error
            if isinstance(error, PermissionError):
                break
    count = _failures.add()
    if count >= MOST_FAILURES:
        raise SystemFailure(
            f"the storage gave none of the last {count} photos, '{url}' at last "
            f"({describe(problem)}); see that it answers and lets you read, and run the command "
            "again."
        ) from problem
    raise UnreadableImage(f"cannot read '{url}': {describe(problem)}.") from problem


class _Failures:
    """How many photos in a row a storage has not given."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def add(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    def end(self) -> None:
        self._count = 0


_failures = _Failures()


def _fetch(url: str) -> bytes:
    fsspec = installed("fsspec", f"'{url}'", EXTRA)
    filesystem, path = fsspec.core.url_to_fs(url)
    return filesystem.cat_file(path)
