"""The model that is compiled and fitted: the network's own layers, some computed faster.

Keras makes BatchNormalization and UpSampling2D of many operations, which on a processor
take as long as the convolutions. Here the layers of a network are called once more, those
two kinds through single operations of the backend. All variables are the network's own:
what is trained is the network, and what is saved is made of Keras' own layers alone.
"""

from typing import Any

import keras
from keras import ops

from carvana_tf import devices


def build(network: keras.Model, *, fuse: bool = True) -> keras.Model:
    """A model around the layers of a network, for `compile` and `fit`.

    Args:
        network: A functional model; it never hears of losses and optimisers.
        fuse: Whether to use single operations where the backend has them; the results
            differ by rounding only.

    Returns:
        A model with the variables of `network`, in the same order. Which of its layers
        are trainable is decided now.
    """
    if fuse and devices.has_fused_operations():
        return keras.models.clone_model(network, clone_function=_fused)
    return keras.Model(network.input, network.output)


class FusedBatchNormalization(keras.layers.Layer):
    """Computes what a BatchNormalization layer computes, with that layer's variables."""

    def __init__(self, layer: keras.layers.BatchNormalization) -> None:
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.layer = layer  # its variables become ours
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """As `BatchNormalization.call`."""
        layer = self.layer
        if mask is not None or not (training and layer.trainable):
            return layer(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        gamma = layer.gamma if layer.scale else ops.ones(channels, "float32")
        beta = layer.beta if layer.center else ops.zeros(channels, "float32")
        outputs, mean, variance = devices.fused_batch_norm(inputs, gamma, beta, layer.epsilon)
        for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            average.assign(average * layer.momentum + value * (1.0 - layer.momentum))
        return outputs


class FusedUpSampling2D(keras.layers.Layer):
    """Computes what `UpSampling2D(2)` computes."""

    def call(self, inputs: Any) -> Any:
        """[B, H, W, C] to [B, 2H, 2W, C]."""
        return devices.double_size(inputs)


def _fused(layer: Any) -> Any:
    """What takes the place of a layer in the trainer: itself, or a faster one."""
    if type(layer) is keras.layers.BatchNormalization:
        fits = layer.input_spec.ndim == 4 and layer.axis in (-1, 3)
        fits = fits and not (layer.renorm or layer.synchronized)
        return FusedBatchNormalization(layer) if fits else layer
    if type(layer) is keras.layers.UpSampling2D:
        doubles = layer.size == (2, 2) and layer.interpolation == "nearest"
        fits = doubles and layer.data_format == "channels_last"
        return FusedUpSampling2D(name=layer.name, dtype=layer.dtype_policy) if fits else layer
    return layer
