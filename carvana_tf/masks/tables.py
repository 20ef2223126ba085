"""Reading submission files and samples: tables of two columns, image and run lengths."""

import collections
import csv
import gzip
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from carvana_tf.errors import UserError

COLUMNS = ("img", "rle_mask")


def read_rows(path: Path) -> Iterator[tuple[str, str]]:
    """The image and the run lengths of each row of a submission, one row in memory at once.

    Args:
        path: A `.csv` or `.csv.gz` file of two columns.

    Raises:
        UserError: The file is damaged or has no row, or an image appears twice.
    """
    seen: set[str] = set()
    with _open_table(path) as stream:
        for row in _read_table(stream, path)[1]:
            if row[0] in seen:
                raise UserError(f"'{path}' has the image '{row[0]}' more than once.")
            seen.add(row[0])
            yield row
    if not seen:
        raise UserError(f"'{path}' has no rows.")


def read_columns(path: Path) -> tuple[str, str]:
    """The names of the two columns.

    Raises:
        UserError: The file is damaged, or has another number of columns.
    """
    with _open_table(path) as stream:
        return _read_table(stream, path)[0]


def read_sample(path: Path) -> tuple[tuple[str, str], list[str]]:
    """The column names and images of a sample submission.

    Raises:
        UserError: The file is damaged or has no row, or an image appears twice.
    """
    with _open_table(path) as stream:
        columns, rows = _read_table(stream, path)
        images = [image for image, _ in rows]
    if not images:
        raise UserError(f"the sample '{path}' has no rows.")
    repeated = [image for image, count in collections.Counter(images).items() if count > 1]
    if repeated:
        raise UserError(f"the sample '{path}' has the image '{repeated[0]}' more than once.")
    return columns, images


def _read_table(stream: TextIO, path: Path) -> tuple[tuple[str, str], Iterator[tuple[str, str]]]:
    """The two column names and an iterator over the rows of an open table."""
    # A run-length text is longer than the module's default limit of 128 KiB.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = _guarded(csv.reader(stream), path)
    header = next(lines, [])
    if len(header) != 2:
        raise UserError(
            f"'{path}' must have two columns, {','.join(COLUMNS)}; it has {len(header)}."
        )

    def rows() -> Iterator[tuple[str, str]]:
        for number, line in enumerate(lines, start=2):
            if len(line) != 2:
                raise UserError(f"line {number} of '{path}' has {len(line)} columns, not two.")
            yield line[0], line[1]

    return (header[0], header[1]), rows()


def _guarded(lines: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    """The same lines, with the user's error where the file is damaged."""
    try:
        yield from lines
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is damaged ({error}); write it anew.") from error


def _open_table(path: Path) -> TextIO:
    try:
        # utf-8-sig: spreadsheet programs put a byte order mark before the first name.
        if Path(path).suffix == ".gz":
            return gzip.open(path, "rt", newline="", encoding="utf-8-sig")
        return Path(path).open(newline="", encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}.") from error
