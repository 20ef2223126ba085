"""The model that is compiled and fitted: the network's own layers, some computed faster.

Keras' BatchNormalization is made of many operations, which on a processor cost as much as
the convolutions. Here the layers of a network are called once more, BatchNormalization
through the backend's one fused operation. All variables are the network's own, so that
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
        fuse: Whether BatchNormalization is computed by the backend's fused operation,
            where it has one. The results differ by rounding only.

    Returns:
        A model with the variables of `network`, in the same order. Which of its layers
        are trainable is decided now.
    """
    if fuse and devices.has_fused_operations():
        return keras.models.clone_model(network, clone_function=_fused)
    return keras.Model(network.inputs, network.outputs)


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


def _fused(layer: Any) -> Any:
    """What takes the place of a layer in the trainer: itself, or a faster one."""
    if type(layer) is not keras.layers.BatchNormalization:
        return layer
    fits = layer.input_spec.ndim == 4 and layer.axis in (-1, 3)
    return FusedBatchNormalization(layer) if fits and not layer.renorm else layer
