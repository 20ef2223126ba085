"""Tables of a page: the first rows as HTML, all of them as JSON for the script."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from carvana_tf.data.names import printable

SHOWN = 25
"""Rows of a page of a table."""

TEXT, COUNT, SCORE, GAIN, SECONDS = "text", "count", "score", "gain", "seconds"
_FORMATS = {COUNT: "{:d}", SCORE: "{:.5f}", GAIN: "{:+.5f}", SECONDS: "{:.1f}"}
_DIGITS = {SCORE: 5, GAIN: 5, SECONDS: 1}


@dataclasses.dataclass(frozen=True)
class Table:
    """What stands in a table.

    Attributes:
        name: Unique in the page.
        caption: Above it.
        columns: Key, heading and kind of each.
        values: By key, None where there is none.
    """

    name: str
    caption: str
    columns: tuple[tuple[str, str, str], ...]
    values: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.values.values()), ()))

    @property
    def first(self) -> list[list[Any]]:
        """The values of the first rows."""
        columns = [self.values[key][:SHOWN] for key, _, _ in self.columns]
        return [list(row) for row in zip(*columns, strict=True)]

    @property
    def data(self) -> dict[str, Any]:
        """What the script needs."""
        return {"columns": self.columns, "values": self.values, "shown": SHOWN}


def of_frame(
    name: str, caption: str, frame: pd.DataFrame, columns: Sequence[tuple[str, str, str]]
) -> Table:
    """The columns of a frame that are there and have a value in some row."""
    used = tuple(
        column for column in columns if column[0] in frame and frame[column[0]].notna().any()
    )
    values = {key: [_plain(v, kind) for v in frame[key]] for key, _, kind in used}
    return Table(name, caption, used, values)


def text(value: Any, kind: str) -> str:
    """A value as it stands in a cell; the script formats alike."""
    if value is None:
        return "–"  # noqa: RUF001
    return _FORMATS[kind].format(value) if kind in _FORMATS else str(value)


def _plain(value: Any, kind: str) -> Any:
    if pd.isna(value):
        return None
    if kind == TEXT:
        return printable(str(value))
    return int(value) if kind == COUNT else round(float(value), _DIGITS[kind])
