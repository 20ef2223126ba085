"""Shards and commands as tasks of a Ray cluster: the files of one process, whatever is lost."""

import contextlib
import dataclasses
import functools
import io
import os
import socket
import sys
import threading
import time
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from faults.folders import contents
from processes import finish_script_apart, kill_group, start_script_apart

from carvana_tf import cli, cluster, commands, environment, files, interrupt, remote, shards
from carvana_tf.data.images import write_photo
from carvana_tf.errors import UserError
from carvana_tf.masks import manifest
from carvana_tf.shards import Shard

STEMS = [f"car{i:02d}_01" for i in range(60)]
BAD = STEMS[7]


def run(name, *arguments):
    # With a buffer, as commands that show what others print write bytes.
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(commands.find(name), list(arguments))
    said, errors = (stream.buffer.getvalue().decode() for stream in (out, err))
    return types.SimpleNamespace(status=status, out=said, err=errors)


def assert_one_line(result, *words):
    assert result.status == 1
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.err
    for word in words:
        assert word in line


def pngs(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*.png"))}


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*.png")}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Photos, one of them damaged, and a model."""
    import keras

    from carvana_tf.models import model_file

    folder = tmp_path_factory.mktemp("ray")
    random = np.random.default_rng(0)
    for stem in STEMS:
        photo = random.integers(0, 256, (600, 800, 3), np.uint8)
        write_photo(folder / "photos" / f"{stem}.png", photo)
    (folder / "photos" / f"{BAD}.png").write_bytes(b"\x89PNG")
    photo = keras.Input((None, None, 3))
    dot = keras.layers.Conv2D(1, 1, activation="sigmoid", name="mask")
    model = keras.Model(photo, dot(keras.layers.Rescaling(1 / 255)(photo)))
    dot.set_weights([np.reshape((3.0, -1.0, 0.5), (1, 1, 3, 1)), np.array([-0.7])])
    metadata = {
        "network": "simple_unet", "stride": 8, "size_policy": "crop", "input_height": 600,
        "input_width": 800, "stacked_channels": 0, "fold": 0, "training_groups": ["other"],
    }  # fmt: skip
    model_file.save(model, folder / "a.keras", metadata)
    return folder


def prediction(work, out):
    return (
        f"--weights={work / 'a.keras'}", f"--test_data_dir={work / 'photos'}",
        f"--pred_mask_dir={out}", "--gpu=", "--dtype=float32", "--engine=keras", "--threads=1",
    )  # fmt: skip


def predict(work, out, *flags):
    return run("predict", *prediction(work, out), *flags)


@pytest.fixture(scope="module")
def alone(work):
    """One process's masks."""
    result = predict(work, work / "alone")
    assert_one_line(result, "1 photos have no mask")
    return work / "alone"


@pytest.fixture(scope="module")
def machines():
    """A cluster of machines with a processor each, which are processes of this one."""
    utilities = pytest.importorskip("ray.cluster_utils", reason="pip install -e '.[ray]'")
    # So that a dead one is noticed within seconds.
    known = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    known["worker_niceness"] = 0  # else it starves next to other tests
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": known}
    made = utilities.Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_machine_lost_in_mid_run_changes_nothing(work, alone, machines):
    """Nor does a bad photo: it is listed as by one process."""
    out, kept, address = work / "out", {}, workers(machines, 1)
    of_shard = [[s for s in STEMS if Shard(number, 2).has(s)] for number in range(2)]

    def lose():
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            there = {path.stem for path in out.glob("[!.]*.png")}
            if all(len(there.intersection(stems)) >= 2 for stems in of_shard):
                (lost,) = machines.worker_nodes
                machines.remove_node(lost, allow_graceful=False)
                kept.update(times(out))
                return
            time.sleep(0.02)

    thread = threading.Thread(target=lose)
    thread.start()
    result = predict(work, out, f"--ray_address={address}", "--num_shards=2")
    thread.join()
    assert 4 <= len(kept) < len(STEMS) - 1, result.err
    assert_one_line(result, "1 photos have no mask", str(out / "bad_files.csv"))
    assert (out / "bad_files.csv").read_text() == (alone / "bad_files.csv").read_text()
    assert pngs(out) == pngs(alone)
    assert manifest.read(out) == manifest.read(alone)
    assert {name: at for name, at in times(out).items() if name in kept} == kept
    assert not (out / shards.FOLDER / "driver.json").exists()
    assert not [*out.rglob(f"{files.PREFIX}*")]
    _encode_on(machines, work)


@pytest.mark.slow
def test_a_killed_driver_loses_nothing(work, alone, machines, tmp_path):
    """Nor is anything done twice."""
    out, log, address = tmp_path / "out", tmp_path / "log", workers(machines, 1)
    flags = *prediction(work, out), f"--ray_address={address}", "--num_shards=2"
    script = Path(__file__).parent.parent / "predict_multithreaded.py"
    process = start_script_apart(log, script, *flags, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while len(pngs(out)) < 4:
        assert process.is_alive() and time.monotonic() < deadline, log.read_text()
        process.join(0.02)
    kill_group(process)
    kept = times(out)
    assert 4 <= len(kept) < len(STEMS) - 1
    result = run("predict", *flags)
    assert_one_line(result, "1 photos have no mask", str(out / "bad_files.csv"))
    assert (out / "bad_files.csv").read_text() == (alone / "bad_files.csv").read_text()
    assert pngs(out) == pngs(alone)
    assert {name: at for name, at in times(out).items() if name in kept} == kept
    assert not [*out.rglob(f"{files.PREFIX}*")]


RECIPE = {
    "folds": {"n_folds": 2},
    "members": [
        {
            "name": "a",
            "flags": {
                "network": "unet_tiny",
                "smoke": True,
                "size_policy": "resize",
                "epochs": 12,
                "learning_rate": 0.01,
            },
        }
    ],
}


@pytest.mark.slow
def test_a_recipe_whose_driver_is_killed_and_then_a_machine(
    make_dataset, machines, tmp_path, monkeypatch
):
    """Its files are those without Ray, and what was done is not done again."""
    data, recipe, out = make_dataset(), tmp_path / "tiny.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(RECIPE))
    monkeypatch.chdir(tmp_path)
    flags = f"--recipe={recipe}", f"--dataset_dir={data}", "--out_dir=out"
    script = Path(__file__).parent.parent / "train_and_predict.py"
    undisturbed = finish_script_apart(script, *flags, cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected = contents(out)
    out.rename(tmp_path / "undisturbed")

    flags = *flags, f"--ray_address={workers(machines, 1)}"

    def begun():
        """How often each training was begun or continued."""
        logs = sorted((out / "logs").glob("a-train-*.log"))
        return [log.read_text().count("device: ") for log in logs]

    def wait_until_begun(times):
        deadline = time.monotonic() + 500
        while begun() != [times] * 2:
            assert time.monotonic() < deadline, begun()
            time.sleep(0.02)

    def lose():
        wait_until_begun(2)
        (one,) = machines.worker_nodes
        machines.remove_node(one, allow_graceful=False)

    driver = start_script_apart(tmp_path / "log", script, *flags, cwd=tmp_path)
    wait_until_begun(1)
    kill_group(driver)
    done = (out / "folds.csv").stat().st_mtime_ns
    thread = threading.Thread(target=lose)
    thread.start()
    result = run("pipeline", *flags)
    thread.join()
    assert result.status == 0, result.err + result.out
    assert "tasks of 1 CPU, 2 at once on 2 machines" in result.out
    assert sorted(begun()) == [2, 3]
    assert (out / "folds.csv").stat().st_mtime_ns == done
    assert contents(out) == expected


def workers(machines, count):
    """The address of the cluster, with so many machines next to its head."""
    while len(machines.worker_nodes) < count:
        machines.add_node(num_cpus=1)
    return machines.address


def _encode_on(machines, work):
    masks = f"--pred_mask_dir={draw_masks(work / 'drawn')}"
    flags = "--image_extension=.jpg", "--submission_name=s.csv.gz", "--pred_threads=1"
    assert run("encode", masks, *flags, f"--submissions_dir={work / 'one'}").status == 0
    there = f"--submissions_dir={work / 'ray'}", f"--ray_address={machines.address}"
    result = run("encode", masks, *flags, *there)
    assert result.status == 0, result.err
    assert "1 shards of 1 CPU each, 1 at once on 1 machine" in result.out  # of the one left
    assert (work / "ray/s.csv.gz").read_bytes() == (work / "one/s.csv.gz").read_bytes()


def draw_masks(folder, seed=0):
    random = np.random.default_rng(seed)
    folder.mkdir()
    for stem in STEMS[:9]:
        noise = cv2.GaussianBlur(random.random((40, 60)), (0, 0), 5)
        cv2.imwrite(str(folder / f"{stem}.png"), np.uint8(255 * (noise > 0.5)))
    return folder


class Inline:
    """What is used of Ray, with tasks that run here when their result is asked for."""

    class exceptions:  # noqa: N801
        RayError = type("RayError", (Exception,), {})
        RayTaskError = type("RayTaskError", (RayError,), {})

    def __init__(self, *nodes):
        self.resources, self.asked, self.cancelled = nodes, [], []

    def nodes(self):
        return [{"Alive": True, "Resources": each} for each in self.resources]

    def remote(self, **asked):
        self.asked.append(asked)
        return lambda function: types.SimpleNamespace(
            remote=lambda task: functools.partial(function, task)
        )

    def wait(self, tasks, timeout):
        return tasks[:1], tasks[1:]

    def get(self, task):
        if task in self.cancelled:
            raise self.exceptions.RayError
        return task()

    def cancel(self, task):
        self.cancelled.append(task)


@pytest.fixture
def inline(monkeypatch):
    """A cluster of two machines with two processors each."""
    ray = Inline({"CPU": 2.0}, {"CPU": 2.0})
    monkeypatch.setattr(cluster, "connected", lambda address: contextlib.nullcontext(ray))
    return ray


ON_RAY = "--ray_address=auto"


def test_ensembles_and_submissions_are_those_of_one_process(inline, tmp_path):
    both = ",".join(str(draw_masks(tmp_path / str(seed), seed)) for seed in (1, 2))
    members, forced = f"--pred_mask_dirs={both}", "--force"
    one, out = tmp_path / "one", tmp_path / "out"
    assert run("ensemble", members, f"--pred_mask_dir={one}", forced).status == 0
    flags = members, f"--pred_mask_dir={out}", forced, "--threads=1"
    result = run("ensemble", *flags, ON_RAY)
    assert result.status == 0, result.err
    assert "4 shards of 1 CPU each, 4 at once on 2 machines" in result.out
    assert pngs(out) == pngs(one) and manifest.read(out) == manifest.read(one)
    assert inline.asked[0]["num_cpus"] == 1 and inline.asked[0]["max_retries"] > 0
    flags = f"--pred_mask_dir={out}", "--image_extension=.jpg", forced, "--submission_name=s.csv"
    assert run("encode", *flags, f"--submissions_dir={tmp_path / 'a'}").status == 0
    result = run("encode", *flags, f"--submissions_dir={tmp_path / 'b'}", ON_RAY, "--num_shards=3")
    assert result.status == 0, result.err
    assert (tmp_path / "a/s.csv").read_bytes() == (tmp_path / "b/s.csv").read_bytes()


def test_a_shard_that_fails_does_not_stop_the_others(inline, tmp_path):
    masks, out = draw_masks(tmp_path / "masks"), tmp_path / "out"
    lost = next(stem for stem in STEMS[:9] if Shard(1, 3).has(stem))
    (masks / f"{lost}.png").write_bytes(b"no picture")
    flags = f"--pred_mask_dir={masks}", "--image_extension=.jpg", f"--submissions_dir={out}"
    result = run("encode", *flags, ON_RAY, "--num_shards=3")
    assert_one_line(result, "1 of 3 shards failed, the first is 1: ", lost, "goes on with these")
    done = [(Shard(number, 3).folder(out) / shards.RECORD).is_file() for number in range(3)]
    assert done == [True, False, True]


def test_ctrl_c_ends_the_tasks_and_keeps_what_is_finished(inline, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(
        cluster, "Interrupt", lambda: begun.append(interrupt.Interrupt()) or begun[-1]
    )

    def wait(tasks, timeout):
        begun[-1].requested = True  # as its handler does
        return tasks[:1], tasks[1:]

    masks, out = draw_masks(tmp_path / "masks"), tmp_path / "out"
    flags = f"--pred_mask_dir={masks}", "--image_extension=.jpg", f"--submissions_dir={out}"
    monkeypatch.setattr(inline, "wait", wait)
    result = run("encode", *flags, ON_RAY, "--num_shards=3")
    assert result.status == 130
    assert "1 of 3 shards have finished; the same command goes on" in result.err
    assert len(inline.cancelled) == 2
    monkeypatch.undo()


def task_of(folder, **changed):
    mark = folder / shards.FOLDER / "driver.json"
    files.write_json(mark, "abc")
    driver = dataclasses.replace(cluster.Driver(str(folder), mark, "abc"), **changed)
    return cluster._Task("encode", (), Shard(0, 2), driver)


def test_a_machine_that_does_not_see_the_folders_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not task_of(tmp_path).driver.misfit("n7")
    for changed in (
        {"token": "other"},
        {"mark": tmp_path / "missing" / "driver.json"},
        {"started_in": str(tmp_path / "missing")},
    ):
        ended = cluster._do_shard(task_of(tmp_path, **changed))
        assert ended.status == 1
        assert "does not see" in ended.errors[0] and "all machines share" in ended.errors[0]
    other = task_of(tmp_path, version="0.0.1").driver
    assert "'n7' has carvana_tf" in other.misfit("n7")


@pytest.mark.parametrize(
    "nodes, gpu, threads, expected",
    [
        ([{"CPU": 8.0}, {"CPU": 3.0}, {}], "0", None, (3, 0, 3)),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0}], "0", None, (1, 1, 4)),
        ([{"CPU": 8.0}, {"CPU": 5.0}], "0", 2, (2, 0, 6)),
        ([{"CPU": 2.0}], "", 8, (2, 0, 1)),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0}], "0", 2, (1, 1, 4)),
        ([{"CPU": 8.0, "GPU": 3.0}, {"GPU": 2.0}], "2,3", 2, (1, 2, 2)),
        ([{"CPU": 8.0, "GPU": 4.0}], "", 4, (4, 0, 2)),
    ],
)
def test_what_a_task_asks_for(nodes, gpu, threads, expected):
    assert dataclasses.astuple(cluster.find_share(Inline(*nodes), gpu, threads)) == expected


