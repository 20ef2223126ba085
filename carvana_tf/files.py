"""Files that are either whole or absent."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carvana_tf.errors import UserError

# No space, no more quota.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

MOST_JSON = 64 << 20
"""Bytes of a JSON file: the names of 100,000 photos take 3 MB."""

_CHUNK = 1 << 20
_UMASK_LOCK = threading.Lock()
# Names that `atomic_path` gets from mkstemp: a dot, the target's name, eight characters, and
# the target's extension once more.
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}(\.[^.]+)")
# Bytes of the target's name in a temporary one, which may have 255 in all.
_KEPT, _LONGEST_SUFFIX = 80, 16


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside `target`, renamed to it when the block succeeds.

    The temporary name is hidden (starts with a dot), unique to the call and keeps the
    target's suffix, because Keras and OpenCV choose a format by suffix. When the block
    raises, the temporary file is removed and `target` is as it was.

    Raises:
        UserError: The folder cannot be written to.
    """
    target = Path(target)
    make_folder(target.parent)
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{shortened(target.name)}.",
            suffix=target.suffix if len(target.suffix) <= _LONGEST_SUFFIX else "",
            dir=target.parent,
        )
    except OSError as error:
        raise UserError(
            f"cannot write in '{target.parent}': {error.strerror}; choose another folder."
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; products get the usual permissions.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        if error.errno in FULL_DISK:
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what `atomic_path` leaves in a folder, at any depth, when it is killed.

    Nobody may be writing there at the time, and the folder must be one that only the toolkit
    writes into.
    """
    for path in Path(folder).rglob(".*"):
        if is_temporary(path.name) and path.is_file():
            path.unlink()


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder that is being filled, and tidies it.

    The lock ends with the process, however it ends.

    Raises:
        UserError: Another process works in it, or it cannot be written to.
    """
    path = make_folder(folder) / ".lock"
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise UserError(
            f"cannot write in '{folder}': {error.strerror}; choose another folder."
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process works in '{folder}'; wait for its end, or choose another folder."
            ) from error
        remove_leftovers(folder)
        yield
    finally:
        os.close(handle)


def write_bytes(target: Path, data: bytes) -> None:
    """Writes `data` to `target`, whole or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_text(target: Path, text: str) -> None:
    """Writes `text` as UTF-8 to `target`, whole or not at all.

    Bytes of file names that are not UTF-8 (`surrogateescape`) are written as they were.
    """
    write_bytes(target, text.encode(errors="surrogateescape"))


def write_json(target: Path, value: Any) -> None:
    """Writes `value` as indented JSON to `target`, whole or not at all."""
    write_text(target, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file.

    Raises:
        UserError: The file is missing, no regular file, too large, or not JSON.
    """
    try:
        return json.loads(read_text(path, MOST_JSON))
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not valid JSON ({error}); make it again.") from error


def read_text(path: Path, most: int, what: str = "") -> str:
    """The content of a file in UTF-8.

    Args:
        path: The file.
        most: How many bytes it may have.
        what: What it is, for messages ("the flag file").

    Raises:
        UserError: The file is missing, no regular file, or too large.
        UnicodeDecodeError: It is not in UTF-8.
    """
    check_regular(path, what)
    name = f"{what} '{path}'".strip()
    try:
        with Path(path).open("rb") as handle:
            data = handle.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}.") from error
    if len(data) > most:
        raise UserError(f"{name} has more than {most:,} bytes; it is no file of this kind.")
    return data.decode("utf-8")


def check_regular(path: Path, what: str = "") -> None:
    """Refuses what would block or never end when it is read: pipes, devices, folders.

    Args:
        path: The file.
        what: As of `read_text`.

    Raises:
        UserError: The file is missing, or no regular file.
    """
    name = f"{what} '{path}'".strip()
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # a zero byte in the name is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {name}: {reason}.") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot read {name}: it is no regular file; give a file.")


def make_folder(folder: Path) -> Path:
    """Makes `folder` and its parents where missing and returns it.

    Raises:
        UserError: It cannot be made, or the name belongs to a file.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder '{folder}': {error.strerror}; choose another."
        ) from error
    return Path(folder)


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        UserError: It is a pipe or a device, which might never end.
    """
    sha = hashlib.sha256()
    if Path(path).exists() and not Path(path).is_file():
        raise UserError(f"'{path}' is not a regular file; remove or rename it.")
    with Path(path).open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def digest_of_lines(lines: list[str]) -> str:
    """SHA-256 of the sorted lines: equal for equal sets of names, whatever their order."""
    text = "\n".join(sorted(lines))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def shortened(name: str) -> str:
    """The start of a name, for the name of another file: at most 80 bytes, whole characters."""
    return os.fsencode(name)[:_KEPT].decode(errors="ignore")


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `atomic_path` writes under."""
    match = _TEMPORARY.fullmatch(name)
    if match is None:
        return False
    target, suffix = match.groups()
    cut = len(os.fsencode(target)) > _KEPT - 4  # within a character, at most
    return cut or Path(target).suffix == suffix


def _umask() -> int:
    # It cannot be read without being changed: two threads at once would keep the change.
    with _UMASK_LOCK:
        mask = os.umask(0)
        os.umask(mask)
    return mask
