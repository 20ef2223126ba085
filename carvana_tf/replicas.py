"""Training on several devices at once: each computes a part of every batch."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from carvana_tf.errors import UserError


@contextlib.contextmanager
def data_parallel(names: Sequence[str]) -> Iterator[None]:
    """A block whose networks and optimizers are trained on all of the devices.

    Each batch is divided among them; what is computed is that of the whole batch.

    Args:
        names: Of `devices.select`; with fewer than two the block changes nothing.

    Raises:
        UserError: The backend trains on one device only.
    """
    if len(names) < 2:
        yield
        return
    if keras.backend.backend() != "jax":
        raise UserError(
            "training on several devices needs KERAS_BACKEND=jax; set it, or name one device in "
            "--gpu."
        )
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=list(names)))
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def count() -> int:
    """How many devices train here."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else int(distribution.device_mesh.devices.size)


def predict_on_batch(model: keras.Model, photos: np.ndarray) -> np.ndarray:
    """As `model.predict_on_batch`, for any number of photos.

    Args:
        model: Made in a `data_parallel` block, or not.
        photos: `uint8[B, H, W, C]`.

    Returns:
        `float32[B, …]`.
    """
    # A batch that does not divide is filled with its last photo.
    filled = np.concatenate([photos, *[photos[-1:]] * (-len(photos) % count())])
    return np.asarray(model.predict_on_batch(filled), np.float32)[: len(photos)]
