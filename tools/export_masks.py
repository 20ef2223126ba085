"""Turns masks into files that annotation tools read, to correct them there.

The command `carvana-tf export_masks`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.export_masks import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
