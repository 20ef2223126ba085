"""Ensemble weights that maximise the mean Dice, fitted on some photos and scored on others."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd

from carvana_tf.data import bad_files, names
from carvana_tf.data.dataset import Naming, list_masks
from carvana_tf.data.folds import by_id, find_folds
from carvana_tf.data.images import Reading, UnreadableImage, read_grey, read_mask, resize
from carvana_tf.data.mask_values import all_empty
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError
from carvana_tf.evaluation.counts import dice_from_counts
from carvana_tf.interrupt import interruptible
from carvana_tf.masks import combining
from carvana_tf.masks.ensembling import EnsemblePlan, Weights
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

_STEPS = (0.2, 0.1, 0.05)
_CELLS = 1 << 20  # rows times weightings in memory at once


@dataclasses.dataclass(frozen=True)
class Photo:
    """What decides one photo's Dice under any weights.

    Where all K members are on one side of the threshold, so is every weighted mean; of the
    pixels on which they disagree, those with the same K values are one row.

    Attributes:
        values: `uint8[n, K]`, the different grey values of disagreeing pixels.
        pixels: `uint32[n]`, how many pixels have them.
        hits: `uint32[n]`, how many of these are object.
        agreed: Object pixels all call object (tp), all calls of object (tp + fp).
        objects: Object pixels of the whole photo (tp + fn).
        threshold: 0..254; a greater grey value is object.
    """

    values: np.ndarray
    pixels: np.ndarray
    hits: np.ndarray
    agreed: tuple[int, int]
    objects: int
    threshold: int


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fitted weights and the mean Dice they give.

    Attributes:
        deployed: `[K]`, fitted on every photo.
        by_fold: `[K]` of each fold, fitted on the other folds.
        equal: Mean Dice of equal weights.
        naive: Mean Dice of `deployed`, on the photos it was fitted on.
        cross_fitted: Mean Dice where each photo has its fold's weights.
    """

    deployed: list[float]
    by_fold: dict[int, list[float]]
    equal: float
    naive: float
    cross_fitted: float


def observe(
    greys: Sequence[np.ndarray], truth: np.ndarray, threshold: int = DEFAULT_THRESHOLD
) -> Photo:
    """Reduces one photo of K masks `uint8[H, W]` and truth `bool[H, W]`."""
    votes = np.zeros(truth.shape, np.int32)
    for grey in greys:
        votes += grey > threshold
    everyone = votes == len(greys)
    where = np.flatnonzero((votes > 0) & ~everyone)
    disagreeing = np.stack([grey.ravel()[where] for grey in greys], axis=-1)
    values, row, pixels = np.unique(disagreeing, axis=0, return_inverse=True, return_counts=True)
    hits = np.bincount(row[truth.ravel()[where]], minlength=len(values))
    return Photo(
        values,
        pixels.astype(np.uint32),
        hits.astype(np.uint32),
        (int(np.count_nonzero(everyone & truth)), int(np.count_nonzero(everyone))),
        int(np.count_nonzero(truth)),
        threshold,
    )