def test_what_no_machine_can_give_is_refused():
    with pytest.raises(UserError, match="2 GPUs, and no machine of the cluster has more than 1"):
        cluster.find_share(Inline({"CPU": 4.0, "GPU": 1.0}), "0,1", 2)
    with pytest.raises(UserError, match="no machine of the cluster offers a processor"):
        cluster.find_share(Inline({}), "0,1", 2)


ENCODE = "encode", "--image_extension=.jpg", "--submission_name=s.csv"


def test_a_command_is_done_elsewhere_and_logged_here(inline, tmp_path, capsys):
    masks, log = draw_masks(tmp_path / "masks"), tmp_path / "submission.log"
    line = *ENCODE, f"--pred_mask_dir={masks}", f"--submissions_dir={tmp_path / 'out'}"
    log.write_text("earlier\n")
    with remote.connected("auto", tmp_path) as execute:
        assert execute.at_once == 2
        assert execute(line, log) == 0
        assert (tmp_path / "out/s.csv").is_file()
        said = log.read_text().removeprefix("earlier\n")
        assert "9 rows, each decoded back" in said
        assert said.count("\n") > 1 and "[submission] 9 rows, each" in capsys.readouterr().out
        (masks / f"{STEMS[0]}.png").write_bytes(b"no picture")
        assert execute((*line, "--submission_name=other.csv"), log) == 1
    assert f"/{STEMS[0]}.png' is no" in log.read_text()
    assert not [*tmp_path.rglob("driver.json"), *tmp_path.rglob(f"{files.PREFIX}*")]


