"""Draws the learning curves of one or several runs into one picture.

python tools/plot_curves.py --runs=models/resnet50-fold_0,models/mobilenet-fold_0 \
    --columns=loss,dice --ylim=dice=0.98..1 --out=curves.svg
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from carvana_tf.cli import Command
from carvana_tf.errors import Problems, UserError, unknown_name
from carvana_tf.evaluation.learning import EPOCH, Curve, read_runs
from carvana_tf.filenames import CURVES
from carvana_tf.flags import Values, option
from carvana_tf.training import curves


@dataclasses.dataclass(frozen=True)
class CurveOptions:
    """The runs, and what is drawn of them."""

    runs: tuple[str, ...] = option((), "Folders of runs, or their log.csv, comma-separated.")
    columns: tuple[str, ...] = option(
        curves.COLUMNS,
        "Columns of the logs, one below the other; each with its validation, val_<name>.",
    )
    xlim: str = option("", "First and last epoch, as 1..150; either may be left out.")
    ylim: tuple[str, ...] = option(
        (), "Limits of the values: of one column each, as loss=0..0.1,dice=0.99..; or of all."
    )
    title: str = option("", "Over the picture; by default the name of a single run.")
    out: str = option(CURVES, "PNG or SVG file to write.")


def validate(values: Values, problems: Problems) -> None:
    """Adds flags that are missing or have no such value."""
    options = values[CurveOptions]
    if Path(options.out).suffix.lower() not in curves.FORMATS:
        formats = " or ".join(curves.FORMATS)
        problems.add(f"--out must end in {formats}, received '{options.out}'.")
    if not options.runs:
        problems.add("--runs is required: one or several folders of runs, or their log.csv.")
    problems.attempt(parse_limits, "--xlim", options.xlim)
    problems.attempt(parse_ylim, options.ylim, options.columns)


def run(values: Values) -> None:
    """Reads the logs and draws them."""
    options = values[CurveOptions]
    out = Path(options.out)
    read = read_runs(options.runs)
    check_columns(options.columns, read)
    curves.draw(
        read,
        out,
        columns=options.columns,
        title=options.title or (read[0].label if len(read) == 1 else ""),
        xlim=parse_limits("--xlim", options.xlim),
        ylim=parse_ylim(options.ylim, options.columns),
    )
    print(f"{len(read)} runs, {', '.join(options.columns)} -> {out}")


def check_columns(columns: Sequence[str], read: Sequence[Curve]) -> None:
    """Refuses columns that no log has.

    Raises:
        UserError: There is one, or none is named.
    """
    known = {name: None for curve in read for row in curve.rows for name in row if name != EPOCH}
    if not columns:
        raise UserError(f"--columns is empty; known: {', '.join(known)}.")
    for column in columns:
        if not {column, f"val_{column}"} & known.keys():
            raise unknown_name("--columns", column, known)


def parse_ylim(texts: Sequence[str], columns: Sequence[str]) -> Mapping[str, curves.Limits]:
    """Limits by column, from `column=low..high` or from one `low..high` for all.

    Raises:
        UserError: A text is something else, or its column is not drawn.
    """
    limits: dict[str, curves.Limits] = {}
    for text in texts:
        name, equals, values = text.rpartition("=")
        if equals and name not in columns:
            raise unknown_name(f"--ylim='{text}': the column", name, columns)
        found = parse_limits("--ylim", values)
        limits |= {name: found} if equals else dict.fromkeys(columns, found)
    return limits


def parse_limits(flag: str, text: str) -> curves.Limits:
    """`low..high`, either of them empty; an empty text limits nothing.

    Raises:
        UserError: It is something else, or nothing lies between.
    """
    if not text:
        return None, None
    low, dots, high = text.partition("..")
    try:
        bounds = [float(side) if side.strip() else None for side in (low, high)]
    except ValueError:
        bounds = [math.nan]
    numbers = [bound for bound in bounds if bound is not None]
    if not dots or not all(map(math.isfinite, numbers)) or sorted(set(numbers)) != numbers:
        raise UserError(f"{flag}='{text}' must be low..high, as 0.99..1; either may be left out.")
    return bounds[0], bounds[1]


COMMAND = Command(__doc__, (CurveOptions,), run, validate)
