"""A listing: the photos of a set that is too large for a folder, one row each, read as a stream.

    photos.txt      a path or URL in each line
    photos.csv      a column `path`, and if wanted `id` (.csv.gz too)
    photos.parquet  the same columns; or a folder of such files, in the order of their names

Nothing here grows with the number of rows. Rows belong to parts by their place: part k of n rows
each has the rows n k to n (k + 1) - 1, so a part is known without those before it.
"""

import contextlib
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from carvana_tf import files
from carvana_tf.data import names, storage
from carvana_tf.data.dataset import Naming, Sample
from carvana_tf.data.images import AS_DECLARED, Reading
from carvana_tf.data.tables import ENCODING, ERRORS, read_table
from carvana_tf.errors import UserError, absent
from carvana_tf.failures import describe, installed
from carvana_tf.filling import state_of
from carvana_tf.progress import bar

PATH, ID = "path", "id"
EXTRA = "parquet"
FORMATS = (".txt", ".csv", ".csv.gz", ".parquet")

_BATCH = 1 << 14  # rows
_BUFFER = 1 << 20  # bytes
_LONGEST = 1 << 16  # characters of a line
_BUCKETS = 64
_NAMED = 1000  # equal hashes of a bucket: so many are not all of different ids

Wanted = Callable[[int, int], bool]
"""Whether any row from one place up to, not including, another is wanted."""


class Row(NamedTuple):
    """A photo of a listing.

    Attributes:
        id: Its name, unique in the listing: that of the column `id`, else the file name's stem.
        path: As the listing has it: a path, from the working folder where it is relative, or a URL.
    """

    id: str
    path: str

    def sample(self, naming: Naming, reading: Reading = AS_DECLARED) -> Sample:
        """The photo as it is predicted."""
        remote = bool(storage.scheme(self.path))
        photo = Path(storage.file_name(self.path) if remote else self.path)
        url = self.path if remote else None
        return Sample(self.id, naming.group(self.id), photo, reading=reading, url=url)


@dataclasses.dataclass(frozen=True)
class Photos:
    """Photos that are known one by one, as those of a folder, in the place of a listing.

    Attributes:
        path: The folder.
        every: Its photos.
    """

    path: Path
    every: Sequence[Row]

    def digest(self) -> str:
        """As a manifest has that of a folder: of its ids."""
        return files.digest_of_lines([row.id for row in self.every])

    def refuse_changes(self) -> None:
        """As `Listing.refuse_changes`; the photos are known one by one."""

    def check(self) -> int:
        """As `Listing.check`; ids of a folder do not repeat."""
        for row in self.every:
            check_text(row.path)
        return len(self.every)

    def rows(self, wanted: Wanted = lambda start, stop: True) -> Iterator[tuple[int, Row]]:
        """As `Listing.rows`."""
        return enumerate(self.every)


