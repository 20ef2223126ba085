"""Suggests which photos to annotate next: those on whose contours masks agree least.

The command `carvana-tf suggest_photos`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.suggest_photos import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
