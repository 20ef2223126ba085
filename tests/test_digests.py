"""Damage that no format reveals is noticed against a recorded dataset."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from carvana_tf.data import checks, digests, images
from carvana_tf.data.dataset import Naming
from carvana_tf.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        photo = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        images.write_photo(tmp_path / f"p{i}.bmp", photo)
    return tmp_path


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    stamp = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(stamp, stamp))


def test_a_changed_file_is_noticed_though_its_time_and_size_are_the_same(folder):
    damage(folder / "p0.bmp")
    images.read_photo(folder / "p0.bmp")
    digests.write(folder, sorted(folder.glob("*.bmp")))
    damage(folder / "p1.bmp")
    (folder / "p2.bmp").write_bytes((folder / "p0.bmp").read_bytes() + b"0")
    images.read_photo(folder / "p0.bmp")
    for name, what in (("p1.bmp", "differs from the digest"), ("p2.bmp", "bytes, not the")):
        with pytest.raises(images.UnreadableImage, match=rf"{name}.*{what}.*--write") as caught:
            images.read_photo(folder / name)
        assert "\n" not in str(caught.value)
    digests.write(folder, sorted(folder.glob("*.bmp")))
    assert images.read_photo(folder / "p1.bmp").shape == (20, 30, 3)


def test_missing_files_and_a_damaged_record(folder):
    digests.write(folder, sorted(folder.glob("*.bmp")))
    (folder / "p2.bmp").unlink()
    found = checks.check_dataset(folder, folder, Naming(""), None)
    assert [f.file for f in found if f.kind == "recorded file is missing"] == [
        str(folder / "p2.bmp")
    ]
    digests._tables.clear()
    for text in ("[]", '{"files": {"p0.bmp": 3}}', "{"):
        (folder / digests.NAME).write_text(text)
        with pytest.raises(UserError, match=digests.NAME):
            images.read_photo(folder / "p0.bmp")


def test_the_script_records_a_dataset_without_errors(make_dataset):
    root = make_dataset(groups=2, views=1)

    def script(*flags):
        return subprocess.run(
            [sys.executable, str(ROOT / "tools/check_data.py"), f"--dataset_dir={root}", *flags],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    run = script("--write")
    assert run.returncode == 0, run.stdout + run.stderr
    assert (root / "train" / digests.NAME).is_file()
    mask = next((root / "train_masks").glob("*.gif"))
    images.write_gif_mask(mask, ~images.read_mask(mask))
    run = script()
    assert run.returncode == 1 and "--write" in run.stdout
    run = script("--write")
    assert run.returncode == 0, run.stdout + run.stderr
