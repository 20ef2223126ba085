"""Where the contour of a mask runs, in tensors: pixel weights and bands for the losses.

Everything here depends on the target alone and carries no gradient. Targets are
`[B, H, W, 1]` in 0..1; height and width may be unknown until the network runs.
"""

import math
from typing import Any

from keras import ops


def border_band(y_true: Any) -> Any:
    """The pixels within 10 of the contour, measured in the maximum norm.

    The band of the 4th-place solution: `maxpool(t) * maxpool(1 - t) > 0.5` with 21x21 windows
    that end at the edge of the photo. It is that of `metrics.border_band`, 20 pixels wide.

    Returns:
        `float32[B, H, W, 1]`, 1 in the band. All 0 for an empty or a full mask.
    """
    y_true = _constant(y_true)
    return ops.cast(_pooled_maximum(y_true) * _pooled_maximum(1.0 - y_true) > 0.5, "float32")


def boundary_weights(y_true: Any, boundary_weight: float) -> Any:
    """`boundary_weight` along the contour, 1 elsewhere, scaled: the 1st-place solution's weights.

    The contour is where the mean target of a square window lies in 0.01..0.99. The
    published window sides are 11, 21, 21, 41 and 51 for heights of 128, 256, 512, 1024
    and 1280, other heights being errors. Here the side is `2 * radius + 1` with

        radius = max(1, round(5/128 * min(H, 256) + 5/256 * max(H - 512, 0)))

    which gives those five, runs straight between them and goes on beyond. Published
    windows count zeros outside the photo, which flags an object cut by the photo's edge
    as contour; these average over the pixels inside.

    Returns:
        `float32[B, H, W, 1]` whose mean over each photo is 1, so that an empty or a full
        mask has weight 1 everywhere.
    """
    y_true = _constant(y_true)
    height = ops.shape(y_true)[1]
    # 128 is half of 256: the quotient is rounded, in integers of known or unknown value.
    scaled = 10 * ops.minimum(height, 256) + 5 * ops.maximum(height - 512, 0) + 128
    radius = ops.maximum(ops.floor_divide(scaled, 256), 1)
    sums, rows = _window_sums(y_true, 1, radius)
    sums, columns = _window_sums(sums, 2, radius)
    pixels = ops.reshape(rows, (1, -1, 1, 1)) * ops.reshape(columns, (1, 1, -1, 1))
    means = sums / ops.cast(pixels, "float32")
    contour = ops.cast(ops.logical_and(means >= 0.01, means <= 0.99), "float32")
    weights = 1.0 + (boundary_weight - 1.0) * contour
    return weights / ops.mean(weights, axis=(1, 2, 3), keepdims=True)


def distance_weights(y_true: Any, strength: float, sigma: float) -> Any:
    """A class weight plus a contour weight for each pixel, as in sohyongsheng's solution.

    Class weight: 0.5 / the share of the pixel's class in its photo, so both classes count
    the same; 0.5 everywhere when there is one class only (published: 0 / 0). Contour
    weight: `strength * exp(-d² / (2 * sigma²))`, `d` the Euclidean distance in pixels to
    the nearest pixel of the other class, 0 where `d > 4 * sigma` or there is no contour;
    what is cut off is below 0.0004 of `strength`. A soft target has its contour at 0.5;
    published, any grey pixel breaks the distances.

    Returns:
        `float32[B, H, W, 1]`.
    """
    # Counted both ways, because 1 - share is not exact where one class is rare.
    foreground = ops.cast(_constant(y_true) > 0.5, "float32")
    inside = ops.sum(foreground, axis=(1, 2, 3), keepdims=True)
    outside = ops.sum(1.0 - foreground, axis=(1, 2, 3), keepdims=True)
    # Of the pixel's own class, hence at least 1.
    same_class = foreground * inside + (1.0 - foreground) * outside
    limit = max(1, math.ceil(4.0 * sigma))
    squared = contour_distance_squared(y_true, limit)
    contour = ops.where(squared <= limit**2, ops.exp(-squared / (2.0 * sigma * sigma)), 0.0)
    return 0.5 * (inside + outside) / same_class + strength * contour


def contour_distance_squared(y_true: Any, limit: int) -> Any:
    """Squared Euclidean distance from each pixel to the nearest one of the other class.

    Exact up to `limit`. A squared distance is a sum over the two axes, so the minimum
    over a square window is taken along the columns first and then along the rows, each
    time as `min over k of (value at k + k * k)` with |k| <= limit (the separable transform of
    Saito and Toriwaki 1994, its parabolas cut off). Costs `4 * limit + 2` passes over the
    photo whatever its content, and memory for about eight photos.

    Args:
        y_true: Foreground where over 0.5, so that a resized mask has a contour too.
        limit: Pixels, at least 1.

    Returns:
        `float32[B, H, W, 1]`, at least 1 and right wherever it is at most `limit**2`;
        elsewhere, and everywhere in an empty or full mask, more than `limit**2`.
    """
    foreground = ops.cast(_constant(y_true) > 0.5, "float32")
    beyond = 4.0 * limit * limit
    # One channel for the distance to the foreground, one to the background.
    distances = beyond * ops.concatenate([1.0 - foreground, foreground], axis=-1)
    distances = _lower_envelope(distances, 1, limit, beyond)
    distances = _lower_envelope(distances, 2, limit, beyond)
    return ops.where(foreground > 0.5, distances[..., 1:], distances[..., :1])


def _constant(y_true: Any) -> Any:
    return ops.stop_gradient(ops.cast(y_true, "float32"))


def _pooled_maximum(values: Any) -> Any:
    # A row and then a column: 42 comparisons per pixel, not 441.
    pooled = ops.max_pool(values, (21, 1), strides=1, padding="same")
    return ops.max_pool(pooled, (1, 21), strides=1, padding="same")


def _window_sums(values: Any, axis: int, radius: Any) -> tuple[Any, Any]:
    """Sums over `[i - radius, i + radius]` cut at the ends, and how many were summed.

    As differences of running sums, which allows a radius unknown until the network runs.
    Exact for masks: the sums are integers far below 2**24.
    """
    size = ops.shape(values)[axis]
    running = ops.cumsum(values, axis=axis)
    nothing = ops.zeros_like(ops.take(running, [0], axis=axis))
    running = ops.concatenate([nothing, running], axis=axis)
    positions = ops.arange(size, dtype="int32")
    first = ops.maximum(positions - radius, 0)
    end = ops.minimum(positions + radius + 1, size)
    sums = ops.take(running, end, axis=axis) - ops.take(running, first, axis=axis)
    return sums, end - first


def _lower_envelope(values: Any, axis: int, limit: int, beyond: float) -> Any:
    """`min over k of (value at i + k, plus k * k)` along an axis, |k| <= limit."""
    shape = ops.shape(values)
    margins = [(0, 0)] * 4
    margins[axis] = (limit, limit)
    padded = ops.pad(values, margins, constant_values=beyond)

    def narrow(step, lowest):
        start = [0, 0, 0, 0]
        start[axis] = step
        parabola = ops.cast((step - limit) * (step - limit), "float32")
        return ops.minimum(lowest, ops.slice(padded, start, shape) + parabola)

    # A loop, not 2 * limit + 1 copies of its body, keeps the compiled step small.
    return ops.fori_loop(0, 2 * limit + 1, narrow, values)
