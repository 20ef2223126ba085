"""Plots as SVG inside a page, in the colours of its theme."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import markupsafe
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from carvana_tf.data.names import printable
from carvana_tf.evaluation.learning import Curve

# Each colour stands for one that the style sheet has for dark and for light pages.
_INK, _GRID = "#000001", "#000002"
_COLOURS = tuple(f"#00000{i}" for i in range(3, 9))
_THEME = {_INK: "currentColor", _GRID: "var(--line)"} | {
    colour: f"var(--plot{i})" for i, colour in enumerate(_COLOURS)
}
_SETTINGS: dict[Any, Any] = {
    **matplotlib.rcParamsDefault,  # not what a matplotlibrc in the working folder says
    "svg.fonttype": "none",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
    "grid.color": _GRID,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
}
_MOST_LABELS = 8  # in a legend

Plot = tuple[str, markupsafe.Markup]
"""A caption and an SVG element."""


def histogram(values: pd.Series, caption: str, label: str, *, gained: bool = False) -> Plot:
    """How many photos have which score, or with `gained` which difference of two."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(label, "photos (logarithmic)")
        low, high = float(values.min()), float(values.max())
        if gained:
            low, high = min(low, 0.0), max(high, low + 1e-4, 0.0)
        else:
            low, high = min(low, 0.999), 1.0
        axes.hist(values, bins=np.linspace(low, high, 41).tolist(), color=_COLOURS[0])
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        return _finish(figure, caption)


def thresholds(curve: pd.Series, used: float, best: float, threshold: str, measure: str) -> Plot:
    """A mean score at every threshold, with the used and the best one marked.

    Args:
        curve: The score by threshold, ascending.
        used: A threshold.
        best: Another.
        threshold: What is compared with it.
        measure: The score's name.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure(threshold, measure)
        axes.plot(curve.index, curve, color=_COLOURS[0], linewidth=1.8)
        marks = [(used, "o", "used"), (best, "^", "best on these photos (optimistic)")]
        if used == best:
            marks = [(used, "o", "used, and best on these photos")]
        values = [float(np.interp(at, curve.index, curve)) for at, _, _ in marks]
        for (at, style, label), value, colour in zip(marks, values, _COLOURS[1:], strict=False):
            axes.plot(at, value, style, color=colour, label=f"{at:g}: {value:.5f}, {label}")
        # The ends fall steeply and would flatten the part that matters.
        ends = len(curve) // 19
        middle = [*curve.iloc[ends : len(curve) - ends], *values]
        margin = max(1e-4, 0.08 * (max(middle) - min(middle)))
        axes.set_ylim(min(middle) - margin, max(middle) + margin)
        axes.legend(loc="lower center", fontsize=8)
        return _finish(figure, f"{measure[:1].upper()}{measure[1:]} at every threshold")


def reliability(table: pd.DataFrame, error: float) -> Plot:
    """How often pixels of a probability are object."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure("predicted probability", "share of pixels that are object")
        axes.plot((0, 1), (0, 1), color=_INK, linestyle=":", linewidth=1, label="perfect")
        axes.plot(
            *(table["probability"], table["observed"]),
            color=_COLOURS[0],
            marker=".",
            label=f"these masks (calibration error {error:.4f})",
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.legend(loc="upper left", fontsize=8)
        return _finish(figure, "Reliability of the probabilities")


def learning(curves: Sequence[Curve], measure: tuple[str, str] = ("dice", "Dice")) -> list[Plot]:
    """Validation, or training where there is none, over the epochs of several runs.

    Args:
        curves: The runs.
        measure: Column of a score besides the loss, and its name.
    """
    plots = []
    for column, name in (measure, ("loss", "loss")):
        parts = [f"val_{column}", column]
        part = next((p for p in parts if any(curve.points(p) for curve in curves)), None)
        if part is None:
            continue
        what = "validation" if part == parts[0] else "training"
        with matplotlib.rc_context(_SETTINGS):
            figure, axes = _figure("epoch", name)
            for i, curve in enumerate(curves):
                if points := curve.points(part):
                    axes.plot(
                        *zip(*points, strict=True),
                        label=_plain(curve.label),
                        color=_COLOURS[i % len(_COLOURS)],
                        linestyle=("-", "--", ":", "-.")[i // len(_COLOURS) % 4],
                        marker="." if len(points) < 40 else None,
                    )
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if len(curves) <= _MOST_LABELS:
                axes.legend(fontsize=8)
            plots.append(_finish(figure, f"Learning curves: {what} {name} of each run"))
    return plots


def intervals(rows: Sequence[Mapping[str, Any]]) -> Plot:
    """Mean scores with their intervals, one below the other."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure("mean Dice, 95 % interval", "", 1.2 + 0.32 * len(rows))
        for i, row in enumerate(rows):
            if row["low"] is not None:
                axes.plot((row["low"], row["high"]), (i, i), color=_COLOURS[0], linewidth=2)
            axes.plot(row["dice"], i, "o", color=_COLOURS[0])
        axes.set_yticks(range(len(rows)), [_plain(row["name"]) for row in rows])
        axes.invert_yaxis()
        return _finish(figure, "Out-of-fold scores")


def _plain(name: str) -> str:
    """A name that Matplotlib shows as it is, not as a formula."""
    return printable(name).replace("$", r"\$")


def _figure(x: str, y: str, height: float = 3.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.ticklabel_format(useOffset=False)
    return figure, axes


def _finish(figure: Figure, caption: str) -> Plot:
    """The figure as an element whose ids are unique in the page."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": caption}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has the letters
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z]+[\w.]*_\d+"', "", svg)  # of groups: nothing refers to them
    svg = re.sub(r"font: [^;\"]*?(\d+px)[^;\"]*", r"font-size: \1", svg)
    for colour, themed in _THEME.items():
        svg = svg.replace(colour, themed)
    name = str(markupsafe.escape(caption))
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
    return caption, markupsafe.Markup(svg)
