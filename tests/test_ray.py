"""Shards as tasks of a Ray cluster: the files of one process, also where a machine is lost."""

import contextlib
import dataclasses
import functools
import io
import socket
import sys
import threading
import time
import types

import cv2
import numpy as np
import pytest

from carvana_tf import cli, cluster, commands, files, interrupt, shards
from carvana_tf.data.images import write_photo
from carvana_tf.errors import UserError
from carvana_tf.masks import manifest
from carvana_tf.shards import Shard

STEMS = [f"car{i:02d}_01" for i in range(60)]
BAD = STEMS[7]


def run(name, *arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(commands.find(name), list(arguments))
    return types.SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


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


def predict(work, out, *flags):
    return run(
        "predict", f"--weights={work / 'a.keras'}", f"--test_data_dir={work / 'photos'}",
        f"--pred_mask_dir={out}", "--gpu=", "--dtype=float32", "--engine=keras", "--threads=1",
        *flags,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(work):
    """One process's masks."""
    result = predict(work, work / "alone")
    assert_one_line(result, "1 photos have no mask")
    return work / "alone"


@pytest.fixture(scope="module")
def machines():
    """A cluster of two machines with a processor each, both of them processes of this one."""
    utilities = pytest.importorskip("ray.cluster_utils", reason="pip install -e '.[ray]'")
    # So that a dead one is noticed within seconds.
    known = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": known}
    made = utilities.Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_machine_lost_in_mid_run_changes_nothing(work, alone, machines):
    """Nor does a bad photo: it is listed as by one process."""
    out, kept = work / "out", {}
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
    result = predict(work, out, f"--ray_address={machines.address}", "--num_shards=2")
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
    monkeypatch.setattr(cluster, "_connected", lambda address: contextlib.nullcontext(ray))
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
    task = cluster._Task("encode", (), Shard(0, 2), str(folder), mark, "abc")
    return dataclasses.replace(task, **changed)


def test_a_machine_that_does_not_see_the_folders_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not cluster._misfit(task_of(tmp_path), "n7")
    for changed in (
        {"token": "other"},
        {"mark": tmp_path / "missing" / "driver.json"},
        {"started_in": str(tmp_path / "missing")},
    ):
        ended = cluster._do_shard(task_of(tmp_path, **changed))
        assert ended.status == 1
        assert "does not see" in ended.errors[0] and "all machines share" in ended.errors[0]
    assert "'n7' has carvana_tf" in cluster._misfit(task_of(tmp_path, version="0.0.1"), "n7")


@pytest.mark.parametrize(
    "nodes, gpu, threads, expected",
    [
        ([{"CPU": 8.0}, {"CPU": 5.0}], "0", 2, (2, 0, 6)),
        ([{"CPU": 2.0}], "", 8, (2, 0, 1)),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0}], "0", 2, (1, 1, 4)),
        ([{"CPU": 8.0, "GPU": 3.0}, {"GPU": 2.0}], "2,3", 2, (1, 2, 2)),
        ([{"CPU": 8.0, "GPU": 4.0}], "", 4, (4, 0, 2)),
    ],
)
def test_what_a_task_asks_for(nodes, gpu, threads, expected, tmp_path):
    work = cluster.Work("predict", (), tmp_path, "mask", threads, gpu)
    assert dataclasses.astuple(cluster._share(Inline(*nodes), work)) == expected


def test_what_no_machine_can_give_is_refused(tmp_path):
    work = cluster.Work("predict", (), tmp_path, "mask", 2, "0,1")
    with pytest.raises(UserError, match="2 GPUs, and no machine of the cluster has more than 1"):
        cluster._share(Inline({"CPU": 4.0, "GPU": 1.0}), work)
    with pytest.raises(UserError, match="no machine of the cluster offers a processor"):
        cluster._share(Inline({}), work)


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
