"""The engine that calls Keras, and a Keras network as one function of its backend.

Knows TensorFlow, JAX and PyTorch, because Keras has no word for "compile this"; they are imported
where they are used.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.inference.engines.base import Engine, refuse_nan, without_channel
from carvana_tf.models import cloning
from carvana_tf.models.checkpoint import Checkpoint, load_model

PHOTO, PROBABILITY, LOGITS = "photo", "probability", "logits"
"""Names of the input of `traced`, and of its output where it is an image and where it is none."""

_Function = Callable[[np.ndarray], tuple[Any, Any, Any]]


def load(checkpoint: Checkpoint, device: str, dtype: str) -> Engine:
    """Loads a network onto a device, to be run by Keras; arguments as of `load_model`."""
    engine = keras_engine(load_model(checkpoint, device, dtype), checkpoint.resizer, device)
    return dataclasses.replace(engine, path=str(checkpoint.path))


def keras_engine(model: keras.Model, resizer: Resizer, device: str) -> Engine:
    """An engine that calls Keras.

    On the processor TensorFlow takes every size without compiling again. On GPUs, and with
    JAX, each shape is compiled once, so there sides are reflected further, to one of eight
    sizes an octave.

    Args:
        model: Takes `[B, H, W, C]` in 0..255; no other thread may use it. It must have been
            made under `keras.device(device)`.
        resizer: How photos are brought to its input size.
        device: Name for `keras.device`.
    """
    with keras.device(device):
        function, compiles_shapes = compile_network(model, device)
    # Another size would be refused, and what is no image cannot be cut.
    compiles_shapes &= model.input_shape[1] is None and len(model.output_shape) == 4

    def cut(output: Any, batch: np.ndarray) -> np.ndarray:
        values = np.asarray(output)
        return values[:, : batch.shape[1], : batch.shape[2]] if compiles_shapes else values

    def call(batch: np.ndarray) -> tuple[Any, Any, Any]:
        # The bytes go to the device as they are: a quarter of the traffic of float32.
        fed = to_bucket(batch, resizer.stride) if compiles_shapes else batch
        with keras.device(device):
            return function(fed)

    def predict(batch: np.ndarray) -> np.ndarray:
        return cut(call(batch)[0], batch)

    def predict_uint8(batch: np.ndarray) -> np.ndarray:
        _, pixels, total = call(batch)
        refuse_nan(float(total))
        return cut(pixels, batch)

    dtype = compute_dtype(model)
    channels = model.input_shape[-1]
    return Engine(resizer, channels, predict, predict_uint8, "keras", dtype, device=device)


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


def compile_network(model: keras.Model, device: str) -> tuple[_Function, bool]:
    """Compiles a network together with its rounding.

    Args:
        model: Takes `[B, H, W, C]` in 0..255.
        device: Name for `keras.device`, under which the model was made and the function
            is to be called.

    Returns:
        A function `uint8[B, H, W, C]` -> outputs p `float32[B, …]`, `round(255 p)` as `uint8`
        and the sum of the outputs, all on the device; and whether every new shape is
        compiled again.
    """
    if keras.backend.backend() == "jax":
        return _with_jax(model), True
    if keras.backend.backend() == "torch":
        return _with_torch(model), False
    import tensorflow as tf

    # Its warning is about what is intended: one trace per network, on GPUs per shape.
    logging.getLogger("tensorflow").addFilter(_is_no_tracing)
    if device.startswith("cpu"):
        model, size = any_size(model), (None, None, None)
        signature = [tf.TensorSpec((*size, model.input_shape[-1]), tf.uint8)]
        return tf.function(lambda x: _finish(model(x)), signature, autograph=False), False
    jit = model.jit_compile
    return tf.function(lambda x: _finish(model(x)), autograph=False, jit_compile=jit), True


def any_size(model: keras.Model) -> keras.Model:
    """A copy for TensorFlow that can be traced once for photos of every size.

    The results are the same, see `cloning.AnySizeUpSampling2D`.
    """
    return cloning.replaced(
        model, {"UpSampling2D": lambda up: cloning.AnySizeUpSampling2D.from_config(up.get_config())}
    )


def _is_no_tracing(record: logging.LogRecord) -> bool:
    return "retracing" not in record.getMessage()


def _with_jax(model: keras.Model) -> _Function:
    import jax

    # Arguments: otherwise the weights would become constants of each compiled shape.
    state = [
        [variable.value for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]

    @jax.jit
    def run(state: Any, x: Any) -> tuple[Any, Any, Any]:
        return _finish(model.stateless_call(*state, x, training=False)[0])

    return lambda x: run(state, x)


def _with_torch(model: keras.Model) -> _Function:
    import torch

    def run(x: np.ndarray) -> tuple[Any, Any, Any]:
        with torch.inference_mode():
            return _finish(model(x, training=False))

    return run


def _finish(output: Any) -> tuple[Any, Any, Any]:
    values = without_channel(keras.ops.cast(output, "float32"))
    # To even at ties, as `images.to_uint8` rounds.
    pixels = keras.ops.cast(keras.ops.round(values * 255.0), "uint8")
    return values, pixels, keras.ops.sum(values)


def output_name(model: keras.Model) -> str:
    """What the output of `traced` is called."""
    return PROBABILITY if len(model.output_shape) == 4 else LOGITS


def traced(model: keras.Model, engine: str, size: tuple[int, int] | None = None) -> Any:
    """A `tf.function` from bytes to outputs, for photos of any size.

    Its one input is `uint8[B, H, W, C]` and called `PHOTO`. It gives a dictionary with
    `output_name`, `float32[B, …]`, alone.

    Args:
        model: In float32.
        engine: What it is converted for, for the message.
        size: The only (H, W) that the function is to take; None: any.

    Raises:
        UserError: Keras does not run on TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"--engine={engine} converts with TensorFlow; unset KERAS_BACKEND, or use "
            "--engine=keras."
        )
    import tensorflow as tf

    network = cloning.replaced(any_size(model), {"Take": lambda _: _take})
    name = output_name(model)

    def run(photo: Any) -> Any:
        output = without_channel(network(tf.cast(photo, tf.float32)))
        return {name: tf.identity(output, name=name)}

    shape = (None, *(size or (None, None)), model.input_shape[-1])
    signature = [tf.TensorSpec(shape, tf.uint8, name=PHOTO)]
    return tf.function(run, signature, autograph=False)


def _take(x: Any, indices: list[int]) -> Any:
    """Reorders channels.

    OpenVINO (2026.4) loses the `Gather` of BGR networks when it folds it into the weights
    of the first convolution; slices it computes as they stand.
    """
    return keras.ops.concatenate([x[..., i : i + 1] for i in indices], axis=-1)
