"""Combines folders of probability PNGs, photo by photo, into one.

The command `carvana-tf ensemble`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.ensemble import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