class Listing:
    """A file of paths, or a folder of Parquet files.

    Attributes:
        path: The file or folder.
    """

    def __init__(self, path: Path) -> None:
        """Reads nothing yet.

        Raises:
            UserError: There is no such file, or none of `FORMATS`.
        """
        self.path = Path(path)
        if self.path.is_dir():
            inside = (name for name in os.listdir(self.path) if name[0] not in "._")
            self._files = [self.path / n for n in sorted(inside) if _format(n) == ".parquet"]
            if not self._files:
                raise UserError(
                    f"the folder '{path}' holds no .parquet file; name a listing of the photos."
                )
            return
        if not self.path.is_file():
            raise UserError(f"the listing '{path}' {absent(self.path)}")
        if _format(self.path.name) is None:
            raise UserError(
                f"the listing '{path}' ends in none of {', '.join(FORMATS)}; write one path in "
                f"each line of a .txt file, or a column '{PATH}'."
            )
        self._files = [self.path]

    def digest(self) -> str:
        """SHA-256 of its files, in their order.

        Where its first path is relative the working folder counts too, as other photos may be in
        another one.

        Raises:
            UserError: As of `rows`.
        """
        self._state = state_of(self._files)
        lines = [f"{i:09d} {files.digest(file)}" for i, file in enumerate(self._files)]
        for _, first in itertools.islice(self.rows(), 1):
            if not storage.scheme(first.path) and not os.path.isabs(first.path):
                lines.append(os.getcwd())
        return files.digest_of_lines(lines)

    def refuse_changes(self) -> None:
        """Refuses files that are not those of `digest` any more.

        Raises:
            UserError: One has changed since.
        """
        if state_of(self._files) != self._state:
            raise UserError(
                f"the listing '{self.path}' has changed while it was read; put it back as it was, "
                "or predict the new one into another folder."
            )

    def check(self) -> int:
        """Reads all rows and returns how many there are.

        Raises:
            UserError: There is none, a row has no path, two rows have one id, or a URL is of a
                storage that cannot be read here.
        """
        count, schemes = 0, set[str]()
        with _Repeats() as repeats:
            for _, row in bar(self.rows(), desc="checking the listing", unit="row"):
                count += 1
                repeats.add(names.compose(row.id))
                scheme = storage.scheme(row.path)
                if scheme and scheme not in schemes:
                    storage.check(row.path)
                    schemes.add(scheme)
            suspects = repeats.found()
        if not count:
            raise UserError(f"the listing '{self.path}' has no rows; write a path in each.")
        if suspects:
            self._refuse_repeats(suspects)
        return count

    def _refuse_repeats(self, suspects: set[int]) -> None:
        """Refuses equal ids among the rows whose hashes are equal.

        Raises:
            UserError: There are some.
        """
        seen: dict[str, tuple[int, Row]] = {}
        for number, row in self.rows():
            key = names.compose(row.id)
            if hash(key) not in suspects:
                continue
            if key in seen:
                first, other = seen[key]
                raise UserError(
                    f"rows {first + 1} ('{other.path}') and {number + 1} ('{row.path}') of "
                    f"'{self.path}' have the id '{row.id}'; keep one, or add a column '{ID}' with "
                    "a name of its own for each photo."
                )
            seen[key] = number, row

    def rows(self, wanted: Wanted = lambda start, stop: True) -> Iterator[tuple[int, Row]]:
        """The rows with their places from 0, in order.

        Args:
            wanted: Rows of which none is wanted are left out where that saves reading them.

        Raises:
            UserError: A file is damaged, has other columns, or has a row without a path.
        """
        read = _READERS[_format(self._files[0].name) or ""]
        for place, name, path in read(self._files, wanted):
            yield place, self._row(place, name, path)

    def _row(self, place: int, name: str | None, path: str) -> Row:
        if not path or "\0" in path:
            raise UserError(f"row {place + 1} of '{self.path}' has no path; add it, or remove it.")
        if name is None:
            name = names.stem(storage.file_name(path))
        if not (name.isascii() and path.isascii()):
            check_text(name + path)
        if not name:
            raise UserError(f"row {place + 1} of '{self.path}' has no id; add it, or remove it.")
        return Row(name, path)


