"""Reading submission files and samples: tables of two columns, image and run lengths."""

from collections.abc import Iterator
from pathlib import Path

from carvana_tf.data.tables import read_table
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
    for row in _read_two(path)[1]:
        if row[0] in seen:
            raise UserError(f"'{path}' has the image '{row[0]}' more than once; keep one.")
        seen.add(row[0])
        yield row
    if not seen:
        raise UserError(f"'{path}' has no rows; write it again.")


def read_columns(path: Path) -> tuple[str, str]:
    """The names of the two columns.

    Raises:
        UserError: The file is damaged, or has another number of columns.
    """
    return _read_two(path)[0]


def read_sample(path: Path) -> tuple[tuple[str, str], list[str]]:
    """The column names and images of a sample submission.

    Raises:
        UserError: The file is damaged or has no row, or an image appears twice.
    """
    columns, rows = _read_two(path)
    images: dict[str, None] = {}  # in order
    for image, _ in rows:
        if image in images:
            raise UserError(
                f"the sample '{path}' has the image '{image}' more than once; keep one."
            )
        images[image] = None
    if not images:
        raise UserError(f"the sample '{path}' has no rows; it needs one for each image.")
    return columns, list(images)


def _read_two(path: Path) -> tuple[tuple[str, str], Iterator[tuple[str, str]]]:
    """The two column names and an iterator over the rows."""
    header, lines = read_table(path)
    if len(header) != 2:
        raise UserError(
            f"'{path}' must have two columns, {','.join(COLUMNS)}; it has {len(header)} "
            f"({','.join(header)})."
        )
    return (header[0], header[1]), ((cells[0], cells[1]) for _, cells in lines)