def test_a_command_that_has_no_status_fails_and_its_log_says_why(inline, tmp_path, monkeypatch):
    log = tmp_path / "a.log"
    with remote.connected("auto", tmp_path) as execute:
        (tmp_path / "driver.json").write_text('"another"')
        assert execute(ENCODE, log) == 1
        assert log.read_text().endswith("share, by the same path; name those.\n")
        lost = inline.exceptions.RayError("the worker died\nlong story")
        monkeypatch.setattr(inline, "get", lambda task: (_ for _ in ()).throw(lost))
        assert execute(ENCODE, log) == 1
        assert log.read_text().endswith("\nerror: the worker died\n")


def test_a_fault_of_a_command_is_in_its_log(inline, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "find", lambda name: 1 / 0)
    with remote.connected("auto", tmp_path) as execute:
        assert execute(ENCODE, tmp_path / "a.log") == 1
    assert "ZeroDivisionError" in (tmp_path / "a.log").read_text()


def test_only_commands_that_take_a_gpu_ask_for_one(inline, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.setenv(environment.ONLY_GPU, "")
    lines = []
    monkeypatch.setattr(cli, "main", lambda command, line: lines.append(line) or 0)
    inline.resources = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}]
    with remote.connected("auto", tmp_path) as execute:
        assert execute.at_once == 3
        assert execute(("encode", "--x"), tmp_path / "a.log") == 0
        assert not os.environ[environment.ONLY_GPU]
        assert execute(("predict", "--x"), tmp_path / "a.log") == 0
    assert [(asked["num_cpus"], asked["num_gpus"]) for asked in inline.asked] == [(1, 0), (1, 1)]
    assert lines == [("--x",), ("--x", "--gpu=0")]
    assert os.environ[environment.ONLY_GPU] == "5"