def check_text(name: str) -> None:
    """Refuses a name of bytes that are no UTF-8, which Parquet cannot hold.

    Raises:
        UserError: It is one.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"'{name}' is no UTF-8, which Parquet needs; rename the file.") from error


def parts(
    photos: Listing | Photos, size: int, wanted: Callable[[int], bool]
) -> Iterator[tuple[int, list[Row]]]:
    """The wanted parts with their numbers from 0, in order, one in memory at once.

    Args:
        photos: Of which the rows are.
        size: Rows of each part; the last one may have fewer.
        wanted: Of a part's number.

    Raises:
        UserError: As of `Listing.rows`.
    """

    def any_wanted(start: int, stop: int) -> bool:
        return any(map(wanted, range(start // size, -(-stop // size))))

    rows = photos.rows(any_wanted)
    for number, part in itertools.groupby(rows, key=lambda found: found[0] // size):
        if wanted(number):
            yield number, [row for _, row in part]


_Read = Callable[[Sequence[Path], Wanted], Iterator[tuple[int, str | None, str]]]
"""The place, id (None without a column of ids) and path of each row."""


def _format(name: str) -> str | None:
    return next((end for end in FORMATS if name.lower().endswith(end)), None)


def _read_lines(paths: Sequence[Path], wanted: Wanted) -> Iterator[tuple[int, str | None, str]]:
    """The lines of a text file that are not empty."""
    place = 0
    with open(paths[0], encoding=f"{ENCODING}-sig", errors=ERRORS) as stream:
        while line := stream.readline(_LONGEST):
            if len(line) == _LONGEST:
                raise UserError(
                    f"'{paths[0]}' has a line of {_LONGEST:,} characters or more; write one path "
                    "in each."
                )
            if "\0" in line:
                raise UserError(
                    f"'{paths[0]}' is no text in UTF-8 (it has a zero byte); save it as UTF-8."
                )
            if path := line.strip():
                yield place, None, path
                place += 1


def _read_csv(paths: Sequence[Path], wanted: Wanted) -> Iterator[tuple[int, str | None, str]]:
    header, lines = read_table(paths[0])
    _check_columns(paths[0], header)
    at, named = header.index(PATH), header.index(ID) if ID in header else None
    for place, (_, cells) in enumerate(lines):
        yield place, None if named is None else cells[named], cells[at]


def _read_parquet(paths: Sequence[Path], wanted: Wanted) -> Iterator[tuple[int, str | None, str]]:
    """The rows of the row groups that are wanted, a batch in memory at once."""
    arrow = installed("pyarrow", f"'{paths[0]}'", EXTRA)
    parquet = installed("pyarrow.parquet", f"'{paths[0]}'", EXTRA)
    place = 0
    for path in paths:
        # A row group may be the whole file: buffered, it is read as its rows are.
        with (
            _naming(path, arrow),
            parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file,
        ):
            header = file.schema_arrow.names
            _check_columns(path, header)
            columns = [name for name in (ID, PATH) if name in header]
            for group in range(file.num_row_groups):
                end = place + file.metadata.row_group(group).num_rows
                if wanted(place, end):
                    for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns):
                        found = _texts(batch, PATH, path, arrow)
                        ids = (
                            _texts(batch, ID, path, arrow) if ID in columns else [None] * len(found)
                        )
                        yield from zip(itertools.count(place), ids, found)
                        place += len(found)
                place = end


_READERS: dict[str, _Read] = {
    ".txt": _read_lines,
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".parquet": _read_parquet,
}


def _texts(batch: Any, name: str, path: Path, arrow: Any) -> list[str]:
    column = batch.column(name)
    kind, types = column.type, arrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if not (text or (name == ID and types.is_integer(kind))):
        raise UserError(f"the column '{name}' of '{path}' holds {column.type}, not text.")
    return column.cast(arrow.string()).fill_null("").to_pylist()


@contextlib.contextmanager
def _naming(path: Path, arrow: Any) -> Iterator[None]:
    try:
        yield
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read the listing '{path}' ({describe(error)}).") from error


def _check_columns(path: Path, header: Sequence[str]) -> None:
    if PATH not in header:
        raise UserError(
            f"'{path}' has no column '{PATH}' (it has {', '.join(header)}); name the one of the "
            "photos' paths so."
        )


class _Repeats:
    """Finds out which of very many texts may be equal, on the disk; a context.

    Hashes are kept in files by some of their bits, so that equal ones are in one file, and one
    file after the other is looked at.
    """

    def __enter__(self) -> "_Repeats":
        self._waiting: list[int] = []
        with contextlib.ExitStack() as opened:
            self._buckets: list[IO[bytes]] = [
                opened.enter_context(tempfile.TemporaryFile()) for _ in range(_BUCKETS)
            ]
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def add(self, text: str) -> None:
        self._waiting.append(hash(text))
        if len(self._waiting) == _BATCH:
            self._write()

    def found(self) -> set[int]:
        """Hashes that there are more than once: all, unless they are very many."""
        self._write()
        repeated = set[int]()
        for file in self._buckets:
            file.seek(0)
            hashes = np.sort(np.frombuffer(file.read(), np.int64))
            repeated.update(hashes[1:][hashes[1:] == hashes[:-1]][:_NAMED].tolist())
        return repeated

    def _write(self) -> None:
        hashes = np.array(self._waiting, np.int64)
        bucket = hashes & (_BUCKETS - 1)
        for number in np.unique(bucket):
            self._buckets[number].write(hashes[bucket == number].tobytes())
        self._waiting.clear()
