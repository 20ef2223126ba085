"""Training by processes on several machines: here two of this one."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pandas as pd
import pytest
from processes import number_of, start_script_apart

from carvana_tf import machines, replicas
from carvana_tf.errors import Problems, UserError
from carvana_tf.machines import VARIABLE, Machines
from carvana_tf.training.folder import writable

TRAIN = Path(__file__).parents[1] / "train.py"


def config(cluster, kind="worker", index=0):
    return {VARIABLE: json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({VARIABLE: " "}, None),
        ({VARIABLE: "{}"}, None),
        ({VARIABLE: '{"cluster": {}, "environment": "cloud"}'}, None),
        (config({"worker": ["a:1"]}), None),
        (config({"worker": ["a:1", "b:2"]}), Machines(("a:1", "b:2"), 0)),
        (config({"worker": ["a:1", "b:2"]}, index=1), Machines(("a:1", "b:2"), 1)),
        (config({"worker": ["a:1", "b:2"]}, index="1"), Machines(("a:1", "b:2"), 1)),
        (config({"worker": ["b:2"], "chief": ["a:1"]}), Machines(("a:1", "b:2"), 1)),
        (config({"worker": ["b:2"], "chief": ["a:1"]}, "chief"), Machines(("a:1", "b:2"), 0)),
    ],
)
def test_the_variable_names_the_processes(variables, found):
    assert machines.find(variables) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"cluster"', "JSONDecodeError"),
        ("[1]", "list"),
        ('{"cluster": ["a:1", "b:2"]}', "list"),
        ('{"cluster": {"worker": 3}}', "int"),
        ('{"cluster": {"worker": ["a:1", 2]}, "task": {"type": "worker", "index": 0}}', "a text"),
        ('{"cluster": {"worker": ["a:1", "b:2"]}}', "task"),
        ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker"}}', "index"),
        (config({"worker": ["a:1", "b:2"]}, index=2)[VARIABLE], "no worker 2"),
        (config({"worker": ["a:1", "b:2"]}, index=-1)[VARIABLE], "no worker -1"),
        (config({"worker": ["a:1", "b:2"]}, "chief")[VARIABLE], "no chief 0"),
        (config({"worker": ["a:1"], "ps": ["b:2"]})[VARIABLE], "ps has no part"),
    ],
)
def test_another_form_is_one_line(text, why):
    with pytest.raises(UserError, match=why) as raised:
        machines.find({VARIABLE: text})
    assert "\n" not in str(raised.value)


def test_what_trains_on_one_machine_says_so(monkeypatch):
    for text in ("[", config({"worker": ["a:1", "b:2"]})[VARIABLE]):
        monkeypatch.setenv(VARIABLE, text)
        problems = Problems()
        machines.refuse("a recipe uses one", problems)
        with pytest.raises(UserError, match="and a recipe uses one; unset it"):
            problems.raise_any()
    monkeypatch.delenv(VARIABLE)
    problems = Problems()
    machines.refuse("a recipe uses one", problems)
    problems.raise_any()


def test_alone_nothing_is_asked():
    assert replicas.is_first() and not replicas.is_joined()
    assert replicas.asked_of_any(True) and not replicas.asked_of_any(False)
    assert (replicas.total(["cpu:0"]), replicas.total([]), replicas.total(["a", "b"])) == (1, 1, 2)
    replicas.refuse_difference("anything")
    assert replicas.lost_machine(RuntimeError("UNAVAILABLE: gone")) is None


def test_an_error_in_a_copy_names_the_folder(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    monkeypatch.setattr(replicas, "is_first", lambda: False)
    with (
        pytest.raises(UserError, match=f"^'{tmp_path}/run' holds"),
        writable(tmp_path / "run") as copy,
    ):
        assert copy != tmp_path / "run" and (copy / "run.json").is_file()
        raise UserError(f"'{copy}' holds another run.")
    assert not copy.exists()


class Pair:
    """Two processes that train together."""

    def __init__(self, folder, dataset):
        self._folder, self._dataset = folder, dataset

    def start(self, monkeypatch, models, *flags, each=((), ())):
        """Starts them; `each` has further flags of each one."""
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in each]
        cluster = {"worker": [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]}
        for own in sockets:
            own.close()
        self.logs, self.processes = [], []
        for number, further in enumerate(each):
            for name, value in config(cluster, index=number).items():
                monkeypatch.setenv(name, value)
            self.logs.append(self._folder / f"{models}-{number}.log")
            self.processes.append(self.train(self.logs[-1], models, *flags, *further))
        monkeypatch.delenv(VARIABLE)

    def alone(self, models, *flags):
        process = self.train(self._folder / "alone.log", models, *flags)
        process.join()
        assert process.exitcode == 0

    def train(self, log, models, *flags):
        fixed = (f"--dataset_dir={self._dataset}", f"--models_dir={self._folder / models}")
        size = ("--size_policy=resize", "--input_width=32", "--input_height=32", "--dtype=float32")
        return start_script_apart(
            log, TRAIN, "--network=simple_unet", "--gpu=", *fixed, *size, *flags, cwd=self._folder
        )

    def send(self, number, which, models, epochs):
        """A signal to one, as soon as so many epochs are done."""
        while len(rows(self._folder / models)) < epochs:
            assert all(process.is_alive() for process in self.processes), self.ends()
            time.sleep(0.05)
        os.kill(number_of(self.processes[which]), number)

    def ends(self):
        """Exit statuses, and what they have printed."""
        for process in self.processes:
            process.join(300)
        said = [log.read_text(errors="replace") for log in self.logs]
        return [process.exitcode for process in self.processes], said


@pytest.fixture
def pair(tmp_path, make_dataset):
    pair = Pair(tmp_path, make_dataset())
    yield pair
    for process in pair.processes:
        process.kill()


def rows(folder):
    logs = [*folder.glob("*/log.csv")]
    return pd.read_csv(logs[0]).drop(columns="seconds") if logs else []


@pytest.mark.slow
def test_two_processes_train_as_one(pair, tmp_path, monkeypatch):
    flags = ("--epochs=1", "--steps_per_epoch=1", "--batch_size=4", "--optimizer=sgd")
    pair.alone("one", *flags)
    pair.start(monkeypatch, "two", *flags)
    statuses, said = pair.ends()
    assert statuses == [0, 0], said
    assert f"models in {tmp_path / 'two/simple_unet-fold_0'}" in said[0]
    assert "models at 127.0.0.1:" in said[1]
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert abs(one["loss"] - two["loss"]).max() < 1e-5
    # What an ended run says needs no other process.
    pair.start(monkeypatch, "two", *flags)
    statuses, said = pair.ends()
    assert statuses == [0, 0] and all("already trained" in each for each in said), said


@pytest.mark.slow
def test_a_signal_to_one_ends_both_after_the_same_step(pair, tmp_path, monkeypatch):
    flags = ("--epochs=6", "--batch_size=4", "--validate_every=6")
    pair.start(monkeypatch, "whole", *flags)
    assert pair.ends()[0] == [0, 0]
    pair.start(monkeypatch, "halves", *flags)
    pair.send(signal.SIGTERM, 1, "halves", 1)
    statuses, said = pair.ends()
    assert statuses == [130, 130], said
    assert len(rows(tmp_path / "halves")) < 6
    pair.start(monkeypatch, "halves", *flags)
    assert pair.ends()[0] == [0, 0]
    assert rows(tmp_path / "halves").equals(rows(tmp_path / "whole"))
    (whole,), (halves,) = ((tmp_path / f).glob("*/last.keras") for f in ("whole", "halves"))
    assert whole.read_bytes() == halves.read_bytes()


@pytest.mark.slow
def test_the_end_of_one_is_one_line_of_the_other(pair, tmp_path, monkeypatch):
    flags = ("--epochs=50", "--batch_size=4", "--validate_every=50")
    pair.start(monkeypatch, "killed", *flags)
    pair.send(signal.SIGKILL, 1, "killed", 2)
    statuses, said = pair.ends()
    assert statuses == [1, -signal.SIGKILL]
    assert "\nerror: another process of TF_CONFIG (127.0.0.1:" in said[0]
    assert "Traceback" not in said[0]
    assert len(rows(tmp_path / "killed")) >= 2


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(pair, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        workers = [f"127.0.0.1:{taken.getsockname()[1]}", "127.0.0.1:1"]
        for name, value in config({"worker": workers}).items():
            monkeypatch.setenv(name, value)
        log = tmp_path / "a.log"
        pair.logs, pair.processes = [log], [pair.train(log, "a", "--epochs=1")]
        statuses, said = pair.ends()
    assert statuses == [1] and "\nerror: the processes of TF_CONFIG do not find" in said[0], said
    assert "Traceback" not in said[0]


@pytest.mark.slow
def test_processes_that_would_train_something_else_say_so(pair, tmp_path, monkeypatch):
    pair.start(monkeypatch, "a", "--epochs=1", each=(("--seed=1",), ("--seed=2",)))
    statuses, said = pair.ends()
    assert statuses == [1, 1]
    assert all("\nerror: the processes of TF_CONFIG do not" in each for each in said), said
