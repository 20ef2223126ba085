"""Steps done, skipped, failed, interrupted and done again; no command is started."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from carvana_tf import files
from carvana_tf.errors import UserError
from carvana_tf.files import read_json, write_json
from carvana_tf.recipe import fingerprints
from carvana_tf.recipe.runner import Runner, alone, as_shell, fingerprint
from carvana_tf.recipe.steps import Fitted, Step


class Scripts:
    """Stands for the scripts: each writes its product from its command and its inputs.

    Attributes:
        calls: Names of the steps that were executed.
        failing: Steps that end with status 1.
        killed: A step that is killed amid its work.
        work: Is called by each step.
    """

    def __init__(self, steps):
        self.steps = {tuple(step.line): step for step in steps}
        self.calls = []
        self.failing = set()
        self.killed = None
        self.work = lambda: None

    def __call__(self, command, log):
        step = self.steps[tuple(command)]
        self.work()
        self.calls.append(step.name)
        log.write_text("printed")
        if step.name in self.failing:
            return 1
        read = "".join(fingerprint(path) for path in step.inputs)
        step.owns.mkdir(parents=True, exist_ok=True)
        if step.name == self.killed:
            (step.owns / f"{files.PREFIX}{'0' * 32}.png").write_text("")
            (step.owns / "half").write_text("")  # which a resuming script completes
            raise KeyboardInterrupt
        (step.owns / "half").write_text("whole")
        step.product.write_text(hashlib.sha256((" ".join(command) + read).encode()).hexdigest())
        return 0


@pytest.fixture
def steps(tmp_path):
    """Two costly steps without relation, one that needs the first, one that needs all."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    (source / "photo.jpg").write_text("photo")

    def make(name, inputs, costly=False):
        owns = out / "products" / name
        return Step(name, name, ("--seed=1",), inputs, owns / "product", owns, costly)

    a, b = make("a", (source,), True), make("b", (source,), True)
    c = make("c", (a.product,))
    return [a, b, c, make("d", (a.product, b.product, c.product))]


@pytest.fixture
def go(tmp_path):
    """Runs steps; returns whether all are done, and the failures."""

    def run(steps, scripts, overwrite=False, serial=True):
        with alone(tmp_path / "out"):
            runner = Runner(tmp_path / "out", steps, scripts, overwrite, serial=serial)
            return runner.run(steps), runner.failures

    return run


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def test_a_second_run_does_nothing(steps, go, tmp_path):
    scripts = Scripts(steps)
    assert go(steps, scripts) == (True, {})
    assert scripts.calls == ["a", "b", "c", "d"]
    before = tree(tmp_path / "out")
    assert go(steps, scripts) == (True, {})
    assert len(scripts.calls) == 4
    assert tree(tmp_path / "out") == before
    assert before["logs/a.log"] == b"printed"


