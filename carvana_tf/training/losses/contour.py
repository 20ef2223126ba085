"""Losses in which pixels near the contour count more."""

import math
from typing import Any

from keras import ops

from carvana_tf.training.losses import boundaries
from carvana_tf.training.losses.overlap import dice
from carvana_tf.training.losses.parts import PIXELS, float32, pixel_crossentropy


def dice_coef_loss_border(
    y_true: Any, y_pred: Any, *, border_weight: float = 0.05, dice_weight: float = 0.95
) -> Any:
    """`border_weight * (1 - soft Dice in the band) + dice_weight * (1 - soft Dice)`.

    System 001; the band is `boundaries.border_band`. Without a contour the first term is 0.
    """
    y_true, y_pred = float32(y_true, y_pred)
    band = boundaries.border_band(y_true)
    return border_weight * dice(y_true * band, y_pred * band) + dice_weight * dice(y_true, y_pred)


def bce_dice_loss_border(
    y_true: Any, y_pred: Any, *, border_weight: float = 0.05, dice_weight: float = 0.95
) -> Any:
    """`border_weight * mean cross-entropy in the band + dice_weight * (1 - soft Dice)`.

    System 001; the band is `boundaries.border_band`. Without a contour the first term is
    0, not 0 / 0.
    """
    y_true, y_pred = float32(y_true, y_pred)
    band = boundaries.border_band(y_true)
    cost = ops.sum(band * pixel_crossentropy(y_true, y_pred), axis=PIXELS)
    border = cost / ops.maximum(ops.sum(band, axis=PIXELS), 1.0)
    return border_weight * border + dice_weight * dice(y_true, y_pred)


def weighted_bce_dice(y_true: Any, y_pred: Any, *, boundary_weight: float = 3.0) -> Any:
    """`mean(w * cross-entropy) + 1 - (2 * sum(w² t p) + 1) / (sum(w² t) + sum(w² p) + 1)`.

    System 000; `w` is `boundaries.boundary_weights`, for any height and without the zeros
    beyond the photo's edge. Published `2 * (sum + 1)` can exceed 1; this Dice cannot.
    """
    y_true, y_pred = float32(y_true, y_pred)
    weights = boundaries.boundary_weights(y_true, boundary_weight)
    cost = ops.mean(weights * pixel_crossentropy(y_true, y_pred), axis=PIXELS)
    squares = weights * weights
    overlap = ops.sum(squares * y_true * y_pred, axis=PIXELS)
    total = ops.sum(squares * (y_true + y_pred), axis=PIXELS)
    return cost + 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)


def distance_weighted(
    y_true: Any, y_pred: Any, *, strength: float = 10.0, sigma: float = 10.0
) -> Any:
    """`mean(w * cross-entropy) + 1 - soft Dice`, with `w` = class weight + contour weight.

    System 002. Class weight: 0.5 / the share of the pixel's class in its photo, so both
    classes count the same; 0.5 everywhere when there is one class only (published: 0 / 0).
    Contour weight: `strength * exp(-d² / (2 * sigma²))`, `d` the Euclidean distance in
    pixels to the nearest pixel of the other class, 0 where `d > 4 * sigma` or there is no
    contour; what is cut off is below 0.0004 of `strength`. Published Dice has no smoothing
    and is 0 / 0 for an empty mask; this one has smoothing 1. A soft truth has its contour
    at 0.5; published, any grey pixel breaks the distances.
    """
    y_true, y_pred = float32(y_true, y_pred)
    # Counted both ways, because 1 - share is not exact where one class is rare.
    foreground = ops.cast(ops.stop_gradient(y_true) > 0.5, "float32")
    inside = ops.sum(foreground, axis=PIXELS, keepdims=True)
    outside = ops.sum(1.0 - foreground, axis=PIXELS, keepdims=True)
    # Of the pixel's own class, hence at least 1.
    same_class = foreground * inside + (1.0 - foreground) * outside
    limit = max(1, math.ceil(4.0 * sigma))
    squared = boundaries.contour_distance_squared(y_true, limit)
    contour = ops.where(squared <= limit**2, ops.exp(-squared / (2.0 * sigma * sigma)), 0.0)
    weights = 0.5 * (inside + outside) / same_class + strength * contour
    cost = ops.mean(weights * pixel_crossentropy(y_true, y_pred), axis=PIXELS)
    return cost + dice(y_true, y_pred)
