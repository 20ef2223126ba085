"""Trains a segmentation network on one fold, on all folds in turn, or on everything.

The command `carvana-tf train`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.train import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
