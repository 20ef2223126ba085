"""The groups of flags: what they know without Keras."""

import subprocess
import sys
from pathlib import Path

import pytest

from carvana_tf.training import optimizers
from carvana_tf.training.options import OPTIMIZERS

ROOT = Path(__file__).parents[1]
BACKENDS = {"keras", "tensorflow", "jax", "torch"}
GROUPS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "carvana_tf").rglob("options.py")
)


@pytest.mark.parametrize("module", GROUPS)
def test_groups_need_no_backend(module):
    """`--help` shows the names of networks, losses and engines at once."""
    code = f"import sys, {module}; print(*{BACKENDS} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


def test_there_are_groups():
    assert {"carvana_tf.options", "carvana_tf.training.options"} <= {*GROUPS}


def test_every_optimizer_has_a_name():
    assert tuple(optimizers.OPTIMIZERS) == OPTIMIZERS
