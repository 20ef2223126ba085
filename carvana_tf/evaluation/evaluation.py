"""A mask folder scored: its tables, figures, pictures and report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import carvana_tf
from carvana_tf.data.dataset import Naming, list_masks, why_unmatched
from carvana_tf.data.tables import write_frame
from carvana_tf.errors import UserError
from carvana_tf.evaluation import (
    ablation,
    compare,
    crossfit,
    gallery,
    report,
    scores,
    timings,
)
from carvana_tf.evaluation.learning import Curve, read_runs
from carvana_tf.evaluation.measure import MeasureSettings, measure
from carvana_tf.evaluation.options import PageOptions
from carvana_tf.evaluation.pairs import Matching, Pair
from carvana_tf.evaluation.reliability import calibration_error, reliability
from carvana_tf.failures import named, optional
from carvana_tf.filenames import COMPARISON, REPORT, SUMMARY, TIMINGS
from carvana_tf.files import write_json, write_text
from carvana_tf.masks.open_folder import MaskFolder
from carvana_tf.options import DatasetOptions

COMPARED = "comparison_files"
"""Folders of the pictures of the two pages."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a mask folder.

    Attributes:
        folder: The masks.
        pairs: Those that were scored, with their ground truth.
        settings: How they were measured.
        tables: `per_photo`, `per_group`, `per_view`, `per_fold`, `threshold_curve`,
            `reliability`, `crossfit`, `comparison` and `postprocess`; those without rows do
            not apply.
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
        "reliability": reliability(measured.counts),
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
        "calibration_error": calibration_error(tables["reliability"]),
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


@dataclasses.dataclass(frozen=True)
class Pages:
    """What the pages show besides the scores.

    Attributes:
        photo_dir: The photos.
        runs: The trainings of the models.
        gallery_photos: How many photos have pictures; 0 for none.
        drawing: How pictures are made.
    """

    photo_dir: Path
    runs: Sequence[Curve] = ()
    gallery_photos: int = gallery.PHOTOS
    drawing: gallery.Drawing = dataclasses.field(default_factory=gallery.Drawing)

    @classmethod
    def of(cls, options: PageOptions, dataset: DatasetOptions) -> "Pages":
        """What the flags say.

        Raises:
            UserError: As `learning.read_runs`.
        """
        return cls(
            dataset.folder(options.photo_dir or "train"),
            read_runs(options.runs),
            options.gallery_photos,
            gallery.Drawing(options.gallery_size, options.threads),
        )


def write(found: Evaluation, rival: Rival | None, pages: Pages, out_dir: Path) -> bool:
    """Writes the tables, `summary.json`, `comparison.jpg`, the pages and their pictures.

    The tables come first, so that an interruption of the drawing does not lose them.

    Args:
        found: What is written.
        rival: What it was compared with.
        pages: What the pages show.
        out_dir: An existing folder; what an earlier run left there that does not apply any more
            goes.

    Returns:
        Whether there were photos for the pictures, or a warning said why not.
    """
    for name in (REPORT, COMPARISON):
        (out_dir / name).unlink(missing_ok=True)
    for name, table in found.tables.items():
        path = out_dir / f"{name}.csv"
        # What an earlier run left there would contradict this one.
        path.unlink(missing_ok=True)
        if len(table):
            write_frame(path, table)
    write_json(out_dir / SUMMARY, found.summary)
    threshold, stems = found.settings.threshold, [pair.stem for pair in found.pairs]
    # Scores need neither the photos nor the times.
    listed = optional("pictures", gallery.find_photos, pages.photo_dir, stems)
    photos, examples = listed or {}, out_dir / "comparison.jpg"
    per_photo = found.tables["per_photo"]
    draw = gallery.draw_examples
    optional(examples.name, draw, per_photo, found.pairs, photos, threshold, examples)
    shown = gallery.choose_and_draw(
        per_photo["dice"],
        [stem in photos for stem in per_photo["id"]],
        pages.gallery_photos,
        out_dir / gallery.FOLDER,
        lambda rows, folder: gallery.draw(
            found.pairs, rows, photos, threshold, folder, pages.drawing
        ),
    )
    gallery.clear(out_dir / COMPARED)
    times = optional("stage times", timings.read, found.folder.path / TIMINGS)
    with named("drawing", out_dir / REPORT):
        page = report.render(
            title=f"Evaluation of {found.folder.path.resolve().name}",
            summary=found.summary,
            frames=found.tables,
            manifest=found.folder.manifest,
            gallery=shown,
            timings=times,
            runs=pages.runs,
        )
    if rival is not None:
        _write_comparison(found, rival, photos, pages, out_dir)
    write_text(out_dir / REPORT, page)
    return listed is None or bool(listed)


def _write_comparison(
    found: Evaluation, rival: Rival, photos: dict[str, Path], pages: Pages, out_dir: Path
) -> None:
    """The page of two folders, whose photos are in the order of the table."""
    table = found.tables["comparison"].merge(
        found.tables["per_photo"][["id", "view"]], on="id", how="left"
    )
    ours, theirs = ({pair.stem: pair for pair in pairs} for pairs in (found.pairs, rival.pairs))
    here, there = ([pairs[stem] for stem in table["id"]] for pairs in (ours, theirs))
    thresholds = found.settings.threshold, rival.threshold
    shown = gallery.choose_and_draw(
        table["dice_difference"],
        [stem in photos for stem in table["id"]],
        pages.gallery_photos,
        out_dir / COMPARED,
        lambda rows, folder: gallery.draw_differences(
            here, there, rows, photos, thresholds, folder, pages.drawing
        ),
    )
    here_name, there_name = (
        path.resolve().name
        for path in (found.folder.path, Path(found.summary["comparison"]["other"]))
    )
    page = report.render_comparison(
        title=f"{here_name} against {there_name}",
        summary=found.summary,
        differences=table,
        gallery=shown,
    )
    write_text(out_dir / COMPARISON, page)
