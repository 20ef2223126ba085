"""Scores a folder of probability PNGs against truth masks and writes tables and a report.

python evaluate.py --pred_mask_dir=predicted_masks/fold0 --dataset_dir=input --fold=0

With --compare=OTHER (--compare_mask_dir) the same photos are scored in a second folder too, and
the report shows the paired difference.
"""

import carvana_tf.starting

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import carvana_tf
from carvana_tf.cli import Command
from carvana_tf.data.dataset import list_masks, why_unmatched
from carvana_tf.data.folds import by_id, find_folds_file, read_folds
from carvana_tf.data.images import UnreadableImage
from carvana_tf.data.tables import write_frame
from carvana_tf.data.threshold import DEFAULT_THRESHOLD, HIGHEST_THRESHOLD
from carvana_tf.errors import Problems, UserError
from carvana_tf.evaluation import (
    ablation,
    boundary,
    compare,
    crossfit,
    gallery,
    pairs,
    report,
    scores,
)
from carvana_tf.evaluation.measure import Settings, measure
from carvana_tf.filenames import REPORT, SUMMARY, TIMINGS
from carvana_tf.files import make_folder, read_json, write_json, write_text
from carvana_tf.flags import Values, option
from carvana_tf.masks.folder import MaskFolder, choose_threshold, open_complete, overrule
from carvana_tf.options import DatasetOptions

SHOWN = 10


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """The masks to score, and how."""

    pred_mask_dir: str | None = option(None, "Folder of the probability PNGs to score.")
    compare_mask_dir: str | None = option(
        None,
        "A second folder of masks of the same photos, to be compared photo by photo.",
        alias="compare",
    )
    train_mask_dir_name: str = option(
        "train_masks", "Folder of the truth masks, inside --dataset_dir.", alias="train_mask_dir"
    )
    photo_dir: str | None = option(
        None, "Photos for the pictures, in or outside --dataset_dir; 'train' by default."
    )
    fold: int | None = option(
        None, "Score the photos of this fold alone, and require all of them.", lower=0
    )
    partial: bool = option(False, "Score a fold even where photos of it have no prediction.")
    force: bool = option(
        False, "Go on where a folder is not what its manifest.json says; summary.json will tell."
    )
    threshold: int | None = option(
        None,
        "A grey value greater than this is object, for scores and --postprocess; by default the "
        f"one that the masks were post-processed at, else {DEFAULT_THRESHOLD}.",
        lower=0,
        upper=HIGHEST_THRESHOLD,
    )
    boundary_tolerance: float = option(
        boundary.TOLERANCE,
        "How far a contour may be off in the boundary F-score: pixels, or below 1 a share of the "
        "photo's diagonal, as 0.002.",
        lower=0,
    )
    min_components: tuple[str, ...] = option(
        (),
        "Minimum component sizes in pixels to choose from on the other folds, as 0,100,1000; "
        "none are tried by default, because it takes several times as long.",
    )
    postprocess: tuple[str, ...] = option(
        (),
        "Post-processing steps, as of ensemble.py, whose gain is told: of each alone, and of all "
        "in order.",
    )
    seed: int = option(80, "Seed of the bootstrap intervals.", lower=0)
    out_dir: str | None = option(
        None, "Folder for the products; by default 'evaluation' inside --pred_mask_dir."
    )
    threads: int = option(4, "Threads that read and measure masks.", lower=1)


