"""Scores of one photo at its own size, in NumPy: what validation reports.

Names are those of the 4th-place system; all are per photo, both-empty Dice is 1.
"""

import numpy as np

from carvana_tf.evaluation.boundary import border_band
from carvana_tf.evaluation.counts import dice

_EPSILON = 1e-7
_ROWS = 256


def soft_dice(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Dice with smoothing 1 of probabilities `float32[...]` and truth `bool[...]`."""
    overlap = float(probabilities[truth].sum(dtype=np.float64))
    total = float(truth.sum()) + float(probabilities.sum(dtype=np.float64))
    return (2.0 * overlap + 1.0) / (total + 1.0)


def photo_metrics(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """All scores of one photo.

    Args:
        truth: `bool[H, W]`.
        probabilities: `float32[H, W]` in 0..1.

    Returns:
        `dice` and `accuracy` (hard, at 0.5), `dice_coef` (soft), `dice_coef_border` (soft, in the
        band), `dice_coef_clipped` (hard, in percent) and `binary_crossentropy` (nats).
    """
    band = border_band(truth)
    called = probabilities >= 0.5  # as `round(255p) > 127` of saved masks
    hard = dice(truth, called)
    return {
        "dice": hard,
        "accuracy": float((truth == called).mean()),
        "dice_coef": soft_dice(truth, probabilities),
        "dice_coef_border": soft_dice(truth[band], probabilities[band]),
        "dice_coef_clipped": 100.0 * hard,
        "binary_crossentropy": _crossentropy(truth, probabilities),
    }


def _crossentropy(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean over pixels, in nats; a few rows at a time, as photos may be huge."""
    total = 0.0
    for start in range(0, len(truth), _ROWS):
        values = probabilities[start : start + _ROWS]
        right = np.where(truth[start : start + _ROWS], values, 1.0 - values)
        total -= float(np.log(np.clip(right, _EPSILON, 1.0)).sum(dtype=np.float64))
    return total / truth.size
