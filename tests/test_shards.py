"""Processes that share the photos of a folder: the same result, each photo once."""

import contextlib
import dataclasses
import io
import json
import os
import threading
import types
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from processes import start_apart

from carvana_tf import cli, commands, files, shards
from carvana_tf.data.images import write_photo
from carvana_tf.errors import UserError
from carvana_tf.inference import session as sessions
from carvana_tf.masks import manifest
from carvana_tf.models import model_file
from carvana_tf.shards import Shard, ShardOptions

STEMS = [f"car{i:02d}_01" for i in range(12)]
COUNT = 3


def run(name, *arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(commands.find(name), list(arguments))
    return types.SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


def save(path, bias):
    photo = keras.Input((None, None, 3))
    dot = keras.layers.Conv2D(1, 1, activation="sigmoid", name="mask")
    model = keras.Model(photo, dot(keras.layers.Rescaling(1 / 255)(photo)))
    dot.set_weights([np.reshape((3.0, -1.0, 0.5), (1, 1, 3, 1)), np.array([bias])])
    metadata = {
        "network": "simple_unet", "stride": 8, "size_policy": "crop", "input_height": 16,
        "input_width": 16, "stacked_channels": 0, "fold": 0, "training_groups": ["other"],
    }  # fmt: skip
    model_file.save(model, path, metadata)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    random = np.random.default_rng(0)
    for stem in STEMS:
        small = random.integers(0, 256, (3, 4, 3), np.uint8)
        write_photo(folder / "photos" / f"{stem}.png", cv2.resize(small, (24, 16)))
    save(folder / "a.keras", -0.7)
    save(folder / "b.keras", 0.4)
    return folder


def predict(work, out, *flags, model="a"):
    return run(
        "predict", f"--weights={work / f'{model}.keras'}", f"--test_data_dir={work / 'photos'}",
        f"--pred_mask_dir={out}", "--gpu=", "--dtype=float32", *flags,
    )  # fmt: skip


def part(number, count=COUNT):
    return f"--num_shards={count}", f"--shard={number}"


def pngs(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("[!.]*.png"))}


@pytest.fixture(scope="module")
def alone(work):
    """One process's masks."""
    assert predict(work, work / "alone").status == 0
    return work / "alone"


def assert_one_line(result, *words):
    assert result.status == 1
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.err
    for word in words:
        assert word in line


def test_every_photo_is_in_one_shard_whatever_else_there_is():
    stems = [f"{i:x}_{i % 16}" for i in range(3000)]
    numbers = [shards.shard_of(stem, 7) for stem in stems]
    assert {*numbers} == {*range(7)}
    # Expected 429 each, with a standard deviation of 19.
    assert 350 < min(np.bincount(numbers)) <= max(np.bincount(numbers)) < 510
    assert [shards.shard_of(stem, 7) for stem in reversed(stems)] == numbers[::-1]
    # The first 16 digits of `printf car_01 | sha256sum`.
    assert shards.shard_of("car_01", 1000) == 0x466E63BD97EA5DD2 % 1000
    assert shards.shard_of("caf\u00e9", 1000) == shards.shard_of("cafe\u0301", 1000)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--shard=1"], ["--shard=1 needs --num_shards"]),
        (["--num_shards=4"], ["--num_shards=4 needs --shard", "0 to 3"]),
        (["--num_shards=4", "--shard=4"], ["--shard=4 is outside", "0 to 3"]),
    ],
)
@pytest.mark.parametrize("name", ["predict", "ensemble", "encode"])
def test_flags_that_name_no_shard_are_one_line(name, flags, words):
    assert_one_line(run(name, *flags), *words)


def test_shards_give_the_masks_of_one_process(work, alone, tmp_path):
    out = tmp_path / "out"
    for number in (2, 0, 1):
        result = predict(work, out, *part(number))
        assert result.status == 0, result.err
        mine = [stem for stem in STEMS if Shard(number, COUNT).has(stem)]
        assert f"{len(mine)} photos in shard {number} of {COUNT}, 0 already" in result.out
        assert (Shard(number, COUNT).folder(out) / "timings.json").is_file()
    assert pngs(out) == pngs(alone)
    assert manifest.read(out) == manifest.read(alone)
    assert not (out / "timings.json").exists()
    again = predict(work, out, *part(1))
    assert "already predicted" in again.out and not again.status
    assert not [*out.rglob(f"{files.PREFIX}*")]


