"""Resizes the photos of a dataset once, and their masks with them, into an output folder.

The command `carvana-tf prepare_dataset`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.prepare_dataset import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
