"""Serves a page on this machine to try a model: drop photos, see masks and cut-outs.

The command `carvana-tf serve`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.serve import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
