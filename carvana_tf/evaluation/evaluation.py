"""A mask folder scored: its tables, figures, pictures and report."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import carvana_tf
from carvana_tf.data.dataset import Naming, list_masks, why_unmatched
from carvana_tf.data.tables import write_frame
from carvana_tf.errors import UserError
from carvana_tf.evaluation import ablation, compare, crossfit, gallery, report, scores
from carvana_tf.evaluation.measure import MeasureSettings, measure
from carvana_tf.evaluation.pairs import Matching, Pair
from carvana_tf.failures import named
from carvana_tf.filenames import REPORT, SUMMARY, TIMINGS
from carvana_tf.files import read_json, write_json, write_text
from carvana_tf.masks.open_folder import MaskFolder


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a mask folder.

    Attributes:
        folder: The masks.
        pairs: Those that were scored, with their ground truth.
        settings: How they were measured.
        tables: `per_photo`, `per_group`, `per_view`, `per_fold`, `threshold_curve`, `crossfit`,
            `comparison` and `postprocess`; those without rows do not apply.
        summary: The figures, ready for JSON, see `report.render`.
    """

    folder: MaskFolder
    pairs: list[Pair]
    settings: MeasureSettings
    tables: dict[str, pd.DataFrame]
    summary: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Rival:
    """The masks that a folder was compared with.

    Attributes:
        pairs: Of the photos that both folders hold.
        threshold: 0..254; a greater grey value is object.
    """

    pairs: list[Pair]
    threshold: int


def find_truths(truth_dir: Path, naming: Naming, folder: MaskFolder) -> dict[str, Path]:
    """The ground-truth masks of a folder, by stem.

    Raises:
        UserError: There is none; the message says why, from the masks to be scored.
    """
    truths = list_masks(truth_dir, naming)
    if not truths:
        why = why_unmatched(truth_dir, naming, folder.masks.keys())
        raise UserError(f"there is no ground-truth mask: {why}")
    return truths


def evaluate(
    folder: MaskFolder,
    matching: Matching,
    settings: MeasureSettings,
    truth_dir: Path,
    fold: int | None,
    forced: Sequence[str],
    seed: int,
    threads: int,
) -> Evaluation:
    """Measures all pairs and summarises them.

    Args:
        folder: The masks.
        matching: Their pairs with the ground truth.
        settings: What is measured.
        truth_dir: Where the ground truth is, for the summary.
        fold: The only one that is scored, None for all.
        forced: Refusals that `--force` skipped.
        seed: Of the bootstrap intervals.
        threads: That read and measure masks.

    Raises:
        UserError: As `measure`.
    """
    measured = measure(matching.pairs, settings, threads)
    photos, curve, steps = measured.photos, scores.threshold_curve(measured.counts), settings.steps
    tables: dict[str, pd.DataFrame] = {
        "per_photo": photos,
        "per_group": scores.per_group(photos),
        "per_view": scores.per_view(photos),
        "per_fold": scores.per_fold(photos, seed),
        "threshold_curve": curve,
        "crossfit": pd.DataFrame(),
        "comparison": pd.DataFrame(),
        "postprocess": ablation.per_photo(photos, measured.after, steps)
        if steps
        else pd.DataFrame(),
    }
    summary = scores.summarise(photos, curve, settings.threshold, seed) | {
        "fold": fold,
        "predictions": str(folder.path),
        "truth": str(truth_dir),
        "predictions_without_truth": matching.without_truth,
        "truth_without_prediction": matching.without_prediction,
        "boundary_tolerance": settings.tolerance,
        "crossfit": [],
        "crossfit_note": crossfit.obstacle(photos, folder.manifest),
        "comparison": None,
        "postprocess": ablation.summarise(photos, measured.after, steps, seed),
        "out_of_fold": folder.out_of_fold,
        "chosen_on_its_fold": folder.chosen_on_its_fold,
        "forced": list(forced),
        "version": carvana_tf.__version__,
        "warning": scores.useless(photos),
    }
    if folder.threshold is not None:
        summary |= {
            "best_threshold": settings.threshold,
            "best_threshold_mean_dice": summary["mean_dice"],
            "best_threshold_note": f"the masks were decided at grey > {folder.threshold}",
            "crossfit_note": "they are other masks at any other threshold",
        }
    if summary["crossfit_note"] is None:
        candidates = crossfit.candidates_of(measured, settings.component_sizes)
        tables["crossfit"], summary["crossfit"] = crossfit.run(candidates, photos, seed)
    return Evaluation(folder, matching.pairs, settings, tables, summary)


def compare_with(
    ours: Evaluation, other: MaskFolder, threshold: int, seed: int, threads: int
) -> Rival:
    """Scores the same photos in another folder and adds the paired difference.

    Args:
        ours: Its table and summary `comparison` are set.
        other: The other masks.
        threshold: Theirs, 0..254.
        seed: Of the bootstrap intervals.
        threads: That read and measure masks.

    Raises:
        UserError: The other folder holds none of the photos; or as `measure`.
    """
    theirs = compare.pairs_of(other, ours.pairs)
    rivals = measure(theirs, MeasureSettings(threshold, ours.settings.tolerance), threads)
    photos = ours.tables["per_photo"]
    differences = compare.per_photo(photos, rivals.photos)
    ours.tables["comparison"] = differences
    ours.summary["comparison"] = compare.summarise(differences, len(photos), other, seed)
    return Rival(theirs, threshold)


def write(found: Evaluation, rival: Rival | None, photo_dir: Path, out_dir: Path) -> bool:
    """Writes the tables, `summary.json`, `comparison.jpg` and `report.html`.

    Args:
        found: What is written.
        rival: What it was compared with.
        photo_dir: Photos for the pictures.
        out_dir: An existing folder; tables of an earlier run that do not apply any more go.

    Returns:
        Whether there were photos for the pictures.
    """
    threshold, different = found.settings.threshold, []
    if rival is not None:
        different = _drawn(
            gallery.draw_differences,
            *(found.tables["comparison"], found.pairs, rival.pairs, photo_dir),
            (threshold, rival.threshold),
        )
    target = out_dir / "comparison.jpg"
    photos = found.tables["per_photo"]
    shown = _drawn(gallery.draw, photos, found.pairs, photo_dir, threshold, target)
    for name, table in found.tables.items():
        path = out_dir / f"{name}.csv"
        # What an earlier run left there would contradict this one.
        path.unlink(missing_ok=True)
        if len(table):
            write_frame(path, table)
    write_json(out_dir / SUMMARY, found.summary)
    timings = found.folder.path / TIMINGS
    with named("drawing", out_dir / REPORT):
        page = report.render(
            title=f"Evaluation of {found.folder.path.name}",
            summary=found.summary,
            tables=found.tables,
            manifest=found.folder.manifest,
            gallery=shown,
            difference_gallery=different,
            timings=read_json(timings) if timings.is_file() else None,
        )
    write_text(out_dir / REPORT, page)
    return bool(shown)


def _drawn(draw: Callable[..., list[gallery.Exhibit]], *files: Any) -> list[gallery.Exhibit]:
    """Scores do not need the photos: one that cannot be read costs the pictures only."""
    try:
        return draw(*files)
    except UserError as error:
        print(f"warning: no pictures: {error}", file=sys.stderr)
        return []
