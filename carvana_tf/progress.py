"""Progress bars with rate and ETA, quiet where nobody watches."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def bar(
    iterable: Iterable[Item] | None = None,
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    initial: int = 0,
) -> "tqdm[Item]":
    """A tqdm bar on standard error: live on a terminal, a line every ten seconds in a log."""
    watched = sys.stderr.isatty()
    return tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        initial=initial,
        file=sys.stderr,
        dynamic_ncols=watched,
        ncols=None if watched else 100,
        mininterval=0.1 if watched else 10.0,
        maxinterval=10.0,
        smoothing=0.1,
    )


def report(line: str) -> None:
    """Writes a line on standard error, above the bars that are shown."""
    tqdm.write(line, file=sys.stderr)
