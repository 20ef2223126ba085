"""Prints what model files were trained with, without loading the networks.

The command `carvana-tf inspect_model`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.inspect_model import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
