"""Turns the rows of a submission back into mask PNGs.

The command `carvana-tf decode_submission`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.decode_submission import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