def test_another_model_or_other_photos_are_refused_by_name(work, tmp_path):
    out = tmp_path / "out"
    assert predict(work, out, *part(0)).status == 0
    before = pngs(out)
    other = predict(work, out, *part(1), model="b")
    assert_one_line(other, "shard 1 of 3", "other models", "a.keras", "b.keras", "same flags")
    tta = predict(work, out, *part(1), "--pred_tta=hflip", "--overwrite")
    assert_one_line(tta, "shard 1 of 3", "other tta", "none there, hflip now")
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    left_out = next(stem for stem in STEMS if not Shard(0, COUNT).has(stem))
    for stem in STEMS:
        if stem != left_out:
            (fewer / f"{stem}.png").symlink_to(work / "photos" / f"{stem}.png")
    others = predict(work, out, *part(1), f"--test_data_dir={fewer}")
    assert_one_line(others, "shard 1 of 3", "other photos: 12 there, 11 now")
    assert pngs(out) == before


def test_overwrite_makes_the_photos_of_its_shard_again(work, alone, tmp_path):
    out = tmp_path / "out"
    for number in range(2):
        assert predict(work, out, *part(number, 2)).status == 0
    for path in out.glob("*.png"):
        path.write_bytes(path.read_bytes() + b"x")  # whole no more
    result = predict(work, out, *part(0, 2), "--overwrite")
    assert result.status == 0, result.err
    good = {f"{stem}.png" for stem in STEMS if Shard(0, 2).has(stem)}
    assert {n for n, data in pngs(out).items() if data == pngs(alone)[n]} == good


def test_who_may_be_in_the_folder_at_the_same_time(work, tmp_path):
    out = tmp_path / "out"
    with shards.held(out, Shard(0, 3)):
        with shards.held(out, Shard(1, 3)):
            pass
        for other, words in ((Shard(0, 3), "00000-of-00003' is in use"), (None, "out' is in use")):
            with pytest.raises(UserError, match=words), shards.held(out, other):
                pass
        with shards.held(out, Shard(2, 3)):
            pass
    third = shards.held(out, Shard(0, 3))
    with shards.held(out, None), pytest.raises(UserError, match="out' is in use"), third:
        pass
    assert not (out / files.LOCK).exists()


def test_the_first_shard_chooses_the_engine_for_all(work, tmp_path, monkeypatch):
    made, make = [], sessions.selection.make_engines

    def engines(name, workload):
        made.append((workload.begun_with, len(workload.samples)))
        return make("keras", workload)

    monkeypatch.setattr(sessions.selection, "make_engines", engines)
    for number in range(2):
        assert predict(work, tmp_path / "out", *part(number, 2)).status == 0
    # All photos decide, as in one process.
    assert made == [(None, 12), ("keras", 12)]


def test_what_shards_cut_for_memory_is_said_once_for_all(tmp_path, alone):
    made = manifest.read(alone)
    rules = [{"pixels": n, "size": 64, "overlap": 16} for n in (900, 700)]
    for number, cut in enumerate((None, rules[:1], rules[1:], rules[:1])):
        cut_manifest = dataclasses.replace(made, cut_for_memory=cut)
        manifest.begin(tmp_path, cut_manifest, STEMS, shard=Shard(number, 4))
    assert manifest.read(tmp_path).cut_for_memory == rules


def die_after(count, work, out):
    """Ends the process without a word, as SIGKILL does, when it has written some masks."""
    left = iter(range(count))
    lock = threading.Lock()  # or the process may end while another thread still writes

    def write(self, target, data, modified=None):
        with lock:
            if next(left, None) is None:
                os._exit(9)
            files.write_bytes(target, data)

    files.Group.write_bytes = write
    predict(Path(work), out, *part(0, 2))


@pytest.mark.slow
def test_a_killed_shard_goes_on_and_nothing_is_done_twice(work, alone, tmp_path):
    out = tmp_path / "out"
    process = start_apart(tmp_path / "log", die_after, 2, str(work), str(out))
    process.join()
    assert process.exitcode == 9, (tmp_path / "log").read_text()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("[!.]*.png")}
    assert len(kept) == 2
    assert predict(work, out, *part(1, 2)).status == 0
    refused = run("encode", f"--pred_mask_dir={out}", f"--submissions_dir={tmp_path / 's'}",
                  "--pred_sample_csv=")  # fmt: skip
    assert_one_line(refused, "of 2 shards these have not finished: 0")
    result = predict(work, out, *part(0, 2))
    assert "2 already predicted" in result.out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert pngs(out) == pngs(alone)
    assert not [*out.rglob(f"{files.PREFIX}*")]


