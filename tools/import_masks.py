"""Turns the export of an annotation tool into mask files.

The command `carvana-tf import_masks`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.import_masks import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
