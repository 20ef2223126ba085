"""predict_multithreaded.py as a user runs it."""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from importlib.util import find_spec
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from processes import number_of, start_apart, start_script_apart

from carvana_tf import cli, commands, devices, files
from carvana_tf.data.dataset import Naming, find_photos
from carvana_tf.data.images import write_photo, write_probability
from carvana_tf.errors import UserError
from carvana_tf.inference import predict_folder as prediction
from carvana_tf.inference.engines import selection
from carvana_tf.masks import manifest, rle, submission
from carvana_tf.masks.boxes import Box
from carvana_tf.models import checkpoint, model_file, registry
from carvana_tf.models.options import ModelOptions
from carvana_tf.tasks.labels import table as label_table

ROOT = Path(__file__).parent.parent
FOLDS = {"a": 0, "b": 0, "c": 1, "d": 1}
STEMS = [f"{car}_{view}" for car in FOLDS for view in (1, 2)]


def serve(connection):
    """Runs many command lines in one process: starting TensorFlow takes longer than all of them."""
    command = commands.find("predict")
    os.environ[devices.CPU_DEVICES] = "2"
    devices.select("0,1")
    load, broken = selection.load, {}

    def load_broken(member, name, policy):
        engine = load(member, name, policy)
        return break_engine(engine, broken) if broken else engine

    selection.load = load_broken
    while received := connection.recv():
        folder, arguments, fails_after = received
        os.environ[devices.CPU_DEVICES] = "2" if "--gpu=0,1" in arguments else "0"
        broken.clear()
        broken.update({name: [count, threading.Event()] for name, count in fails_after.items()})
        os.chdir(folder)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(command, arguments)
        connection.send((status, out.getvalue(), err.getvalue()))


def break_engine(engine, broken):
    """An engine whose device fails after some calls; the other devices wait for that.

    Args:
        engine: On a device of `broken`, or not.
        broken: By device, how many calls it has left, and an event for its end.
    """

    def predict(batch):
        left = broken.get(engine.device)
        if left is None:
            assert all(gone.wait(60) for _, gone in broken.values())
        elif left[0] == 0:
            left[1].set()
            raise tf.errors.InternalError(None, None, "the device is lost")
        else:
            left[0] -= 1
        return engine.predict_uint8(batch)

    return dataclasses.replace(engine, predict_uint8=predict)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    ours, theirs = multiprocessing.Pipe()
    process = start_apart(tmp_path_factory.mktemp("server") / "log", serve, theirs)
    theirs.close()  # so that the end of the process is noticed
    yield ours
    ours.send(None)
    process.join(60)


@pytest.fixture
def predict(server, work):
    """Runs the script in the work folder; returns its status, output and errors."""

    def run(*arguments, **fails_after):
        devices = {name.replace("_", ":"): count for name, count in fails_after.items()}
        server.send((str(work), ["--dtype=float32", "--gpu=", *arguments], devices))
        status, out, err = server.recv()
        return types.SimpleNamespace(status=status, out=out, err=err)

    return run


def make_model(weights, bias):
    """sigmoid(photo / 255 @ weights + bias)."""
    photo = keras.Input((None, None, len(weights)))
    x = keras.layers.Rescaling(1 / 255)(photo)
    dot = keras.layers.Conv2D(1, 1, activation="sigmoid", name="mask")
    model = keras.Model(photo, dot(x))
    dot.set_weights([np.reshape(weights, (1, 1, -1, 1)), np.array([bias])])
    return model


def in_numpy(photo, weights, bias):
    return 1 / (1 + np.exp(-(photo / 255 @ np.array(weights) + bias)))


RED, BLUE = ((3.0, -1.0, 0.5), -0.7), ((0.2, 0.1, -2.0), 0.4)


def save(path, parameters, fold=0, **changes):
    trained = sorted(car for car, f in FOLDS.items() if f != fold)
    metadata = {
        "network": "simple_unet",
        "stride": 8,
        "size_policy": "crop",
        "input_height": 16,
        "input_width": 16,
        "stacked_channels": len(parameters[0]) - 3,
        "fold": fold,
        "training_groups": trained,
        **changes,
    }
    model_file.save(make_model(*parameters), path, metadata)


@pytest.mark.parametrize("clahe", [False, True])
def test_a_model_file_says_whether_photos_are_equalised(tmp_path, clahe):
    save(tmp_path / "model.keras", RED, clahe=clahe)
    options = {field.name: field.default for field in dataclasses.fields(checkpoint.NetworkOptions)}
    source = checkpoint.read(tmp_path / "model.keras", checkpoint.NetworkOptions(**options))
    assert source.resizer.clahe == clahe
    assert source.description["sizing"]["clahe"] == clahe


