"""A submission that grows in a file, so that the run after an interrupted one goes on there.

Until the product is complete, its folder holds the rows so far (`.<label>.partial`) and what is
known of them (`.<label>.partial.json`): rows that were written after that are written again.

Threads compress rows independently (RFC 1951 and 1952): each part ends on a byte and
refers to nothing before it, so parts put one after the other are one deflate stream, and readers
see a single plain member. The bytes depend on the parts alone, not on the threads, the name or
the time.
"""

import csv
import dataclasses
import fcntl
import hashlib
import os
import shutil
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from carvana_tf.data.tables import ERRORS, format_line
from carvana_tf.errors import UserError
from carvana_tf.files import (
    atomic_path,
    make_folder,
    naming_full_disk,
    read_json,
    sync_open,
    write_json,
)

Row = TypeVar("Row")

SAVED_EVERY = 256  # rows
_CHUNK = 1 << 20
_LEVEL = 1  # 8 % larger on run lengths than level 6, and three times faster
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # deflate, no name, no time, any system


@dataclasses.dataclass(frozen=True)
class Part:
    """Bytes, and what they are compressed."""

    data: bytes
    packed: bytes


def compress(data: bytes) -> Part:
    """A part of a stream; any thread can make it."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return Part(data, packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH))


def _end(checksum: int, size: int) -> bytes:
    """What closes a stream whose parts hold `size` bytes with that CRC-32."""
    last = zlib.compressobj(wbits=-zlib.MAX_WBITS).flush()  # the last block, empty
    return last + struct.pack("<II", checksum, size & 0xFFFFFFFF)


class Growing:
    """Rows of a submission, to be added inside a context; one process at a time.

    Leaving the context keeps what was added, unless `finish` was called.

    Attributes:
        done: The images whose rows an earlier run has added, in their order.
    """

    def __init__(
        self,
        folder: Path,
        label: str,
        columns: Sequence[str],
        *,
        compressed: bool = True,
        identity: str = "",
        stamps: Sequence[str] | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            folder: Where the rows are kept: that of the product.
            label: Distinguishes the submissions of one folder.
            columns: The names of the columns; the first holds the image.
            compressed: Whether it becomes a gzip file.
            identity: What all rows depend on; rows of another one are dropped.
            stamps: What each row depends on, in the order in which rows are added. None
                takes earlier rows for good in any order.
        """
        self._folder = Path(folder)
        self._path = self._folder / f".{label}.partial"
        self._state = self._folder / f".{label}.partial.json"
        self._columns = tuple(columns)
        self._compressed = compressed
        self._identity = f"{identity} {self._columns} {compressed}"
        self._stamps = stamps
        self._lock = threading.Lock()
        self.done: list[str] = []

    @property
    def exists(self) -> bool:
        """Whether an earlier run has left rows."""
        return self._path.is_file() and self._state.is_file()

    def __enter__(self) -> Self:
        make_folder(self._folder)
        try:
            self._file = self._path.open("a+b")
        except OSError as error:
            raise UserError(
                f"cannot write in '{self._folder}': {error.strerror}; choose another folder."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UserError(
                f"another process is writing a submission of these masks into '{self._folder}'; "
                "wait for it, or choose another folder."
            ) from error
        self._finished = False
        if not self._go_on():
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        with naming_full_disk(self._folder):
            if not self._finished:
                if self._rows:
                    self._save()
                else:
                    self.discard()
            self._file.close()

    def add(self, line: Part) -> None:
        """Adds a row; any thread may call it."""
        with self._lock, naming_full_disk(self._folder):
            self._append(line)
            if self._stamps is not None:
                self._stamp(self._rows)
            self._rows += 1
            if self._rows % SAVED_EVERY == 0:
                self._save()

    def finish(self, target: Path, *, keep: bool = False) -> None:
        """Makes the product of the rows, whole or not at all.

        Args:
            target: Its path.
            keep: Whether more rows are to come in a later run, which makes it again.
        """
        with self._lock, naming_full_disk(self._folder):
            self._save()
            end = _end(self._checksum, self._size) if self._compressed else b""
            if keep:
                with atomic_path(target) as temporary, temporary.open("wb") as copy:
                    self._file.seek(0)
                    shutil.copyfileobj(self._file, copy, _CHUNK)
                    copy.write(end)
            else:
                self._file.write(end)
                self._sync()
                self._path.replace(target)
                self._state.unlink()
            self._finished = True

    def discard(self) -> None:
        """Removes the rows, as if there had been none."""
        self._state.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)
        self._finished = True

    def _start(self) -> None:
        self._state.unlink(missing_ok=True)
        self._file.truncate(0)
        self._checksum = self._size = self._rows = 0
        self._digest = hashlib.sha256()
        self.done = []
        if self._compressed:
            self._file.write(_HEADER)
        self._append(compress(format_line(self._columns).encode(errors=ERRORS)))

    def _go_on(self) -> bool:
        """Takes over the rows of an earlier run, if they are whole and of the same submission."""
        self._digest = hashlib.sha256()
        try:
            state = read_json(self._state)
            if state["identity"] != self._identity:
                return False
            names = self._read_back(state)
            self._checksum, self._size = state["checksum"], state["size"]
            self._rows = len(names)
            if self._stamps is not None:
                for index in range(self._rows):
                    self._stamp(index)
                if state["stamps"] != self._digest.hexdigest():
                    return False
        except (UserError, KeyError, TypeError, IndexError, ValueError, zlib.error, csv.Error):
            return False
        self._file.truncate(state["length"])
        self.done = names
        return True

    def _read_back(self, state: dict[str, Any]) -> list[str]:
        """The images of the rows so far.

        Raises:
            ValueError: They are not as they were written.
        """
        checksum = size = 0

        def lines() -> Iterator[str]:
            nonlocal checksum, size
            rest = b""
            for chunk in self._chunks(state["length"]):
                checksum, size = zlib.crc32(chunk, checksum), size + len(chunk)
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors=ERRORS) + "\n" for line in whole)
            if rest:
                raise ValueError("a line has no end")

        csv.field_size_limit(2**31 - 1)
        names = [cells[0] for cells in csv.reader(lines(), strict=True)]
        if (checksum, size) != (state["checksum"], state["size"]):
            raise ValueError("the rows changed")
        return names[1:]

    def _chunks(self, length: int) -> Iterator[bytes]:
        self._file.seek(len(_HEADER) if self._compressed else 0)
        unpack = zlib.decompressobj(-zlib.MAX_WBITS) if self._compressed else None
        left = length - self._file.tell()
        while left > 0:
            data = self._file.read(min(left, _CHUNK))
            if not data:
                raise ValueError("the file is shorter than it was")
            left -= len(data)
            yield data if unpack is None else unpack.decompress(data)

    def _append(self, line: Part) -> None:
        self._checksum = zlib.crc32(line.data, self._checksum)
        self._size += len(line.data)
        self._file.write(line.packed if self._compressed else line.data)

    def _stamp(self, index: int) -> None:
        self._digest.update((self._stamps or ())[index].encode(errors=ERRORS) + b"\0")

    def _save(self) -> None:
        self._sync()
        state = {
            "identity": self._identity,
            "length": self._file.seek(0, os.SEEK_END),
            "checksum": self._checksum,
            "size": self._size,
            "stamps": self._digest.hexdigest(),
        }
        write_json(self._state, state)

    def _sync(self) -> None:
        self._file.flush()
        sync_open(self._file.fileno())


class InOrder(Generic[Row]):
    """Rows in the order of the photos, in whatever order these are finished; any thread adds them.

    A row waits until all before it are added. Only photos that are in the pipeline at the same
    time overtake one another, so memory does not grow with their number.

    Attributes:
        skipped: How many photos have no row.
    """

    def __init__(self, add: Callable[[Row], object], images: Iterable[str]) -> None:
        """No row yet.

        Args:
            add: Gets the rows, one at a time.
            images: All of them, in order.
        """
        self.skipped = 0
        self._add = add
        self._remaining = iter(images)
        self._next = next(self._remaining, None)
        self._waiting: dict[str, Row | None] = {}
        self._lock = threading.Lock()

    def put(self, image: str, line: Row | None) -> None:
        """Adds the row of an image as soon as all before it are; None lets the next ones come."""
        with self._lock:
            self.skipped += line is None
            self._waiting[image] = line
            while self._next in self._waiting:
                row = self._waiting.pop(self._next)
                if row is not None:
                    self._add(row)
                self._next = next(self._remaining, None)
