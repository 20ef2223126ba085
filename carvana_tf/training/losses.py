"""Losses on probabilities, one value per photo, computed in float32.

Every loss takes `y_true` and `y_pred` of shape `[B, H, W, 1]` with values in 0..1
(truth may be soft where a mask was resized) and returns `float32[B]`.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from carvana_tf.errors import unknown_name

Loss = Callable[[Any, Any], Any]

_EPSILON = 1e-7
_PIXELS = (1, 2, 3)


def dice_coefficient(y_true: Any, y_pred: Any, smooth: float = 1.0) -> Any:
    """Soft Dice per photo: `(2 * sum(t * p) + smooth) / (sum(t) + sum(p) + smooth)`.

    With both empty it is 1. Unlike the published systems' it is not pooled over the
    batch, so a photo weighs the same whatever else its batch holds.

    Returns:
        `float32[B]` in 0..1.
    """
    y_true, y_pred = _float32(y_true), _float32(y_pred)
    overlap = ops.sum(y_true * y_pred, axis=_PIXELS)
    total = ops.sum(y_true, axis=_PIXELS) + ops.sum(y_pred, axis=_PIXELS)
    return (2.0 * overlap + smooth) / (total + smooth)


def dice(y_true: Any, y_pred: Any) -> Any:
    """1 - soft Dice."""
    return 1.0 - dice_coefficient(y_true, y_pred)


def crossentropy(y_true: Any, y_pred: Any) -> Any:
    """Binary cross-entropy in nats, mean over the pixels of each photo.

    Probabilities are cut off at 1e-7, so one pixel costs at most 16.1.
    """
    y_true, y_pred = _float32(y_true), _float32(y_pred)
    # Both logarithms are cut off by themselves: 1 - 1e-7 is not exact in float32.
    certain = ops.log(ops.maximum(y_pred, _EPSILON))
    doubtful = ops.log(ops.maximum(1.0 - y_pred, _EPSILON))
    return -ops.mean(y_true * certain + (1.0 - y_true) * doubtful, axis=_PIXELS)


def bce_dice(y_true: Any, y_pred: Any) -> Any:
    """0.2 * cross-entropy + 0.8 * (1 - soft Dice), the 4th-place team's main loss."""
    return 0.2 * crossentropy(y_true, y_pred) + 0.8 * dice(y_true, y_pred)


LOSSES: dict[str, Loss] = {"bce_dice": bce_dice, "dice": dice, "crossentropy": crossentropy}


def get(name: str) -> Loss:
    """The loss of that name.

    Raises:
        UserError: There is none; the nearest name is suggested.
    """
    if name not in LOSSES:
        raise unknown_name("--loss_function", name, LOSSES)
    return LOSSES[name]


def _float32(values: Any) -> Any:
    return ops.cast(values, "float32")
