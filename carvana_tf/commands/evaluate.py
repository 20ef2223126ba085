"""Scores a folder of probability PNGs against ground-truth masks and writes tables and a report.

python evaluate.py --pred_mask_dir=predicted_masks/fold0 --dataset_dir=input --fold=0

With --compare=OTHER (--compare_mask_dir) the same photos are scored in a second folder too, and
the report shows the paired difference.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from carvana_tf.cli import Command
from carvana_tf.data.folds import by_id, find_folds_file, read_folds
from carvana_tf.data.threshold import DEFAULT_THRESHOLD, HIGHEST_THRESHOLD
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.evaluation import ablation, boundary, compare, crossfit, evaluation, pairs
from carvana_tf.evaluation.learning import read_runs
from carvana_tf.evaluation.measure import MeasureSettings
from carvana_tf.evaluation.options import PageOptions
from carvana_tf.failures import optional
from carvana_tf.filenames import COMPARISON, REPORT
from carvana_tf.files import held
from carvana_tf.flags import Values, option
from carvana_tf.masks.open_folder import MaskFolder, check_task, open_complete
from carvana_tf.options import DatasetOptions
from carvana_tf.tasks.options import TaskOptions

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
        "train_masks",
        "Folder of the ground-truth masks, inside --dataset_dir.",
        alias="train_mask_dir",
        key="masks",
    )
    fold: int | None = option(
        None, "Score the photos of this fold alone, and require all of them.", lower=0
    )
    partial: bool = option(False, "Score a fold even where photos of it have no prediction.")
    force: bool = option(
        False, "Go on where a folder is not what its manifest.json says; summary.json records it."
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
        "Post-processing steps, as of ensemble.py, whose gain is measured: of each alone, and of "
        "all in order.",
    )
    seed: int = option(80, "Seed of the bootstrap intervals.", lower=0)
    out_dir: str | None = option(
        None, "Folder for the products; by default 'evaluation' inside --pred_mask_dir."
    )


def run(values: Values) -> None:
    """Pairs, measures, scores, and writes the products."""
    dataset, options = values[DatasetOptions], values[EvaluationOptions]
    truth_dir = dataset.folder(options.train_mask_dir_name)
    folds = _read_folds(dataset, options.fold)
    if folds is None:
        print(f"no table per fold: there is no folds file '{dataset.folds_source}'.")
        folds = {}
    pages = evaluation.Pages.of(values[PageOptions], dataset)
    force, seed, threads = options.force, options.seed, values[PageOptions].threads
    folder = open_complete(Path(options.pred_mask_dir or ""), force=force)
    forced, other = list(folder.forced), None
    if options.compare_mask_dir:
        other = open_complete(Path(options.compare_mask_dir), force=force)
        forced += [*other.forced, *compare.refuse_in_fold(folder, other, force=force)]
    threshold, their_threshold, contradictions = compare.thresholds(
        folder, other, options.threshold, force=force
    )
    matching = pairs.match(
        folder.masks,
        evaluation.find_truths(truth_dir, dataset.naming, folder),
        dataset.naming,
        folds,
        only_fold=options.fold,
        whole_folds=() if options.partial else folder.whole_folds(options.fold),
        reading=dataset.reading,
    )
    _print_unmatched(matching, folder)
    if folds and all(pair.fold is None for pair in matching.pairs):
        print("no table per fold: the folds file knows none of these photos.")
    settings = MeasureSettings(
        threshold,
        options.boundary_tolerance,
        ablation.parse_sizes(options.min_components),
        ablation.variants(options.postprocess, threshold),
    )
    found = evaluation.evaluate(
        *(folder, matching, settings, truth_dir, options.fold),
        *([*forced, *contradictions], seed, threads),
    )
    rival = None
    if other is not None:
        rival = evaluation.compare_with(found, other, their_threshold, seed, threads)
    out_dir = Path(options.out_dir or folder.path / "evaluation")
    with held(out_dir):
        drawn = evaluation.write(found, rival, pages, out_dir)
    if not drawn:
        print(f"no pictures: '{pages.photo_dir}' lacks photos of these masks; see --photo_dir.")
    _print_tables(found.tables, found.summary, out_dir)


def validate(values: Values, problems: Problems) -> None:
    """Adds folders, folds and steps that do not exist."""
    dataset, options = values[DatasetOptions], values[EvaluationOptions]
    if options.pred_mask_dir is None:
        problems.add("--pred_mask_dir is missing; name the folder of masks to score.")
    for flag in ("pred_mask_dir", "compare_mask_dir"):
        path = getattr(options, flag)
        missing = path is not None and not Path(path).is_dir()
        problems.add(f"--{flag}: the folder '{path}' {absent(path)}", missing)
        if path is not None:
            problems.attempt(check_task, Path(path))
    problems.attempt(ablation.parse_sizes, options.min_components)
    problems.attempt(ablation.variants, options.postprocess)
    problems.attempt(read_runs, values[PageOptions].runs)
    problems.attempt(lambda: dataset.naming)
    problems.attempt(lambda: dataset.reading)
    flag = "train_mask_dir_name"
    problems.attempt(dataset.existing_folder, options.train_mask_dir_name, flag)
    if options.fold is not None:
        problems.attempt(_read_folds, dataset, options.fold)


def _read_folds(dataset: DatasetOptions, fold: int | None) -> dict[str, int] | None:
    """The fold of each id; None where there is no table and `fold` asks for none.

    Where no fold is asked for, a table that cannot be read is no obstacle: then there are none.
    """
    try:
        path = find_folds_file(dataset.folds_source, Path(dataset.dataset_dir))
    except UserError:
        if fold is not None:
            raise
        return None
    table = read_folds(path) if fold is not None else optional("table per fold", read_folds, path)
    if table is None:
        return {}
    numbers = sorted(set(table["fold"]))
    if fold is not None and fold not in numbers:
        raise UserError(
            f"--fold={fold} does not exist; '{path}' has {', '.join(map(str, numbers))}: choose "
            "one of them."
        )
    return by_id(table)


def _print_unmatched(matching: pairs.Matching, folder: MaskFolder) -> None:
    elsewhere = len(folder.masks) - len(matching.pairs) - len(matching.without_truth)
    if matching.without_truth:
        print(f"not scored, no ground truth: {_names(matching.without_truth)}")
    if elsewhere:
        print(f"not scored, of other folds: {elsewhere} predictions")
    if matching.without_prediction:
        print(f"not scored, no prediction: {_names(matching.without_prediction)}")
    print(folder.origin)


def _names(stems: list[str], most: int = 5) -> str:
    more = ", ..." if len(stems) > most else ""
    return f"{len(stems)} ({', '.join(stems[:most])}{more})"


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
    if summary["comparison"] is not None:
        print(f"comparison page -> {out_dir / COMPARISON}")
    if (out_dir / "comparison.jpg").is_file():
        print(f"comparison -> {out_dir / 'comparison.jpg'}")
    interval = "no interval of one group"
    if summary["interval"]:
        interval = "95 % interval {:.5f}..{:.5f}".format(*summary["interval"])
    if summary["warning"] is not None:
        print(f"warning: {summary['warning']}.", file=sys.stderr)
    print(f"mean Dice {summary['mean_dice']:.5f} ({interval}, {summary['photos']} photos)")


COMMAND = Command(
    __doc__,
    (TaskOptions, EvaluationOptions, PageOptions, DatasetOptions),
    run,
    validate,
    variants={"labels": "carvana_tf.commands.evaluate_labels"},
)
