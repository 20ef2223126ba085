"""Losses that are means over pixels."""

from typing import Any

from keras import ops

from carvana_tf.tasks.masks.losses.parts import EPSILON, PIXELS, float32, pixel_crossentropy


def crossentropy(y_true: Any, y_pred: Any) -> Any:
    """Binary cross-entropy in nats, mean over the pixels of each photo.

    Probabilities are cut off at 1e-7, so one pixel costs at most 16.1.
    """
    return ops.mean(pixel_crossentropy(*float32(y_true, y_pred)), axis=PIXELS)


def crossentropy_boot(y_true: Any, y_pred: Any, *, beta: float = 0.9) -> Any:
    """Cross-entropy to `beta * t + (1 - beta) * [p > 0.5]`: hard bootstrapping.

    As the 4th-place solution, after Reed et al. 2014, "Training deep neural networks on noisy
    labels with bootstrapping".
    """
    y_true, y_pred = float32(y_true, y_pred)
    return crossentropy(beta * y_true + (1.0 - beta) * ops.cast(y_pred > 0.5, "float32"), y_pred)


def online_bootstrapping(
    y_true: Any, y_pred: Any, *, pixels: int = 32768, threshold: float = 0.3
) -> Any:
    """Mean cross-entropy over the hardest pixels of each photo.

    Those are the `pixels` with the largest `|t - p|` (all, in a smaller photo), less
    those where it is not over `threshold`. The 4th-place solution picks them from the whole batch,
    works with batches of one photo only and is NaN when no pixel qualifies; here such a
    photo has loss 0 and gradient 0: there is nothing left to learn from it.
    """
    y_true, y_pred = float32(y_true, y_pred)
    costs = _flat(pixel_crossentropy(y_true, y_pred))
    errors = _flat(ops.stop_gradient(ops.abs(y_true - y_pred)))
    # Padding for small photos; an error of -1 never passes the threshold.
    missing = [(0, 0), (0, pixels)]
    errors = ops.pad(errors, missing, constant_values=-1.0)
    costs = ops.pad(costs, missing)
    hardest, where = ops.top_k(errors, pixels, sorted=False)
    kept = ops.cast(hardest > threshold, "float32")
    cost = ops.sum(kept * ops.take_along_axis(costs, where, axis=1), axis=1)
    return cost / ops.maximum(ops.sum(kept, axis=1), 1.0)


def focal(y_true: Any, y_pred: Any, *, alpha: float = 0.25, gamma: float = 2.0) -> Any:
    """Mean of `-alpha t (1 - p)^gamma log(p) - (1 - alpha) (1 - t) p^gamma log(1 - p)`.

    Lin et al. 2017, "Focal loss for dense object detection". They divide the sum by the
    number of matched anchors; a segmentation has none, hence the mean over pixels.
    `alpha` is the weight of the foreground; `gamma` 0 and `alpha` 0.5 is half the
    cross-entropy.
    """
    y_true, y_pred = float32(y_true, y_pred)
    # Cut off like the logarithms: the derivative of 0^gamma is infinite for gamma < 1.
    certain, doubtful = ops.maximum(y_pred, EPSILON), ops.maximum(1.0 - y_pred, EPSILON)
    foreground = alpha * y_true * ops.power(doubtful, gamma) * ops.log(certain)
    background = (1.0 - alpha) * (1.0 - y_true) * ops.power(certain, gamma) * ops.log(doubtful)
    return -ops.mean(foreground + background, axis=PIXELS)


def _flat(values: Any) -> Any:
    # Read from the tensor: height and width may both be unknown until the network runs.
    batch, height, width, _ = ops.shape(values)
    return ops.reshape(values, (batch, height * width))