def test_ctrl_c_cancels_the_command_and_starts_no_other(inline, tmp_path, monkeypatch):
    with remote.connected("auto", tmp_path) as execute:

        def wait(tasks, timeout):
            execute.handle(2, None)
            return (), tasks

        monkeypatch.setattr(inline, "wait", wait)
        monkeypatch.setattr(cluster, "END_SECONDS", 0.05)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                execute(ENCODE, tmp_path / "a.log")
    assert len(inline.cancelled) == len(inline.asked) == 1


def test_folds_are_trained_elsewhere(inline, make_dataset, tmp_path, monkeypatch):
    tasks = []
    monkeypatch.setattr(remote, "_run", lambda task: tasks.append(task) or (0, ""))
    folders = f"--dataset_dir={make_dataset()}", f"--models_dir={tmp_path / 'models'}"
    flags = *folders, "--network=unet_tiny", "--smoke", "--fold=all", "--gpu=0,1"
    inline.resources = [{"CPU": 8.0, "GPU": 4.0}]
    result = run("train", *flags, ON_RAY)
    assert result.status == 0, result.err
    ends = ["--parallel=none", "--ray_address=", "--gpu=0,1"]
    lines = sorted(task.line for task in tasks)
    assert lines == [("train", *flags, ON_RAY, f"--fold={fold}", *ends) for fold in (0, 1)]
    assert [asked["num_gpus"] for asked in inline.asked] == [2, 2]
    monkeypatch.setattr(remote, "_run", lambda task: (int(task.line[-4] == "--fold=1"), ""))
    failed = run("train", *flags, ON_RAY)
    assert_one_line(failed, "1 of 2 runs failed, the first is unet_tiny-fold_1", "goes on with")


