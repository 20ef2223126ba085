"""The pixel weights of the losses that have some."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from carvana_tf.tasks.masks import losses
from carvana_tf.tasks.masks.losses import boundaries

# And which of the loss' parameters they take.
WEIGHTS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "weighted_bce_dice": (boundaries.boundary_weights, ("boundary_weight",)),
    "weighted_log_dice": (boundaries.boundary_weights, ("boundary_weight",)),
    "dice_coef_loss_border": (boundaries.border_band, ()),
    "bce_dice_loss_border": (boundaries.border_band, ()),
    "distance_weighted": (boundaries.distance_weights, ("strength", "sigma")),
}


def pixel_weights(loss: str) -> Callable[[Any], Any] | None:
    """How a loss weights pixels, from targets `[B, H, W, 1]`; None where all count the same.

    Args:
        loss: As `losses.parse` takes it; its parameters count.
    """
    name = loss.partition(":")[0]
    if name not in WEIGHTS:
        return None
    function, names = WEIGHTS[name]
    parameters = inspect.signature(losses.parse(loss)).parameters
    return functools.partial(function, **{n: parameters[n].default for n in names})
