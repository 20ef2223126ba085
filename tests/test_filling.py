"""Folders that commands fill: what was begun goes on, and nothing else is replaced."""

import errno
import os

import cv2
import numpy as np
import pytest

from carvana_tf import commands
from carvana_tf.data.images import encode_mask, read_mask
from carvana_tf.errors import UserError
from carvana_tf.files import write_bytes
from carvana_tf.filling import UNFINISHED, filling
from carvana_tf.masks import rle


def fill(folder, settings, names, *, fails=False, overwrite=False):
    """Makes files of some names; returns whether an earlier run has made some."""

    def present():
        return [folder / name for name in names if (folder / name).exists()]

    with filling(folder, settings, present, flag="out_dir", overwrite=overwrite) as made:
        assert all(path.exists() for path in made)
        for name in names:
            (folder / name).write_text(f"{settings}")
        if fails:
            raise OSError(errno.EIO, "broken")
    return bool(made)


def test_only_the_same_run_goes_on(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OSError, match="broken"):
        fill(out, {"a": (1, 2)}, ["x"], fails=True)
    with pytest.raises(UserError, match=r"out' holds 1 of these files already \(x\).*--out_dir"):
        fill(out, {"a": (1, 3)}, ["x", "y"])
    assert fill(out, {"a": (1, 2)}, ["x", "y"])
    assert sorted(path.name for path in out.iterdir()) == ["x", "y"]
    with pytest.raises(UserError, match="holds 2 of these"):
        fill(out, {"a": (1, 2)}, ["x", "y"])
    assert not fill(out, {"a": 3}, ["x", "y"], overwrite=True)
    assert not fill(out, {"a": 3}, ["z"])


def test_a_damaged_record_is_no_record(tmp_path):
    with pytest.raises(OSError, match="broken"):
        fill(tmp_path, {}, ["x"], fails=True)
    (tmp_path / UNFINISHED).write_text("{")
    with pytest.raises(UserError, match="holds 1 of these"):
        fill(tmp_path, {}, ["x"])


@pytest.mark.parametrize("replaces", [False, True])
def test_decoding_goes_on_after_a_full_disk(tmp_path, monkeypatch, replaces):
    monkeypatch.chdir(tmp_path)
    masks = {f"a_{i}": np.random.default_rng(i).random((5, 7)) > 0.5 for i in range(40)}
    rows = [f"{stem}.jpg,{rle.encode_text(mask)}\n" for stem, mask in masks.items()]
    (tmp_path / "s.csv").write_text("".join(["img,rle_mask\n", *rows]))
    given = ["--submission=s.csv", "--img_width=7", "--img_height=5", "--out_dir=out"]
    if replaces:
        given.append("--overwrite")
        for stem in masks:
            write_bytes(tmp_path / f"out/{stem}.png", encode_mask(np.zeros((5, 7), bool)))
            os.utime(tmp_path / f"out/{stem}.png", (1e9, 1e9))
    calls, encode = [], cv2.imencode

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode(*arguments)

    monkeypatch.setattr(cv2, "imencode", full)
    with pytest.raises(OSError, match="No space left"):
        commands.find("decode_submission").call(given)
    made = [path for path in (tmp_path / "out").glob("*.png") if read_mask(path).any()]
    done = len(made)
    assert 0 < done < len(masks)
    calls.clear()
    monkeypatch.setattr(cv2, "imencode", lambda *a: calls.append(a) or encode(*a))
    commands.find("decode_submission").call(given)
    assert len(calls) == len(masks) - done
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f"{s}.png" for s in masks)
    for stem, mask in masks.items():
        assert np.array_equal(read_mask(tmp_path / f"out/{stem}.png"), mask)
