"""Draws a contact sheet of transformed training photos, masks outlined: what training sees.

The command `carvana-tf show_augmentation`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.show_augmentation import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
