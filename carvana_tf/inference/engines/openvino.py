"""The engines that run a converted network with OpenVINO on the processor, and in 8 bits."""

import logging
import os
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import keras
import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.loader import read_channels
from carvana_tf.data.resizing import Resizer
from carvana_tf.inference.engines.base import Engine, extra, refuse_nan
from carvana_tf.inference.engines.keras import output_name, traced
from carvana_tf.inference.options import INT8, OPENVINO

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}

# Photos at once, on their share of the cores each: while one stream waits for a core that a
# reader or writer uses, the other goes on. More would need more memory, not less time.
STREAMS = 2

# Windows of whole photos: activations have the same ranges in both, and these are cheap.
_WINDOW = 512


def openvino_engine(
    graph: Any, resizer: Resizer, name: str, precision: str, streams: int = STREAMS
) -> Engine:
    """An engine that calls OpenVINO.

    One compiled network takes every size: it is as fast as one for a fixed size.

    Args:
        graph: `openvino.Model` from `to_openvino`, 8-bit or not; it is changed.
        resizer: How photos are brought to its input size.
        name: The engine's, "openvino" or "openvino-int8".
        precision: Key of `PRECISIONS`; of an 8-bit network, what is left to compute in.
        streams: How many inputs it computes at once, each on its share of the cores and in
            memory of its own; no more than cores.
    """
    openvino = extra("openvino", OPENVINO)
    # The first use makes OpenVINO's table of types inside a C++ static, whose initialiser
    # imports NumPy and so lets go of the GIL: two streams that come first at once would wait
    # for each other forever, one for the static, one for the GIL.
    openvino.Type.u8.to_dtype()
    streams = min(streams, os.cpu_count() or 1)
    hints = {"NUM_STREAMS": streams, "INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
    compiled = openvino.Core().compile_model(_with_pixels(graph), "CPU", hints)
    channels = graph.input(0).get_partial_shape()[3].get_length()
    idle: SimpleQueue[Any] = SimpleQueue()
    for _ in range(streams):
        idle.put(compiled.create_infer_request())

    def call(batch: np.ndarray, *outputs: int) -> list[np.ndarray]:
        request = idle.get()
        try:
            request.infer(np.ascontiguousarray(batch), share_inputs=True)
            # Copies: the next call writes to the same memory.
            return [request.get_output_tensor(output).data.copy() for output in outputs]
        finally:
            idle.put(request)

    def predict(batch: np.ndarray) -> np.ndarray:
        return call(batch, 0)[0]

    def predict_uint8(batch: np.ndarray) -> np.ndarray:
        pixels, total = call(batch, 1, 2)
        refuse_nan(float(total))
        return pixels

    dtype = f"int8+{precision}" if name == INT8 else precision
    return Engine(resizer, channels, predict, predict_uint8, name, dtype, streams)


def _with_pixels(graph: Any) -> Any:
    """Adds the outputs `round(255 p)` and the sum of `p`."""
    openvino = extra("openvino", OPENVINO)
    ops = extra("openvino.opset13", OPENVINO)
    probability = graph.output(0).get_node().input_value(0)
    scaled = ops.multiply(probability, np.float32(255))
    pixels = ops.convert(ops.round(scaled, "half_to_even"), "u8")
    axes = np.arange(probability.get_partial_shape().rank.get_length())
    total = ops.reduce_sum(probability, axes, keep_dims=False)
    return openvino.Model([probability, pixels.output(0), total.output(0)], graph.get_parameters())


def to_openvino(model: keras.Model, size: tuple[int, int] | None = None) -> Any:
    """The `openvino.Model` of a float32 network, for photos of any size.

    Args:
        model: The network.
        size: The only (H, W) it is to take; None: any.

    Raises:
        UserError: OpenVINO is not installed, or Keras does not run on TensorFlow.
    """
    openvino = extra("openvino", OPENVINO)
    graph = openvino.convert_model(traced(model, OPENVINO, size).get_concrete_function())
    # Operations with a gradient of their own leave further results behind.
    return openvino.Model([graph.output(output_name(model))], graph.get_parameters())


def quantize(graph: Any, resizer: Resizer, channels: int, photos: Sequence[Sample]) -> Any:
    """The network with weights and activations of 8 bits, but for its first and last convolutions.

    Args:
        graph: `openvino.Model` from `to_openvino`.
        resizer: How photos are brought to its input size.
        channels: Of its input.
        photos: What the activations' ranges are taken from.

    Raises:
        UserError: NNCF is not installed, or a photo is unreadable.
    """
    nncf = extra("nncf", INT8)
    ranges = extra("nncf.quantization.range_estimator", INT8)
    logging.getLogger("nncf").setLevel(logging.ERROR)

    def window(numbered: tuple[int, Sample]) -> np.ndarray:
        number, sample = numbered
        photo = resizer.scale(read_channels(sample)[..., :channels])
        random = np.random.default_rng(number)
        top, left = (int(random.integers(max(1, n - _WINDOW + 1))) for n in photo.shape[:2])
        return resizer.pad(photo[top : top + _WINDOW, left : left + _WINDOW])[None]

    # Errors of the last one, the logits, are errors of the mask. Those of the first ones, which
    # read the photo, cost EfficientNet-Lite0 0.0006 Dice, and are a small part of the time.
    exact = _first_and_last_convolutions(graph)
    return nncf.quantize(
        graph,
        nncf.Dataset(list(enumerate(photos)), window),
        subset_size=len(photos),
        ignored_scope=nncf.IgnoredScope(names=[op.get_friendly_name() for op in exact]),
        # Ranges that need not lie around zero, chosen for the least error, and biases corrected
        # one after the other: slower here, as fast later, and nearer than NNCF's defaults.
        preset=nncf.QuantizationPreset.MIXED,
        fast_bias_correction=False,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=ranges.RangeEstimatorParametersSet.HISTOGRAM
        ),
    )


def _first_and_last_convolutions(graph: Any) -> list[Any]:
    """Those that no other convolution comes before, and the one that all others come before."""
    first, after, last = [], set(), None
    for op in graph.get_ordered_ops():
        follows = any(value.get_node().get_friendly_name() in after for value in op.input_values())
        convolves = op.get_type_name() in ("Convolution", "GroupConvolution")
        if follows or convolves:
            after.add(op.get_friendly_name())
        if convolves:
            last = op
            if not follows:
                first.append(op)
    return [*first, last]
