"""Writes the box around the object of every mask in a folder.

The command `carvana-tf find_bounding_boxes`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.find_bounding_boxes import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