def test_a_flag_that_contradicts_a_model_file_is_refused(tmp_path):
    save(tmp_path / "model.keras", RED, clahe=False)
    options = {field.name: field.default for field in dataclasses.fields(checkpoint.NetworkOptions)}
    with pytest.raises(UserError, match=r"--clahe=True has no effect on .* says False"):
        checkpoint.read(
            tmp_path / "model.keras", checkpoint.NetworkOptions(**options | {"clahe": True})
        )


def test_a_network_knows_its_photos_whatever_pattern_groups_them_now(work):
    save(work / "own.keras", RED, training_groups=["a"], group_pattern=r"(.+)_\d+$")
    source = checkpoint.read(work / "own.keras", checkpoint.NetworkOptions())
    samples = find_photos(work / "input/test", Naming(group_pattern="(.+)"))
    assert samples[0].group == "a_1"
    assert source.groups_trained_on(samples) == ["a"]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    random = np.random.default_rng(0)
    for name, suffix in (("train", ".jpg"), ("test", ".png")):
        for i, stem in enumerate(STEMS):
            photo = random.integers(0, 256, (20, 30 + i % 2, 3), np.uint8)
            write_photo(folder / "input" / name / f"{stem}{suffix}", photo)
    lines = "".join(f"{car},{fold}\n" for car, fold in FOLDS.items())
    (folder / "input/folds.csv").write_text("id,fold\n" + lines)
    save(folder / "red.keras", RED, fold=0)
    save(folder / "blue.keras", BLUE, fold=1)
    save(folder / "all.keras", RED, fold="none", training_groups=sorted(FOLDS))
    return folder


@pytest.fixture
def work(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "work"))


def pngs(folder):
    # Hidden files are PNGs that are being written.
    paths = [path for path in sorted(folder.glob("*.png")) if not path.name.startswith(".")]
    return {path.stem: path.read_bytes() for path in paths}


def photo_of(work, stem):
    return cv2.imread(str(work / f"input/test/{stem}.png"))[..., ::-1]


def assert_rounds(path, probabilities):
    grey = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert grey.shape == probabilities.shape
    assert np.abs(grey - 255 * probabilities).max() < 0.5 + 1e-3


def assert_one_line(result, *parts):
    """It failed, and said so in one line that has the parts."""
    assert result.status == 1
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.err
    assert "Traceback" not in result.err
    for part in parts:
        assert part in errors[0]


def test_a_folder_of_photos(predict, work):
    result = predict("--weights=red.keras", "--pred_mask_dir=out")
    assert result.status == 0, result.err
    assert list(pngs(work / "out")) == STEMS
    for stem in STEMS:
        assert_rounds(work / f"out/{stem}.png", in_numpy(photo_of(work, stem), *RED))
    made = manifest.read(work / "out")
    assert dataclasses.asdict(made).items() >= {
        "tta": "none", "engine": "keras", "dtype": "float32", "photos": 8,
        "photos_digest": files.digest_of_lines(STEMS), "encoding": "grey8 round(255p)",
        "out_of_fold": False,
    }.items()  # fmt: skip
    (model,) = made.models
    assert model["digest"] == files.digest(work / "red.keras")
    assert (model["file"], model["fold"]) == ("red.keras", 0)
    assert model["training_groups"] == files.digest_of_lines(["c", "d"])


def test_time_per_stage_is_reported_and_kept(predict, work):
    result = predict("--weights=red.keras", "--pred_mask_dir=out", "--threads=3")
    timings = json.loads((work / "out/timings.json").read_text())
    assert timings["photos"] == 8
    stages = {row["stage"]: row for row in timings["stages"]}
    assert {"read", "prepare", "network", "restore", "encode", "write", "waiting"} == set(stages)
    assert stages["read"]["threads"] == 3
    assert stages["network"]["threads"] == 1
    for stage in stages:
        assert stage in result.out
    assert "photos/s" in result.out


def test_several_models_are_averaged_in_one_folder(predict, work):
    flags = ("--pred_tta=hflip", "--pred_batch_size=3", "--pred_mask_dir=out")
    result = predict("--weights=red.keras,blue.keras", *flags)
    assert result.status == 0, result.err
    for stem in STEMS:
        photo = photo_of(work, stem)
        mean = (in_numpy(photo, *RED) + in_numpy(photo, *BLUE)) / 2
        assert_rounds(work / f"out/{stem}.png", mean)
    made = manifest.read(work / "out")
    assert [model["file"] for model in made.models] == ["red.keras", "blue.keras"]
    assert made.tta == "hflip"


def test_the_model_file_knows_how_it_meets_photos(predict, work):
    save(work / "half.keras", ((0.0, 0.0, 0.0), 1.0), size_policy="resize", stride=16)
    result = predict("--weights=half.keras", "--pred_mask_dir=out", "--size_policy=pad")
    assert result.status == 0, result.err
    assert manifest.read(work / "out").models[0]["sizing"] == {
        "policy": "resize", "height": 16, "width": 16, "stride": 16, "clahe": False,
    }  # fmt: skip
    assert_rounds(work / "out/a_2.png", np.full((20, 31), 1 / (1 + np.exp(-1.0))))


