"""8-bit networks: post-training quantisation of a converted network by NNCF."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.loader import read_channels
from carvana_tf.data.sizing import Sizing
from carvana_tf.inference.engines.base import extra

# Windows of whole photos: activations have the same ranges in both, and these are cheap.
_WINDOW = 512


def quantise(graph: Any, sizing: Sizing, channels: int, photos: Sequence[Sample]) -> Any:
    """The network with weights and activations of 8 bits, but for its last convolution.

    Args:
        graph: `openvino.Model` from `conversion.to_openvino`.
        sizing: How the network was trained to meet photos.
        channels: Of its input.
        photos: What the activations' ranges are taken from.

    Raises:
        UserError: NNCF is not installed, or a photo is unreadable.
    """
    nncf = extra("nncf", "openvino-int8")
    ranges = extra("nncf.quantization.range_estimator", "openvino-int8")
    logging.getLogger("nncf").setLevel(logging.ERROR)

    def window(numbered: tuple[int, Sample]) -> np.ndarray:
        number, sample = numbered
        photo = sizing.scale(read_channels(sample)[..., :channels])
        random = np.random.default_rng(number)
        top, left = (int(random.integers(max(1, n - _WINDOW + 1))) for n in photo.shape[:2])
        return sizing.pad(photo[top : top + _WINDOW, left : left + _WINDOW])[None]

    convolutions = [op for op in graph.get_ordered_ops() if op.get_type_name() == "Convolution"]
    # Errors of the last one, the logits, are errors of the mask.
    exact = nncf.IgnoredScope(names=[convolutions[-1].get_friendly_name()])
    return nncf.quantize(
        graph,
        nncf.Dataset(list(enumerate(photos)), window),
        subset_size=len(photos),
        ignored_scope=exact,
        # Ranges that need not lie around zero, chosen for the least error, and biases corrected
        # one after the other: slower here, as fast later, and nearer than NNCF's defaults.
        preset=nncf.QuantizationPreset.MIXED,
        fast_bias_correction=False,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=ranges.RangeEstimatorParametersSet.HISTOGRAM
        ),
    )