@pytest.mark.parametrize(
    "name, flags",
    [
        ("train", ["--fold=0"]),
        ("train", ["--fold=all", "--parallel=folds", "--gpu=0,1"]),
        ("pipeline", ["--parallel=folds", "--gpu=0,1"]),
    ],
)
def test_flags_that_have_no_meaning_with_it_are_named(name, flags):
    result = run(name, *flags, ON_RAY)
    assert_one_line(result, "--ray_address", "has no effect")


def encode(tmp_path, *flags):
    masks = tmp_path / "masks"
    masks.mkdir(exist_ok=True)
    out = f"--submissions_dir={tmp_path / 'out'}"
    result = run("encode", f"--pred_mask_dir={masks}", out, "--pred_sample_csv=", *flags)
    assert not (tmp_path / "out").exists()
    return result


def test_without_ray_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert_one_line(encode(tmp_path, "--ray_address=local"), "needs 'ray'", "pip install", "[ray]")


def test_an_address_where_nothing_answers_is_one_line(tmp_path):
    pytest.importorskip("ray", reason="pip install -e '.[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    found = encode(tmp_path, f"--ray_address={address}")
    assert_one_line(found, f"--ray_address={address} cannot be reached", "ray start --head")
    for address in ("somewhere", "ray://localhost:10001"):
        assert_one_line(encode(tmp_path, f"--ray_address={address}"), address, "is no address")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--num_shards=2", "--shard=1"], ["does all shards", "--shard=1 is one"]),
        (["--merge_shards=2"], ["--merge_shards contradicts"]),
        ([f"--check={__file__}"], ["--check compares a whole submission"]),
    ],
)
def test_flags_that_contradict_it_are_one_line(tmp_path, flags, words):
    result = run("encode", f"--pred_mask_dir={tmp_path}", ON_RAY, *flags)
    assert_one_line(result, *words)