class Observed:
    """Observed photos; all but a few numbers of each is kept in a file.

    All are added before the first Dice is asked for.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._row = np.dtype([])
        self._agreed: list[tuple[int, int]] = []
        self._objects: list[int] = []
        self._threshold = DEFAULT_THRESHOLD

    @property
    def members(self) -> int:
        """K, once a photo was added."""
        return self._row["values"].shape[0]

    def add(self, photo: Photo) -> None:
        """Keeps one more photo; each has the same K and threshold."""
        if not self._objects:
            members = (photo.values.shape[1],)
            self._threshold = photo.threshold
            self._row = np.dtype(
                [("values", "u1", members), ("pixels", "u4"), ("hits", "u4"), ("photo", "u4")]
            )
        rows = np.empty(len(photo.pixels), self._row)
        rows["values"], rows["pixels"], rows["hits"] = photo.values, photo.pixels, photo.hits
        rows["photo"] = len(self._objects)
        self._file.write(rows.tobytes())
        self._agreed.append(photo.agreed)
        self._objects.append(photo.objects)

    def dice(self, weights: Sequence[Sequence[float]]) -> np.ndarray:
        """`float64[M, N]`, for M weightings the Dice of each photo's mean.

        The mean is as `combining.combine` makes it.
        """
        units = np.array([combining.units(w, len(w)) for w in weights], np.float32)
        # The mean is rounded half up: it is greater than t from t + 1/2 on.
        least = (2 * self._threshold + 1) * units.sum(axis=1, keepdims=True)
        hits, calls = np.tile(np.array(self._agreed, float).T[:, np.newaxis], (len(weights), 1))
        block = max(1, _CELLS // len(weights))
        self._file.seek(0)
        while data := self._file.read(block * self._row.itemsize):
            rows = np.frombuffer(data, self._row)
            # Whole numbers below 2^24, exact in float32.
            called = 2 * units @ rows["values"].T.astype(np.float32) >= least
            starts = np.flatnonzero(np.diff(rows["photo"], prepend=-1))
            for total, name in ((hits, "hits"), (calls, "pixels")):
                counts = np.where(called, rows[name], np.uint32(0))
                total[:, rows["photo"][starts]] += np.add.reduceat(counts, starts, axis=1)
        return dice_from_counts(hits, calls + self._objects)


def fit(parts: Sequence[Observed]) -> list[float]:
    """Weights on the simplex that maximise the mean Dice of all photos.

    From equal weights, the best transfer of 0.2 between two members is made as long as
    the mean Dice grows; then of 0.1, then of 0.05. The first of equally good ones wins,
    so the result depends on nothing but the photos.
    """
    count = parts[0].members
    weights = [1 / count] * count
    (best,) = _mean_dice(parts, [weights])
    for step in _STEPS:
        while True:
            moves = [
                _transfer(weights, i, j, step)
                for i in range(count)
                for j in range(count)
                if i != j and weights[i] > 0
            ]
            scores = _mean_dice(parts, moves) if moves else [best]
            if max(scores) <= best + 1e-9:
                break
            best = max(scores)
            weights = moves[scores.index(best)]
    return weights


def cross_fit(photos: Iterable[Photo], folds: Sequence[int]) -> Fit:
    """Fits on all photos, and for each fold on the others.

    Args:
        photos: N observed photos, gone through once.
        folds: The fold of each; at least two different ones.

    Raises:
        ValueError: There are fewer than two folds.
    """
    numbers = sorted(set(folds))
    if len(numbers) < 2:
        raise ValueError("cross-fitting needs two folds")
    with contextlib.ExitStack() as stack:
        parts = {n: Observed(stack.enter_context(tempfile.TemporaryFile())) for n in numbers}
        for photo, fold in zip(photos, folds, strict=True):
            parts[fold].add(photo)
        by_fold = {n: fit([parts[other] for other in numbers if other != n]) for n in numbers}
        scores = [parts[n].dice([by_fold[n]]) for n in numbers]
        everything = list(parts.values())
        deployed = fit(everything)
        equal, naive = _mean_dice(everything, [[1.0] * len(deployed), deployed])
        return Fit(deployed, by_fold, equal, naive, float(np.concatenate(scores, axis=1).mean()))


def fit_members(
    plan: EnsemblePlan,
    truth_dir: Path,
    folds: pd.DataFrame,
    naming: Naming,
    reading: Reading,
    threshold: int,
    threads: int,
    target: Path,
) -> tuple[Weights, Fit, int]:
    """Fits the weights of an ensemble's members on the photos of its masks with ground truth.

    Args:
        plan: The members; their masks must be out of fold.
        truth_dir: Folder of the ground-truth masks.
        folds: The folds file.
        naming: How photos and masks are named.
        reading: How masks are read.
        threshold: 0..254, a greater grey value is object.
        threads: That read masks.
        target: Folder that gets the list of masks that cannot be read.

    Returns:
        For each photo of a fold the weights that were fitted on the other folds, for all others
        those of all folds; how well they do; and the number of photos they were fitted on.

    Raises:
        UserError: There are not photos of two folds with ground truth, or masks cannot be read.
    """
    truths = names.rekey(list_masks(truth_dir, naming), plan.stems, f"'{truth_dir}'")
    known = find_folds({stem: naming.group(stem) for stem in plan.stems}, by_id(folds))
    stems = [s for s in known if s in truths and len(plan.files(s)) == len(plan.members)]
    count = len({known[stem] for stem in stems})
    if count < 2:
        raise UserError(
            f"--fit_weights needs photos of two folds with ground truth, found {len(stems)} of "
            f"{count}; see --dataset_dir and --folds_source."
        )
    bad: list[tuple[str, str]] = []
    objects = []

    def read(stem: str) -> Photo:
        try:
            truth = read_mask(truths[stem], reading)
            greys = [resize(read_grey(path), *truth.shape) for _, path in plan.files(stem)]
        except UnreadableImage as error:  # all are found before the fit is given up
            bad.append((f"{stem}.png", str(error)))
            truth = np.zeros((1, 1), bool)
            greys = [truth.view(np.uint8)] * len(plan.members)
        objects.append(np.count_nonzero(truth))
        return observe(greys, truth, threshold)

    photos = interruptible(ordered_map(read, stems, threads))
    shown = bar(photos, total=len(stems), desc="fitting weights", unit="photo")
    fitted = cross_fit(shown, [known[stem] for stem in stems])
    if bad:
        # Weights fitted without them would be others once they are there.
        raise UserError(bad_files.describe(bad, target, "weights are fitted"))
    if not any(objects):
        raise all_empty(len(stems), "ground-truth masks")
    by_photo = {s: fitted.by_fold[fold] for s, fold in known.items() if fold in fitted.by_fold}
    return Weights(fitted.deployed, by_photo, dataclasses.asdict(fitted)), fitted, len(stems)


def _mean_dice(parts: Sequence[Observed], weights: Sequence[Sequence[float]]) -> list[float]:
    """`[M]`, over all photos of all parts."""
    return np.concatenate([part.dice(weights) for part in parts], axis=1).mean(axis=1).tolist()


def _transfer(weights: Sequence[float], source: int, target: int, step: float) -> list[float]:
    moved = min(step, weights[source])
    changed = list(weights)
    changed[source] -= moved
    changed[target] += moved
    return [round(weight, 9) for weight in changed]
