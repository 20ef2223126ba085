"""Scores a submission against ground-truth masks: every row is decoded.

python tools/score_submission.py --submission=submission.csv.gz --truth_dir=input/test_masks
"""

import dataclasses
from pathlib import Path

from carvana_tf.cli import Command
from carvana_tf.data import names
from carvana_tf.data.dataset import list_masks, why_unmatched
from carvana_tf.data.tables import write_frame
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.evaluation import boundary, rows, scores
from carvana_tf.failures import first_few
from carvana_tf.flags import Values, option
from carvana_tf.masks import rle
from carvana_tf.masks.rle_parquet import list_parts
from carvana_tf.masks.submission import read_rows
from carvana_tf.options import DatasetOptions

WORST = 5


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """The submission to score, and how."""

    submission: str | None = option(
        None,
        "The submission to score, .csv or .csv.gz, or the folder of a prediction with "
        "--output=rle-parquet.",
    )
    truth_dir: str | None = option(
        None,
        "Folder of the ground-truth masks, in or outside --dataset_dir; 'test_masks' by default.",
    )
    order: str = option(
        rle.ROWS,
        "Whether pixels are counted along the rows (Carvana) or down the columns, as other "
        "competitions do.",
        choices=rle.ORDERS,
    )
    partial: bool = option(False, "Score what is there where ground-truth masks have no row.")
    boundary_tolerance: float = option(
        boundary.TOLERANCE,
        "How far a contour may be off in the boundary F-score: pixels, or below 1 a share of the "
        "photo's diagonal, as 0.002.",
        lower=0,
    )
    scores_csv: str | None = option(None, "CSV file for the scores of every photo.")
    seed: int = option(80, "Seed of the bootstrap interval.", lower=0)
    threads: int = option(4, "Threads that decode and measure.", lower=1)


def run(values: Values) -> None:
    """Decodes and scores every row, and prints the means."""
    dataset, options = values[DatasetOptions], values[ScoreOptions]
    truth_dir = dataset.folder(options.truth_dir or "test_masks")
    truths = list_masks(truth_dir, dataset.naming)
    if not truths:
        stems = {names.stem(image) for image, _ in read_rows(Path(options.submission or ""))}
        why = why_unmatched(truth_dir, dataset.naming, stems)
        raise UserError(f"there is no ground-truth mask: {why}")
    scored = rows.score(
        Path(options.submission or ""),
        truths,
        dataset.naming,
        tolerance=options.boundary_tolerance,
        order=options.order,
        threads=options.threads,
        reading=dataset.reading,
    )
    if scored.without_row and not options.partial:
        raise UserError(
            f"{len(scored.without_row)} ground-truth masks have no row in '{options.submission}': "
            f"{first_few(scored.without_row)}; add them, or score what is there with --partial."
        )
    for images, what in ((scored.without_truth, "ground truth"), (scored.without_row, "row")):
        if images:
            print(f"not scored, no {what}: {len(images)} ({first_few(images)})")
    photos = scored.photos
    here, there = scored.other_order
    if there > here:
        other = next(order for order in rle.ORDERS if order != options.order)
        print(
            f"note: rows fit better as --order={other}: mean Dice {there:.5f} of the first ones, "
            f"not {here:.5f}"
        )
    if options.scores_csv is not None:
        write_frame(Path(options.scores_csv), photos)
    worst = photos.nsmallest(WORST, "dice")
    for stem, dice in zip(worst["id"], worst["dice"], strict=True):
        print(f"worst photo {stem}: {dice:.5f}")
    means = photos[["accuracy", "iou", "boundary_f", "band_dice"]].mean()
    accuracy, iou, contour, band = means
    print(
        f"mean accuracy {accuracy:.5f}, IoU {iou:.5f}, boundary F-score {contour:.5f}, "
        f"boundary-band Dice {band:.5f}"
    )
    low, high = scores.bootstrap_interval(photos["dice"], photos["group"], seed=options.seed)
    interval = f"95 % interval {low:.5f}..{high:.5f}" if low == low else "no interval of one group"
    print(f"mean Dice {photos['dice'].mean():.5f} ({interval}, {len(photos)} photos)")


def validate(values: Values, problems: Problems) -> None:
    """Adds files and folders that do not exist, and flags that do not say how they are read."""
    dataset, options = values[DatasetOptions], values[ScoreOptions]
    if options.submission is None:
        problems.add("--submission is missing; name the file to score.")
    elif not (Path(options.submission).is_file() or list_parts(Path(options.submission))):
        problems.add(f"--submission='{options.submission}' {absent(options.submission)}")
    problems.attempt(lambda: dataset.naming)
    problems.attempt(lambda: dataset.reading)
    problems.attempt(dataset.existing_folder, options.truth_dir or "test_masks", "truth_dir")


COMMAND = Command(__doc__, (ScoreOptions, DatasetOptions), run, validate)
