"""Cuts the objects out of photos by masks that were predicted before.

The command `carvana-tf cut_out`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.cut_out import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
