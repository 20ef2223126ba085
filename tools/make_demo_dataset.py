"""Renders a dataset: a photo studio with cars, or photos of several things with labels.

The command `carvana-tf make_demo_dataset`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.make_demo_dataset import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
