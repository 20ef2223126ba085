"""Reading and writing CSV tables whose cells are names: the one place that does.

Every cell is text until its reader says otherwise: an id may be `007`, `1e5` or `NA`. Bytes
that are not UTF-8 survive as Python's `surrogateescape` has them, as in file names.
"""

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from carvana_tf import files
from carvana_tf.data import names
from carvana_tf.errors import UserError

ENCODING, ERRORS = "utf-8", "surrogateescape"

# With pyarrow installed pandas would keep text there, which holds no bytes that are not UTF-8.
pd.set_option("mode.string_storage", "python")

_MOST_LINE = 128 << 20  # characters; a checkerboard of 20 million pixels has as many
# Run lengths shrink to a tenth; a file that grows further is made to fill memory.
_MOST_EXPANSION, _ALWAYS_ALLOWED = 100, 64 << 20
_LINE_COSTS = 16  # characters more than it has: a file of blank lines takes long, too


def read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table with their numbers from 1, one in memory at once.

    Lines without any text are skipped, as text editors and spreadsheets leave them.

    Args:
        path: A `.csv` or `.csv.gz` file; a byte order mark is dropped.

    Raises:
        UserError: The file is missing or damaged, or is no UTF-8 text.
    """
    # Run lengths are longer than the module's default limit of 128 KiB.
    csv.field_size_limit(_MOST_LINE)
    try:
        files.check_regular(path)
        with _open(path) as stream:
            lines = csv.reader(_bounded(Path(path), stream), strict=True)
            for cells in lines:
                if not any(cell.strip() for cell in cells):
                    continue
                if any("\0" in cell for cell in cells):
                    raise UserError(
                        f"'{path}' is no CSV table in UTF-8 (line {lines.line_num} has a zero "
                        "byte); save it as 'CSV UTF-8'."
                    )
                yield lines.line_num, cells
    except csv.Error as error:
        raise UserError(
            f"'{path}' is no CSV table: {error} in line {lines.line_num}; correct it."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"'{path}' is damaged ({error}); write it again.") from error
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}.") from error


def _bounded(path: Path, stream: TextIO) -> Iterator[str]:
    """The lines of a stream, none of them longer than memory should hold."""
    allowed = max(_ALWAYS_ALLOWED, _MOST_EXPANSION * path.stat().st_size)
    while line := stream.readline(_MOST_LINE):
        allowed -= len(line) + _LINE_COSTS
        if len(line) == _MOST_LINE or allowed < 0:
            raise UserError(
                f"'{path}' holds a line of more than {_MOST_LINE:,} characters, or more than "
                f"{_MOST_EXPANSION} times its size; it is damaged, or made to fill memory."
            )
        yield line


def read_table(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header of a table, and its other lines with their numbers.

    Every line has as many cells as the header; empty ones that spreadsheets add are dropped.

    Raises:
        UserError: As of `read_lines`, or the file has no header, a column twice, or other
            separators; while lines are taken, too.
    """
    lines = read_lines(path)
    _, header = next(lines, (0, []))
    if not header:
        raise UserError(f"'{path}' is empty; it needs a line with the names of its columns.")
    while header and not header[-1].strip():
        header.pop()
    header = [name.strip() for name in header]
    for other, what in (("\t", "tabs"), (";", "semicolons")):
        if len(header) == 1 and other in header[0]:
            raise UserError(f"'{path}' has {what} between its columns; save it with commas.")
    repeated = next((name for i, name in enumerate(header) if name and name in header[:i]), None)
    if repeated is not None:
        raise UserError(f"'{path}' has two columns '{repeated}'; remove or rename one.")

    def rows() -> Iterator[tuple[int, list[str]]]:
        for number, cells in lines:
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            if len(cells) != len(header):
                raise UserError(
                    f"line {number} of '{path}' has {len(cells)} columns, the header has "
                    f"{len(header)} ({','.join(header)}); correct the line."
                )
            yield number, cells

    return header, rows()


def read_frame(path: Path) -> pd.DataFrame:
    """A whole table, every cell as text.

    Raises:
        UserError: As of `read_table`.
    """
    header, rows = read_table(path)
    return pd.DataFrame([cells for _, cells in rows], columns=header, dtype=object)


def read_two_columns(
    path: Path, expected: tuple[str, str]
) -> tuple[tuple[str, str], Iterator[tuple[int, tuple[str, str]]]]:
    """The names of the two columns of a table, and its rows with their line numbers.

    Args:
        path: As of `read_table`.
        expected: What the columns usually are called, for the message.

    Raises:
        UserError: As of `read_table`, or it has another number of columns, or no header.
    """
    header, lines = read_table(path)
    if len(header) != 2:
        raise UserError(
            f"'{path}' must have two columns, {','.join(expected)}; it has {len(header)} "
            f"({','.join(header)})."
        )
    if names.extension(header[0]) or re.fullmatch(r"\d+( \d+)+", header[1]):
        raise UserError(
            f"the first line of '{path}' is no header, but the row of '{header[0]}'; write "
            f"{','.join(expected)} above it."
        )
    return (header[0], header[1]), ((number, (cells[0], cells[1])) for number, cells in lines)


def read_sample_table(path: Path, expected: tuple[str, str]) -> tuple[tuple[str, str], list[str]]:
    """The column names of a sample submission, and its first column.

    Args:
        path: As of `read_table`.
        expected: As of `read_two_columns`.

    Raises:
        UserError: As of `read_two_columns`, or it has no row, or an image appears twice or
            has no name.
    """
    columns, rows = read_two_columns(path, expected)
    images: dict[str, None] = {}  # in order
    for number, (image, _) in rows:
        if not image:
            raise UserError(
                f"line {number} of the sample '{path}' has no image; write its name, or remove it."
            )
        if image in images:
            raise UserError(
                f"the sample '{path}' has the image '{image}' more than once; keep one."
            )
        images[image] = None
    if not images:
        raise UserError(f"the sample '{path}' has no rows; it needs one for each image.")
    return columns, list(images)


def format_line(cells: Sequence[Any]) -> str:
    """One line of a table with its newline; None is an empty cell."""
    stream = io.StringIO()
    # Only what the line's own end holds is quoted for sure before Python 3.13: so both of it.
    csv.writer(stream, lineterminator="\r\n").writerow(cells)
    return stream.getvalue().removesuffix("\r\n") + "\n"


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table, whole or not at all."""
    with (
        files.atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding=ENCODING, errors=ERRORS) as stream,
    ):
        stream.write(format_line(header))
        stream.writelines(map(format_line, rows))


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Writes a frame without its index, whole or not at all; what is missing stays empty."""
    known = frame.astype(object).where(frame.notna(), None)
    write_table(path, list(map(str, frame.columns)), known.itertuples(index=False, name=None))


def _open(path: Path) -> TextIO:
    # utf-8-sig: spreadsheet programs put a byte order mark before the first name.
    encoding = f"{ENCODING}-sig"
    if os.fspath(path).endswith(".gz"):
        return gzip.open(path, "rt", newline="", encoding=encoding, errors=ERRORS)
    return Path(path).open(newline="", encoding=encoding, errors=ERRORS)
