"""The groups of flags: what they know without Keras."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from carvana_tf import commands, flags
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
    assert tuple(optimizers._CLASSES) == OPTIMIZERS


@pytest.mark.parametrize("name", commands.SCRIPTS)
def test_every_group_has_a_heading_and_every_flag_is_in_one(name):
    groups = [leaf for group in commands.find(name).groups for leaf in flags.leaves(group)]
    for group in groups:
        assert not group.__doc__.startswith(f"{group.__name__}(")  # as dataclasses have it
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))
