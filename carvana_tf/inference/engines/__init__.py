"""Engines: a batch of network inputs in, probabilities out, on one device.

`base` says what an engine is, `by_keras`, `by_openvino` and `by_onnx` make
one, `choice` decides which to use.
"""

from carvana_tf.inference.engines.base import Engine as Engine
from carvana_tf.inference.engines.by_keras import keras_engine as keras_engine
