"""Engines: a batch of network inputs in, probabilities out, on one device."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from carvana_tf.data.sizing import Sizing
from carvana_tf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Engine:
    """A network on one device, used by one thread.

    Attributes:
        sizing: How photos become its input and its output becomes theirs again.
        channels: Channels of its input: RGB, then stacked ones.
        predict: `uint8[B, H, W, channels]` -> `float32[B, H, W]` in 0..1, with H and W
            as `sizing.whole` makes them.
        quantised: The same, but `round(255 p)` as `uint8[B, H, W]`, rounded on the device
            as `data.images.quantise` does; None where the engine cannot.
    """

    sizing: Sizing
    channels: int
    predict: Callable[[np.ndarray], np.ndarray]
    quantised: Callable[[np.ndarray], np.ndarray] | None = None


def keras_engine(model: keras.Model, sizing: Sizing, device: str) -> Engine:
    """An engine that calls Keras.

    Args:
        model: Takes `[B, H, W, C]` in 0..255, gives `[B, H, W, 1]`; no other thread may
            use it. It must have been made under `keras.device(device)`.
        sizing: How it was trained to meet photos.
        device: Name for `keras.device`.
    """

    def predict(batch: np.ndarray) -> np.ndarray:
        # The bytes go to the device as they are: a quarter of the traffic of float32.
        try:
            with keras.device(device):
                output = model.predict_on_batch(batch)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            count, height, width = batch.shape[:3]
            raise UserError(
                f"{device} has too little memory for {count} inputs of {height} x {width}; lower "
                "--pred_batch_size, or use --pred_tta=none, --tile_size or --dtype=bfloat16."
            ) from error
        return np.asarray(output, np.float32)[..., 0]

    return Engine(sizing, model.input_shape[-1], predict)


def _is_out_of_memory(error: Exception) -> bool:
    # Each backend has a class of its own for it; both name the status.
    return (
        type(error).__name__ == "ResourceExhaustedError"
        or "RESOURCE_EXHAUSTED" in str(error)
        or isinstance(error, MemoryError)
    )
