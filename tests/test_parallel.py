"""Runs at the same time, one on each device: those that come one after the other."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from processes import finish_script_apart, number_of, start_recipe_apart

from carvana_tf import devices, parallel
from carvana_tf.child import Child, Console
from carvana_tf.commands import train
from carvana_tf.errors import UserError

TRAIN = Path(__file__).parent.parent / "train.py"


@pytest.fixture(autouse=True)
def no_devices(monkeypatch):
    for name in (devices.CPU_DEVICES, devices.ONLY_GPU, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_each_process_sees_one_gpu():
    found = parallel.places("1,0")
    assert [place.gpu for place in found] == ["0", "0"]
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in found] == ["1", "0"]
    assert [place.environment[devices.ONLY_GPU] for place in found] == ["1", "0"]


def test_gpus_are_numbered_among_those_that_are_shown(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-7f,6")
    found = [place.environment["CUDA_VISIBLE_DEVICES"] for place in parallel.places("1,2")]
    assert found == ["GPU-7f", "6"]
    with pytest.raises(UserError, match="GPU 3 is not here"):
        parallel.places("0,3")


def test_logical_processors_are_one_to_their_processes(monkeypatch):
    monkeypatch.setenv(devices.CPU_DEVICES, "2")
    found = parallel.places("0,1")
    assert [place.gpu for place in found] == ["", ""]
    assert all(place.environment == {devices.CPU_DEVICES: None} for place in found)


@pytest.mark.parametrize("gpu", ["", "0", "0,0", "0,x", "0,-1"])
def test_one_device_is_nothing_to_be_parallel_on(gpu):
    with pytest.raises(UserError, match="--gpu=0,1; name them, or leave out --parallel"):
        parallel.places(gpu)


def test_a_process_without_its_gpu_does_not_take_the_processor(monkeypatch):
    monkeypatch.setattr(devices, "_limit_to", lambda wanted: {})
    assert devices.select("0")[0] == ["cpu:0"]
    monkeypatch.setenv(devices.ONLY_GPU, "5")
    with pytest.raises(UserError, match="GPU 5 is not here"):
        devices.select("0")


def test_lines_of_several_commands_have_labels(capfdbinary):
    console = Console("fold 1")
    for part in (b"epoch 1\nstep", b" 3\rstep 4\r", b"\n\nend", b"\n"):
        console.write(part)
    sys.stdout.buffer.flush()
    assert capfdbinary.readouterr().out == b"".join(
        b"[fold 1] %s\n" % line for line in (b"epoch 1", b"step 3", b"step 4", b"end")
    )


def run_folds(monkeypatch, make_dataset, tmp_path, run):
    """The command on two folds, with children that are `run`."""
    monkeypatch.setattr(Child, "run", run)
    data = f"--dataset_dir={make_dataset()}"
    models = f"--models_dir={tmp_path / 'models'}"
    arguments = (data, models, "--fold=all", "--parallel=folds", "--gpu=0,1", "--smoke")
    train.COMMAND.call([*arguments, "--network=unet_tiny"])


def test_every_fold_is_trained_by_a_command_of_its_own(monkeypatch, make_dataset, tmp_path):
    lines = {}

    def run(child, line, log, held, environment, label):
        lines[label] = line
        log.write(b"said\n")
        return 0

    run_folds(monkeypatch, make_dataset, tmp_path, run)
    assert sorted(lines) == ["fold 0", "fold 1"]
    for fold, line in enumerate(lines[label] for label in sorted(lines)):
        assert line[0] == "train"
        assert "--network=unet_tiny" in line
        assert line[-4:] == [f"--fold={fold}", "--parallel=none", "--ray_address=", "--gpu=0"]
        logs = list((tmp_path / "models").glob(f"*fold_{fold}*/console.log"))
        assert [log.read_text() for log in logs] == ["said\n"]


def test_a_fold_that_fails_is_named_and_the_other_is_trained(monkeypatch, make_dataset, tmp_path):
    done = []

    def run(child, line, log, held, environment, label):
        if label == "fold 0":
            log.write(b"start\nerror: car1_01.jpg cannot be read.\n")
            return 1
        done.append(label)
        return 0

    with pytest.raises(
        UserError, match=r"1 of 2 runs failed.*fold_0.*car1_01\.jpg cannot be read;"
    ):
        run_folds(monkeypatch, make_dataset, tmp_path, run)
    assert done == ["fold 1"]


@pytest.mark.slow
def test_folds_side_by_side_are_those_one_after_the_other(make_dataset, tmp_path, monkeypatch):
    """Also where Ctrl-C comes between."""
    monkeypatch.setenv(devices.CPU_DEVICES, "2")
    flags = (
        f"--dataset_dir={make_dataset()}",
        "--network=unet_tiny",
        "--smoke",
        "--dtype=float32",
        "--weights=",
    )
    alone = finish_script_apart(
        TRAIN, *flags, "--models_dir=alone", "--fold=1", "--gpu=", cwd=tmp_path
    )
    assert alone.returncode == 0, alone.stderr
    flags = (*flags, "--models_dir=models", "--fold=all", "--parallel=folds", "--gpu=0,1")
    log = tmp_path / "log"
    process = start_recipe_apart(log, TRAIN, *flags, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not all(f"[fold {fold}] start: " in read(log) for fold in (0, 1)):
        assert process.is_alive(), read(log)
        assert time.monotonic() < deadline, read(log)
        process.join(0.02)
    os.kill(number_of(process), signal.SIGINT)
    process.join(300)
    assert process.exitcode == 130, read(log)
    for fold in (0, 1):
        assert f"fold_{fold}-smoke: interrupted; the same command goes on from here." in read(log)
    again = finish_script_apart(TRAIN, *flags, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    (one,), (other,) = (tmp_path.glob(f"{name}/*fold_1*/") for name in ("alone", "models"))
    for name in ("best.keras", "last.keras", "last.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert len(list(tmp_path.glob("models/*/last.keras"))) == 2


def read(log):
    return log.read_text(errors="replace") if log.is_file() else ""
