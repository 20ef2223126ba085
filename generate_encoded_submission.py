"""Encodes a folder of probability PNGs as a submission, or checks an existing one.

The command `carvana-tf encode`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.encode import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
