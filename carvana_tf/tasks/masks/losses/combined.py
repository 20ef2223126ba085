"""Cross-entropy and overlap together."""

from typing import Any

from keras import ops

from carvana_tf.tasks.masks.losses.overlap import dice, dice_coefficient, jaccard
from carvana_tf.tasks.masks.losses.parts import float32
from carvana_tf.tasks.masks.losses.pixelwise import crossentropy, crossentropy_boot


def bce_dice(
    y_true: Any,
    y_pred: Any,
    *,
    bce_weight: float = 0.2,
    dice_weight: float = 0.8,
    smooth: float = 1.0,
) -> Any:
    """`bce_weight * cross-entropy + dice_weight * (1 - soft Dice)`.

    The defaults are the 4th-place solution's main loss. The 1st-place and AlbertoSabater's
    solutions have both weights 1.
    """
    overlap = dice(y_true, y_pred, smooth=smooth)
    return bce_weight * crossentropy(y_true, y_pred) + dice_weight * overlap


def boot_soft(
    y_true: Any,
    y_pred: Any,
    *,
    beta: float = 0.95,
    bce_weight: float = 0.2,
    dice_weight: float = 0.8,
) -> Any:
    """`bce_dice` with its cross-entropy taken to `beta * t + (1 - beta) * p`.

    Soft bootstrapping of the 4th-place solution. As in Reed et al. 2014 the gradient flows
    through the target too, which rewards certainty.
    """
    y_true, y_pred = float32(y_true, y_pred)
    soft = crossentropy(beta * y_true + (1.0 - beta) * y_pred, y_pred)
    return bce_weight * soft + dice_weight * dice(y_true, y_pred)


def boot_hard(
    y_true: Any,
    y_pred: Any,
    *,
    beta: float = 0.95,
    bce_weight: float = 0.2,
    dice_weight: float = 0.8,
) -> Any:
    """`bce_dice` with `crossentropy_boot` for its cross-entropy, as the 4th-place solution."""
    hard = crossentropy_boot(y_true, y_pred, beta=beta)
    return bce_weight * hard + dice_weight * dice(y_true, y_pred)


def log_dice(y_true: Any, y_pred: Any, *, smooth: float = 1.0) -> Any:
    """`cross-entropy - log(soft Dice)`, of the 1st-place solution.

    Published without smoothing, or with one that makes Dice exceed 1 and the loss
    negative; here Dice is in 0..1 and never 0, so the loss is finite and at least 0.
    """
    overlap = dice_coefficient(y_true, y_pred, smooth)
    return crossentropy(y_true, y_pred) - ops.log(overlap)


def bce_jaccard(
    y_true: Any,
    y_pred: Any,
    *,
    bce_weight: float = 1.0,
    jaccard_weight: float = 1.0,
    smooth: float = 1.0,
) -> Any:
    """`bce_weight * cross-entropy + jaccard_weight * (1 - soft Jaccard)`.

    AlbertoSabater's loss with the Jaccard index for Dice, as he proposes.
    """
    overlap = jaccard(y_true, y_pred, smooth=smooth)
    return bce_weight * crossentropy(y_true, y_pred) + jaccard_weight * overlap
