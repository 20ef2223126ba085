"""Scores of one photo at its own size, in NumPy: what validation reports.

Names are those of the 4th-place system; all are per photo, both-empty Dice is 1.
"""

import cv2
import numpy as np

# 21 x 21 windows: 10 pixels on each side of the contour, as published.
_BAND = np.ones((21, 21), np.uint8)
_EPSILON = 1e-7


def hard_dice(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Dice of two `bool[H, W]` masks: `2 |A and B| / (|A| + |B|)`, both empty = 1."""
    total = int(truth.sum()) + int(prediction.sum())
    return 2.0 * int((truth & prediction).sum()) / total if total else 1.0


def soft_dice(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Dice with smoothing 1 of probabilities `float32[...]` and truth `bool[...]`."""
    overlap = float(probabilities[truth].sum(dtype=np.float64))
    total = float(truth.sum()) + float(probabilities.sum(dtype=np.float64))
    return (2.0 * overlap + 1.0) / (total + 1.0)


def border_band(truth: np.ndarray) -> np.ndarray:
    """`bool[H, W]`: pixels within 10 of the contour, measured in the maximum norm."""
    grey = truth.astype(np.uint8)
    near_object, near_rest = cv2.dilate(grey, _BAND), cv2.dilate(1 - grey, _BAND)
    return np.logical_and(near_object, near_rest)


def photo_metrics(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """All scores of one photo.

    Args:
        truth: `bool[H, W]`.
        probabilities: `float32[H, W]` in 0..1.

    Returns:
        `dice` (hard, at 0.5), `dice_coef` (soft), `dice_coef_border` (soft, in the
        band), `dice_coef_clipped` (hard, in percent) and `binary_crossentropy` (nats).
    """
    band = border_band(truth)
    hard = hard_dice(truth, probabilities > 0.5)
    right = np.where(truth, probabilities, 1.0 - probabilities)
    return {
        "dice": hard,
        "dice_coef": soft_dice(truth, probabilities),
        "dice_coef_border": soft_dice(truth[band], probabilities[band]),
        "dice_coef_clipped": 100.0 * hard,
        "binary_crossentropy": float(-np.log(np.clip(right, _EPSILON, 1.0)).mean()),
    }
