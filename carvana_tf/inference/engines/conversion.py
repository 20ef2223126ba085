"""Networks in the formats of other toolkits, as bytes."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import keras

from carvana_tf.errors import UserError
from carvana_tf.inference.engines.base import extra
from carvana_tf.inference.engines.compiled import any_size
from carvana_tf.models import cloning

PROBABILITY = "probability"
"""Name of the one output, `float32[B, H, W]`; the one input is `uint8[B, H, W, C]`."""


def to_openvino(model: keras.Model) -> Any:
    """The `openvino.Model` of a float32 network, for photos of any size.

    Raises:
        UserError: OpenVINO is not installed, or Keras does not run on TensorFlow.
    """
    openvino = extra("openvino", "openvino")
    graph = openvino.convert_model(_traced(model, "openvino").get_concrete_function())
    # Operations with a gradient of their own leave further results behind.
    return openvino.Model([graph.output(f"{PROBABILITY}:0")], graph.get_parameters())


def to_onnx(model: keras.Model) -> bytes:
    """The ONNX file of a float32 network, for photos of any size.

    Raises:
        UserError: tf2onnx is not installed, or Keras does not run on TensorFlow.
    """
    tf2onnx = extra("tf2onnx", "onnx")
    extra("tf2onnx.convert", "onnx")
    function = _traced(model, "onnx")
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        tf2onnx.convert.from_function(
            function, function.input_signature, opset=18, output_path=str(path)
        )
        return path.read_bytes()


def _traced(model: keras.Model, engine: str) -> Any:
    """A `tf.function` from bytes to probabilities."""
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"--engine={engine} converts with TensorFlow; unset KERAS_BACKEND, or use "
            "--engine=keras."
        )
    import tensorflow as tf

    network = cloning.replaced(any_size(model), {"Take": lambda _: _take})

    def run(photo: Any) -> Any:
        return tf.identity(network(tf.cast(photo, tf.float32))[..., 0], name=PROBABILITY)

    shape = (None, None, None, model.input_shape[-1])
    signature = [tf.TensorSpec(shape, tf.uint8, name="photo")]
    return tf.function(run, signature, autograph=False)


def _take(x: Any, indices: list[int]) -> Any:
    """Reorders channels.

    OpenVINO (2026.4) loses the `Gather` of BGR networks when it folds it into the weights
    of the first convolution; slices it computes as they stand.
    """
    return keras.ops.concatenate([x[..., i : i + 1] for i in indices], axis=-1)
