"""The HTML report: one static file with every picture inside it."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from carvana_tf.data.images import encode_photo
from carvana_tf.evaluation import pictures
from carvana_tf.evaluation.gallery import Exhibit
from carvana_tf.masks.manifest import Manifest

MOST = 20  # rows of the table of differences

_HERE = Path(__file__).parent
_COLOUR = "#0072b2"


def render(
    *,
    title: str,
    summary: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    manifest: Manifest | None = None,
    gallery: Sequence[Exhibit] = (),
    difference_gallery: Sequence[Exhibit] = (),
    timings: Mapping[str, Any] | None = None,
) -> str:
    """The report as one HTML page that needs no other file and no network.

    Args:
        title: What was scored.
        summary: From `scores.summarise`, plus the keys `predictions`, `truth` (folders),
            `predictions_without_truth`, `truth_without_prediction` (lists of stems),
            `boundary_tolerance`, `version`, `crossfit` (list of `crossfit.summarise`),
            `crossfit_note` (why there is none, or None), `comparison` (from
            `compare.summarise`, or None), `postprocess` (from `ablation.summarise`, may be
            empty) and `out_of_fold` (None if unknown).
        tables: `per_photo`, `per_group`, `per_view`, `per_fold` and `threshold_curve` from
            the functions of those names in `scores`; `comparison` from
            `compare.per_photo`, may be empty.
        manifest: What made the masks, None if unknown.
        gallery: Photos to show.
        difference_gallery: Photos where the two folders differ most.
        timings: What `timings.json` of the predictions holds, possibly nested; None without one.
    """
    photos, curve, differences = (
        tables[name] for name in ("per_photo", "threshold_curve", "comparison")
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["jpeg"] = lambda image: _data_uri(encode_photo(image, ".jpg", 88), "jpeg")
    page = environment.get_template("report.html").render(
        title=title,
        summary=summary,
        groups=tables["per_group"].to_dict("records"),
        folds=tables["per_fold"].to_dict("records"),
        views=tables["per_view"].to_dict("records"),
        components=any(fit["min_components"] != [0] for fit in summary["crossfit"]),
        tolerance=_tolerance(summary["boundary_tolerance"]),
        manifest=manifest,
        gallery=gallery,
        differences=differences.head(MOST).to_dict("records"),
        difference_gallery=difference_gallery,
        timings=_flat(timings or {}),
        stages=[row for row in (timings or {}).get("stages", ()) if isinstance(row, Mapping)],
        figures=[
            (_curve_figure(curve, summary), "Mean Dice at every grey threshold"),
            (_histogram_figure(photos), "Dice of every photo"),
        ],
        legend=[
            (name, "rgb({}, {}, {})".format(*colour))
            for name, colour in (
                ("ground truth", pictures.TRUTH),
                ("prediction", pictures.PREDICTION),
                ("missed", pictures.MISSED),
                ("extra", pictures.EXTRA),
            )
        ],
    )
    return page.encode(errors="backslashreplace").decode()  # names may be no UTF-8


def _tolerance(value: float) -> str:
    return f"{100 * value:g} % of the diagonal" if value < 1 else f"{value:g} pixels"


# Not what a matplotlibrc in the working folder says.
_own_settings = matplotlib.rc_context(matplotlib.rcParamsDefault)


@_own_settings
def _curve_figure(curve: pd.DataFrame, summary: Mapping[str, Any]) -> str:
    figure, axes = _figure("grey threshold (greater is object)", "mean Dice")
    axes.plot(curve["threshold"], curve["mean_dice"], color=_COLOUR, linewidth=1.8)
    used, best = summary["threshold"], summary["best_threshold"]
    marks = [(used, "o", "used"), (best, "^", "best on these photos (optimistic)")]
    if used == best:
        marks = [(used, "o", "used, and best on these photos")]
    for at, style, label in marks:
        value = curve["mean_dice"][at]
        axes.plot(at, value, style, label=f"{at}: {value:.5f}, {label}")
    # The ends fall steeply and would flatten the part that matters.
    middle = curve["mean_dice"][13:243]
    margin = max(1e-4, 0.08 * float(middle.max() - middle.min()))
    axes.set_ylim(middle.min() - margin, middle.max() + margin)
    axes.legend(frameon=False, loc="lower center")
    return _png(figure)


@_own_settings
def _histogram_figure(photos: pd.DataFrame) -> str:
    figure, axes = _figure("Dice", "photos (logarithmic)")
    low = min(float(photos["dice"].min()), 0.999)
    axes.hist(photos["dice"], bins=np.linspace(low, 1, 41).tolist(), color=_COLOUR)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    return _png(figure)


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.ticklabel_format(useOffset=False)
    return figure, axes


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160)
    return _data_uri(stream.getvalue(), "png")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name} · ")
        elif not isinstance(value, list):
            rows.append((name, value))
        elif not any(isinstance(each, Mapping) for each in value):  # others have a table
            rows.append((name, ", ".join(map(str, value))))
    return rows
