"""The page of an evaluation of labels: static HTML, with pictures in a folder next to it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from carvana_tf.evaluation.gallery import Gallery
from carvana_tf.evaluation.learning import Curve
from carvana_tf.evaluation.report import pages, plots, tables
from carvana_tf.evaluation.report.tables import COUNT, SCORE, TEXT

_TEMPLATE = "labels.html"
_PHOTOS = (
    ("id", "photo", TEXT),
    ("group", "group", TEXT),
    ("fold", "fold", TEXT),
    ("f2", "F2", SCORE),
    ("precision", "precision", SCORE),
    ("recall", "recall", SCORE),
    ("labels", "labels", TEXT),
    ("answered", "answered", TEXT),
)
_CLASSES = (
    ("label", "label", TEXT),
    ("photos", "photos with it", COUNT),
    ("answered", "answered", COUNT),
    ("right", "rightly", COUNT),
    ("precision", "precision", SCORE),
    ("recall", "recall", SCORE),
)


def render(
    *,
    title: str,
    summary: Mapping[str, Any],
    frames: Mapping[str, pd.DataFrame],
    gallery: Gallery | None = None,
    runs: Sequence[Curve] = (),
) -> str:
    """The report of an evaluation of labels.

    Args:
        title: What was scored.
        summary: Of `tasks.labels.evaluator.Evaluation`.
        frames: Its `per_photo`, `per_class` and `threshold_curve`.
        gallery: The photos with pictures; their rows are those of `per_photo`.
        runs: The trainings of the models.
    """
    photos = frames["per_photo"]
    if photos["group"].is_unique:
        photos = photos.drop(columns="group")
    table = tables.of_frame("photos", "Every photo", photos, _PHOTOS)
    classes = tables.of_frame(
        "classes", "Every label, the most frequent first", _shares(frames["per_class"]), _CLASSES
    )
    curve = frames["threshold_curve"].set_index("threshold")["mean_f2"]
    marks = summary["threshold"], summary["best_threshold"]
    return pages.render(
        _TEMPLATE,
        title=title,
        version=summary["version"],
        summary=summary,
        data=pages.photo_data([table, classes], gallery, "f2", details=("labels", "answered")),
        photos=table,
        classes=classes,
        gallery=gallery,
        plots=[
            plots.histogram(photos["f2"], "F2 of every photo", "F2"),
            plots.thresholds(curve, *marks, "threshold (a greater score is answered)", "mean F2"),
        ],
        curves=plots.learning(runs, ("f2", "F2")) if runs else [],
    )


def _shares(classes: pd.DataFrame) -> pd.DataFrame:
    """The table with the precision and recall of each label, empty where nothing is divided."""
    return classes.assign(
        precision=classes["right"] / classes["answered"].where(classes["answered"] > 0),
        recall=classes["right"] / classes["photos"].where(classes["photos"] > 0),
    )
