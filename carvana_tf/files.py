"""Files that are either whole or absent, also after a power cut, and folders with one writer.

A file is written under a temporary name next to its target, synced, and renamed. Temporary
names are our own (`PREFIX` and 32 hexadecimal digits), and their writer holds a lock on them as
long as it lives; whoever writes into a folder first removes those that nobody holds.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carvana_tf.errors import UserError

# No space, no more quota.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
PREFIX = ".carvana_tf-"
LOCK = f"{PREFIX}lock"
GROUP = 16
"""Files that `Group` syncs at once."""
GROUP_SECONDS = 2.0
"""After which it syncs fewer."""

MOST_JSON = 64 << 20
"""Bytes of a JSON file: the names of 100,000 photos take 3 MB."""

_CHUNK = 1 << 20
_ATTEMPTS, _ATTEMPT_SECONDS = 10, 0.02
_TEMPORARY = re.compile(re.escape(PREFIX) + r"[0-9a-f]{32}(\.\w+)?")
_LONGEST_SUFFIX = 32
_KEPT = 80  # bytes of a name that `shortened` keeps
_swept: set[str] = set()
_swept_lock = threading.Lock()


@contextlib.contextmanager
def atomic_path(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path next to `target`, renamed to it when the block succeeds.

    The temporary name is hidden (starts with a dot), unique to the call and keeps the
    target's suffix, because Keras and OpenCV choose a format by suffix. When the block
    raises, the temporary file is removed and `target` is as it was.

    Args:
        target: The file.
        durable: Whether content and name are on the disk when the block has ended; without,
            a power cut may leave the file truncated.

    Raises:
        UserError: The folder cannot be written to.
    """
    target = Path(target)
    with _temporary(target) as temporary:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(target)
        if durable:
            _sync(target.parent)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yields a new folder next to `target`, renamed to it, synced, when the block succeeds.

    What `target` was before is removed then. When the block raises, the new folder is removed
    and `target` is as it was; a kill between the two renames leaves no `target`.

    Raises:
        UserError: The folder around it cannot be written to.
    """
    target = Path(target)
    make_folder(target.parent)
    _sweep_once(target.parent)
    temporary, handle = _create(target.parent, "", folder=True)
    try:
        yield temporary
        inside = [*temporary.rglob("*")]
        _sync(*(path for path in inside if path.is_file()))
        for path in (*filter(Path.is_dir, inside), temporary):
            _sync(path)
        if target.exists():
            before = target.parent / f"{PREFIX}{secrets.token_hex(16)}"
            target.rename(before)
            temporary.rename(target)
            shutil.rmtree(before)
        else:
            temporary.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


class Group:
    """Writes many files, syncing several at once; a context, whose end syncs the rest.

    A file has its final name once its content is on the disk, so a power cut leaves none that
    is truncated. What a kill loses is what waits: less than `GROUP` files, or those of the last
    `GROUP_SECONDS` where fewer come. Any thread may write.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = _Waiting()

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *error: object) -> None:
        self._waiting.finish()

    def write_bytes(self, target: Path, data: bytes, modified: int | None = None) -> None:
        """Writes `data`; it gets its name with its group.

        Args:
            target: The file.
            data: Its content.
            modified: Its time of modification in nanoseconds; None is now.
        """
        with contextlib.ExitStack() as opened:
            temporary = opened.enter_context(_temporary(Path(target)))
            temporary.write_bytes(data)
            if modified is not None:
                os.utime(temporary, ns=(modified, modified))
            with self._lock:
                full = self._waiting.add(temporary, Path(target), opened.pop_all())
                if full:
                    group, self._waiting = self._waiting, _Waiting()
        if full:
            group.finish()


class _Waiting:
    """Files that are written and not yet synced."""

    def __init__(self) -> None:
        self._files: list[tuple[Path, Path]] = []
        self._opened = contextlib.ExitStack()
        self._since = time.monotonic()

    def add(self, temporary: Path, target: Path, opened: contextlib.ExitStack) -> bool:
        """Returns whether these are enough."""
        self._opened.push(opened)
        self._files.append((temporary, target))
        return len(self._files) >= GROUP or time.monotonic() - self._since > GROUP_SECONDS

    def finish(self) -> None:
        with self._opened:  # removes what an error leaves
            _sync(*(temporary for temporary, _ in self._files))
            for temporary, target in self._files:
                temporary.replace(target)
            for folder in {target.parent for _, target in self._files}:
                _sync(folder)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A locked temporary file for `target`, gone after the block unless it was renamed."""
    make_folder(target.parent)
    _sweep_once(target.parent)
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= _LONGEST_SUFFIX else ""
    temporary, handle = _create(target.parent, suffix)
    try:
        with naming_full_disk(target):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Inside, a full disk is reported of this file or folder, not of a temporary name or none."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            error.filename = str(path)
        raise


def _create(parent: Path, suffix: str, *, folder: bool = False) -> tuple[Path, int]:
    """A temporary file, or folder, and the handle of its lock.

    Raises:
        UserError: `parent` cannot be written to.
    """
    while True:
        temporary = parent / f"{PREFIX}{secrets.token_hex(16)}{suffix}"
        try:
            if folder:
                temporary.mkdir()
                handle = os.open(temporary, os.O_RDONLY)
            else:
                handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except OSError as error:
            if folder and error.errno == errno.ENOENT and parent.is_dir():
                continue  # another process has swept it away
            raise UserError(
                f"cannot write in '{parent}': {error.strerror}; choose another folder."
            ) from error
        # In between another process may have swept it away.
        if not _lock(handle) or temporary.exists():
            return temporary, handle
        os.close(handle)


def _lock(handle: int) -> bool:
    """Locks a file that is our own; False where the file system knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _sync(*paths: Path) -> None:
    """Returns when the content of files, or the names of folders, are on the disk."""
    with contextlib.ExitStack() as opened:
        handles = [os.open(path, os.O_RDONLY) for path in paths]
        for handle in handles:
            opened.callback(os.close, handle)
        if len(handles) > 1 and hasattr(os, "posix_fadvise"):
            # Starts to write all of them, so that the first sync does most of the work.
            for handle in handles:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        for handle in handles:
            sync_open(handle)


