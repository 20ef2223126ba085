"""Scores of the contour: where two good masks of one object still differ.

Dice of a large object hardly notices a ragged edge; these do.
"""

import math

import numpy as np

from carvana_tf.masks.bands import border_band, contour, within

TOLERANCE = 2.0
COLUMNS = ("boundary_precision", "boundary_recall", "boundary_f", "band_dice")


def boundary_scores(
    truth: np.ndarray, prediction: np.ndarray, tolerance: float = TOLERANCE
) -> tuple[float, float, float]:
    """Precision, recall and F-score of the contour pixels.

    A contour pixel is right when the other mask has one within the tolerance (Csurka et
    al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013; as
    the DAVIS benchmark has it, Perazzi et al., CVPR 2016).

    Args:
        truth: `bool[H, W]`.
        prediction: `bool[H, W]`.
        tolerance: Euclidean distance in pixels; below 1 a share of the photo's
            diagonal, rounded up to whole pixels.

    Returns:
        Three numbers in 0..1. A mask without a contour has no wrong contour pixel:
        precision is 1 where the prediction has none, recall where the truth has none.
        So an empty and a full mask agree here, unlike in Dice: neither has a contour.
    """
    if tolerance < 1:
        tolerance = math.ceil(tolerance * math.hypot(*truth.shape))
    edge, called = contour(truth), contour(prediction)
    precision = _share(called, within(edge, tolerance))
    recall = _share(edge, within(called, tolerance))
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0


def band_dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Dice of two `bool[H, W]` masks in the band of +-10 pixels around the truth's contour.

    1 where the truth has no contour: nothing is asked there.
    """
    band = border_band(truth)
    inside, called = truth & band, prediction & band
    total = np.count_nonzero(inside) + np.count_nonzero(called)
    return 2 * np.count_nonzero(inside & called) / total if total else 1.0


def scores(truth: np.ndarray, prediction: np.ndarray, tolerance: float) -> tuple[float, ...]:
    """What is kept of one photo, in the order of `COLUMNS`."""
    return (*boundary_scores(truth, prediction, tolerance), band_dice(truth, prediction))


def _share(pixels: np.ndarray, right: np.ndarray) -> float:
    count = np.count_nonzero(pixels)
    return np.count_nonzero(pixels & right) / count if count else 1.0