def test_stacked_channels(predict, work):
    save(work / "stacked.keras", ((0.0, 0.0, 0.0, 4.0), -2.0))
    random = np.random.default_rng(1)
    for stem in STEMS:
        grey = random.integers(0, 256, photo_of(work, stem).shape[:2], np.uint8)
        write_probability(work / f"stack/0/{stem}.png", grey)
    flags = ("--weights=stacked.keras", "--pred_mask_dir=out")
    assert_one_line(predict(*flags), "--stacked_channels_dir")
    assert predict(*flags, "--stacked_channels_dir=stack").status == 0
    for stem in STEMS:
        grey = cv2.imread(str(work / f"stack/0/{stem}.png"), cv2.IMREAD_UNCHANGED)
        assert_rounds(work / f"out/{stem}.png", in_numpy(grey[..., None], (4.0,), -2.0))


@pytest.mark.parametrize("model, honest", [("red", True), ("all", False)])
def test_masks_are_as_honest_as_the_stacked_channels(predict, work, model, honest):
    """A network that has not seen a photo sees the masks of one that may have."""
    save(work / "stacked.keras", ((0.0, 0.0, 0.0, 4.0), -2.0))
    flags = ("--predict_on_val", "--fold=0", "--force")
    assert predict(f"--weights={model}.keras", "--pred_mask_dir=stack/0", *flags).status == 0
    flags = (*flags, "--weights=stacked.keras", "--pred_mask_dir=out")
    assert predict(*flags, "--stacked_channels_dir=stack").status == 0
    assert manifest.read(work / "out").out_of_fold is honest
    (work / "stack/0/manifest.json").unlink()
    assert predict(*flags, "--stacked_channels_dir=stack", "--overwrite").status == 0
    assert manifest.read(work / "out").out_of_fold is False


def test_what_is_there_is_not_predicted_again(predict, work):
    flags = ("--weights=red.keras", "--pred_mask_dir=out")
    predict(*flags)
    whole = pngs(work / "out")
    (work / "out/b_1.png").unlink()
    (work / "out/d_2.png").unlink()
    kept = (work / "out/a_1.png").stat().st_mtime_ns
    result = predict(*flags)
    assert result.status == 0, result.err
    assert "8 photos, 6 already predicted" in result.out
    assert json.loads((work / "out/timings.json").read_text())["photos"] == 2
    assert pngs(work / "out") == whole
    assert (work / "out/a_1.png").stat().st_mtime_ns == kept
    assert "8 already predicted" in predict(*flags).out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--weights=blue.keras",), "models"),
        (("--weights=red.keras,blue.keras",), "models"),
        (("--weights=red.keras", "--pred_tta=hflip"), "tta"),
        (("--weights=red.keras", "--pred_tta=hflip", "--tta_average=logit"), "tta"),
        (("--weights=red.keras", "--tile_size=16"), "tiles"),
        (("--weights=red.keras", "--use_bounding_boxes=boxes.csv"), "boxes"),
        (("--weights=red.keras", "--output=mask"), "encoding"),
        (("--weights=red.keras", "--dtype=bfloat16"), "dtype"),
    ],
)
def test_masks_made_in_another_way_are_not_mixed(predict, work, flags, named):
    write_boxes(work / "boxes.csv", Box(0, 0, 16, 16))
    predict("--weights=red.keras", "--pred_mask_dir=out")
    before = pngs(work / "out")
    (work / "out/a_1.png").unlink()
    result = predict(*flags, "--pred_mask_dir=out")
    assert_one_line(result, "'out'", f"other {named}", "--overwrite")
    del before["a_1"]
    assert pngs(work / "out") == before
    result = predict(*flags, "--pred_mask_dir=out", "--overwrite")
    assert result.status == 0, result.err
    assert list(pngs(work / "out")) == STEMS
    if "blue" in flags[0]:
        assert not set(pngs(work / "out").values()) & set(before.values())


def write_boxes(path, box):
    row = ",".join(map(str, dataclasses.astuple(box)))
    lines = "".join(f"{stem},{row}\n" for stem in STEMS)
    path.write_text("id,left,top,width,height\n" + lines)


