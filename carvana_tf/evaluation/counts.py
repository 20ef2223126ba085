"""Sufficient statistics: two grey histograms per photo give every score at every threshold.

The rule everywhere: a pixel is object where its grey value is greater than the
threshold, for thresholds 0..255; `round(255p) > 127` is `p >= 0.5`.
"""

import dataclasses

import cv2
import numpy as np
from numpy.typing import ArrayLike

THRESHOLDS = np.arange(256)

# cv2.calcHist counts in float32, which is exact up to here.
_EXACT = 1 << 24


@dataclasses.dataclass(frozen=True)
class Counts:
    """What is known of N photos; every property is `[N, 256]`, one column per threshold.

    Attributes:
        background: `int64[N, 256]`, pixels of each grey value where the truth is background.
        foreground: The same where the truth is object.
    """

    background: np.ndarray
    foreground: np.ndarray

    @property
    def tp(self) -> np.ndarray:
        """Object pixels called object."""
        return _above(self.foreground)

    @property
    def fp(self) -> np.ndarray:
        """Background pixels called object."""
        return _above(self.background)

    @property
    def fn(self) -> np.ndarray:
        """Object pixels called background."""
        return self.foreground.cumsum(-1)

    @property
    def tn(self) -> np.ndarray:
        """Background pixels called background."""
        return self.background.cumsum(-1)

    @property
    def dice(self) -> np.ndarray:
        """`2 tp / (2 tp + fp + fn)`, 1 where truth and prediction are both empty."""
        tp = self.tp
        return dice_from_counts(tp, 2 * tp + self.fp + self.fn)

    @property
    def iou(self) -> np.ndarray:
        """`tp / (tp + fp + fn)`, 1 where truth and prediction are both empty."""
        tp = self.tp
        return ratio(tp, tp + self.fp + self.fn)

    @property
    def accuracy(self) -> np.ndarray:
        """`(tp + tn) / pixels`: the share of pixels that are right."""
        right = self.tp + self.tn
        return right / (right + self.fp + self.fn)

    @property
    def precision(self) -> np.ndarray:
        """`tp / (tp + fp)`, 1 where nothing was predicted."""
        tp = self.tp
        return ratio(tp, tp + self.fp)

    @property
    def recall(self) -> np.ndarray:
        """`tp / (tp + fn)`, 1 where the truth is empty."""
        tp = self.tp
        return ratio(tp, tp + self.fn)


def histograms(grey: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grey histograms of one photo, one of the background and one of the object.

    Args:
        grey: `uint8[H, W]`, `round(255p)`.
        truth: `bool[H, W]`.

    Returns:
        Two `int64[256]`: where the truth is background, and where it is object.
    """
    rows = max(1, _EXACT // grey.shape[1])
    counts = np.zeros((256, 2), np.int64)
    for top in range(0, grey.shape[0], rows):
        strip = [grey[top : top + rows], truth[top : top + rows].view(np.uint8)]
        counts += cv2.calcHist(strip, [0, 1], None, [256, 2], [0, 256, 0, 2]).astype(np.int64)
    return counts[:, 0], counts[:, 1]


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice of two `bool[...]` masks: `2 |A and B| / (|A| + |B|)`, 1 where both are empty."""
    total = np.count_nonzero(first) + np.count_nonzero(second)
    return float(dice_from_counts(np.count_nonzero(first & second), total))


def dice_from_counts(overlap: ArrayLike, total: ArrayLike) -> np.ndarray:
    """Dice: `2 overlap / total`, 1 where both masks are empty.

    Args:
        overlap: Object pixels that two masks share (tp), or the sum of a mask's probabilities.
        total: Object pixels of the one and of the other (2 tp + fp + fn), of the same shape.
    """
    return ratio(np.multiply(2, overlap), total)


def ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    """`part / whole`, both of one shape, 1 where `whole` is 0."""
    whole = np.asarray(whole)
    return np.divide(part, whole, out=np.ones(whole.shape), where=whole > 0)


def _above(histogram: np.ndarray) -> np.ndarray:
    return histogram.sum(-1, keepdims=True) - histogram.cumsum(-1)
