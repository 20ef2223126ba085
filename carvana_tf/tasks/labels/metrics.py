"""Metrics of labels, photo by photo in memory that does not grow with photos or classes.

Both are those of the 4th-place solution of the Inclusive Images Challenge
(azat-d/inclusive-images-challenge). Scores are taken as `scores` gives them: those of the best
classes of a photo, best first. Positive classes without a score count as missed.
"""

from typing import NamedTuple

import numpy as np

THRESHOLDS = np.arange(20, dtype=np.float64) / 20
"""Those that the best F2 is looked for at: 0, 0.05, …, 0.95."""


class PhotoScores(NamedTuple):
    """How well the labels of a photo are answered, each in 0..1.

    Attributes:
        precision: The share of the answered labels that is right; 1 where none is answered.
        recall: The share of the positive classes that is answered; 1 where there is none.
        f2: `5PR / (4P + R)`; 0 where both are 0.
    """

    precision: float
    recall: float
    f2: float


class BestF2(NamedTuple):
    """The best mean F2 and its threshold, of equal ones the lowest."""

    f2: float
    threshold: float


def of_answer(answered: np.ndarray, positives: np.ndarray) -> PhotoScores:
    """Precision, recall and F2 of the labels that are answered for a photo.

    Args:
        answered: Class ids, each once.
        positives: The classes that are right, in any order; repeats count once.
    """
    positives = np.unique(positives)
    right = np.isin(answered, positives).sum()
    values = _f2(right, np.array(len(answered)), len(positives))
    return PhotoScores(*(float(value) for value in values))


def per_photo(
    indices: np.ndarray, scores: np.ndarray, positives: np.ndarray, threshold: float
) -> PhotoScores:
    """Precision, recall and F2 of a photo's classes with `score > threshold` (in float32).

    Arguments and errors are those of `MeanF2.update`.
    """
    hits, scores, count = _hits(indices, scores, positives)
    answered = np.count_nonzero(scores > np.float32(threshold))
    values = _f2(hits[:answered].sum(), np.array(answered), count)
    return PhotoScores(*(float(value) for value in values))


class MeanF2:
    """The mean of F2 over photos, at each threshold.

    At a threshold the classes with `score > threshold` are answered, compared in float32. With
    `least` and `most` it is the best `least` at least and the best `most` at most, as
    `scores.choose` does; the published figure has no such bounds.
    """

    def __init__(
        self,
        thresholds: np.ndarray = THRESHOLDS,
        least: int = 0,
        most: int | None = None,
    ) -> None:
        """Starts with no photo.

        Args:
            thresholds: Ascending.
            least: Labels answered at least.
            most: Labels answered at most; None for any number.
        """
        self.thresholds = np.asarray(thresholds, np.float64)
        self.photos = 0
        self.bounds = least, most
        self._sums = np.zeros(len(self.thresholds))

    def update(self, indices: np.ndarray, scores: np.ndarray, positives: np.ndarray) -> None:
        """Adds a photo.

        Args:
            indices: `[k]`, class ids, each once, best first.
            scores: `float32[k]` in 0..1, of each.
            positives: The classes that are right, in any order; repeats count once.

        Raises:
            ValueError: Scores are not in 0..1 or not descending, or not as many as the ids.
        """
        hits, scores, count = _hits(indices, scores, positives)
        least, most = self.bounds
        above = np.count_nonzero(scores > self.thresholds.astype(np.float32)[:, None], axis=1)
        answered = np.clip(above, min(least, len(scores)), most)
        right = np.append(0, np.cumsum(hits))[answered]
        self._sums += _f2(right, answered, count)[2]
        self.photos += 1

    def merge(self, other: "MeanF2") -> None:
        """Adds the photos of another with the same thresholds and bounds.

        Raises:
            ValueError: It has others.
        """
        same = np.array_equal(self.thresholds, other.thresholds)
        if not same or self.bounds != other.bounds:
            raise ValueError("thresholds or bounds differ")
        self._sums += other._sums
        self.photos += other.photos

    def means(self) -> np.ndarray:
        """The mean F2 at each threshold, `float64[thresholds]`.

        Raises:
            ValueError: There was no photo.
        """
        if not self.photos:
            raise ValueError("no photo was added")
        return self._sums / self.photos

    def result(self) -> BestF2:
        """The best of `means`; errors as there."""
        means = self.means()
        best = int(np.argmax(means))
        return BestF2(float(means[best]), float(self.thresholds[best]))