def sync_open(handle: int) -> None:
    """Returns when what an open file or folder holds is on the disk."""
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync folders, or at all.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _sweep_once(folder: Path) -> None:
    """Removes leftovers from a folder that this process has not written to before."""
    key = os.path.realpath(folder)
    with _swept_lock:
        new = key not in _swept
        _swept.add(key)
    if new:
        _sweep(folder)


def _sweep(folder: Path) -> None:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    for name in names:
        _remove_dead(Path(folder) / name)


def _remove_dead(path: Path) -> None:
    """Removes a temporary file or folder whose writer lives no more."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return  # gone, or not ours to read
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        pass  # its writer lives
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed writers left in a folder, at any depth."""
    for path in Path(folder).rglob(f"{PREFIX}*"):
        if _TEMPORARY.fullmatch(path.name):
            _remove_dead(path)


@contextlib.contextmanager
def held(folder: Path, *, wait: bool = False, shared: bool = False) -> Iterator[int]:
    """Keeps other processes out of an output folder; the system lets go of a dead one's lock.

    Makes the folder where it is missing, and removes it again where it is left empty. Leftovers
    of killed writers in it are removed.

    Args:
        folder: Where results go.
        wait: For the other's end, instead of refusing.
        shared: Let those in that share it, too.

    Yields:
        A file descriptor; a child that gets it holds the folder, too, as long as it lives.

    Raises:
        UserError: Another process works in the folder; the message says which.
    """
    folder = Path(folder)
    new = not folder.is_dir()
    try:
        with _locked(make_folder(folder) / LOCK, folder, wait, shared) as handle:
            _sweep(folder)
            yield handle
    finally:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def claimed(target: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes from making the same file, in a folder that several may write to.

    Args:
        target: The file.
        wait: As of `held`.

    Raises:
        UserError: Another process makes it; the message says which.
    """
    target = Path(target)
    # A temporary name: whoever writes into the folder next removes that of a dead process.
    digest = hashlib.md5(os.fsencode(target.name), usedforsecurity=False).hexdigest()
    with _locked(make_folder(target.parent) / f"{PREFIX}{digest}", target, wait):
        _sweep(target.parent)
        yield


@contextlib.contextmanager
def _locked(path: Path, place: Path, wait: bool, shared: bool = False) -> Iterator[int]:
    """Holds a lock file with the name of this process in it, and removes it."""
    handle = _claim(path, place, wait, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        os.ftruncate(handle, 0)
        command = f"{Path(sys.argv[0]).name} (process {os.getpid()} on {socket.gethostname()})"
        os.pwrite(handle, command.encode(errors="replace"), 0)
        yield handle
    finally:
        if not shared or _is_last(handle):
            path.unlink(missing_ok=True)
        os.close(handle)


def _is_last(handle: int) -> bool:
    """Whether no other process shares a lock; it is exclusive then."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _claim(path: Path, place: Path, wait: bool, operation: int) -> int:
    """The locked lock file of a folder or file."""
    kind = "folder" if place.is_dir() else "name"
    attempts = 0
    while True:
        try:
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise UserError(
                f"cannot write in '{path.parent}': {error.strerror}; choose another folder."
            ) from error
        try:
            fcntl.flock(handle, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 500, 0).decode(errors="replace")
            brief = not holder or operation == fcntl.LOCK_SH
            if brief and attempts < _ATTEMPTS:
                # It has not written its name yet, or looks whether the holder lives. The last
                # of those that share is alone while it removes the file.
                os.close(handle)
                attempts += 1
                time.sleep(_ATTEMPT_SECONDS)
                continue
            holder = holder or "another process"
            if not wait:
                os.close(handle)
                raise UserError(
                    f"'{place}' is in use by {holder}; wait for its end, or choose another {kind}."
                ) from None
            print(f"{holder} still works in '{place}'; waiting for its end", flush=True)
            fcntl.flock(handle, operation)
        except OSError:
            return handle  # the file system knows no locks
        # The one that held it removes the file at its end: then this is a lock on nothing.
        if os.fstat(handle).st_nlink:
            return handle
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