def run(values: Values) -> None:
    """Pairs, measures, scores, and writes the products."""
    dataset, options = values[DatasetOptions], values[EvaluationOptions]
    truth_dir = dataset.folder(options.train_mask_dir_name)
    folds = _read_folds(dataset, options.fold)
    if folds is None:
        print(f"no table per fold: there is no folds file '{dataset.folds_source}'.")
        folds = {}
    sizes = ablation.parse_sizes(options.min_components)
    folder = open_complete(Path(options.pred_mask_dir or ""), force=options.force)
    forced, other = list(folder.forced), None
    if options.compare_mask_dir:
        other = open_complete(Path(options.compare_mask_dir), force=options.force)
        forced += [*other.forced, *_unlike(folder, other, options)]
    threshold, their_threshold, contradictions = _thresholds(folder, other, options)
    forced += contradictions
    steps = ablation.variants(options.postprocess, threshold)
    settings = Settings(threshold, options.boundary_tolerance, sizes, steps)
    truths = list_masks(truth_dir, dataset.naming)
    if not truths:
        why = why_unmatched(truth_dir, dataset.naming, folder.masks.keys())
        raise UserError(f"there is no truth mask: {why}")
    whole = folder.whole_folds() if options.fold is None else {options.fold}
    matching = pairs.match(
        folder.masks,
        truths,
        dataset.naming,
        folds,
        only_fold=options.fold,
        whole_folds=() if options.partial else whole,
        reading=dataset.reading,
    )
    _tell_unmatched(matching, folder)
    if folds and all(pair.fold is None for pair in matching.pairs):
        print("no table per fold: the folds file knows none of these photos.")

    measured = measure(matching.pairs, settings, options.threads)
    photos, curve = measured.photos, scores.threshold_curve(measured.counts)
    tables: dict[str, pd.DataFrame] = {
        "per_photo": photos,
        "per_group": scores.per_group(photos),
        "per_view": scores.per_view(photos),
        "per_fold": scores.per_fold(photos, options.seed),
        "threshold_curve": curve,
        "crossfit": pd.DataFrame(),
        "comparison": pd.DataFrame(),
        "postprocess": ablation.per_photo(photos, measured.after, steps)
        if steps
        else pd.DataFrame(),
    }
    summary = scores.summarise(photos, curve, threshold, options.seed) | {
        "fold": options.fold,
        "predictions": str(folder.path),
        "truth": str(truth_dir),
        "predictions_without_truth": matching.without_truth,
        "truth_without_prediction": matching.without_prediction,
        "boundary_tolerance": options.boundary_tolerance,
        "crossfit": [],
        "crossfit_note": crossfit.obstacle(photos, folder.manifest),
        "comparison": None,
        "postprocess": ablation.summarise(photos, measured.after, steps, options.seed),
        "out_of_fold": folder.out_of_fold,
        "chosen_on_its_fold": folder.chosen_on_its_fold,
        "forced": forced,
        "version": carvana_tf.__version__,
    }
    summary["warning"] = scores.useless(photos)
    if folder.threshold is not None:
        summary |= {
            "best_threshold": threshold,
            "best_threshold_mean_dice": summary["mean_dice"],
            "best_threshold_note": f"the masks were decided at grey > {folder.threshold}",
            "crossfit_note": "they are other masks at any other threshold",
        }
    if summary["crossfit_note"] is None:
        candidates = crossfit.candidates_of(measured, sizes)
        tables["crossfit"], summary["crossfit"] = crossfit.run(candidates, photos, options.seed)

    out_dir = make_folder(Path(options.out_dir or folder.path / "evaluation"))
    photo_dir = dataset.folder(options.photo_dir or "train")
    different: list[gallery.Exhibit] = []
    if other is not None:
        theirs = compare.pairs_of(other, matching.pairs)
        their_settings = Settings(their_threshold, options.boundary_tolerance)
        rivals = measure(theirs, their_settings, options.threads)
        tables["comparison"] = differences = compare.per_photo(photos, rivals.photos)
        summary["comparison"] = compare.summarise(differences, len(photos), other, options.seed)
        cuts = (threshold, their_threshold)
        different = _drawn(
            gallery.draw_differences, differences, matching.pairs, theirs, photo_dir, cuts
        )
    target = out_dir / "comparison.jpg"
    shown = _drawn(gallery.draw, photos, matching.pairs, photo_dir, threshold, target)
    if not shown:
        print(f"no pictures: '{photo_dir}' lacks photos of these masks; see --photo_dir.")
    _write_tables(tables, out_dir)
    write_json(out_dir / SUMMARY, summary)
    timings = folder.path / TIMINGS
    page = report.render(
        title=f"Evaluation of {folder.path.name}",
        summary=summary,
        tables=tables,
        manifest=folder.manifest,
        gallery=shown,
        difference_gallery=different,
        timings=read_json(timings) if timings.is_file() else None,
    )
    write_text(out_dir / REPORT, page)
    _print_tables(tables, summary, out_dir)


def _drawn(draw: Callable[..., list[gallery.Exhibit]], *files: Any) -> list[gallery.Exhibit]:
    """Scores do not need the photos: one that cannot be read costs the pictures only."""
    try:
        return draw(*files)
    except UnreadableImage as error:
        print(f"warning: no pictures: {error}", file=sys.stderr)
        return []


def _thresholds(
    folder: MaskFolder, other: MaskFolder | None, options: EvaluationOptions
) -> tuple[int, int, list[str]]:
    """What the masks here and there are cut at, and refusals that were overruled.

    Without the flag each folder has the threshold it was post-processed at, and one that was
    not has the other's.
    """
    given, force = options.threshold, options.force
    default = other.threshold if other and other.threshold is not None else DEFAULT_THRESHOLD
    here, problems = choose_threshold(folder.path, folder.manifest, given, default, force=force)
    if other is None:
        return here, here, problems
    there, more = choose_threshold(other.path, other.manifest, given, here, force=force)
    return here, there, [*problems, *more]


