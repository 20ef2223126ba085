"""Files that the published systems trained: their layers' names as ours.

The 4th-place solution (killthekitten/kaggle-carvana-2017, MIT) named the layers of its decoders,
and those of its small network, by numbers of stages (`conv6_1_conv`, `prediction`). The Keras
solution of AlbertoSabater left all names to Keras (`conv2d_7`), which counts layers as they are
made. Both are read from Keras 2's `.h5`.
"""

import re
from collections.abc import Mapping

import keras
import numpy as np

_BLOCK = re.compile(r"conv(\d+)_(\d)_(conv|bn)")
_VGG = re.compile(r"block([4-7])_conv(\d)")
_AUTOMATIC = re.compile(r"(conv2d|conv2d_transpose|batch_normalization)(?:_(\d+))?")
_CLASSES = {
    "conv2d": keras.layers.Conv2D,
    "conv2d_transpose": keras.layers.Conv2DTranspose,
    "batch_normalization": keras.layers.BatchNormalization,
}
# For each network, which stage of the file is which of ours: the first, the last, our prefix, and
# the number of the first.
_STAGES: dict[str, tuple[tuple[int, int, str, int], ...]] = {
    "resnet50": ((6, 10, "decoder_stage", 1),),
    "mobilenet": ((6, 10, "decoder_stage", 1),),
    "inception_resnet_v2": ((6, 10, "decoder_stage", 1),),
    "simple_unet": (
        (1, 3, "encoder_stage", 1),
        (4, 4, "bottleneck", 0),
        (5, 7, "decoder_stage", 1),
    ),
}
# The stem of its ResNet50 pads "same", which for even sizes is this; Keras' own pads 3 and 1.
_STEM = {"conv1_pad": ((2, 3), (2, 3)), "pool1_pad": ((0, 1), (0, 1))}


def rename(
    weights: Mapping[str, list[np.ndarray]], model: keras.Model
) -> tuple[dict[str, list[np.ndarray]], bool]:
    """The weights of a published file by the names of our layers; others as they are.

    Args:
        weights: By the file's names.
        model: One of `networks.NETWORKS`.

    Returns:
        The weights, and whether names of the 4th-place solution were found.
    """
    named = {_name(name, model.name): arrays for name, arrays in weights.items()}
    fourth = named.keys() != weights.keys()
    return _by_order(named, model), fourth


def pad_stem(model: keras.Model) -> None:
    """Pads the stem of a ResNet50 as the 4th-place solution did; other networks stay."""
    for layer in model.layers:
        if layer.name in _STEM and isinstance(layer, keras.layers.ZeroPadding2D):
            layer.padding = _STEM[layer.name]


def _name(name: str, network: str) -> str:
    if network == "vgg" and (found := _VGG.fullmatch(name)):
        stage, number = found.groups()
        prefix = "bottleneck" if stage == "7" else f"encoder_stage{stage}"
        return f"{prefix}_conv{number}"
    if network not in _STAGES:
        return name
    if name == "prediction":
        return "logits"
    found = _BLOCK.fullmatch(name)
    for first, last, prefix, start in _STAGES[network] if found else ():
        stage, number, kind = found.groups()  # type: ignore[union-attr]
        if first <= int(stage) <= last:
            counted = str(int(stage) - first + start) if start else ""
            return f"{prefix}{counted}_{kind}{number}"
    return name


def _by_order(
    weights: dict[str, list[np.ndarray]], model: keras.Model
) -> dict[str, list[np.ndarray]]:
    """Pairs automatic names with the layers of their class that the file has not, in order.

    Only where that gives every one of them its shapes.
    """
    wanted = {layer.name: layer for layer in model.layers if layer.weights}
    renamed: dict[str, str] = {}
    for kind, layer_class in _CLASSES.items():
        counted = {
            name: int(found[2] or 0)
            for name in weights
            if name not in wanted and (found := _AUTOMATIC.fullmatch(name)) and found[1] == kind
        }
        layers = [
            layer
            for layer in wanted.values()
            if type(layer) is layer_class and layer.name not in weights
        ]
        if len(counted) != len(layers):
            return weights
        for name, layer in zip(sorted(counted, key=lambda n: counted[n]), layers, strict=True):
            if [a.shape for a in weights[name]] != [tuple(w.shape) for w in layer.weights]:
                return weights
            renamed[name] = layer.name
    return {renamed.get(name, name): arrays for name, arrays in weights.items()}
