"""A Keras network as one function of its backend, from bytes to bytes.

Knows TensorFlow and JAX, because Keras has no word for "compile this"; both are imported
where they are used.
"""

import logging
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from carvana_tf.models import cloning

Function = Callable[[np.ndarray], tuple[Any, Any, Any]]


def compile_network(model: keras.Model, device: str) -> tuple[Function, bool]:
    """Compiles a network together with its rounding.

    Args:
        model: Takes `[B, H, W, C]` in 0..255, gives `[B, H, W, 1]`.
        device: Name for `keras.device`, under which the model was made and the function
            is to be called.

    Returns:
        A function `uint8[B, H, W, C]` -> probabilities `float32[B, H, W]`, `round(255 p)`
        as `uint8[B, H, W]` and the sum of the probabilities, all on the device; and
        whether every new shape is compiled anew.
    """
    if keras.backend.backend() == "jax":
        return _with_jax(model), True
    import tensorflow as tf

    # It warns of what is meant: one tracing for each network, on GPUs for each shape.
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


def _with_jax(model: keras.Model) -> Function:
    import jax

    # Arguments, lest the weights become constants of each compiled shape.
    state = [
        [variable.value for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]

    @jax.jit
    def run(state: Any, x: Any) -> tuple[Any, Any, Any]:
        return _finish(model.stateless_call(*state, x, training=False)[0])

    return lambda x: run(state, x)


def _finish(output: Any) -> tuple[Any, Any, Any]:
    probability = keras.ops.cast(output, "float32")[..., 0]
    # To even at ties, as `images.quantise` rounds.
    grey = keras.ops.cast(keras.ops.round(probability * 255.0), "uint8")
    return probability, grey, keras.ops.sum(probability)
