"""Copies of networks with other settings of their layers."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from carvana_tf import devices

Change = Callable[[keras.layers.Layer, dict[str, Any]], None]
"""Edits a layer's configuration in place."""

# Names that Keras gives layers for want of one; their numbers depend on what was made before.
_AUTOMATIC = re.compile(
    r"(conv2d|batch_normalization|layer_normalization|activation|re_lu)(?:_(\d+))?"
)


class AnySizeUpSampling2D(keras.layers.UpSampling2D):
    """Computes what `UpSampling2D` computes, for photos of every size; for TensorFlow.

    Keras' own bilinear upsampling fails in a graph that is traced once for every size. Its
    nearest upsampling is a `repeat`, which becomes a chain of slow operations in other
    toolkits where a resize stays one.
    """

    def call(self, inputs: Any) -> Any:
        """[B, H, W, C] to [B, H times `size[0]`, W times `size[1]`, C]."""
        return devices.enlarge(inputs, self.size, self.interpolation)


def clone(model: keras.Model, change: Change) -> keras.Model:
    """A copy with fresh weights whose layers' configurations `change` may edit in place."""

    def copy(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # operations hold no state: both models may use them
        config = layer.get_config()
        change(layer, config)
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=copy)


def replaced(model: keras.Model, by: Mapping[str, Callable[[Any], Any]]) -> keras.Model:
    """A copy with the same weights in which others stand for some layers and operations.

    Args:
        model: A functional model.
        by: Class name -> what makes, of the layer or operation, a layer or function that
            is called in its place.
    """

    def copy(node: Any) -> Any:
        make = by.get(type(node).__name__)
        if make is not None:
            return make(node)
        if not isinstance(node, keras.layers.Layer):
            return node
        return type(node).from_config(node.get_config())

    copied = keras.models.clone_model(model, clone_function=copy)
    copied.set_weights(model.get_weights())
    return copied


def flat_clone(model: keras.Model, change: Change) -> keras.Model:
    """A clone without nested `Sequential` models, its automatic names counted from 1.

    The layers of nested models become layers of the copy.
    """
    names = counted_names(layer.name for layer in model.layers)

    def copy(layer: Any) -> Any:
        if isinstance(layer, keras.Sequential):
            parts = [copy(part) for part in layer.layers]
            return lambda x, **_: _chain(parts, x)
        if not isinstance(layer, keras.layers.Layer):
            return layer
        config = layer.get_config()
        config["name"] = names.get(layer.name, layer.name)
        change(layer, config)
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=copy)


def counted_names(names: Iterable[str]) -> dict[str, str]:
    """Automatic names -> the same counted from 1, as in the files of `keras.applications`.

    `conv2d, conv2d_1` and `conv2d_7, conv2d_8` both become `conv2d_1, conv2d_2`.
    """
    matches = [match for match in map(_AUTOMATIC.fullmatch, names) if match]
    counts: Counter[str] = Counter()
    counted = {}
    for match in sorted(matches, key=lambda match: int(match[2] or 0)):
        counts[match[1]] += 1
        counted[match[0]] = f"{match[1]}_{counts[match[1]]}"
    return counted


def _chain(layers: list[Any], x: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x
