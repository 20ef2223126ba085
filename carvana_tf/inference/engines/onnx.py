"""The engine that runs a converted network with ONNX Runtime on the processor."""

import logging
from typing import Any

import keras
import numpy as np

from carvana_tf.data.resizing import Resizer
from carvana_tf.inference.engines.base import Engine, extra
from carvana_tf.inference.engines.keras import traced
from carvana_tf.inference.options import ONNX


def onnx_engine(data: bytes, resizer: Resizer) -> Engine:
    """An engine that calls ONNX Runtime, in float32.

    Args:
        data: From `to_onnx`.
        resizer: How photos are brought to its input size.
    """
    onnxruntime = extra("onnxruntime", ONNX)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (photo,) = session.get_inputs()

    def predict(batch: np.ndarray) -> np.ndarray:
        (probability,) = session.run(None, {photo.name: np.ascontiguousarray(batch)})
        return probability

    return Engine(resizer, photo.shape[3], predict, None, "onnx", "float32")


def to_onnx(model: keras.Model, size: tuple[int, int] | None = None) -> bytes:
    """The ONNX file of a float32 network, for photos of any size.

    Args:
        model: The network.
        size: The only (H, W) it is to take; None: any.

    Raises:
        UserError: tf2onnx is not installed, or Keras does not run on TensorFlow.
    """
    tf2onnx = extra("tf2onnx", ONNX)
    extra("tf2onnx.convert", ONNX)
    function = traced(model, ONNX, size)
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    network, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=18)
    for node in network.graph.node:
        if node.op_type == "Resize":
            _modernise(node)
    return network.SerializeToString()


def _modernise(resize: Any) -> None:
    """Says in words of today's operator how tf2onnx enlarges by the nearest pixel.

    It writes a coordinate mode that ONNX took out in opset 13. That took the pixel
    `floor((x + 0.5) / scale)`, which is `(x + 0.5) / scale - 0.5` rounded, halves upwards.
    """
    attributes = {attribute.name: attribute for attribute in resize.attribute}
    mode = attributes.get("coordinate_transformation_mode")
    if mode is not None and mode.s == b"tf_half_pixel_for_nn":
        mode.s = b"half_pixel"
        attributes["nearest_mode"].s = b"round_prefer_ceil"
