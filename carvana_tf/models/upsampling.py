"""Upsampling in a graph that does not know the size of its photos."""

from typing import Any

import keras

from carvana_tf import devices


class AnySizeUpSampling2D(keras.layers.UpSampling2D):
    """Computes what `UpSampling2D` computes, for photos of every size; for TensorFlow.

    Keras' own bilinear upsampling fails in a graph that is traced once for every size. Its
    nearest upsampling is a `repeat`, which becomes a chain of slow operations in other
    toolkits where a resize stays one.
    """

    def call(self, inputs: Any) -> Any:
        """[B, H, W, C] to [B, H times `size[0]`, W times `size[1]`, C]."""
        return devices.enlarge(inputs, self.size, self.interpolation)
