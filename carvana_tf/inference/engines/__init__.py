"""Engines: a batch of network inputs in, probabilities out, on one device.

`base` says what an engine is; `keras`, `openvino` (8 bits too) and `onnx` make one; `selection`
decides which to use, `conversion` keeps converted networks (`cache`) and checks that they agree
with Keras (`agreement`).
"""

from carvana_tf.inference.engines.base import Engine as Engine
from carvana_tf.inference.engines.keras import keras_engine as keras_engine
