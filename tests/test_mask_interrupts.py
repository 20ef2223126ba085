"""Ensembling and encoding that are interrupted or killed: nothing is left half written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from carvana_tf import interrupt
from carvana_tf.data.images import write_probability
from carvana_tf.threads import ordered_map

ROOT = Path(__file__).parent.parent
PHOTOS = 120
ENSEMBLE = ("ensemble.py", "--pred_mask_dirs=a,b", "--pred_mask_dir=out", "--threads=2")
ENCODE = ("generate_encoded_submission.py", "--pred_mask_dir=a", "--submissions_dir=out")
ENCODE += ("--submission_name=s.csv.gz", "--pred_sample_csv=", "--image_extension=.jpg")


@pytest.fixture
def work(tmp_path):
    """Two folders of masks whose PNGs take a while: they are noise."""
    random = np.random.default_rng(0)
    for name in "ab":
        for number in range(PHOTOS):
            grey = random.integers(0, 256, (300, 500), np.uint8)
            write_probability(tmp_path / name / f"p{number:03d}.png", grey)
    return tmp_path


def start(work, script, *arguments):
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number"),
    [(ENSEMBLE, signal.SIGTERM), (ENSEMBLE, signal.SIGKILL), (ENCODE, signal.SIGTERM)],
)
def test_interrupted_runs_leave_nothing_and_end_as_undisturbed_ones(work, command, number):
    process = start(work, *command)
    while not (work / "out").is_dir() or len(list((work / "out").iterdir())) < 2:
        assert process.poll() is None, process.stderr.read()
        # Encoding writes one file, under a hidden name.
        if command is ENCODE and list(work.glob("out/.*")):
            break
        time.sleep(0.01)
    process.send_signal(number)
    _, message = process.communicate()
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "interrupted" in message and "Traceback" not in message
        hidden = {path.name for path in (work / "out").glob(".*")}
        # Rows that were encoded are kept for the next run; see test_growing.py.
        assert not hidden or (command is ENCODE and all(".partial" in name for name in hidden))
    done = contents(work / "out")
    if command is ENSEMBLE:
        assert len([name for name in done if name.endswith(".png") and name[0] != "."]) < PHOTOS
    else:
        assert "s.csv.gz" not in done
    again = start(work, *command)
    assert again.communicate() and again.returncode == 0
    finished = contents(work / "out")
    assert not [name for name in finished if name.startswith(".")]
    (work / "out").rename(work / "first")
    undisturbed = start(work, *command)
    assert undisturbed.communicate() and undisturbed.returncode == 0
    assert contents(work / "out") == finished


def test_what_has_begun_is_finished_and_nothing_else_is_begun():
    begun, ended = [], []

    def work(number):
        begun.append(number)
        time.sleep(0.01)
        ended.append(number)
        return number

    results = interrupt.interruptible(ordered_map(work, range(1000), 2))
    handler = None
    with pytest.raises(KeyboardInterrupt):
        for number in results:
            if handler is None:
                handler = signal.getsignal(signal.SIGTERM)
            if number == 3:
                handler(signal.SIGTERM, None)
    assert begun == ended or sorted(begun) == sorted(ended)
    assert 4 <= len(begun) < 20
    assert signal.getsignal(signal.SIGTERM) is not handler