def test_views_tiles_and_boxes_together(predict, work):
    write_boxes(work / "boxes.csv", Box(-1, 2, 24, 16))
    result = predict(
        "--weights=red.keras,blue.keras", "--pred_mask_dir=out", "--pred_tta=flips",
        "--tta_average=logit", "--tile_size=16", "--tile_overlap=8",
        "--use_bounding_boxes=boxes.csv",
    )  # fmt: skip
    assert result.status == 0, result.err
    for stem in STEMS:
        photo = photo_of(work, stem)
        p = np.array([in_numpy(photo, *RED), in_numpy(photo, *BLUE)])
        expected = np.zeros(photo.shape[:2])
        both = 1 / (1 + np.exp(-np.log(p / (1 - p)).mean(axis=0)))
        expected[2:18, :23] = both[2:18, :23]
        assert_rounds(work / f"out/{stem}.png", expected)
    made = manifest.read(work / "out")
    assert (made.tta, made.tiles) == ("flips, mean of logits", "16 overlap 8")
    assert made.boxes == files.digest(work / "boxes.csv")


def test_binary_masks_for_a_submission_of_the_same_threshold(predict, work):
    assert predict("--weights=red.keras", "--pred_mask_dir=soft").status == 0
    flags = ("--weights=red.keras", "--threshold=90")
    assert predict(*flags, "--pred_mask_dir=hard", "--output=mask").status == 0
    assert predict(*flags, "--pred_mask_dir=rle", "--output=rle").status == 0
    rows = dict(submission.read_rows(work / "rle/submission.csv.gz"))
    assert list(rows) == [f"{stem}.png" for stem in STEMS]
    for stem in STEMS:
        soft, hard = (
            cv2.imread(str(work / f"{name}/{stem}.png"), cv2.IMREAD_UNCHANGED)
            for name in ("soft", "hard")
        )
        np.testing.assert_array_equal(hard, 255 * (soft > 90))
        np.testing.assert_array_equal(rle.decode(rows[f"{stem}.png"], *soft.shape), soft > 90)
    assert manifest.read(work / "hard").encoding == "grey8 0/255 of round(255p) > 90"


def test_a_submission_is_neither_completed_nor_left_beside_other_masks(predict, work):
    flags = ("--weights=red.keras", "--pred_mask_dir=out")
    assert predict(*flags, "--output=rle").status == 0
    before = (work / "out/submission.csv.gz").read_bytes()
    for output in ("rle", "probability"):
        assert_one_line(predict(*flags, f"--output={output}"), "submission.csv.gz", "--overwrite")
    assert predict(*flags, "--output=rle", "--overwrite").status == 0
    assert (work / "out/submission.csv.gz").read_bytes() == before
    assert predict(*flags, "--overwrite").status == 0
    assert not (work / "out/submission.csv.gz").exists()
    assert list(pngs(work / "out")) == STEMS


def test_cutouts_are_no_stacked_channels(predict, work):
    save(work / "stacked.keras", ((0.0, 0.0, 0.0, 4.0), -2.0))
    flags = ("--weights=red.keras", "--pred_mask_dir=stack/0", "--output=cutout")
    assert predict(*flags).status == 0
    flags = ("--weights=stacked.keras", "--pred_mask_dir=out", "--stacked_channels_dir=stack")
    assert_one_line(predict(*flags), "rgba8", "--output=probability")


def test_cutouts_are_completed_and_are_those_of_cut_out(predict, work, monkeypatch):
    monkeypatch.chdir(work)
    flags = ("--weights=red.keras", "--pred_mask_dir=cut", "--output=cutout", "--keep_shadow")
    result = predict(*flags, "--cutout_format=webp")
    assert result.status == 0, result.err
    made = {path.name: path.read_bytes() for path in (work / "cut").glob("*.webp")}
    assert list(made) and {Path(name).stem for name in made} == {*STEMS}
    (work / "cut/a_1.webp").unlink()
    result = predict(*flags, "--cutout_format=webp")
    assert f"{len(STEMS)} photos, {len(STEMS) - 1} already predicted" in result.out
    assert (work / "cut/a_1.webp").read_bytes() == made["a_1.webp"]
    assert_one_line(predict(*flags), "other encoding", "--overwrite")
    assert predict("--weights=red.keras", "--pred_mask_dir=out").status == 0
    arguments = ["--photo_dir=input/test", "--pred_mask_dir=out", "--out_dir=again"]
    arguments += ["--keep_shadow", "--cutout_format=webp"]
    assert commands.find("cut_out").call(arguments) == 0
    again = {path.name: path.read_bytes() for path in (work / "again").glob("*.webp")}
    assert again == made


def test_the_engine_is_recorded_and_auto_goes_on_with_it(predict, work):
    pytest.importorskip("openvino")
    flags = ("--weights=red.keras", "--pred_mask_dir=out")
    result = predict(*flags, "--engine=openvino")
    assert result.status == 0, result.err
    assert (work / "red.engines").is_dir()
    for stem in STEMS:
        assert_rounds(work / f"out/{stem}.png", in_numpy(photo_of(work, stem), *RED))
    (work / "out/a_1.png").unlink()
    assert_one_line(predict(*flags, "--engine=keras"), "other engine", "openvino", "keras")
    assert predict(*flags).status == 0
    made = manifest.read(work / "out")
    assert (made.engine, made.dtype) == ("openvino", "float32")
    assert list(pngs(work / "out")) == STEMS


