"""Scores a folder of probability PNGs against ground-truth masks and writes tables and a report.

The command `carvana-tf evaluate`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.evaluate import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
