"""A table of scores against the labels that photos have."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from carvana_tf import __version__
from carvana_tf.data import labels as label_tables
from carvana_tf.data.dataset import Naming
from carvana_tf.data.folds import find_folds
from carvana_tf.data.images import Reading
from carvana_tf.data.labels import LabelTable
from carvana_tf.data.names import stem
from carvana_tf.data.tables import write_frame
from carvana_tf.errors import UserError
from carvana_tf.evaluation import gallery
from carvana_tf.evaluation.evaluation import Pages
from carvana_tf.evaluation.report import labels as report
from carvana_tf.evaluation.scores import interval
from carvana_tf.failures import named, optional
from carvana_tf.filenames import REPORT, SUMMARY
from carvana_tf.files import write_json, write_text
from carvana_tf.tasks.labels.metrics import (
    THRESHOLDS,
    GlobalAveragePrecision,
    MeanF2,
    PhotoScores,
    of_answer,
)
from carvana_tf.tasks.labels.scores import Rule
from carvana_tf.tasks.labels.table import ScoreFolder

# Finer than the published ones at both ends, where scores of few classes crowd.
_ENDS = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.03])
GRID = np.unique(np.concatenate([THRESHOLDS, _ENDS, 1 - _ENDS]))
"""Thresholds that are tried."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a table.

    Attributes:
        tables: `per_photo`, `per_class` and `threshold_curve`.
        summary: The figures, ready for JSON.
    """

    tables: dict[str, pd.DataFrame]
    summary: dict[str, Any]

    def write(self, folder: Path, pages: Pages, reading: Reading) -> bool:
        """Writes the tables, `summary.json` and the report with its pictures.

        Args:
            folder: An existing folder.
            pages: What the report shows next to the scores.
            reading: How photos are read.

        Returns:
            Whether there were photos for the pictures, or a warning said why not.
        """
        (folder / REPORT).unlink(missing_ok=True)  # of an earlier run
        for name, frame in self.tables.items():
            write_frame(folder / f"{name}.csv", frame)
        write_json(folder / SUMMARY, self.summary)
        table = self.tables["per_photo"]
        stems = [stem(photo) for photo in table["id"]]
        listed = optional("pictures", gallery.find_photos, pages.photo_dir, stems)
        photos = listed or {}
        shown = gallery.choose_and_draw(
            table["f2"],
            [each in photos for each in stems],
            pages.gallery_photos,
            folder / gallery.FOLDER,
            lambda rows, target: gallery.draw_photos(
                lambda row: photos[stems[row]], rows, target, pages.drawing, reading
            ),
        )
        with named("drawing", folder / REPORT):
            page = report.render(
                title=f"Evaluation of {Path(self.summary['predictions']).resolve().name}",
                summary=self.summary,
                frames=self.tables,
                gallery=shown,
                runs=pages.runs,
            )
        write_text(folder / REPORT, page)
        return listed is None or bool(listed)


def evaluate(
    folder: ScoreFolder,
    truth: LabelTable,
    rule: Rule,
    naming: Naming,
    folds: Mapping[str, int],
    seed: int,
) -> Evaluation:
    """Scores every photo of a table that the ground truth names.

    Args:
        folder: With the table.
        truth: The labels that photos have.
        rule: Which labels are answered.
        naming: How photos are grouped.
        folds: The fold of each group or photo; {} where there are none.
        seed: Of the bootstrap interval.

    Raises:
        UserError: No photo of the table has a ground truth, or the table is damaged.
    """
    gap, published = GlobalAveragePrecision(), MeanF2()
    bounded: dict[int | None, MeanF2] = {}
    curve = MeanF2(GRID, rule.least, rule.most)
    positives, answered, right = Counter[str](), Counter[str](), Counter[str]()
    seen: set[str] = set()
    ids = {name: number for number, name in enumerate(truth.classes)}
    photos = [photo.photo for photo in folder.rows()]
    matched = label_tables.match(truth, photos, f"'{folder.path}'")
    fold_of = _folds([p for p in photos if p in matched.labels], naming, folds)
    rows = []
    for photo in folder.rows():
        if photo.photo not in matched.labels:
            continue
        true = np.array(matched.labels[photo.photo], int)
        seen.update(photo.labels)
        # A label that the ground truth never has is wrong wherever it is answered.
        found = np.array([ids.setdefault(name, len(ids)) for name in photo.labels], int)
        fold = fold_of.get(photo.photo)
        in_fold = bounded.setdefault(fold, MeanF2(GRID, rule.least, rule.most))
        for metric in (gap, published, curve, in_fold):
            metric.update(found, photo.scores, true)
        answer = rule.answer(photo.labels, photo.scores)
        scores = of_answer(np.array([ids[name] for name in answer], int), true)
        names = [truth.classes[i] for i in true]
        positives.update(names)
        answered.update(answer)
        right.update(set(names) & set(answer))
        rows.append(_row(photo.photo, naming, fold, scores, answer, names))
    if not rows:
        raise UserError(
            f"no photo of '{folder.path}' has labels in the ground truth (its first is "
            f"'{photos[0] if photos else 'none'}', that of the ground truth "
            f"'{next(iter(truth.labels))}'); name the table of these photos with --labels."
        )
    frame = pd.DataFrame(rows)
    best = curve.result()
    most_frequent = _most_frequent(truth, matched.labels, rule)
    summary = {
        "photos": len(frame),
        "gap": gap.result(),
        "best_f2": published.result().f2,
        "best_f2_threshold": published.result().threshold,
        "best_f2_note": "without bounds on the number of labels, fitted on the same photos",
        "mean_f2": float(frame["f2"].mean()),
        "interval": interval(frame["f2"], frame["group"], seed),
        "threshold": rule.threshold,
        "min_labels": rule.least,
        "max_labels": rule.most,
        "best_threshold": best.threshold,
        "best_threshold_mean_f2": best.f2,
        "crossfit_mean_f2": _cross_fitted(bounded),
        "most_frequent": most_frequent,
        "predictions": str(folder.path),
        "predictions_without_truth": matched.without_labels,
        "truth_without_prediction": matched.without_photo,
        "labels_never_predicted": sorted(positives.keys() - seen),
        "out_of_fold": folder.out_of_fold,
        "version": __version__,
    }
    tables = {
        "per_photo": frame,
        "per_class": _per_class(positives, answered, right),
        "threshold_curve": pd.DataFrame({"threshold": GRID, "mean_f2": curve.means()}),
    }
    return Evaluation(tables, summary)


def _row(
    photo: str,
    naming: Naming,
    fold: int | None,
    scores: PhotoScores,
    answer: Sequence[str],
    names: Sequence[str],
) -> dict[str, Any]:
    return {
        "id": photo,
        "group": naming.group(stem(photo)),
        "fold": fold,
        "f2": scores.f2,
        "precision": scores.precision,
        "recall": scores.recall,
        "answered": " ".join(answer),
        "labels": " ".join(names),
    }


def _folds(photos: Sequence[str], naming: Naming, folds: Mapping[str, int]) -> dict[str, int]:
    """The fold of each photo that has one."""
    groups = {photo: naming.group(stem(photo)) for photo in photos}
    return find_folds(groups, folds) if folds else {}


def _per_class(
    positives: Counter[str], answered: Counter[str], right: Counter[str]
) -> pd.DataFrame:
    """A row for each class that any photo has or is answered for, the most frequent first."""
    names = sorted({*positives, *answered}, key=lambda name: (-positives[name], name))
    return pd.DataFrame(
        {
            "label": names,
            "photos": [positives[name] for name in names],
            "answered": [answered[name] for name in names],
            "right": [right[name] for name in names],
        }
    )


def _cross_fitted(by_fold: Mapping[int | None, MeanF2]) -> float | None:
    """Mean F2 where each fold is cut at the threshold that is best on the others."""
    folds = {fold: metric for fold, metric in by_fold.items() if fold is not None}
    if len(folds) < 2:
        return None
    total = 0.0
    for fold, metric in folds.items():
        others = MeanF2(GRID, *metric.bounds)
        for other in (m for f, m in folds.items() if f != fold):
            others.merge(other)
        place = int(np.argmax(others.means()))
        total += metric.means()[place] * metric.photos
    return total / sum(metric.photos for metric in folds.values())


def _most_frequent(
    truth: LabelTable, photos: Mapping[str, tuple[int, ...]], rule: Rule
) -> dict[str, Any]:
    """The best mean F2 of one answer for all photos: their own most frequent labels.

    What has learned nothing cannot be better: it would have to know these frequencies.
    """
    counts = Counter(i for ids in photos.values() for i in ids)
    order = [i for i, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    best: dict[str, Any] = {"mean_f2": 0.0, "labels": []}
    for number in range(max(rule.least, 1), min(rule.most, len(order)) + 1):
        answer = np.array(order[:number])
        mean = float(np.mean([of_answer(answer, np.array(ids, int)).f2 for ids in photos.values()]))
        if mean > best["mean_f2"]:
            best = {"mean_f2": mean, "labels": [truth.classes[i] for i in answer]}
    return best