class Asked(Exception):
    """What was asked of `make_engines`."""


@pytest.mark.parametrize(
    ("began", "dtype", "expected"),
    [
        (None, "auto", ("mixed_bfloat16", True)),
        (None, "bfloat16", ("mixed_bfloat16", False)),
        ("float32", "auto", ("float32", True)),
        ("float32", "bfloat16", ("mixed_bfloat16", False)),
        ("int8+float32", "auto", ("float32", True)),
        ("mixed_bfloat16", "auto", ("mixed_bfloat16", True)),
        ("emptied", "auto", ("mixed_bfloat16", True)),
    ],
)
def test_auto_computes_as_the_folder_was_begun(predict, work, monkeypatch, began, dtype, expected):
    if began:
        predict("--weights=red.keras", "--pred_mask_dir=out", "--engine=keras")
        made = manifest.read(work / "out")
        if began == "emptied":
            for path in (work / "out").glob("*.png"):
                path.unlink()
        else:
            manifest.write(work / "out", dataclasses.replace(made, dtype=began))

    def ask(_, job):
        raise Asked(job.policy, job.policy_is_free)

    monkeypatch.setattr(prediction.devices, "has_bfloat16", lambda: True)
    monkeypatch.setattr(prediction.sessions.selection, "make_engines", ask)
    member = checkpoint.read(work / "red.keras", checkpoint.NetworkOptions())
    samples = find_photos(work / "input/test", Naming())
    options = prediction.OutputOptions.of(dtype=dtype)
    with pytest.raises(Asked) as asked:
        prediction.predict_folder(samples, [member], work / "out", options, ["cpu:0"])
    assert asked.value.args == expected


def test_a_folder_in_use_is_refused(predict, work):
    """By another model, too: no mask of one ends up under the manifest of the other."""
    with files.held(work / "out"):
        done = predict("--weights=red.keras", "--pred_mask_dir=out")
    assert done.status == 1
    assert "'out' is in use by" in done.err and f"process {os.getpid()}" in done.err
    assert not (work / "out").exists()


def test_a_truncated_mask_is_made_again(predict, work):
    predict("--weights=red.keras", "--pred_mask_dir=out")
    whole, empty, *_ = sorted((work / "out").glob("*.png"))
    expected = [path.read_bytes() for path in (whole, empty)]
    whole.write_bytes(expected[0][:-5])
    empty.write_bytes(b"")
    predict("--weights=red.keras", "--pred_mask_dir=out")
    assert [path.read_bytes() for path in (whole, empty)] == expected


def test_photos_for_eight_bits_are_asked_for(predict, work):
    save(work / "stacked.keras", ((0.0, 0.0, 0.0, 4.0), -2.0))
    for path in sorted((work / "input/test").iterdir()):  # other stems than in training
        path.rename(path.with_stem(f"new{path.stem}"))
        grey = np.zeros(photo_of(work, f"new{path.stem}").shape[:2], np.uint8)
        write_probability(work / f"stack/0/new{path.stem}.png", grey)
    flags = ("--weights=stacked.keras", "--pred_mask_dir=out", "--stacked_channels_dir=stack")
    flags = (*flags, "--engine=openvino-int8")
    assert_one_line(predict(*flags), "--calibration_dir", "stacked channels are missing")
    assert_one_line(predict(*flags, "--calibration_dir=nowhere"), "--calibration_dir", "'nowhere'")


def test_masks_of_unknown_origin_are_not_completed(predict, work):
    write_probability(work / "out/a_1.png", np.zeros((20, 30), np.uint8))
    flags = ("--weights=red.keras", "--pred_mask_dir=out")
    assert_one_line(predict(*flags), "no manifest.json", "--overwrite")
    assert predict(*flags, "--overwrite").status == 0
    assert_rounds(work / "out/a_1.png", in_numpy(photo_of(work, "a_1"), *RED))


def test_masks_do_not_join_labels(predict, work):
    flags = ("--weights=red.keras", "--pred_mask_dir=out")
    out = work / "out"
    out.mkdir()
    assert predict(*flags).status == 0
    for path in out.glob("*.png"):
        path.unlink()
    known = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(known | {"task": "labels"}))
    (out / label_table.NAME).write_bytes(b"rows")
    assert_one_line(predict(*flags), "holds labels, not masks", "--overwrite")
    assert predict(*flags, "--overwrite").status == 0
    assert not (out / label_table.NAME).exists() and pngs(out)


