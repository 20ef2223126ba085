"""Predicts photos with one or several models: by default one probability PNG per photo.

The command `carvana-tf predict`, run from a checkout; --help explains its flags.
"""

import carvana_tf.starting  # noqa: F401

import sys

from carvana_tf.cli import main
from carvana_tf.commands.predict import COMMAND

if __name__ == "__main__":
    sys.exit(main(COMMAND))
