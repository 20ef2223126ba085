"""The pages of an evaluation: static HTML, with pictures in a folder next to it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from carvana_tf.evaluation import pictures
from carvana_tf.evaluation.gallery import Gallery
from carvana_tf.evaluation.learning import Curve
from carvana_tf.evaluation.reliability import calibration_error
from carvana_tf.evaluation.report import pages, plots, tables
from carvana_tf.evaluation.report.tables import COUNT, GAIN, SCORE, TEXT
from carvana_tf.filenames import COMPARISON, REPORT
from carvana_tf.masks.manifest import Manifest

_MEASURES = {
    "dice": "Dice",
    "boundary_f": "boundary F-score",
    "band_dice": "boundary-band Dice",
}
_IDENTITY = (
    ("id", "photo", TEXT),
    ("group", "group", TEXT),
    ("view", "view", TEXT),
    ("fold", "fold", TEXT),
)
_PHOTOS = (
    *_IDENTITY,
    ("dice", "Dice", SCORE),
    ("iou", "IoU", SCORE),
    ("precision", "precision", SCORE),
    ("recall", "recall", SCORE),
    ("boundary_f", "boundary F", SCORE),
    ("band_dice", "band Dice", SCORE),
    ("fn", "missed pixels", COUNT),
    ("fp", "extra pixels", COUNT),
)
_MEANS = (
    ("photos", "photos", COUNT),
    ("mean_dice", "mean Dice", SCORE),
    ("low", "95 % from", SCORE),
    ("high", "to", SCORE),
    ("min_dice", "worst", SCORE),
    ("mean_boundary_f", "boundary F", SCORE),
    ("mean_band_dice", "band Dice", SCORE),
)
_DIFFERENCES = (
    *_IDENTITY,
    ("dice_difference", "Dice difference", GAIN),
    ("dice", "Dice here", SCORE),
    ("dice_other", "Dice there", SCORE),
    ("boundary_f_difference", "boundary F difference", GAIN),
    ("band_dice_difference", "band Dice difference", GAIN),
)
_HEADINGS = {"per_fold": "Folds", "per_group": "Groups", "per_view": "Views"}
_LEGEND = (
    ("ground truth", pictures.TRUTH),
    ("prediction", pictures.PREDICTION),
    ("missed", pictures.MISSED),
    ("extra", pictures.EXTRA),
)


def render(
    *,
    title: str,
    summary: Mapping[str, Any],
    frames: Mapping[str, pd.DataFrame],
    manifest: Manifest | None = None,
    gallery: Gallery | None = None,
    timings: Mapping[str, Any] | None = None,
    runs: Sequence[Curve] = (),
) -> str:
    """The report of an evaluation.

    Args:
        title: What was scored.
        summary: From `scores.summarise`, plus the keys `predictions`, `truth` (folders),
            `predictions_without_truth`, `truth_without_prediction` (lists of stems),
            `boundary_tolerance`, `version`, `crossfit` (list of `crossfit.summarise`),
            `crossfit_note` (why there is none, or None), `comparison` (from
            `compare.summarise`, or None), `postprocess` (from `ablation.summarise`, may be
            empty) and `out_of_fold` (None if unknown).
        frames: `per_photo`, `per_group`, `per_view`, `per_fold`, `threshold_curve` and
            `reliability` from the functions of those names.
        manifest: What made the masks, None if unknown.
        gallery: The photos with pictures; their rows are those of `per_photo`.
        timings: What `timings.json` of the predictions holds, possibly nested; None without one.
        runs: The trainings of the models.
    """
    photos = frames["per_photo"]
    table = tables.of_frame("photos", "Every photo", photos, _PHOTOS)
    small = [
        tables.of_frame(name, caption, frames[name], ((key, key, TEXT), *further, *_MEANS))
        for name, key, caption, further in (
            ("per_fold", "fold", "Scores by fold", (("groups", "groups", COUNT),)),
            ("per_group", "group", "Scores by group, worst first", (("fold", "fold", TEXT),)),
            ("per_view", "view", "Scores by view", ()),
        )
        if len(frames[name])
    ]
    drawn = [
        plots.histogram(photos["dice"], "Dice of every photo", "Dice"),
        plots.thresholds(
            frames["threshold_curve"].set_index("threshold")["mean_dice"],
            *(summary["threshold"], summary["best_threshold"]),
            *("grey threshold (greater is object)", "mean Dice"),
        ),
    ]
    error = calibration_error(frames["reliability"])
    if error is not None:
        drawn.append(plots.reliability(frames["reliability"], error))
    return pages.render(
        REPORT,
        title=title,
        version=summary["version"],
        summary=summary,
        data=pages.photo_data([table, *small], gallery, "dice"),
        photos=table,
        small=small,
        headings=_HEADINGS,
        gallery=gallery,
        legend=_legend(),
        plots=drawn,
        reliable=error is not None,
        curves=plots.learning(runs) if runs else [],
        comparison_page=COMPARISON,
        tolerance=_tolerance(summary["boundary_tolerance"]),
        crossfit_head=["chosen", "threshold", "component", "mean Dice", "95 %", "gain", "95 %"],
        crossfit=_crossfit_rows(summary),
        postprocess=[_gain_row(row["steps"], row) for row in summary["postprocess"]],
        manifest=manifest,
        models=_model_rows(manifest),
        timings=_flat(timings or {}),
        stages=_stage_rows(timings or {}),
    )


def render_comparison(
    *,
    title: str,
    summary: Mapping[str, Any],
    differences: pd.DataFrame,
    gallery: Gallery | None = None,
) -> str:
    """The page of two folders on the same photos.

    Args:
        title: What was compared.
        summary: As of `render`; it has a comparison.
        differences: From `compare.per_photo`.
        gallery: The photos with pictures; their rows are those of `differences`.
    """
    table = tables.of_frame("photos", "Every photo, here minus there", differences, _DIFFERENCES)
    small = [
        tables.of_frame(
            f"per_{key}",
            f"Mean difference by {key}",
            _mean_differences(differences, key),
            ((key, key, TEXT), ("photos", "photos", COUNT), ("difference", "Dice", GAIN)),
        )
        for key in ("fold", "group", "view")
        if key in differences and differences[key].notna().any()
    ]
    return pages.render(
        COMPARISON,
        title=title,
        version=summary["version"],
        summary=summary,
        report_page=REPORT,
        data=pages.photo_data([table, *small], gallery, "dice_difference", gained=True),
        photos=table,
        small=small,
        headings=_HEADINGS,
        gallery=gallery,
        legend=_legend()[2:],
        measures=[
            (
                *(_MEASURES[row["measure"]], f"{row['mean']:.5f}", f"{row['mean_other']:.5f}"),
                *_gain_row("", row)[2:],
            )
            for row in summary["comparison"]["measures"]
        ],
        plots=[
            plots.histogram(
                differences["dice_difference"],
                "Differences of Dice",
                "Dice here minus there",
                gained=True,
            )
        ],
    )


def _mean_differences(differences: pd.DataFrame, key: str) -> pd.DataFrame:
    table = differences.groupby(key, as_index=False).agg(
        photos=("id", "size"), difference=("dice_difference", "mean")
    )
    return table.sort_values(["difference", key], ignore_index=True)


def _legend() -> list[tuple[str, str]]:
    return [(name, "rgb({}, {}, {})".format(*colour)) for name, colour in _LEGEND]


def _tolerance(value: float) -> str:
    return f"{100 * value:g} % of the diagonal" if value < 1 else f"{value:g} pixels"


def _interval(bounds: Sequence[float] | None, form: str = "{:.5f}") -> str:
    return " .. ".join(map(form.format, bounds)) if bounds else "one group"


def _gain_row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        *(name, f"{row['mean']:.5f}", f"{row['difference']:+.5f}"),
        _interval(row["interval"], "{:+.5f}"),
        *(f"{100 * row['better']:.1f} %", f"{100 * row['worse']:.1f} %"),
    )


def _crossfit_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    if not summary["crossfit"]:
        return []
    used = f"{summary['crossfit'][0]['used_mean_dice']:.5f}"
    rows: list[tuple[str, ...]] = [
        ("nothing: as given", str(summary["threshold"]), "", used, "", "", "")
    ]
    for fit in summary["crossfit"]:
        naive = fit["naive_mean_dice"]
        rows += [
            (
                f"{fit['chosen']}, on the other folds",
                ", ".join(map(str, fit["thresholds"])),
                ", ".join(map(str, fit["min_components"])),
                *(f"{fit['mean_dice']:.5f}", _interval(fit["interval"])),
                *(f"{fit['gain']:+.5f}", _interval(fit["gain_interval"], "{:+.5f}")),
            ),
            (
                f"{fit['chosen']}, on the same photos",
                *(str(fit["naive_threshold"]), str(fit["naive_min_component"])),
                *(f"{naive:.5f}", "", f"{naive - fit['used_mean_dice']:+.5f}", ""),
            ),
        ]
    return rows


def _model_rows(manifest: Manifest | None) -> list[tuple[Any, ...]]:
    return [
        (m.get("file"), m.get("network"), m.get("fold"), (m.get("digest") or "")[:12])
        for m in (manifest.models if manifest else ())
    ]


def _stage_rows(timings: Mapping[str, Any]) -> list[list[Any]]:
    """The names of the columns, then the rows."""
    stages = timings.get("stages")
    rows = [row for row in stages if isinstance(row, Mapping)] if isinstance(stages, list) else []
    return [list(rows[0]), *([row.get(name) for name in rows[0]] for row in rows)] if rows else []


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name} · ")
        elif not isinstance(value, list):
            plain = f"{value:.4g}" if isinstance(value, float) else value
            rows.append((name, plain))
        elif not any(isinstance(each, Mapping) for each in value):  # others have a table
            rows.append((name, ", ".join(map(str, value))))
    return rows
