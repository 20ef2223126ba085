"""Lists everything wrong with a dataset, each finding with its fix.

The command `carvana-tf check_data`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.check_data import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
