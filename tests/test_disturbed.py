"""The short forms of the harnesses that disturb whole commands, see tests/faults/commands.py."""

import pytest
from faults import commands, kills, many_photos, small_disk, two_processes

SHORT = {"training": ("--epochs=1", "--steps_per_epoch=20"), "prediction": (), "encoding": ()}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    commands.prepare(folder, photos=60, masks=300, everything=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_killed_commands_end_as_undisturbed_ones(work, name):
    killed = kills.kill(name, 2, work, *SHORT[name])
    assert (killed.kills, killed.wrong) == (2, [])
    assert killed.runs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ensembling", "encoding"])
def test_a_full_disk_is_named_and_its_enlargement_is_enough(work, name):
    if not small_disk.may_mount(work):
        pytest.skip("this user may not mount a tmpfs")
    assert small_disk.fill(name, work).wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prediction", "encoding"])
def test_a_folder_has_one_writer(work, name):
    assert two_processes.pair(name, 2, work).wrong == []


@pytest.mark.slow
def test_memory_hardly_grows_with_the_number_of_photos(work):
    few, many = (many_photos.measure(work / f"many{count}", count) for count in (100, 3_000))
    for name, measured in many.items():
        assert measured.megabytes - few[name].megabytes < 40, name