def test_unreadable_photos_are_listed_by_shard(work, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for stem in STEMS:
        (photos / f"{stem}.png").symlink_to(work / "photos" / f"{stem}.png")
    bad = next(stem for stem in STEMS if Shard(1, 2).has(stem))
    (photos / f"{bad}.png").unlink()
    (photos / f"{bad}.png").write_bytes(b"\x89PNG")
    out = tmp_path / "out"
    assert predict(work, out, *part(0, 2), f"--test_data_dir={photos}").status == 0
    listed = Shard(1, 2).folder(out) / "bad_files.csv"
    result = predict(work, out, *part(1, 2), f"--test_data_dir={photos}")
    assert_one_line(result, str(listed))
    assert bad in listed.read_text()
    assert json.loads((listed.parent / shards.RECORD).read_text()) == {"unreadable": 1}
    assert not (Shard(0, 2).folder(out) / "bad_files.csv").exists()


def test_ensembles_in_shards(work, alone, tmp_path):
    assert predict(work, tmp_path / "b", model="b").status == 0
    both = f"--pred_mask_dirs={alone},{tmp_path / 'b'}"
    steps = "--postprocess=largest"
    assert run("ensemble", both, steps, f"--pred_mask_dir={tmp_path / 'one'}").status == 0
    out = f"--pred_mask_dir={tmp_path / 'out'}"
    for number in range(2):
        result = run("ensemble", both, steps, out, *part(number, 2))
        assert result.status == 0, result.err
    assert pngs(tmp_path / "out") == pngs(tmp_path / "one")
    assert manifest.read(tmp_path / "out") == manifest.read(tmp_path / "one")
    other = run("ensemble", both, "--strategy=vote", out, *part(1, 2))
    assert_one_line(other, "shard 1 of 2", "other ensemble")
    model = run("ensemble", both, out, f"--member={work / 'a.keras'}", *part(1, 2))
    assert_one_line(model, "a.keras' is a model", "predict_multithreaded.py")


def encode(masks, out, *flags):
    return run("encode", f"--pred_mask_dir={masks}", f"--submissions_dir={out}",
               "--pred_threads=2", *flags)  # fmt: skip


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
def test_submissions_in_parts_are_merged_to_the_bytes_of_one(alone, tmp_path, name):
    sample = tmp_path / "sample.csv"
    images = [f"{stem}.png" for stem in (*STEMS[5:], *STEMS[:4])]
    sample.write_text("\n".join(["image,mask", *(f"{image}," for image in images)]) + "\n")
    rows, named = f"--pred_sample_csv={sample}", f"--submission_name={name}"
    assert encode(alone, tmp_path / "one", rows, named).status == 0
    out = tmp_path / "out"
    for number in (1, 0):
        assert encode(alone, out, rows, *part(number)).status == 0
    missing = encode(alone, out, rows, named, f"--merge_shards={COUNT}")
    assert_one_line(missing, "1 of 3 shards have no finished part", ": 2; ", "--shard=2")
    assert encode(alone, out, rows, *part(2)).status == 0
    merged = encode(alone, out, rows, named, f"--merge_shards={COUNT}")
    assert merged.status == 0, merged.err
    assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    other = out / f".merged-{name}.partial"
    other.write_text("the rows of another process")
    with files.claimed(out / name):
        busy = encode(alone, out, rows, named, f"--merge_shards={COUNT}")
        assert_one_line(busy, f"{name}' is in use")
    assert other.read_text()
    late = encode(alone, out, rows, named, f"--merge_shards={COUNT}", "--threshold=90")
    assert_one_line(late, "made of other masks, or by another --threshold", "--shard=0")
    damaged = Shard(1, COUNT).folder(out) / "submission.csv.gz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    changed = encode(alone, out, rows, named, f"--merge_shards={COUNT}")
    assert_one_line(changed, "has changed", "--shard=1")


def test_run_lengths_predicted_in_shards_are_merged_to_the_bytes_of_one(work, tmp_path):
    assert predict(work, tmp_path / "one", "--output=rle").status == 0
    out = tmp_path / "out"
    for number in range(COUNT - 1):
        assert predict(work, out, "--output=rle", *part(number)).status == 0
    flags = f"--merge_shards={COUNT}", "--submission_name=s.csv.gz"
    assert_one_line(encode(out, tmp_path, *flags), "1 of 3 shards have no finished part")
    assert predict(work, out, "--output=rle", *part(COUNT - 1)).status == 0
    again = predict(work, out, "--output=rle", *part(0))
    assert again.status == 0, again.err
    merged = encode(out, tmp_path, *flags)
    assert merged.status == 0, merged.err
    one = (tmp_path / "one/submission.csv.gz").read_bytes()
    assert (tmp_path / "s.csv.gz").read_bytes() == one


def test_more_shards_than_photos(work, tmp_path):
    count = 40
    empty = next(i for i in range(count) if not any(Shard(i, count).has(s) for s in STEMS))
    result = predict(work, tmp_path / "out", *part(empty, count))
    assert result.status == 0, result.err
    assert f"0 photos in shard {empty} of 40" in result.out
    assert (Shard(empty, count).folder(tmp_path / "out") / shards.RECORD).is_file()


def test_a_shard_option_is_none_without_flags():
    assert ShardOptions().chosen is None
