"""Losses from how much of target and prediction overlap."""

from typing import Any

from keras import ops

from carvana_tf.tasks.masks.losses.parts import PIXELS, float32


def dice_coefficient(y_true: Any, y_pred: Any, smooth: float = 1.0) -> Any:
    """Soft Dice per photo: `(2 * sum(t * p) + smooth) / (sum(t) + sum(p) + smooth)`.

    As the 4th-place and AlbertoSabater's solutions. With both empty it is 1, and never more; the
    1st-place solution's `2 * (sum(t * p) + 1) / (sum(t) + sum(p) + 1)` goes up to 2.

    Returns:
        `float32[B]` in 0..1.
    """
    overlap, target, prediction = _areas(*float32(y_true, y_pred))
    return (2.0 * overlap + smooth) / (target + prediction + smooth)


def dice(y_true: Any, y_pred: Any, *, smooth: float = 1.0) -> Any:
    """`1 - soft Dice`, as the 4th-place solution."""
    return 1.0 - dice_coefficient(y_true, y_pred, smooth)


def jaccard(y_true: Any, y_pred: Any, *, smooth: float = 1.0) -> Any:
    """`1 - (I + smooth) / (sum(t) + sum(p) - I + smooth)`, `I = sum(t * p)`.

    The soft Jaccard index, which AlbertoSabater proposes and no solution has.
    """
    overlap, target, prediction = _areas(*float32(y_true, y_pred))
    return 1.0 - (overlap + smooth) / (target + prediction - overlap + smooth)


def tversky(
    y_true: Any, y_pred: Any, *, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0
) -> Any:
    """`1 - (I + smooth) / (I + alpha * FP + beta * FN + smooth)`.

    `I = sum(t * p)`, `FP = sum((1 - t) * p)`, `FN = sum(t * (1 - p))`; Salehi et al. 2017,
    "Tversky loss function for image segmentation using 3D fully convolutional deep
    networks", with their best alpha and beta. Smoothing is added for empty masks.
    """
    overlap, target, prediction = _areas(*float32(y_true, y_pred))
    wrong = alpha * (prediction - overlap) + beta * (target - overlap)
    return 1.0 - (overlap + smooth) / (overlap + wrong + smooth)


def _areas(y_true: Any, y_pred: Any) -> tuple[Any, Any, Any]:
    """Per photo: of the overlap, of the target, of the prediction."""
    overlap = ops.sum(y_true * y_pred, axis=PIXELS)
    return overlap, ops.sum(y_true, axis=PIXELS), ops.sum(y_pred, axis=PIXELS)
