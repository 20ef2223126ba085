"""The loss that ranks the labels of a photo before all others."""

from typing import Any

from keras import ops

from carvana_tf import replicas

# Below every logit, and so far from the end of float32 that differences of it are finite.
_LEAST = -1e37


def ranking(y_true: Any, y_pred: Any) -> Any:
    """Softmax cross-entropy of each positive class against all negative ones, in nats.

    A positive class `c` of a photo costs `-log(exp(x_c) / (exp(x_c) + sum over negatives of
    exp(x_n)))`: the other positive classes do not compete with it. The 4th-place solution of the
    Inclusive Images Challenge (azat-d/inclusive-images-challenge) divides the sum over a batch
    by the number of its positives. So does the mean over the batch of what is returned here: a
    photo's sum, times the photos and divided by the positives of the batch. Hence the value of a
    photo depends on how many labels the others of its batch have.

    Args:
        y_true: `[B, K]`; more than 0.5 is positive.
        y_pred: `[B, K]`, logits.

    Returns:
        `float32[B]`. A photo without a positive or without a negative class costs 0.
    """
    positive = ops.cast(y_true, "float32") > 0.5
    logits = ops.cast(y_pred, "float32")
    negatives = ops.where(positive, _LEAST, logits)
    # Of every class, as if it were positive: one sum of exponentials serves all of a photo.
    costs = ops.softplus(ops.logsumexp(negatives, axis=-1, keepdims=True) - logits)
    weights = ops.cast(positive, "float32")
    photos = replicas.sum_of_devices(ops.cast(ops.shape(weights)[0], "float32"))
    positives = replicas.sum_of_devices(ops.sum(weights))
    return ops.sum(weights * costs, axis=-1) * photos / ops.maximum(positives, 1.0)
