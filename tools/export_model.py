"""Writes a model as a file that other programs run: ONNX, OpenVINO, TensorFlow or LiteRT.

The command `carvana-tf export_model`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.export_model import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
