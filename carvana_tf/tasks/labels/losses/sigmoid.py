"""Losses of each class by itself, from the sigmoid of its logit."""

from typing import Any

from keras import ops


def bce(y_true: Any, y_pred: Any) -> Any:
    """Binary cross-entropy in nats, mean over the classes of each photo."""
    y_true, y_pred = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
    return ops.mean(y_true * _surprise(y_pred) + (1.0 - y_true) * _surprise(-y_pred), axis=-1)


def focal(y_true: Any, y_pred: Any, *, alpha: float = 0.25, gamma: float = 2.0) -> Any:
    """Mean of `-alpha t (1 - p)^gamma log(p) - (1 - alpha) (1 - t) p^gamma log(1 - p)`.

    `p` is the sigmoid of the logit. Lin et al. 2017, "Focal loss for dense object detection". They
    divide the sum by the number of matched anchors; here it is the mean over classes. `alpha` is
    the weight of the positive classes; `gamma` 0 and `alpha` 0.5 is half the cross-entropy.
    """
    y_true, y_pred = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
    certain, doubtful = _surprise(y_pred), _surprise(-y_pred)
    # As exponentials: the derivative of a power of 0 is infinite where gamma < 1.
    positive = alpha * y_true * ops.exp(-gamma * doubtful) * certain
    negative = (1.0 - alpha) * (1.0 - y_true) * ops.exp(-gamma * certain) * doubtful
    return ops.mean(positive + negative, axis=-1)


def _surprise(logits: Any) -> Any:
    """`-log(sigmoid(x))`, without rounding a probability to 0 or 1."""
    return ops.softplus(-logits)
