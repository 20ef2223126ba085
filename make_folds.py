"""Assigns the photos of a dataset to folds: whole groups together, stratified by mask area.

The command `carvana-tf make_folds`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.make_folds import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
