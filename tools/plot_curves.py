"""Draws the learning curves of one or several runs into one picture.

The command `carvana-tf plot_curves`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.plot_curves import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
