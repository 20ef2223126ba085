"""What the losses are made of."""

from typing import Any

from keras import ops

# Probabilities are cut off here in logarithms, so one pixel costs at most 16.1.
EPSILON = 1e-7
# Axes of `[B, H, W, 1]`.
PIXELS = (1, 2, 3)


def float32(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Both as tensors of float32, whatever the network computes in."""
    return ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")


def pixel_crossentropy(y_true: Any, y_pred: Any) -> Any:
    """Binary cross-entropy of each pixel, in nats.

    Args:
        y_true: `float32[...]` in 0..1.
        y_pred: Same shape, in 0..1.

    Returns:
        Same shape, in 0..16.1.
    """
    # Both logarithms are cut off by themselves: 1 - 1e-7 is not exact in float32.
    certain = ops.log(ops.maximum(y_pred, EPSILON))
    doubtful = ops.log(ops.maximum(1.0 - y_pred, EPSILON))
    return -(y_true * certain + (1.0 - y_true) * doubtful)
