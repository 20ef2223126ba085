"""Scores of a submission's rows; of each row only a few numbers are kept."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from carvana_tf.data import names
from carvana_tf.data.dataset import Naming
from carvana_tf.data.images import AS_DECLARED, Reading, read_mask
from carvana_tf.data.mask_values import all_empty
from carvana_tf.errors import UserError
from carvana_tf.evaluation import boundary, scores
from carvana_tf.evaluation.counts import Counts, dice
from carvana_tf.evaluation.pairs import view
from carvana_tf.masks import rle
from carvana_tf.masks.submission import read_rows
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

PROBED = 100


@dataclasses.dataclass(frozen=True)
class ScoredRows:
    """What became of a submission.

    Attributes:
        photos: From `scores.per_photo`, in the order of the rows.
        without_truth: Images of rows that have no ground-truth mask.
        without_row: Stems of ground-truth masks that have no row.
        other_order: Mean Dice of the first `PROBED` rows as they were read, and as the other
            of `rle.ORDERS` has them.
    """

    photos: pd.DataFrame
    without_truth: list[str]
    without_row: list[str]
    other_order: tuple[float, float]


def score(
    path: Path,
    truths: Mapping[str, Path],
    naming: Naming,
    *,
    tolerance: float = boundary.TOLERANCE,
    threads: int = 4,
    order: str = rle.ROWS,
    reading: Reading = AS_DECLARED,
) -> ScoredRows:
    """Decodes every row and scores it at the size of its truth.

    Args:
        path: A submission, as of `submission.read_rows`.
        truths: Masks by the stem of their photo.
        naming: Gives the group of a stem.
        tolerance: Of the contour, see `boundary.boundary_scores`.
        threads: Threads that decode and measure.
        order: How pixels are counted, one of `rle.ORDERS`.
        reading: How the truth is understood.

    Raises:
        UserError: The file is damaged or has an image twice, a mask is unreadable, run
            lengths do not fit their truth, or no row has a truth.
    """

    # Read twice: matching needs all names, and all run lengths would not fit into memory.
    other = next(name for name in rle.ORDERS if name != order)
    probes: list[tuple[float, float]] = []
    stem_of = names.match((image for image, _ in read_rows(path)), truths, f"'{path}'")

    probed = set(itertools.islice(stem_of, PROBED))

    def work(row: tuple[str, str]) -> tuple[str, np.ndarray] | str:
        image, text = row
        stem = stem_of.get(image)
        if stem is None:
            return image
        truth = read_mask(truths[stem], reading)
        height, width = truth.shape
        try:
            called = rle.decode(text, height, width, order)
        except UserError as error:
            raise UserError(f"'{image}' of '{path}': {error}") from error
        if image in probed:
            turned = rle.decode(text, height, width, other)
            probes.append((dice(called, truth), dice(turned, truth)))
        object_pixels, right = np.count_nonzero(truth), np.count_nonzero(truth & called)
        extra = np.count_nonzero(called) - right
        pixels = (truth.size - object_pixels - extra, extra, object_pixels - right, right)
        # One small array, not eight Python numbers: there may be a hundred thousand rows.
        return stem, np.array([*pixels, *boundary.scores(truth, called, tolerance)])

    results = ordered_map(work, read_rows(path), threads)
    found = list(bar(results, total=len(truths), desc="scoring rows", unit="row"))
    without_truth = [result for result in found if isinstance(result, str)]
    parts = [result for result in found if not isinstance(result, str)]
    if not parts:
        raise UserError(
            f"no row of '{path}' has a ground-truth mask (the first row is "
            f"'{without_truth[0]}', the first mask that of '{min(truths)}'); name the ground truth "
            "of these photos with --truth_dir, or see --mask_suffix."
        )
    stems = [stem for stem, _ in parts]
    values = np.stack([row for _, row in parts])
    # A mask of two values is a histogram of two bins: threshold 0 parts them.
    pixels = values[:, :4].astype(np.int64)
    if not pixels[:, 2:].any():
        raise all_empty(len(parts), "ground-truth masks")
    photos = scores.per_photo(
        stems,
        [naming.group(stem) for stem in stems],
        [None] * len(stems),
        Counts(pixels[:, :2], pixels[:, 2:]),
        0,
        views=[view(stem, naming) for stem in stems],
        contours=values[:, 4:],
    )
    here, there = np.mean(probes, axis=0)
    without_row = sorted(set(truths) - set(stems))
    return ScoredRows(photos, without_truth, without_row, (float(here), float(there)))
