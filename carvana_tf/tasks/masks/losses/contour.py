"""Losses in which pixels near the contour count more."""

from typing import Any

from keras import ops

from carvana_tf.tasks.masks.losses import boundaries
from carvana_tf.tasks.masks.losses.overlap import dice
from carvana_tf.tasks.masks.losses.parts import PIXELS, float32, pixel_crossentropy


def dice_coef_loss_border(
    y_true: Any, y_pred: Any, *, border_weight: float = 0.05, dice_weight: float = 0.95
) -> Any:
    """`border_weight * (1 - soft Dice in the band) + dice_weight * (1 - soft Dice)`.

    As the 4th-place solution; the band is `boundaries.border_band`. Without a contour the
    first term is 0.
    """
    y_true, y_pred = float32(y_true, y_pred)
    band = boundaries.border_band(y_true)
    return border_weight * dice(y_true * band, y_pred * band) + dice_weight * dice(y_true, y_pred)


def bce_dice_loss_border(
    y_true: Any, y_pred: Any, *, border_weight: float = 0.05, dice_weight: float = 0.95
) -> Any:
    """`border_weight * mean cross-entropy in the band + dice_weight * (1 - soft Dice)`.

    As the 4th-place solution; the band is `boundaries.border_band`. Without a contour the
    first term is 0, not 0 / 0.
    """
    y_true, y_pred = float32(y_true, y_pred)
    band = boundaries.border_band(y_true)
    cost = ops.sum(band * pixel_crossentropy(y_true, y_pred), axis=PIXELS)
    border = cost / ops.maximum(ops.sum(band, axis=PIXELS), 1.0)
    return border_weight * border + dice_weight * dice(y_true, y_pred)


def weighted_bce_dice(y_true: Any, y_pred: Any, *, boundary_weight: float = 3.0) -> Any:
    """`mean(w * cross-entropy) + 1 - (2 * sum(w² t p) + 1) / (sum(w² t) + sum(w² p) + 1)`.

    As the 1st-place solution; `w` is `boundaries.boundary_weights`, for any height and without
    the zeros beyond the photo's edge. Published `2 * (sum + 1)` can exceed 1; this Dice cannot.
    """
    cost, overlap = _weighted_parts(y_true, y_pred, boundary_weight)
    return cost + 1.0 - overlap


def weighted_log_dice(y_true: Any, y_pred: Any, *, boundary_weight: float = 3.0) -> Any:
    """`mean(w * cross-entropy) - log(weighted soft Dice)`: both parts as `weighted_bce_dice` has.

    `is_log_dice` of the 1st-place solution with its weighted loss; with `boundary_weight` 1 it is
    `log_dice`.
    """
    cost, overlap = _weighted_parts(y_true, y_pred, boundary_weight)
    return cost - ops.log(overlap)


def distance_weighted(
    y_true: Any, y_pred: Any, *, strength: float = 10.0, sigma: float = 10.0
) -> Any:
    """`mean(w * cross-entropy) + 1 - soft Dice`, with `w` = `boundaries.distance_weights`.

    As sohyongsheng's solution. Its Dice has no smoothing and is 0 / 0 for an empty mask; this one
    has smoothing 1.
    """
    y_true, y_pred = float32(y_true, y_pred)
    weights = boundaries.distance_weights(y_true, strength, sigma)
    cost = ops.mean(weights * pixel_crossentropy(y_true, y_pred), axis=PIXELS)
    return cost + dice(y_true, y_pred)


def _weighted_parts(y_true: Any, y_pred: Any, boundary_weight: float) -> tuple[Any, Any]:
    """Cross-entropy and soft Dice of each photo with `boundaries.boundary_weights`."""
    y_true, y_pred = float32(y_true, y_pred)
    weights = boundaries.boundary_weights(y_true, boundary_weight)
    cost = ops.mean(weights * pixel_crossentropy(y_true, y_pred), axis=PIXELS)
    squares = weights * weights
    overlap = ops.sum(squares * y_true * y_pred, axis=PIXELS)
    total = ops.sum(squares * (y_true + y_pred), axis=PIXELS)
    return cost, (2.0 * overlap + 1.0) / (total + 1.0)