def validate(values: Values, problems: Problems) -> None:
    """Adds folders, folds and steps that do not exist."""
    dataset, options = values[DatasetOptions], values[EvaluationOptions]
    if options.pred_mask_dir is None:
        problems.add("--pred_mask_dir is missing; name the folder of masks to score.")
    for flag in ("pred_mask_dir", "compare_mask_dir"):
        path = getattr(options, flag)
        missing = path is not None and not Path(path).is_dir()
        problems.add(f"--{flag}: the folder '{path}' does not exist; correct its name.", missing)
    problems.attempt(ablation.parse_sizes, options.min_components)
    problems.attempt(ablation.variants, options.postprocess)
    problems.attempt(lambda: dataset.naming)
    problems.attempt(lambda: dataset.reading)
    flag = "train_mask_dir_name"
    problems.attempt(dataset.existing_folder, options.train_mask_dir_name, flag)
    problems.attempt(_read_folds, dataset, options.fold)


def _unlike(folder: MaskFolder, other: MaskFolder, options: EvaluationOptions) -> list[str]:
    """Why two folders' scores do not compare, refused unless --force passes it over."""
    if {folder.out_of_fold, other.out_of_fold} != {True, False}:
        return []
    inside, outside = (other, folder) if folder.out_of_fold else (folder, other)
    problem = (
        f"'{outside.path}' is out of fold and '{inside.path}' is not, so its scores may be too "
        "good to compare; predict it with --predict_on_val"
    )
    return [overrule(problem, force=options.force)]


def _read_folds(dataset: DatasetOptions, fold: int | None) -> dict[str, int] | None:
    """The fold of each id; None where there is no table and `fold` asks for none."""
    try:
        path = find_folds_file(dataset.folds_source, Path(dataset.dataset_dir))
    except UserError:
        if fold is not None:
            raise
        return None
    table = read_folds(path)
    numbers = sorted(set(table["fold"]))
    if fold is not None and fold not in numbers:
        raise UserError(
            f"--fold={fold} does not exist; '{path}' has {', '.join(map(str, numbers))}: choose "
            "one of them."
        )
    return by_id(table)


def _tell_unmatched(matching: pairs.Matching, folder: MaskFolder) -> None:
    elsewhere = len(folder.masks) - len(matching.pairs) - len(matching.without_truth)
    if matching.without_truth:
        print(f"not scored, no truth: {_names(matching.without_truth)}")
    if elsewhere:
        print(f"not scored, of other folds: {elsewhere} predictions")
    if matching.without_prediction:
        print(f"not scored, no prediction: {_names(matching.without_prediction)}")
    print(folder.origin)


def _names(stems: list[str], most: int = 5) -> str:
    more = ", ..." if len(stems) > most else ""
    return f"{len(stems)} ({', '.join(stems[:most])}{more})"


def _write_tables(tables: Mapping[str, pd.DataFrame], out_dir: Path) -> None:
    for name, table in tables.items():
        target = out_dir / f"{name}.csv"
        # What an earlier run left there would contradict this one.
        target.unlink(missing_ok=True)
        if len(table):
            write_frame(target, table)


def _print_tables(
    tables: Mapping[str, pd.DataFrame], summary: dict[str, Any], out_dir: Path
) -> None:
    for name, title in (("per_fold", "folds"), ("per_group", "worst groups")):
        if len(tables[name]):
            rows = tables[name].dropna(axis="columns", how="all").head(SHOWN)
            print(f"{title}:\n{rows.to_string(index=False, float_format='%.5f')}")
    worst = tables["per_photo"].nsmallest(3, "dice")
    for stem, dice in zip(worst["id"], worst["dice"], strict=True):
        print(f"worst photo {stem}: {dice:.5f}")
    print(
        f"best threshold {summary['best_threshold']}: mean Dice "
        f"{summary['best_threshold_mean_dice']:.5f} ({summary['best_threshold_note']})"
    )
    if summary["crossfit_note"] is not None:
        print(f"no cross-fitted threshold: {summary['crossfit_note']}.")
    for fit in summary["crossfit"]:
        print(crossfit.describe(fit))
    for gain in summary["postprocess"]:
        print(ablation.describe(gain, summary["photos"]))
    if summary["comparison"] is not None:
        print(compare.describe(summary["comparison"]))
    print(
        f"mean accuracy {summary['mean_accuracy']:.5f}, boundary F-score "
        f"{summary['mean_boundary_f']:.5f}, boundary-band Dice {summary['mean_band_dice']:.5f}"
    )
    print(f"report -> {out_dir / REPORT}")
    if (out_dir / "comparison.jpg").is_file():
        print(f"comparison -> {out_dir / 'comparison.jpg'}")
    interval = "no interval of one group"
    if summary["interval"]:
        interval = "95 % interval {:.5f}..{:.5f}".format(*summary["interval"])
    if summary["warning"] is not None:
        print(f"warning: {summary['warning']}.", file=sys.stderr)
    print(f"mean Dice {summary['mean_dice']:.5f} ({interval}, {summary['photos']} photos)")


COMMAND = Command(__doc__, (EvaluationOptions, DatasetOptions), run, validate)