# A bin of `GlobalAveragePrecision` is a range of the highest bits of the smaller one of a score
# and 1 - score: the exponent and 11 bits of the mantissa.
_DROPPED = 12
_HALF = int(np.float32(0.5).view(np.int32)) >> _DROPPED
_LOWEST = int(np.float32(2.0**-32).view(np.int32)) >> _DROPPED
_SIDE = _HALF - _LOWEST + 1  # bins from 0 to 0.5


class GlobalAveragePrecision:
    """Average precision of all scores of all photos in one ranking.

    The ranking has each pair of a photo and a class with a score, best first. The value is the
    sum, over the pairs that are right, of the precision down to there, divided by the positive
    classes of all photos. The published system sorts all pairs, equal scores in any order; here,
    as in scikit-learn's `average_precision_score`, equal scores are one place of the ranking,
    and each pair of it has the precision after all of them.

    Pairs are counted in 126,978 bins of scores (2 MB), which takes scores for equal that differ by
    less than 0.05 % of the score or, above 0.5, of what it lacks to 1; those under 2.3e-10 are one
    bin, too. That changed the values of a million scores of six distributions by up to 2e-5, also
    where all of them are within 0.01. Counts do not depend on the order of photos.
    """

    def __init__(self) -> None:
        """Starts with no photo."""
        self.positives = 0
        self._counts = np.zeros((2, 2 * _SIDE), np.int64)  # wrong pairs, right pairs

    def update(self, indices: np.ndarray, scores: np.ndarray, positives: np.ndarray) -> None:
        """Adds a photo; arguments and errors are those of `MeanF2.update`."""
        hits, scores, count = _hits(indices, scores, positives)
        np.add.at(self._counts, (hits.astype(np.intp), _bins(scores)), 1)
        self.positives += count

    def merge(self, other: "GlobalAveragePrecision") -> None:
        """Adds the photos of another."""
        self._counts += other._counts
        self.positives += other.positives

    def result(self) -> float:
        """The value in 0..1; 0 where no photo has a positive class."""
        right = self._counts[1, ::-1]
        total = np.cumsum(self._counts.sum(axis=0)[::-1])
        precision = np.cumsum(right) / np.maximum(total, 1)
        return float((right * precision).sum() / max(self.positives, 1))


def _bins(scores: np.ndarray) -> np.ndarray:
    """The bin of each score in 0..1, ascending with it; exact, as float32 has 1 - s above 0.5."""
    upper = scores > 0.5
    smaller = np.where(upper, np.float32(1.0) - scores, scores)
    side = np.maximum((smaller.view(np.int32) >> _DROPPED) - _LOWEST, 0)
    return np.where(upper, 2 * _SIDE - 1 - side, side)


def _f2(
    right: np.ndarray, answered: np.ndarray, positives: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F2 of counts, as `PhotoScores` has them."""
    precision = np.where(answered > 0, right / np.maximum(answered, 1), 1.0)
    recall = np.asarray(right / positives if positives else np.ones(answered.shape))
    weighted = 4.0 * precision + recall
    f2 = np.where(weighted > 0, 5.0 * precision * recall / np.maximum(weighted, 1e-300), 0.0)
    return precision, recall, f2


def _hits(
    indices: np.ndarray, scores: np.ndarray, positives: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Which classes are right, `bool[k]`, the scores in float32, and the number of positives."""
    scores = np.ascontiguousarray(scores, np.float32)
    if np.shape(indices) != scores.shape or scores.ndim != 1:
        raise ValueError(f"{np.shape(indices)} classes have {scores.shape} scores")
    # Written so that NaN fails, too.
    if not ((scores >= 0) & (scores <= 1)).all() or (scores[1:] > scores[:-1]).any():
        raise ValueError("scores must descend, in 0..1")
    positives = np.unique(positives)
    return np.isin(indices, positives), scores, len(positives)
