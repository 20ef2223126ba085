"""Files are whole or absent."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from carvana_tf import files
from carvana_tf.errors import UserError


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_target_as_it_was(tmp_path, error):
    target = tmp_path / "out.csv.gz"
    target.write_text("old")
    with pytest.raises(error), files.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    target = tmp_path / "out.png"
    with pytest.raises(OSError, match=r"No space.*out\.png"), files.atomic_path(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []
    # Other errors keep their words.
    with pytest.raises(OSError, match=r"^no image$"), files.atomic_path(target):
        raise OSError("no image")


def test_the_temporary_file_is_hidden_and_beside_the_target(tmp_path):
    target = tmp_path / "new" / "folder" / "model.keras"
    with files.atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".") and temporary.suffix == ".keras"
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_files_get_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_long_names_fit(tmp_path):
    target = tmp_path / ("x" * 250)
    files.write_bytes(target, b"1")
    assert target.read_bytes() == b"1"


def test_a_file_where_a_folder_is_needed(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another"):
        files.write_text(tmp_path / "file" / "a.txt", "text")


def test_json_round_trip_and_errors(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": [1, None, "ä"]})
    assert files.read_json(path) == json.loads(path.read_text()) == {"a": [1, None, "ä"]}
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        files.read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not valid JSON"):
        files.read_json(path)
    with pytest.raises(UserError, match="cannot read"):
        files.read_json(tmp_path / "none.json")


def test_digests(tmp_path):
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "a").write_bytes(data)
    assert files.digest(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    assert files.digest_of_lines(["b", "a"]) == files.digest_of_lines(["a", "b"])
    assert files.digest_of_lines(["a", "b"]) != files.digest_of_lines(["ab"])


def killed_in(block):
    """Kills a process of its own inside a block of code that uses `files`."""
    code = f"import os\nfrom pathlib import Path\nfrom carvana_tf import files\nwith {block}:\n"
    code += "    os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)


def test_leftovers_of_a_killed_writer_go_and_nothing_else(tmp_path):
    names = (".hidden", "a/.lock.txt", "a/b.abcdefgh.png", ".env.template", "a/.my.settings")
    names += (".a.png.abcdefgh.txt", "a/.carvana_tf-notes.png", f".carvana_tf-{'g' * 32}.png")
    kept = [tmp_path / name for name in names]
    (tmp_path / "a").mkdir()
    for path in kept:
        path.write_text("")
    killed_in(f"files.atomic_path(Path({str(tmp_path / 'a' / 'b.png')!r}))")
    (left,) = (tmp_path / "a").glob(".carvana_tf-????????????????????????????????.png")
    with files.atomic_path(tmp_path / "a" / "c.png") as temporary:
        assert not left.exists()  # whoever writes there first removes it
        files.remove_leftovers(tmp_path)
        assert temporary.exists()  # its writer lives
    assert sorted(tmp_path.rglob("*")) == sorted([*kept, tmp_path / "a", tmp_path / "a" / "c.png"])
    killed_in(f"files.atomic_path(Path({str(tmp_path / 'a' / 'b.png')!r}))")
    files.remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == sorted([*kept, tmp_path / "a", tmp_path / "a" / "c.png"])


def test_the_process_keeps_its_umask(tmp_path, monkeypatch):
    """Another thread's files would get other permissions meanwhile."""
    monkeypatch.setattr(os, "umask", None)
    files.write_text(tmp_path / "a", "text")


def test_a_folder_has_one_holder_which_is_named(tmp_path):
    folder = tmp_path / "out"
    with files.held(folder):
        with (
            pytest.raises(UserError, match=rf"out' is in use by .*process {os.getpid()} on "),
            files.held(folder),
        ):
            pass
        (folder / "mask.png").touch()
    assert [path.name for path in folder.iterdir()] == ["mask.png"]
    with files.held(folder):
        pass


def test_a_folder_that_stays_empty_goes(tmp_path):
    with pytest.raises(ValueError), files.held(tmp_path / "out"):
        raise ValueError
    assert not (tmp_path / "out").exists()


def test_a_dead_holder_holds_nothing(tmp_path):
    killed_in(f"files.held(Path({str(tmp_path)!r}))")
    assert (tmp_path / files.LOCK).is_file()
    with files.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_holder_can_be_waited_for(tmp_path, capsys):
    entered = []

    def second():
        with files.held(tmp_path, wait=True):
            entered.append("second")

    with files.held(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        while "still works in" not in capsys.readouterr().out:
            time.sleep(0.01)
        entered.append("first")
    thread.join()
    assert entered == ["first", "second"]


def test_a_file_has_one_maker_at_a_time(tmp_path):
    target = tmp_path / "s.csv"
    with files.claimed(target), files.claimed(tmp_path / "other.csv"):
        refused = pytest.raises(UserError, match=r"s\.csv' is in use by .*process")
        with refused, files.claimed(target):
            pass
    assert not list(tmp_path.iterdir())
    killed_in(f"files.claimed(Path({str(target)!r}))")
    assert list(tmp_path.iterdir())
    with files.claimed(tmp_path / "other.csv"):  # whoever comes next tidies up
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_is_whole_or_absent(tmp_path):
    target = tmp_path / "new" / "network"
    for text in ("one", "two"):
        with files.atomic_folder(target) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / "file").write_text(text)
            assert temporary.name.startswith(files.PREFIX) and temporary.parent == target.parent
            assert target.exists() == (text == "two")
        assert (target / "deep" / "file").read_text() == text
        assert list(target.parent.iterdir()) == [target]
    with pytest.raises(ValueError), files.atomic_folder(target) as temporary:
        (temporary / "half").write_text("three")
        raise ValueError
    assert (target / "deep" / "file").read_text() == "two"
    assert list(target.parent.iterdir()) == [target]


def test_folders_of_dead_writers_are_removed(tmp_path):
    dead = tmp_path / f"{files.PREFIX}{'0' * 32}"
    (dead / "deep").mkdir(parents=True)
    (dead / "deep" / "file").write_text("half")
    with files.atomic_folder(tmp_path / "network") as living:
        assert not dead.exists()
        files.remove_leftovers(tmp_path)
        assert living.is_dir()
