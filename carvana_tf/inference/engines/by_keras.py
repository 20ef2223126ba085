"""The engine that calls Keras."""

from typing import Any

import keras
import numpy as np

from carvana_tf.data.sizing import Sizing
from carvana_tf.inference.engines.base import Engine, refuse_nan
from carvana_tf.inference.engines.compiled import compile_network


def keras_engine(model: keras.Model, sizing: Sizing, device: str) -> Engine:
    """An engine that calls Keras.

    On the processor TensorFlow takes every size without compiling anew. On GPUs, and with
    JAX, each shape is compiled once, so there sides are reflected further, to one of eight
    sizes an octave.

    Args:
        model: Takes `[B, H, W, C]` in 0..255, gives `[B, H, W, 1]`; no other thread may
            use it. It must have been made under `keras.device(device)`.
        sizing: How it was trained to meet photos.
        device: Name for `keras.device`.
    """
    with keras.device(device):
        function, compiles_shapes = compile_network(model, device)
    compiles_shapes &= model.input_shape[1] is None  # another size would be refused

    def call(batch: np.ndarray) -> tuple[Any, Any, Any]:
        # The bytes go to the device as they are: a quarter of the traffic of float32.
        fed = to_bucket(batch, sizing.stride) if compiles_shapes else batch
        with keras.device(device):
            return function(fed)

    def predict(batch: np.ndarray) -> np.ndarray:
        return _cut(call(batch)[0], batch)

    def quantised(batch: np.ndarray) -> np.ndarray:
        _, grey, total = call(batch)
        refuse_nan(float(total))
        return _cut(grey, batch)

    dtype = compute_dtype(model)
    return Engine(sizing, model.input_shape[-1], predict, quantised, "keras", dtype)


def compute_dtype(model: keras.Model) -> str:
    """The dtype policy most of a network computes under."""
    policies = [layer.dtype_policy.name for layer in model.layers]
    return next((name for name in policies if name != "float32"), "float32")


def to_bucket(batch: np.ndarray, stride: int) -> np.ndarray:
    """Reflects the lower and right edges so that few shapes occur.

    Args:
        batch: `[B, H, W, C]`, H and W multiples of `stride`.
        stride: The network's.

    Returns:
        `[B, H', W', C]` with sides at most an eighth, or one stride, longer.
    """
    height, width = batch.shape[1:3]
    below, right = (_bucket(side, stride) - side for side in (height, width))
    if not below + right:
        return batch
    return np.pad(batch, ((0, 0), (0, below), (0, right), (0, 0)), mode="reflect")


def _bucket(side: int, stride: int) -> int:
    step = max(stride, 2 ** (side.bit_length() - 1) // 8)
    step += -step % stride
    return side + -side % step


def _cut(output: Any, batch: np.ndarray) -> np.ndarray:
    return np.asarray(output)[:, : batch.shape[1], : batch.shape[2]]