def test_masks_of_other_photos_are_never_touched(predict, work):
    write_probability(work / "out/stranger.png", np.zeros((20, 30), np.uint8))
    result = predict("--weights=red.keras", "--pred_mask_dir=out", "--overwrite")
    assert_one_line(result, "stranger.png", "another folder")
    assert list(pngs(work / "out")) == ["stranger"]


def test_photos_are_never_replaced_by_masks(predict, work):
    before = pngs(work / "input/test")
    result = predict("--weights=red.keras", "--pred_mask_dir=input/test", "--overwrite")
    assert_one_line(result, "--pred_mask_dir", "photos")
    assert pngs(work / "input/test") == before


@pytest.mark.parametrize(
    ("flags", "stems"),
    [
        (("--weights=red.keras",), STEMS[:4]),
        (("--weights=red.keras", "--fold=0"), STEMS[:4]),
        (("--weights=blue.keras",), STEMS[4:]),
        (("--weights=blue.keras", "--test_data_dir=input/test"), STEMS[4:]),
    ],
)
def test_predict_on_val_takes_the_photos_of_the_fold(predict, work, flags, stems):
    result = predict(*flags, "--predict_on_val=True", "--pred_mask_dir=out")
    assert result.status == 0, result.err
    assert list(pngs(work / "out")) == stems
    made = manifest.read(work / "out")
    assert made.out_of_fold is True
    assert made.photos == 4


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--weights=red.keras", "--fold=1"), ("red.keras", "--fold=1", "'c'", "--force")),
        (("--weights=all.keras", "--fold=0"), ("all.keras", "'a'")),
        (("--weights=red.keras,blue.keras", "--fold=0"), ("blue.keras",)),
    ],
)
def test_a_model_that_saw_the_fold_is_refused(predict, work, flags, named):
    flags = (*flags, "--predict_on_val", "--pred_mask_dir=out")
    assert_one_line(predict(*flags), *named)
    assert not (work / "out").exists()
    assert predict(*flags, "--force").status == 0
    assert len(pngs(work / "out")) == 4
    assert manifest.read(work / "out").out_of_fold is False


def test_a_stacked_mask_that_is_not_out_of_fold_leaks_too(predict, work):
    save(work / "stacked.keras", ((0.0, 0.0, 0.0, 4.0), -2.0))
    assert predict("--weights=all.keras", "--pred_mask_dir=known").status == 0
    flags = ("--weights=stacked.keras", "--predict_on_val", "--pred_mask_dir=out")
    flags = (*flags, "--stacked_channels_dir=known")
    assert_one_line(predict(*flags), "'known' is not out of fold", "--force")
    assert not (work / "out").exists()


def test_photos_without_a_mask_are_in_no_fold(predict, work):
    shutil.copy(work / "input/train/a_1.jpg", work / "input/train/new_1.jpg")
    result = predict("--weights=red.keras", "--predict_on_val", "--pred_mask_dir=out")
    assert result.status == 0, result.err
    assert "1 photos of 'input/train' are in no fold of 'input/folds.csv'" in result.out
    assert list(pngs(work / "out")) == STEMS[:4]


@pytest.mark.parametrize("models", ["all.keras", "red.keras,blue.keras"])
def test_models_without_one_fold_need_the_flag(predict, work, models):
    result = predict(f"--weights={models}", "--predict_on_val", "--pred_mask_dir=out")
    assert_one_line(result, "--fold", models.split(",")[0])


def test_a_fold_that_is_not_there(predict, work):
    result = predict("--weights=red.keras", "--predict_on_val", "--fold=7", "--pred_mask_dir=out")
    assert_one_line(result, "--fold=7", "0, 1")


def test_a_published_command_line_with_bare_weights(predict, work):
    keras.utils.set_random_seed(0)
    network = registry.build(ModelOptions("simple_unet"))
    network.save_weights(work / "simple.weights.h5")
    result = predict(
        "--gpu=0,1,2", "--network=simple_unet", "--weights=simple.weights.h5",
        "--test_data_dir=input/train", "--pred_mask_dir=predicted_masks/val_from_fold_1",
        "--fold=1", "--folds_source=folds.csv", "--dataset_dir=input", "--predict_on_val=True",
    )  # fmt: skip
    assert result.status == 0, result.err
    out = work / "predicted_masks/val_from_fold_1"
    assert list(pngs(out)) == STEMS[4:]
    made = manifest.read(out)
    assert made.out_of_fold is False  # nobody knows what the weights were trained on
    assert made.models[0]["network"] == "simple_unet"
    photo = cv2.imread(str(work / "input/train/c_1.jpg"))[..., ::-1]
    padded = np.pad(photo, ((2, 2), (1, 1), (0, 0)), mode="reflect").astype(np.float32)
    expected = network.predict_on_batch(padded[None])[0, 2:-2, 1:-1, 0]
    assert_rounds(out / "c_1.png", expected.astype(np.float64))


