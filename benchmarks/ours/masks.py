"""Submission and ensemble."""

from pathlib import Path

import cv2

from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.files import make_folder
from carvana_tf.masks import ensembling, rle, submission
from carvana_tf.masks.folder import open_folder
from carvana_tf.threads import ordered_map
from harness import Rounds


def encode(rounds: Rounds, folder: str, threads: int, work: str) -> None:
    """PNGs to a verified `.csv.gz`."""
    target = Path(work) / "submission.csv.gz"
    rows = submission.rows_of_folder(Path(folder), ".jpg")
    for _ in rounds:
        submission.write(target, rows, threads)


def run_lengths(rounds: Rounds, folder: str, count: int, times: int) -> None:
    """The first masks of a folder, in memory, to the texts of a submission, `times` times."""
    paths = sorted(Path(folder).iterdir())[:count]
    masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > DEFAULT_THRESHOLD for path in paths]
    for _ in rounds:
        for mask in masks * times:
            rle.encode_text(mask)


def ensemble(
    rounds: Rounds, folders: tuple[str, ...], strategy: str, threads: int, out: str
) -> None:
    """PNGs of several folders to one folder of PNGs, as `ensemble.py` does it."""
    plan = ensembling.plan([open_folder(Path(folder)) for folder in folders])
    target = make_folder(Path(out))
    weights = [1.0 + 0.1 * i for i in range(len(folders))] if strategy == "weighted mean" else None
    method = "mean" if weights else strategy

    def one(stem: str) -> None:
        ensembling.combine_photo(plan, stem, target, method, weights)

    for _ in rounds:
        for _ in ordered_map(one, plan.stems, threads):
            pass
