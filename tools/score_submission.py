"""Scores a submission against ground-truth masks: every row is decoded.

The command `carvana-tf score_submission`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.score_submission import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
