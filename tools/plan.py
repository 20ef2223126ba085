"""Proposes the flags of a training for these photos, this machine and so many minutes.

The command `carvana-tf plan`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.plan import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
