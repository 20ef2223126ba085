"""What is on the disk after a power cut at any moment: nothing that was not synced counts.

The layer below us is the operating system's: `os.fsync`, `os.replace` and `os.unlink` are recorded
with what lies in a folder, and each moment becomes the two extremes that a file system may leave:
names as they are, or as they were when the folder was last synced. Content is what was synced,
of a file that never was nothing.
"""

import os
import stat

import numpy as np
import pytest

from carvana_tf import files
from carvana_tf.data.images import encode_mask
from carvana_tf.masks import manifest


class Disk:
    """Records the states in which a power cut may leave a folder.

    Attributes:
        states: `{name: content}`, hidden names left out.
    """

    def __init__(self, folder, monkeypatch):
        self.states = []
        self._folder = folder
        self._content = {}
        self._names = {}
        self._sync_all()
        for name in ("fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, self._recorded(getattr(os, name)))

    def _sync_all(self):
        for path in self._folder.iterdir():
            self._content[path.stat().st_ino] = path.read_bytes()
        self._names = self._listed()

    def _listed(self):
        return {entry.name: entry.inode() for entry in os.scandir(self._folder)}

    def _recorded(self, function):
        def call(*arguments, **options):
            self.cut()
            result = function(*arguments, **options)
            if function.__name__ == "fsync":
                self._synced(arguments[0])
            self.cut()
            return result

        return call

    def _synced(self, handle):
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            self._names = self._listed()
        else:
            self._content[status.st_ino] = os.pread(handle, status.st_size, 0)

    def cut(self):
        """Notes the states of this moment; returns them."""
        states = [
            {
                name: self._content.get(inode, b"")
                for name, inode in names.items()
                if not name.startswith(".")
            }
            for names in (self._listed(), self._names)
        ]
        self.states += states
        return states


@pytest.mark.parametrize("old", [None, b"old content"])
def test_a_file_is_the_old_or_the_new_one(tmp_path, monkeypatch, old):
    target = tmp_path / "model.keras"
    if old is not None:
        target.write_bytes(old)
    disk = Disk(tmp_path, monkeypatch)
    files.write_bytes(target, b"new content")
    assert {state.get("model.keras") for state in disk.states} == {old, b"new content"}
    for state in disk.cut():
        assert state == {"model.keras": b"new content"}


def test_without_durability_a_power_cut_shows(tmp_path, monkeypatch):
    """The layer finds what is not synced, so the tests above can fail."""
    disk = Disk(tmp_path, monkeypatch)
    with files.atomic_path(tmp_path / "a.npy", durable=False) as temporary:
        temporary.write_bytes(b"data")
    assert {"a.npy": b""} in disk.states


def test_masks_in_groups_are_whole_or_absent(tmp_path, monkeypatch):
    data = {f"{n}.png": encode_mask(np.eye(4, dtype=bool)) + bytes([n]) for n in range(40)}
    disk = Disk(tmp_path, monkeypatch)
    with files.Group() as group:
        for name, content in data.items():
            group.write_bytes(tmp_path / name, content)
        assert len(list(tmp_path.glob("[!.]*.png"))) == 40 - 40 % files.GROUP
    for state in disk.states:
        assert state.items() <= data.items()
    for state in disk.cut():
        assert state == data
    assert sorted(os.listdir(tmp_path)) == sorted(data)


def test_slow_masks_do_not_wait_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "GROUP_SECONDS", 0.0)
    with files.Group() as group:
        group.write_bytes(tmp_path / "a.png", b"a")
        assert (tmp_path / "a.png").read_bytes() == b"a"


def test_an_interrupt_keeps_what_was_written(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.Group() as group:
        group.write_bytes(tmp_path / "a.png", b"a")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_failed_sync_leaves_no_temporary_files(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space.*\.png"), files.Group() as group:
        for name in "ab":
            group.write_bytes(tmp_path / f"{name}.png", b"1")
    assert os.listdir(tmp_path) == []


def test_damaged_masks_are_made_again(tmp_path):
    png = encode_mask(np.eye(9, dtype=bool))
    made = manifest.Manifest(*((), True, "none", "keras", "float32", 4, "", manifest.ENCODING, "1"))
    stems = {"whole": png, "empty": b"", "short": png[:-1], "half": png[:20], "none": b"\0" * 99}
    manifest.write(tmp_path, made)
    for stem, content in stems.items():
        (tmp_path / f"{stem}.png").write_bytes(content)
    assert manifest.begin(tmp_path, made, stems) == {"whole"}