def test_bare_weights_of_a_grey_network(predict, work):
    keras.utils.set_random_seed(0)
    network = registry.build(ModelOptions("unet_tiny", photo_channels=1))
    network.save_weights(work / "grey.weights.h5")
    flags = ("--network=unet_tiny", "--weights=grey.weights.h5", "--test_data_dir=input/train")
    result = predict(*flags, "--pred_mask_dir=colour")
    assert_one_line(result, "grey.weights.h5", "3x3x1x16 16 in the file")
    result = predict(*flags, "--photo_channels=1", "--pred_mask_dir=out")
    assert result.status == 0, result.err
    photo = cv2.imread(str(work / "input/train/c_1.jpg"))[..., ::-1].astype(np.float32)
    height, width = photo.shape[:2]
    sides = [((-n % 4) // 2, (-n % 4 + 1) // 2) for n in (height, width)]
    padded = np.pad(photo, (*sides, (0, 0)), mode="reflect")
    expected = network.predict_on_batch(padded[None])[0, ..., 0]
    expected = expected[sides[0][0] :, sides[1][0] :][:height, :width]
    assert_rounds(work / "out/c_1.png", expected.astype(np.float64))


def test_weights_of_an_encoder_alone_predict_nothing(predict, work):
    network = registry.build(ModelOptions("mobilenet", alpha=0.25))
    encoder = keras.Model(network.inputs, network.get_layer("conv_pw_13_relu").output)
    encoder.save_weights(work / "encoder.weights.h5")
    result = predict(
        "--weights=encoder.weights.h5", "--network=mobilenet", "--alpha=0.25", "--pred_mask_dir=out"
    )
    assert_one_line(result, "encoder.weights.h5", "only the encoder")


def test_unreadable_photos_are_listed_and_the_rest_is_done(predict, work):
    photos = work / "input/train"
    (photos / "a_1.jpg").rename(photos / "a_1.png")
    (photos / "a_1.png").write_bytes(b"")
    whole = (photos / "c_2.jpg").read_bytes()
    (photos / "c_2.jpg").write_bytes(whole[: len(whole) // 2])
    result = predict("--weights=red.keras", "--test_data_dir=input/train", "--pred_mask_dir=out")
    assert_one_line(result, "2 photos")
    unreadable = [line for line in result.err.splitlines() if line.startswith("unreadable: ")]
    assert len(unreadable) == 2
    assert "a_1.png" in unreadable[0]
    assert "0 bytes" in unreadable[0]
    assert "c_2.jpg" in unreadable[1]
    assert "truncated" in unreadable[1]
    assert list(pngs(work / "out")) == [s for s in STEMS if s not in ("a_1", "c_2")]
    assert manifest.read(work / "out").photos == 8
    listed = (work / "out/bad_files.csv").read_text().splitlines()
    assert len(listed) == 3 and "a_1.png" in listed[1] and "c_2.jpg" in listed[2]
    result = predict("--weights=red.keras", "--test_data_dir=input/train", "--pred_mask_dir=rle",
                     "--output=rle")  # fmt: skip
    assert_one_line(result, "2 photos have no mask")
    rows = [image for image, _ in submission.read_rows(work / "rle/submission.csv.gz")]
    assert len(rows) == 6
    (photos / "a_1.png").write_bytes((photos / "a_2.jpg").read_bytes())
    (photos / "c_2.jpg").write_bytes(whole)
    result = predict("--weights=red.keras", "--test_data_dir=input/train", "--pred_mask_dir=rle",
                     "--output=rle")  # fmt: skip
    assert result.status == 0 and "6 already predicted" in result.out
    rows = [image for image, _ in submission.read_rows(work / "rle/submission.csv.gz")]
    assert len(rows) == 8 and not (work / "rle/bad_files.csv").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--pred_mask_dir=out",), ("--weights is missing",)),
        (("--weights=red.keras",), ("--pred_mask_dir is missing",)),
        (("--weights=none.keras", "--pred_mask_dir=out"), ("none.keras", "does not exist")),
        (("--weights=broken.keras", "--pred_mask_dir=out"), ("broken.keras",)),
        (("--weights=broken.h5", "--pred_mask_dir=out"), ("broken.h5",)),
        (("--weights=input/folds.csv", "--pred_mask_dir=out"), ("folds.csv", ".keras")),
        (("--weights=red.keras", "--pred_mask_dir=out", "--test_data_dir=no"), ("input/no'",)),
        (("--weights=red.keras", "--pred_mask_dir=out", "--test_data_dir=empty"), ("no photo",)),
        (("--weights=red.keras", "--pred_mask_dir=red.keras/out"), ("red.keras/out",)),
        (("--weights=red.keras", "--pred_mask_dir=out", "--gpu=x"), ("--gpu",)),
        (("--weights=red.keras", "--pred_mask_dir=out", "--pred_tta=vflip"), ("pred_tta",)),
        (
            ("--weights=red.keras", "--pred_mask_dir=out", "--tile_size=21"),
            ("--tile_size=21", "24"),
        ),
        (
            ("--weights=red.keras", "--pred_mask_dir=out", "--use_bounding_boxes=boxes.csv"),
            ("boxes.csv", "no box", "'a_2'"),
        ),
        (("--weights=a.h5", "--pred_mask_dir=out", "--network=nett"), ("--network", "nett")),
        (("--weights=a.h5", "--pred_mask_dir=out", "--size_policy=resize"), ("--input_height",)),
    ],
)
def test_bad_input_is_one_line(predict, work, flags, named):
    (work / "empty").mkdir()
    (work / "broken.keras").write_bytes(b"PK")
    (work / "broken.h5").write_bytes(b"no weights")
    (work / "a.h5").write_bytes(b"never read")
    (work / "boxes.csv").write_text("id,left,top,width,height\na_1,0,0,8,8\n")
    assert_one_line(predict(*flags), *named)
    assert not pngs(work / "out")


def masks(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_a_device_that_fails_leaves_its_photos_to_the_other(predict, work):
    flags = ("--weights=red.keras", "--pred_batch_size=1")
    assert predict(*flags, "--pred_mask_dir=one").status == 0
    flags += ("--gpu=0,1",)
    assert predict(*flags, "--pred_mask_dir=two").status == 0
    result = predict(*flags, "--pred_mask_dir=lost", cpu_1=2)
    assert result.status == 0, result.err
    assert "8 masks in" in result.out
    (line,) = [line for line in result.err.splitlines() if "failed" in line]
    assert line == "cpu:1 failed: InternalError: the device is lost; going on without it"
    found = json.loads((work / "lost/timings.json").read_text())
    assert found["devices"] == ["cpu:0", "cpu:1"]
    assert found["failed_devices"] == ["cpu:1"]
    for folder in ("two", "lost"):
        assert masks(work / folder) == masks(work / "one")
        assert manifest.read(work / folder) == manifest.read(work / "one")


def test_when_the_last_device_fails_the_same_command_completes_the_folder(predict, work):
    flags = ("--weights=red.keras", "--pred_batch_size=1")
    assert predict(*flags, "--pred_mask_dir=one").status == 0
    flags += ("--gpu=0,1", "--pred_mask_dir=lost")
    result = predict(*flags, cpu_0=1, cpu_1=2)
    assert result.status == 1
    first, last = [line for line in result.err.splitlines() if "failed" in line]
    assert re.match(r"cpu:[01] failed: InternalError", first)
    assert re.match(r"error: predicting '.*' failed: InternalError: the device is lost", last)
    assert "the same command goes on" in last
    written = len(masks(work / "lost"))
    assert written <= 3
    result = predict(*flags)
    assert result.status == 0, result.err
    assert f"8 photos, {written} already predicted" in result.out
    assert masks(work / "lost") == masks(work / "one")


def run_alone(work, *flags, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "predict_multithreaded.py"), "--gpu=", *flags],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_predict_the_same(work, backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    flags = ("--weights=red.keras,blue.keras", "--pred_mask_dir=out", "--dtype=float32")
    result = run_alone(work, *flags, KERAS_BACKEND=backend, JAX_PLATFORMS="cpu")
    assert result.returncode == 0, result.stderr
    assert f"on {backend}" in json.loads((work / "out/timings.json").read_text())["hardware"]
    for stem in STEMS:
        photo = photo_of(work, stem)
        mean = (in_numpy(photo, *RED) + in_numpy(photo, *BLUE)) / 2
        assert_rounds(work / f"out/{stem}.png", mean)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_written(predict, work):
    photo = (work / "input/test/a_1.png").read_bytes()
    for i in range(400):  # more than are predicted before the signal comes
        (work / f"input/test/z_{i}.png").write_bytes(photo)
    script, log = ROOT / "predict_multithreaded.py", work / "log"
    flags = ("--gpu=", "--dtype=float32", "--weights=red.keras", "--pred_mask_dir=out")
    process = start_script_apart(log, script, *flags, cwd=work)
    deadline = time.monotonic() + 120
    while not pngs(work / "out") and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(number_of(process), signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert "Traceback" not in log.read_text()
    written = pngs(work / "out")
    assert 0 < len(written) < 408
    assert manifest.read(work / "out").photos == 408
    assert all(cv2.imread(str(work / f"out/{stem}.png")) is not None for stem in written)
    assert not list((work / "out").glob(".*"))
    result = predict("--weights=red.keras", "--pred_mask_dir=out")
    assert result.status == 0, result.err
    assert len(pngs(work / "out")) == 408
