"""The short forms of the harnesses that disturb whole commands, see tests/faults/commands.py."""

import pytest
from faults import commands, kills

SHORT = {"training": ("--epochs=1", "--steps_per_epoch=40"), "prediction": (), "encoding": ()}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    commands.prepare(folder, photos=60, masks=300)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_killed_commands_end_as_undisturbed_ones(work, name):
    killed = kills.kill(name, 2, work, *SHORT[name])
    assert (killed.kills, killed.wrong) == (2, [])
    assert killed.runs