def test_damaged_times_stop_nothing(steps, go, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/timings.json").write_text('{"a": 1')
    assert go(steps, Scripts(steps)) == (True, {})
    line = "warning: no times of earlier steps: "
    assert capsys.readouterr().err.startswith(f"{line}'{tmp_path}/out/timings.json' is not valid")
    times = files.read_json(tmp_path / "out/timings.json")
    assert [*times] == ["a", "b", "c", "d", "processor_seconds"]
    assert [*times["processor_seconds"]] == ["a", "b", "c", "d"]


def test_times_of_all_attempts_are_added(steps, go, tmp_path):
    (tmp_path / "out").mkdir()
    earlier = {"a": 100.0, "processor_seconds": {"a": 50.0, "b": "?"}}
    files.write_json(tmp_path / "out/timings.json", earlier)
    scripts = Scripts(steps)
    scripts.work = lambda: subprocess.run(
        [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True
    )
    go(steps[:1], scripts)
    times = files.read_json(tmp_path / "out/timings.json")
    assert times["a"] >= 100.3
    assert 50.3 <= times["processor_seconds"]["a"] <= 60


@pytest.mark.parametrize(
    "earlier, serial", [({"a": 100.0, "processor_seconds": {"a": 50.0}}, False), ({"a": 9.0}, True)]
)
def test_processor_seconds_of_some_attempts_alone_are_not_kept(
    steps, go, tmp_path, earlier, serial
):
    (tmp_path / "out").mkdir()
    files.write_json(tmp_path / "out/timings.json", earlier)
    go(steps[:1], Scripts(steps), serial=serial)
    times = files.read_json(tmp_path / "out/timings.json")
    assert times["a"] >= earlier["a"]
    assert "processor_seconds" not in times


@pytest.mark.parametrize("name", "abcd")
def test_a_killed_run_ends_as_an_undisturbed_one(steps, go, tmp_path, name):
    undisturbed = Scripts(steps)
    go(steps, undisturbed)
    expected = tree(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "first")
    scripts = Scripts(steps)
    scripts.killed = name
    with pytest.raises(KeyboardInterrupt):
        go(steps, scripts)
    scripts.killed = None
    assert go(steps, scripts) == (True, {})
    assert tree(tmp_path / "out") == expected
    assert sorted(scripts.calls) == sorted([*"abcd", name])


def test_a_failure_stops_only_what_needs_it(steps, go):
    scripts = Scripts(steps)
    scripts.failing = {"a"}
    done, failures = go(steps, scripts)
    assert not done
    assert scripts.calls == ["a", "b"]
    assert "status 1" in failures["a"] and "a.log" in failures["a"]
    assert (failures["c"], failures["d"]) == ("needs 'a'", "needs 'a'")
    scripts.failing = set()
    assert go(steps, scripts) == (True, {})
    assert scripts.calls == ["a", "b", "a", "c", "d"]


@pytest.mark.parametrize(
    ("status", "reason"), [(0, "without a product"), (-9, "as memory ran out"), (2, "status 2")]
)
def test_how_a_step_failed(steps, go, status, reason):
    done, failures = go(steps[:1], lambda command, log: status)
    assert not done
    assert reason in failures["a"]


def test_a_product_that_was_removed_is_made_again(steps, go):
    scripts = Scripts(steps)
    go(steps, scripts)
    steps[2].product.unlink()
    assert go(steps, scripts) == (True, {})
    assert scripts.calls[4:] == ["c"]  # equal to what it was, so d stands


def test_changed_flags_redo_the_step_and_what_it_changes(steps, go):
    go(steps, Scripts(steps))
    changed = [*steps[:2], dataclasses.replace(steps[2], flags=("--seed=2",)), steps[3]]
    (steps[2].owns / "stranger").write_text("")
    scripts = Scripts(changed)
    assert go(changed, scripts) == (True, {})
    assert scripts.calls == ["c", "d"]
    assert not (steps[2].owns / "stranger").exists()


def test_data_of_equal_names_and_sizes_are_noticed(steps, go, tmp_path):
    go(steps, Scripts(steps))
    photo = steps[0].inputs[0] / "photo.jpg"
    before = photo.stat()
    photo.write_text("PHOTO")
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync does
    with pytest.raises(UserError, match=r"products/a' was made by other flags or from other data"):
        go(steps, Scripts(steps))
    scripts = Scripts(steps)
    assert go(steps, scripts, overwrite=True) == (True, {})
    assert scripts.calls == ["a", "b"]  # their products came out as before


def test_data_that_were_only_copied_are_the_same(steps, go, tmp_path):
    go(steps, Scripts(steps))
    photo = steps[0].inputs[0] / "photo.jpg"
    os.utime(photo, ns=(1, 1))
    for memory in ("whole", "damaged", "absent"):
        (found,) = (tmp_path / "out/steps/contents").iterdir()
        if memory == "damaged":
            found.write_text("[")
        elif memory == "absent":
            found.unlink()
        scripts = Scripts(steps)
        assert go(steps, scripts) == (True, {})
        assert scripts.calls == []


def test_untouched_files_are_not_read_again(tmp_path, monkeypatch):
    folder, memory = tmp_path / "photos", tmp_path / "memory"
    folder.mkdir()
    for name in "ab":
        (folder / name).write_text(name)
    monkeypatch.setattr(fingerprints, "_SLACK", 0)
    first = fingerprints.Contents(memory).of(folder)
    read = []
    digest = files.digest
    monkeypatch.setattr(files, "digest", lambda path: read.append(path.name) or digest(path))
    assert fingerprints.Contents(memory).of(folder) == first
    assert read == []
    (folder / "b").write_text("B")
    changed = fingerprints.Contents(memory).of(folder)
    assert changed != first and read == ["b"]
    (folder / "a").unlink()
    assert fingerprints.Contents(memory).of(folder) not in (first, changed)
    assert read == ["b"]


def test_records_from_before_contents_stand(steps, go, tmp_path):
    go(steps, Scripts(steps))
    for file in (tmp_path / "out/steps").glob("*.json"):
        record = read_json(file)
        del record["contents"]
        write_json(file, record)
    scripts = Scripts(steps)
    assert go(steps, scripts) == (True, {})
    assert scripts.calls == []
    assert all(read_json(file)["contents"] for file in (tmp_path / "out/steps").glob("*.json"))


def test_costly_results_are_only_replaced_on_order(steps, go):
    scripts = Scripts(steps)
    go(steps, scripts)
    (steps[0].inputs[0] / "another.jpg").write_text("photo")
    before = steps[0].product.read_text()
    with pytest.raises(UserError, match=r"products/a' was made by other flags.*--overwrite"):
        go(steps, scripts)
    assert steps[0].product.read_text() == before
    scripts.killed = "a"
    with pytest.raises(KeyboardInterrupt):
        go(steps, scripts, overwrite=True)
    scripts.killed = None
    scripts.calls = []
    with pytest.raises(UserError, match="products/b"):  # a goes on, b asks again
        go(steps, scripts)
    assert go(steps, scripts, overwrite=True) == (True, {})
    assert scripts.calls == ["a", "b", "c", "d"]


def test_a_fitted_value_is_part_of_the_command(tmp_path):
    file = tmp_path / "fit.json"
    flag = Fitted("threshold", file, lambda content: content["best"])
    step = Step("a", "a", ("--x=1 2", flag), (), tmp_path, tmp_path)
    assert step.line == ["a", "--x=1 2", f"--threshold=<from {file}>"]
    file.write_text('{"best": "140"}')
    assert as_shell([step]).splitlines()[-1] == ("python -m carvana_tf a '--x=1 2' --threshold=140")


def test_fingerprints_follow_images_and_origin_alone(tmp_path):
    folder = tmp_path / "masks"
    assert fingerprint(folder) == "absent"
    folder.mkdir()
    seen = [fingerprint(folder)]
    for name, content, counts in (
        ("a.png", "123", True),
        ("timings.json", "{}", False),
        (".a.png.abcdefgh.png", "1", False),
        ("manifest.json", "{}", True),
        ("manifest.json", "[]", True),
        ("a.png", "1234", True),
    ):
        (folder / name).write_text(content)
        seen.append(fingerprint(folder))
        assert (seen[-1] != seen[-2]) == counts, name
    assert len(set(seen)) == 5


def test_a_record_tells_what_was_run(steps, go, tmp_path):
    go(steps, Scripts(steps))
    record = read_json(tmp_path / "out" / "steps" / "a.json")
    assert record["command"] == ["a", "--seed=1"]
    assert record["done"]


def test_two_runs_do_not_share_a_folder(tmp_path):
    with (
        alone(tmp_path),
        pytest.raises(UserError, match=f"in use by .*process {os.getpid()}"),
        files.held(tmp_path),
    ):
        pass
    with files.held(tmp_path):
        pass


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    (tmp_path / "steps").mkdir()
    users = [".env.template", "sub/.my.settings", "masks/.keep", "sub/.a.png.abcd1234.png"]
    for name in users:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    halves = [
        tmp_path / f"{files.PREFIX}{'1' * 32}.json",
        tmp_path / "steps" / f"{files.PREFIX}{'2' * 32}.json",
    ]
    for path in halves:
        path.write_text("{")
    with alone(tmp_path):
        assert not any(path.exists() for path in halves)
    assert all((tmp_path / name).is_file() for name in users)


def test_steps_that_need_nothing_of_each_other_run_at_once(steps, tmp_path):
    scripts, both, seen = Scripts(steps), threading.Barrier(2, timeout=30), []

    def execute(command, log):
        seen.append(command[0])
        if command[0] in "ab":
            both.wait()  # passes only where two threads are in here
        return scripts(command, log)

    for name, at_once in (("two", 2), ("one", 1)):
        scripts.steps = {tuple(step.line): step for step in steps}
        with alone(tmp_path / "out"):
            runner = Runner(tmp_path / "out", steps, execute, at_once=at_once)
            assert runner.run(steps), runner.failures
        assert sorted(seen[:2]) == ["a", "b"]
        assert seen[2:] == ["c", "d"]  # the second run finds all done
        assert scripts.calls.count("d") == 1, name


def test_what_fails_at_once_stops_only_what_needs_it(steps, tmp_path):
    scripts = Scripts(steps)
    scripts.failing = {"b"}
    with alone(tmp_path / "out"):
        runner = Runner(tmp_path / "out", steps, scripts, at_once=2)
        assert not runner.run(steps)
    assert runner.failures.keys() == {"b", "d"}
    assert "ended with status 1" in runner.failures["b"]
    assert sorted(scripts.calls) == ["a", "b", "c"]


def test_other_flags_are_a_failure_of_their_step_at_once(steps, tmp_path):
    with alone(tmp_path / "out"):
        assert Runner(tmp_path / "out", steps, Scripts(steps)).run(steps)
        changed = [dataclasses.replace(steps[0], flags=("--seed=2",)), *steps[1:]]
        scripts = Scripts(changed)
        runner = Runner(tmp_path / "out", changed, scripts, at_once=2)
        assert not runner.run(changed)
    assert "--overwrite" in runner.failures["a"]
    assert runner.failures.keys() == {"a", "c", "d"}
    assert scripts.calls == []


def test_an_interrupt_at_once_is_one_of_the_whole_run(steps, tmp_path):
    scripts = Scripts(steps)
    scripts.killed = "a"
    with alone(tmp_path / "out"), pytest.raises(KeyboardInterrupt):
        Runner(tmp_path / "out", steps, scripts, at_once=2).run(steps)
    assert "d" not in scripts.calls
