"""Ensemble weights that maximise the mean Dice, fitted on some photos and scored on others."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from carvana_tf.masks import combining

_STEPS = (0.2, 0.1, 0.05)
_BLOCK = 1 << 20  # rows widened to float32 at once


@dataclasses.dataclass(frozen=True)
class Photo:
    """What decides one photo's Dice under any weights.

    Where all K members are on one side of 127.5, so is every weighted mean; of the pixels
    on which they disagree, those with the same K values are one row.

    Attributes:
        values: `uint8[n, K]`, the different grey values of disagreeing pixels.
        pixels: `uint32[n]`, how many pixels have them.
        hits: `uint32[n]`, how many of these are object.
        agreed: Object pixels all call object (tp), all calls of object (tp + fp).
        objects: Object pixels of the whole photo (tp + fn).
    """

    values: np.ndarray
    pixels: np.ndarray
    hits: np.ndarray
    agreed: tuple[int, int]
    objects: int


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


def observe(greys: Sequence[np.ndarray], truth: np.ndarray) -> Photo:
    """Reduces one photo of K masks `uint8[H, W]` and truth `bool[H, W]`."""
    votes = np.zeros(truth.shape, np.int32)
    for grey in greys:
        votes += grey > 127
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
    )


def dice(photos: Sequence[Photo], weights: Sequence[float]) -> np.ndarray:
    """`float64[N]`, the Dice of each photo's mean as `combining.combine` makes it."""
    return _Table(photos).dice(weights)


def fit(photos: Sequence[Photo]) -> list[float]:
    """Weights on the simplex that maximise the mean Dice.

    From equal weights, the best transfer of 0.2 between two members is made as long as
    the mean Dice grows; then of 0.1, then of 0.05. The first of equally good ones wins,
    so the result depends on nothing but the photos.
    """
    table = _Table(photos)
    count = photos[0].values.shape[1]
    weights = [1 / count] * count
    best = float(table.dice(weights).mean())
    for step in _STEPS:
        while True:
            moves = [
                _transfer(weights, i, j, step)
                for i in range(count)
                for j in range(count)
                if i != j and weights[i] > 0
            ]
            scores = [float(table.dice(move).mean()) for move in moves]
            if not scores or max(scores) <= best + 1e-9:
                break
            best = max(scores)
            weights = moves[scores.index(best)]
    return weights


def cross_fit(photos: Sequence[Photo], folds: Sequence[int]) -> Fit:
    """Fits on all photos, and for each fold on the others.

    Args:
        photos: N observed photos.
        folds: The fold of each; at least two different ones.

    Raises:
        ValueError: There are fewer than two folds.
    """
    numbers = sorted(set(folds))
    if len(numbers) < 2:
        raise ValueError("cross-fitting needs two folds")
    by_fold, scores = {}, []
    for number in numbers:
        pairs = list(zip(photos, folds, strict=True))
        by_fold[number] = fit([photo for photo, fold in pairs if fold != number])
        scores.append(dice([p for p, fold in pairs if fold == number], by_fold[number]))
    deployed = fit(photos)
    equal = [1.0] * len(deployed)
    return Fit(
        deployed,
        by_fold,
        float(dice(photos, equal).mean()),
        float(dice(photos, deployed).mean()),
        float(np.concatenate(scores).mean()),
    )


class _Table:
    """All photos' rows in one array, so that a Dice of all is a few array operations."""

    def __init__(self, photos: Sequence[Photo]) -> None:
        self._values = np.concatenate([p.values for p in photos])
        self._pixels = np.concatenate([p.pixels for p in photos])
        self._hits = np.concatenate([p.hits for p in photos])
        self._photo = np.repeat(np.arange(len(photos)), [len(p.pixels) for p in photos])
        self._agreed = np.array([p.agreed for p in photos], float)
        self._objects = np.array([p.objects for p in photos], float)

    def dice(self, weights: Sequence[float]) -> np.ndarray:
        units = np.array(combining.units(weights, len(weights)), np.float32)
        hits, calls = self._agreed.T.copy()
        for start in range(0, len(self._values), _BLOCK):
            block = slice(start, start + _BLOCK)
            # Whole numbers below 2^24, exact in float32; grey from 127.5 on is object.
            called = 2 * (self._values[block].astype(np.float32) @ units) >= 255 * units.sum()
            for total, counts in ((hits, self._hits), (calls, self._pixels)):
                photo, weight = self._photo[block][called], counts[block][called]
                total += np.bincount(photo, weight, len(total))
        whole = calls + self._objects
        return np.divide(2 * hits, whole, out=np.ones(len(whole)), where=whole > 0)


def _transfer(weights: Sequence[float], source: int, target: int, step: float) -> list[float]:
    moved = min(step, weights[source])
    changed = list(weights)
    changed[source] -= moved
    changed[target] += moved
    return [round(weight, 9) for weight in changed]
