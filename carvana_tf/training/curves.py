"""Learning curves as a picture: of one run while it trains, or of several side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carvana_tf.evaluation.learning import Curve
from carvana_tf.files import atomic_path

COLUMNS = ("loss", "dice", "learning_rate")
"""What is drawn by default: each with its validation, `val_<name>`, where there is one."""

FORMATS = (".png", ".svg")

Limits = tuple[float | None, float | None]
"""Lower and upper end of an axis; None leaves an end to the data."""

# The Okabe-Ito palette, which colour-blind readers can distinguish: blue and vermilion first.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Colours distinguish several runs, so that training and validation need lines of their own.
_STYLES = {"training": ":", "validation": "-"}
_LABELS = {"dice": "Dice"}
_VALIDATION = "val_"


# Not what a matplotlibrc in the working folder says.
@matplotlib.rc_context(matplotlib.rcParamsDefault)
def draw(
    curves: Sequence[Curve],
    path: Path,
    *,
    columns: Sequence[str] = COLUMNS,
    title: str = "",
    xlim: Limits = (None, None),
    ylim: Mapping[str, Limits] | None = None,
) -> None:
    """Draws columns of logs over the epochs, one below the other, whole or not at all.

    Args:
        curves: At least one run.
        path: The file, one of `FORMATS`. The same data make the same bytes.
        columns: Names of columns; each is drawn with its validation in the same axes, one
            that begins with `val_` alone.
        title: Over the picture.
        xlim: The first and the last epoch.
        ylim: Limits of the axes of a column; others are left to the data.

    Raises:
        UserError: The folder cannot be written to.
    """
    # The learning rate needs less space.
    heights = [1 if column == "learning_rate" else 2 for column in columns]
    figure = Figure(figsize=(8, 1.4 + 1.52 * sum(heights)), layout="constrained")
    every = figure.subplots(len(columns), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    figure.suptitle(title)
    for axis, column in zip(every, columns, strict=True):
        _fill(axis, curves, column)
        axis.set_ylabel(_LABELS.get(column, column.replace("_", " ")))
        axis.set_ylim(*(ylim or {}).get(column, (None, None)))
        axis.grid(alpha=0.3)
    every[-1].set_xlabel("epoch")
    every[-1].set_xlim(*xlim)
    every[-1].xaxis.get_major_locator().set_params(integer=True)
    kind = path.suffix[1:].lower()
    settings = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 100}
    with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "carvana_tf"}):
        figure.savefig(temporary, format=kind, **settings)


def _fill(axis: Axes, curves: Sequence[Curve], column: str) -> None:
    """Draws a column and its validation for every run, with a legend where one is needed."""
    parts = {"training": column, "validation": f"{_VALIDATION}{column}"}
    if column.startswith(_VALIDATION):
        parts = {"validation": column}
    for i, curve in enumerate(curves):
        for part, name in parts.items():
            points = curve.points(name)
            if not points:
                continue
            alone = len(curves) == 1
            axis.plot(
                *zip(*points, strict=True),
                label=part if alone else f"{curve.label}, {part}",
                color=_COLOURS[(part == "validation") if alone else i % len(_COLOURS)],
                linestyle="-" if alone else _STYLES[part],
                marker=".",
            )
    if column != "learning_rate" and axis.lines:
        axis.legend(fontsize="small")
