"""Carries out a recipe: from photos and masks to a submission and a report.

The command `carvana-tf pipeline`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.pipeline import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
