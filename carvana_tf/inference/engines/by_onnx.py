"""The engine that runs a converted network with ONNX Runtime on the processor."""

import numpy as np

from carvana_tf.data.sizing import Sizing
from carvana_tf.inference.engines.base import Engine, extra


def onnx_engine(data: bytes, sizing: Sizing) -> Engine:
    """An engine that calls ONNX Runtime, in float32.

    Args:
        data: From `conversion.to_onnx`.
        sizing: How the network was trained to meet photos.
    """
    onnxruntime = extra("onnxruntime", "onnx")
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (photo,) = session.get_inputs()

    def predict(batch: np.ndarray) -> np.ndarray:
        (probability,) = session.run(None, {photo.name: np.ascontiguousarray(batch)})
        return probability

    return Engine(sizing, photo.shape[3], predict, None, "onnx", "float32")
