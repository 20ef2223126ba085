"""Errors of the system while a picture is read: they end a command, and say nothing of the file."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from carvana_tf.data import bad_files, checks, images
from carvana_tf.data.dataset import Naming, find_samples
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory
from carvana_tf.tasks import MASKS

ROOT = Path(__file__).parents[1]
BROKEN_DISK = "/proc/self/mem"
"""A regular file of which the kernel gives no byte: EIO."""

READERS = [images.read_photo, images.read_mask, images.read_grey, images.read_size]


@pytest.fixture
def dataset(make_dataset):
    return make_dataset()


def break_disk(path):
    path.unlink()
    path.symlink_to(BROKEN_DISK)


@pytest.mark.parametrize("read", READERS)
def test_a_broken_disk_is_no_bad_file(tmp_path, read):
    path = tmp_path / "a.png"
    path.symlink_to(BROKEN_DISK)
    with pytest.raises(UserError, match=r"a\.png': Input/output error.*not of the file") as caught:
        read(path)
    assert not isinstance(caught.value, images.UnreadableImage)


@pytest.mark.parametrize("read", READERS)
def test_too_many_open_files_are_no_bad_file(dataset, read):
    path = dataset / "train/car00_01.jpg"
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))  # all that is open stays open
    try:
        with pytest.raises(UserError) as caught:
            read(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "Too many open files" in str(caught.value) and "ulimit -n" in str(caught.value)
    assert not isinstance(caught.value, images.UnreadableImage)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("number", ["ESTALE", "ENOMEM", "ETIMEDOUT", "EACCES", "ENOENT"])
def test_only_errors_of_one_path_are_bad_files(monkeypatch, dataset, read, number):
    code = getattr(errno, number)

    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(UserError, match=r"car00_01\.jpg'") as caught:
        read(dataset / "train/car00_01.jpg")
    of_file = isinstance(caught.value, images.UnreadableImage)
    assert of_file == (number in ("EACCES", "ENOENT"))
    assert isinstance(caught.value, OutOfMemory) == (number == "ENOMEM")


def test_checks_of_a_dataset_end(dataset):
    samples = find_samples(dataset / "train", dataset / "train_masks")
    break_disk(samples[3].photo)
    with pytest.raises(UserError, match="Input/output error"):
        bad_files.find(samples, 2, MASKS)
    with pytest.raises(UserError, match="Input/output error"):
        checks.check_dataset(dataset / "train", dataset / "train_masks", Naming(), None)


@pytest.fixture
def predicted(dataset):
    """Masks of all photos as predictions, in two folders."""
    samples = find_samples(dataset / "train", dataset / "train_masks")
    for sample in samples:
        images.write_mask(dataset / f"a/{sample.stem}.png", images.read_mask(sample.mask))
    shutil.copytree(dataset / "a", dataset / "b")
    lines = "".join(f"{sample.stem}.jpg,1 1\n" for sample in samples)
    (dataset / "sample_submission.csv").write_text(f"img,rle_mask\n{lines}")
    return dataset


@pytest.mark.parametrize(
    ("broken", "command"),
    [
        ("train_masks/car01_01_mask.gif", "make_folds.py --n_folds=2"),
        ("train/car01_01.jpg", "tools/check_data.py --report={0}/report.csv"),
        ("a/car01_01.png", "evaluate.py --pred_mask_dir={0}/a --out_dir={0}/scores"),
        (
            "a/car01_01.png",
            "ensemble.py --dirs_to_ensemble={0}/a,{0}/b --pred_mask_dir={0}/c --force",
        ),
        (
            "a/car01_01.png",
            "generate_encoded_submission.py --pred_mask_dir={0}/a --submissions_dir={0}/out "
            "--pred_sample_csv={0}/sample_submission.csv --force",
        ),
    ],
)
def test_commands_end_in_one_line_and_list_no_file(predicted, broken, command):
    break_disk(predicted / broken)
    script, *flags = command.format(predicted).split()
    if "pred_sample_csv" not in command:
        flags.append(f"--dataset_dir={predicted}")
    done = subprocess.run(
        [sys.executable, ROOT / script, *flags],
        cwd=predicted,
        check=False,
        capture_output=True,
        text=True,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1, done
    assert len(errors) == 1 and "Input/output error" in errors[0], done.stderr
    assert "Traceback" not in done.stderr
    assert not list(predicted.rglob(bad_files.NAME))
