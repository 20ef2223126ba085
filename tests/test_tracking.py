"""What MLflow and Weights & Biases get: from stand-ins, and where installed from themselves."""

import json
import os
import sys
import time

import pytest

from carvana_tf.errors import UserError
from carvana_tf.training import tracking
from carvana_tf.training.options import TRACKERS
from carvana_tf.training.tracking import IDS, check, tracked

MLFLOW = """
import types
calls = []
entities = types.SimpleNamespace(Metric=lambda *values: values, Param=lambda *values: values)
def get_tracking_uri(): return "here"
class MlflowClient:
    def get_experiment_by_name(self, name): return None
    def create_experiment(self, name):
        calls.append(("experiment", name)); return "7"
    def create_run(self, experiment, run_name):
        calls.append(("run", experiment, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))
    def log_batch(self, run_id, metrics=(), params=()):
        calls.append((run_id, [(n, v, s) for n, v, _, s in metrics], dict(params)))
    def update_run(self, run_id, status): calls.append((run_id, status))
    def set_terminated(self, run_id, status): calls.append((run_id, status))
"""
WANDB = """
import types
calls = []
Settings = dict
def init(**given):
    calls.append(given)
    return types.SimpleNamespace(
        dir="here", define_metric=lambda *name, **given: None, log=calls.append,
        finish=lambda exit_code: calls.append(exit_code),
    )
"""
SETTINGS = {"network": "unet", "epochs": 2, "training_groups": ["g"] * 300}


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Installs a package of a name and a text; returns the module."""

    def install(name, text):
        folder = tmp_path / "packages"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, name, raising=False)
        check(name)
        return __import__(name)

    for name in [*os.environ]:
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(tracking, "_USUAL", {})
    yield install
    for name in ("mlflow", "wandb"):
        sys.modules.pop(name, None)


def train(tracker, folder, *rows, error=None):
    folder.mkdir(exist_ok=True)
    with tracked(tracker, folder, SETTINGS) as write:
        for row in rows:
            write(row)
        if error is not None:
            raise error


FIRST = {"epoch": 1.0, "loss": 0.5, "val_dice": 0.9}
SECOND = {"epoch": 2.0, "loss": 0.25}


def test_mlflow_gets_settings_and_figures_and_a_run_goes_on(package, tmp_path, capsys):
    calls = package("mlflow", MLFLOW).calls
    with pytest.raises(KeyboardInterrupt):
        train("mlflow", tmp_path / "net-fold_0", FIRST, error=KeyboardInterrupt())
    assert calls == [
        ("experiment", "carvana_tf"),
        ("run", "7", "net-fold_0"),
        ("abc", [], {"network": "unet", "epochs": "2"}),  # what is too long to read is left out
        ("abc", [("loss", 0.5, 1), ("val_dice", 0.9, 1)], {}),
        ("abc", "KILLED"),
    ]
    assert "tracker: MLflow, run abc in here" in capsys.readouterr().out
    calls.clear()
    train("mlflow", tmp_path / "net-fold_0", SECOND)
    assert calls == [("abc", "RUNNING"), ("abc", [("loss", 0.25, 2)], {}), ("abc", "FINISHED")]
    calls.clear()
    with pytest.raises(ValueError, match="mine"):
        train("mlflow", tmp_path / "net-fold_0", error=ValueError("mine"))
    assert calls[-1] == ("abc", "FAILED")


def test_mlflow_gets_many_settings_in_parts(package, tmp_path):
    calls = package("mlflow", MLFLOW).calls
    with tracked("mlflow", tmp_path, {f"flag{i}": i for i in range(250)}):
        pass
    parts = [call[2] for call in calls if len(call) == 3 and call[0] == "abc"]
    assert [len(part) for part in parts] == [100, 100, 50]
    assert set().union(*parts) == {f"flag{i}" for i in range(250)}


def test_wandb_is_offline_unless_its_variable_says_otherwise(package, tmp_path, monkeypatch):
    calls = package("wandb", WANDB).calls
    folder = tmp_path / "net-fold_0"
    train("wandb", folder, FIRST)
    begun, figures, ended = calls
    assert (begun["mode"], begun["resume"], begun["name"]) == ("offline", None, "net-fold_0")
    assert (begun["dir"], begun["project"]) == (str(folder), "carvana_tf")
    assert begun["config"] == {"network": "unet", "epochs": "2"}
    assert (figures, ended) == ({"loss": 0.5, "val_dice": 0.9, "epoch": 1}, 0)
    assert json.loads((folder / IDS).read_text()) == {"wandb": begun["id"]}
    calls.clear()
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(KeyboardInterrupt):
        train("wandb", folder, SECOND, error=KeyboardInterrupt())
    again, _, ended = calls
    assert (again["id"], again["mode"], again["resume"]) == (begun["id"], "online", "allow")
    assert ended == 1


@pytest.mark.parametrize("part", ["create_run", "log_batch", "set_terminated"])
def test_a_service_that_fails_is_one_warning_and_no_end(package, tmp_path, capsys, part):
    mlflow = package("mlflow", MLFLOW)

    def fail(*arguments, **named):
        mlflow.calls.append("failed")
        raise ConnectionError("no answer\nsecond line")

    setattr(mlflow.MlflowClient, part, fail)
    train("mlflow", tmp_path / "run", FIRST, SECOND)
    assert mlflow.calls.count("failed") == 1
    warnings = capsys.readouterr().err.splitlines()
    assert warnings == ["warning: --tracker=mlflow is given up: ConnectionError: no answer"]


@pytest.mark.parametrize("tracker", TRACKERS[1:])
def test_a_missing_package_is_named_with_its_command(monkeypatch, tmp_path, tracker):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"--tracker={tracker} needs .*: pip install {tracker}"):
        check(tracker)
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(UserError, match=f"--tracker={tracker} needs .*: pip install {tracker}"):
        train(tracker, tmp_path / "run")


def test_no_tracker(tmp_path):
    check("none")
    train("none", tmp_path, FIRST)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "sqlite", None])
def test_mlflow_itself(monkeypatch, tmp_path, place):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    places = {"file": (tmp_path / "runs").as_uri(), "sqlite": f"sqlite:///{tmp_path}/runs.db"}
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if place is not None:
        pytest.importorskip("sqlalchemy")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", places[place])
    mlflow.set_tracking_uri(None)
    folder = tmp_path / "net-fold_0"
    with pytest.raises(KeyboardInterrupt):
        train("mlflow", folder, FIRST, error=KeyboardInterrupt())
    client, run_id = mlflow.MlflowClient(), json.loads((folder / IDS).read_text())["mlflow"]
    assert client.get_run(run_id).info.status == "KILLED"
    train("mlflow", folder, SECOND)
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "net-fold_0")
    assert run.data.params == {"network": "unet", "epochs": "2"}
    history = client.get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.25)]


def test_wandb_itself(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = tmp_path / "net-fold_0"
    train("wandb", folder, FIRST)
    run_id = json.loads((folder / IDS).read_text())["wandb"]
    (file,) = folder.rglob(f"run-{run_id}.wandb")
    # Its own process writes, and may be a little later.
    end = time.monotonic() + 60
    while b"val_dice" not in file.read_bytes() and time.monotonic() < end:
        time.sleep(0.1)
    assert b"val_dice" in file.read_bytes()
