"""Pictures of what the network is trained on, for the eye to check."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from carvana_tf.data.images import write_photo, write_probability
from carvana_tf.data.loader import TrainingSet
from carvana_tf.files import make_folder, shortened
from carvana_tf.training import losses
from carvana_tf.training.losses import boundaries

_OVERLAY = np.array((255, 0, 0), np.float32)

# The pixel weights of the losses that have some, and which of the loss' parameters they take.
WEIGHTS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "weighted_bce_dice": (boundaries.boundary_weights, ("boundary_weight",)),
    "weighted_log_dice": (boundaries.boundary_weights, ("boundary_weight",)),
    "dice_coef_loss_border": (boundaries.border_band, ()),
    "bce_dice_loss_border": (boundaries.border_band, ()),
    "distance_weighted": (boundaries.distance_weights, ("strength", "sigma")),
}


def pixel_weights(loss: str) -> Callable[[Any], Any] | None:
    """What a loss weighs pixels by, from truth `[B, H, W, 1]`; None where all count alike.

    Args:
        loss: As `losses.parse` takes it; its parameters count.
    """
    name = loss.partition(":")[0]
    if name not in WEIGHTS:
        return None
    function, names = WEIGHTS[name]
    parameters = inspect.signature(losses.parse(loss)).parameters
    return functools.partial(function, **{n: parameters[n].default for n in names})


def write_pictures(folder: Path, training: TrainingSet, loss: str, count: int) -> None:
    """Writes the run's first samples, augmented and sized as the network gets them.

    For each sample `<number>_<stem>_photo.png`, `…_mask.png`, `…_overlay.png` (the mask
    in red, half transparent) and, for losses of `WEIGHTS`, `…_weights.png`, scaled so that
    the highest weight is white.

    Args:
        folder: Where to; made where missing.
        training: The samples.
        loss: The run's loss, as `losses.parse` takes it.
        count: How many samples; 0 writes nothing.

    Raises:
        UserError: A photo is unreadable, or the folder cannot be written to.
    """
    weigh = pixel_weights(loss)
    for g in range(count):
        photo, mask = training.sample(g)
        photo = photo[..., :3]
        stem = f"{g:03d}_{shortened(training.samples[training.pick(g)[1]].stem)}"
        share = mask[..., None].astype(np.float32) / 510
        overlay = np.rint(photo * (1 - share) + _OVERLAY * share).astype(np.uint8)
        make_folder(folder)
        write_photo(folder / f"{stem}_photo.png", photo)
        write_probability(folder / f"{stem}_mask.png", mask)
        write_photo(folder / f"{stem}_overlay.png", overlay)
        if weigh is not None:
            truth = mask[None, ..., None].astype(np.float32) / np.float32(255)
            weights = keras.ops.convert_to_numpy(weigh(truth))[0, ..., 0]
            grey = np.rint(255 * weights / max(weights.max(), 1e-6)).astype(np.uint8)
            write_probability(folder / f"{stem}_weights.png", grey)
