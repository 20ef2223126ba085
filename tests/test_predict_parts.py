"""Prediction of a listing into Parquet parts: the masks of a folder, in parts that come whole."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from processes import start_apart
from test_shards import assert_one_line, part, run, save

from carvana_tf import shards
from carvana_tf.data import listing as photo_listing
from carvana_tf.data import storage
from carvana_tf.data.images import read_grey, write_photo
from carvana_tf.data.tables import read_table
from carvana_tf.evaluation.constant import OBJECT, Counts
from carvana_tf.failures import OutOfMemory
from carvana_tf.inference import pipeline, predict_parts
from carvana_tf.inference.session import Session
from carvana_tf.masks import manifest, rle, rle_parquet
from carvana_tf.masks.growing import InOrder
from carvana_tf.masks.rle_parquet import Row
from carvana_tf.shards import Shard

pytest.importorskip("pyarrow", reason="pip install -e '.[parquet]'")
fsspec = pytest.importorskip("fsspec", reason="pip install -e '.[remote]'")

STEMS = [f"car{i:03d}_{i % 16:02d}" for i in range(200)]
SIZE = 32
FORMAT = ("--output=rle-parquet", f"--photos_per_part={SIZE}")


def path_of(work, stem):
    return work / "photos" / stem[3:4] / f"{stem}.png"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Photos of two sizes in two folders, their listing, one flat folder of them, and models."""
    folder = tmp_path_factory.mktemp("parts")
    random = np.random.default_rng(0)
    for i, stem in enumerate(STEMS):
        small = random.integers(0, 256, (3, 4, 3), np.uint8)
        write_photo(path_of(folder, stem), cv2.resize(small, (24, 16 + i % 2 * 8)))
        (folder / "flat").mkdir(exist_ok=True)
        (folder / "flat" / f"{stem}.png").symlink_to(path_of(folder, stem))
    (folder / "list.txt").write_text("".join(f"{path_of(folder, stem)}\n" for stem in STEMS))
    save(folder / "a.keras", -0.7)
    save(folder / "b.keras", 0.4)
    return folder


def predict(work, out, *flags, photos=None, model="a"):
    return run(
        "predict", f"--weights={work / f'{model}.keras'}", f"--pred_mask_dir={out}", "--gpu=",
        "--dtype=float32", "--engine=keras", photos or f"--listing={work / 'list.txt'}", *flags,
    )  # fmt: skip


def contents(folder):
    return {path.name: path.read_bytes() for path in rle_parquet.list_parts(folder)}


def rows(folder):
    return [*rle_parquet.rows(rle_parquet.complete(folder))]


@pytest.fixture(scope="module")
def alone(work):
    """The parts of one process."""
    result = predict(work, work / "alone", *FORMAT)
    assert result.status == 0, result.err
    assert "200 photos in 7 parts, 0 already predicted" in result.out
    return work / "alone"


@pytest.fixture(scope="module")
def pngs(work):
    """The masks of the flat folder."""
    photos = f"--test_data_dir={work / 'flat'}"
    assert predict(work, work / "pngs", "--output=mask", photos=photos).status == 0
    return work / "pngs"


def test_masks_are_those_of_the_folder(work, alone, pngs):
    found = rows(alone)
    assert [row.id for row in found] == STEMS
    assert [row.path for row in found] == [str(path_of(work, stem)) for stem in STEMS]
    for row in found:
        mask = read_grey(pngs / f"{row.id}.png") > 127
        assert mask.shape == (row.height, row.width)
        assert np.array_equal(rle.decode(row.rle, *mask.shape), mask)
        assert row.problem is None
    made = manifest.read(alone)
    sizes = [rle_parquet.look(path, made).rows for path in rle_parquet.list_parts(alone)]
    assert sizes == [*[SIZE] * 6, 8]
    assert sum(row.rle != "" for row in found) > 0
    assert json.loads((alone / "timings.json").read_text())["photos"] == 200


def test_a_folder_gives_the_same_rows(work, alone, tmp_path):
    photos = f"--test_data_dir={work / 'flat'}"
    result = predict(work, tmp_path, *FORMAT, photos=photos)
    assert result.status == 0, result.err
    assert [(r.id, r.rle) for r in rows(tmp_path)] == [(r.id, r.rle) for r in rows(alone)]
    assert manifest.read(tmp_path).out_of_fold and not manifest.read(alone).out_of_fold


def test_other_programs_read_the_parts(alone):
    import pandas
    import pyarrow.parquet

    frame = pandas.read_parquet(alone / "part-00001.parquet")
    assert list(frame) == ["id", "path", "height", "width", "rle", "problem"]
    assert list(frame["id"]) == STEMS[SIZE : 2 * SIZE]
    facts = pyarrow.parquet.read_metadata(alone / "part-00001.parquet").metadata[b"carvana_tf"]
    assert json.loads(facts) == {
        "part": 1,
        "rows": SIZE,
        "unreadable": 0,
        "manifest": json.loads((alone / "manifest.json").read_text()),
    }


def die_after(count, work, out):
    """Ends the process without a word, as SIGKILL does, when it has some rows."""
    left, lock, add = iter(range(count)), threading.Lock(), rle_parquet.Part.add

    def dying(self, row):
        with lock:
            if next(left, None) is None:
                os._exit(9)
        add(self, row)

    rle_parquet.Part.add = dying
    predict(Path(work), Path(out), *FORMAT)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_part(work, alone, tmp_path):
    out = tmp_path / "out"
    process = start_apart(tmp_path / "log", die_after, 2 * SIZE + 7, str(work), str(out))
    process.join()
    assert process.exitcode == 9, (tmp_path / "log").read_text()
    kept = {path: path.stat().st_mtime_ns for path in rle_parquet.list_parts(out)}
    assert len(kept) == 2
    assert_one_line(run("encode", f"--pred_mask_dir={out}"), "have 64 of 200 photos")
    result = predict(work, out, *FORMAT)
    assert "64 already predicted" in result.out
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert contents(out) == contents(alone)
    assert not [*out.glob(".*")]


def test_a_part_that_is_not_whole_is_made_again(work, alone, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(alone, out)
    first, second, *_ = rle_parquet.list_parts(out)
    first.write_bytes(first.read_bytes()[:-9])
    second.unlink()
    assert_one_line(run("encode", f"--pred_mask_dir={out}"), "136 of 200 photos")
    assert "136 already predicted" in predict(work, out, *FORMAT).out
    assert contents(out) == contents(alone)
    assert "200 already predicted" in predict(work, out, *FORMAT).out


def test_a_flipped_bit_is_found_when_a_part_is_read(alone, tmp_path):
    import pyarrow.parquet

    data = bytearray((alone / "part-00000.parquet").read_bytes())
    lengths = pyarrow.parquet.read_metadata(alone / "part-00000.parquet").row_group(0).column(4)
    assert lengths.path_in_schema == "rle"
    data[lengths.data_page_offset + lengths.total_compressed_size - 9] ^= 16
    (tmp_path / "part-00000.parquet").write_bytes(data)
    with pytest.raises(rle_parquet.UserError, match="is damaged"):
        list(rle_parquet.read(tmp_path / "part-00000.parquet"))


def test_shards_give_the_parts_of_one_process(work, alone, tmp_path):
    out = tmp_path / "out"
    for number in (2, 0, 1):
        result = predict(work, out, *FORMAT, *part(number))
        assert result.status == 0, result.err
        assert f"parts of shard {number} of 3, 0 already" in result.out
        record = Shard(number, 3).folder(out) / shards.RECORD
        assert json.loads(record.read_text()) == {"unreadable": 0}
    assert contents(out) == contents(alone)
    assert manifest.read(out) == manifest.read(alone)
    before = {path: path.stat().st_mtime_ns for path in rle_parquet.list_parts(out)}
    assert predict(work, out, *FORMAT, *part(1), "--overwrite").status == 0
    made = [p for p in rle_parquet.list_parts(out) if p.stat().st_mtime_ns != before[p]]
    assert [path.name for path in made] == ["part-00001.parquet", "part-00004.parquet"]
    assert contents(out) == contents(alone)
    assert "0 photos in 0 parts of shard 9 of 12" in predict(work, out, *FORMAT, *part(9, 12)).out
    other = predict(work, out, *FORMAT, *part(0), model="b")
    assert_one_line(other, "shard 0 of 3 differs", "other models")


def test_what_the_folder_is_not_for_is_refused(work, alone, pngs, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(alone, out)
    fewer = tmp_path / "fewer.txt"
    fewer.write_text("".join(f"{path_of(work, stem)}\n" for stem in STEMS[1:]))
    assert_one_line(predict(work, out, *FORMAT, photos=f"--listing={fewer}"), "other photos:")
    assert_one_line(predict(work, out, *FORMAT, model="b"), "other models:")
    assert_one_line(predict(work, out, *FORMAT, "--threshold=90"), "other encoding:")
    other = predict(work, out, "--output=rle-parquet", "--photos_per_part=50")
    assert_one_line(other, "other encoding:", "32 photos a part there", "50 photos a part now")
    assert_one_line(predict(work, pngs, *FORMAT), "holds 200 PNGs of other photos")
    for flags in ((), ("--output=rle",), ("--overwrite",), ("--num_shards=2", "--shard=0")):
        flat = predict(work, out, *flags, photos=f"--test_data_dir={work / 'flat'}")
        assert_one_line(flat, "holds run lengths in Parquet files")
    assert predict(work, out, *FORMAT).status == 0
    assert contents(out) == contents(alone)
    foreign = out / "part-00001.parquet"
    assert predict(work, tmp_path / "b", *FORMAT, model="b").status == 0
    shutil.copy(tmp_path / "b" / foreign.name, foreign)
    assert_one_line(predict(work, out, *FORMAT), "part-00001.parquet' was made with other models")
    shutil.copy(out / "part-00002.parquet", foreign)
    assert_one_line(predict(work, out, *FORMAT), "part-00001.parquet' is no such part")
    assert predict(work, out, *FORMAT, "--overwrite").status == 0
    assert contents(out) == contents(alone)


@pytest.mark.parametrize("name", ["", "part-00000.parquet"])
def test_a_listing_is_not_overwritten_by_its_parts(work, alone, tmp_path, name):
    listing = tmp_path / "part-00000.parquet"
    shutil.copy(alone / listing.name, listing)  # has the columns of a listing
    before = listing.read_bytes()
    for flags in ((), ("--overwrite",)):
        photos = f"--listing={tmp_path / name}"
        again = predict(work, tmp_path, *FORMAT, *flags, photos=photos)
        assert_one_line(again, "--listing=", "name another folder")
    assert [*tmp_path.iterdir()] == [listing]
    assert listing.read_bytes() == before
    assert predict(work, tmp_path / "out", *FORMAT, photos=f"--listing={tmp_path}").status == 0
    assert contents(tmp_path / "out")[listing.name] != before  # of another listing


def test_urls_and_a_bad_one(work, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "DELAY", 0.0)
    memory = fsspec.filesystem("memory")
    for stem in STEMS[:50]:
        memory.pipe(f"/parts/{stem}.png", path_of(work, stem).read_bytes())
    missing, damaged = STEMS[3], STEMS[40]
    memory.rm(f"/parts/{missing}.png")
    memory.pipe(f"/parts/{damaged}.png", b"\x89PNG")
    urls = [f"memory://parts/{stem}.png" for stem in STEMS[:50]]
    urls += [f"file://{path_of(work, stem)}" for stem in STEMS[50:]]
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(urls) + "\n")
    out, photos = tmp_path / "out", f"--listing={tmp_path / 'list.csv'}"
    result = predict(work, out, *FORMAT, photos=photos)
    assert_one_line(result, "2 photos have no mask", str(out / "bad_files.csv"))
    assert f"unreadable: cannot read '{urls[3]}': there is no such file." in result.err
    listed = [cells for _, cells in read_table(out / "bad_files.csv")[1]]
    assert [path for path, _ in listed] == [urls[3], urls[40]]
    found = rows(out)
    assert [row.path for row in found] == urls
    assert found[3]._replace(problem="") == Row(missing, urls[3], problem="")
    assert found[3].problem == listed[0][1]
    assert [r.rle for r in found if r.rle is not None] == [
        r.rle for r in rows(alone) if r.id not in (missing, damaged)
    ]
    # Once they can be read, they alone are predicted, and their parts are as if they always could.
    again = predict(work, out, *FORMAT, photos=photos)
    assert "198 already predicted" in again.out
    assert_one_line(again, "2 photos have no mask")
    for stem in (missing, damaged):
        memory.pipe(f"/parts/{stem}.png", path_of(work, stem).read_bytes())
    assert predict(work, out, *FORMAT, photos=photos).status == 0
    assert not (out / "bad_files.csv").exists()
    assert predict(work, tmp_path / "new", *FORMAT, photos=photos).status == 0
    assert contents(out) == contents(tmp_path / "new")


def broken(times, error):
    """A `storage._fetch` that fails some times first."""
    left, fetch, lock = iter(range(times)), storage._fetch, threading.Lock()

    def read(url):
        with lock:
            fails = next(left, None) is not None
        if fails:
            raise error
        return fetch(url)

    return read


def test_a_storage_that_fails_is_asked_again_and_then_ends_the_run(work, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "DELAY", 0.0)
    (tmp_path / "list.txt").write_text(
        "".join(f"file://{path_of(work, stem)}\n" for stem in STEMS[:60])
    )
    photos = f"--listing={tmp_path / 'list.txt'}"
    flags = (*FORMAT, "--threads=1")
    monkeypatch.setattr(storage, "_fetch", broken(2, OSError("slow down")))
    assert predict(work, tmp_path / "a", *flags, photos=photos).status == 0
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_fetch", broken(10**6, PermissionError("expired")))
        result = predict(work, tmp_path / "b", *flags, photos=photos)
        assert_one_line(result, "are all unreadable", "PermissionError: expired", "storage")
        left = [
            row.rle for p in rle_parquet.list_parts(tmp_path / "b") for row in rle_parquet.read(p)
        ]
        assert left == [None] * SIZE
        storage._failures.end()
        # After the first part, which is there.
        patch.setattr(storage, "MOST_FAILURES", 9)
        (tmp_path / "a" / "part-00001.parquet").unlink()
        result = predict(work, tmp_path / "a", *flags, photos=photos)
        assert_one_line(result, "gave none of the last 9 photos", "expired")
    assert len(contents(tmp_path / "a")) == 1
    assert predict(work, tmp_path / "a", *flags, photos=photos).status == 0
    assert len(rows(tmp_path / "a")) == 60


def test_paths_that_are_all_wrong_end_the_run(work, tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("".join(f"elsewhere/{stem}.png\n" for stem in STEMS))
    monkeypatch.setattr(predict_parts, "FIRST", 20)
    result = predict(work, tmp_path / "out", *FORMAT, photos=f"--listing={tmp_path / 'list.txt'}")
    assert_one_line(result, "list.txt' are all unreadable", "relative paths start from this folder")


FLAGS = {
    "no format": ([], "--output=rle-parquet"),
    "probabilities": (["--output=probability"], "--output=rle-parquet"),
    "a folder as well": ([*FORMAT, "--test_data_dir=photos"], "--listing="),
    "a fold": ([*FORMAT, "--predict_on_val"], "--listing="),
    "boxes": ([*FORMAT, "--use_bounding_boxes=b.csv"], "--use_bounding_boxes=b.csv has no effect"),
    "parts of nothing": (["--photos_per_part=5"], "--photos_per_part=5 has no effect without"),
}


@pytest.mark.parametrize("flags, words", FLAGS.values(), ids=FLAGS)
def test_flags_that_do_not_fit_are_one_line(work, tmp_path, flags, words):
    assert_one_line(predict(work, tmp_path / "out", *flags), words)


def test_a_missing_package_is_one_line(work, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_one_line(predict(work, tmp_path / "out", *FORMAT), "'.[parquet]'")


def test_no_folder_has_too_many_parts(work, tmp_path, monkeypatch):
    monkeypatch.setattr(rle_parquet, "MOST_PARTS", 6)
    words = "200 photos are 7 parts", "give --photos_per_part=34 or more"
    assert_one_line(predict(work, tmp_path / "out", *FORMAT), *words)
    assert predict(work, tmp_path / "out", FORMAT[0], "--photos_per_part=34").status == 0


def test_where_memory_is_not_enough_the_part_is_made_again(work, alone, tmp_path, monkeypatch):
    calls, real = [], Session.run

    def session_run(self, samples, *arguments):
        calls.append(self.settings.readers)
        if len(calls) == 3:
            raise OutOfMemory("out of memory while testing", 384)
        return real(self, samples, *arguments)

    monkeypatch.setattr(Session, "run", session_run)
    result = predict(work, tmp_path / "out", *FORMAT)
    assert result.status == 0 and "going on with one photo at a time" in result.err
    assert calls == [2] * 3 + [1] * 5
    assert contents(tmp_path / "out") == contents(alone)


@pytest.mark.parametrize("during", ["a part", "its rows"])
def test_a_listing_that_changes_meanwhile_ends_the_run(work, alone, tmp_path, monkeypatch, during):
    listing, calls, real = tmp_path / "list.txt", [], Session.run
    shutil.copy(work / "list.txt", listing)

    def change():
        listing.write_text(f"{path_of(work, STEMS[-1])}\n")

    def session_run(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            change()
        return real(self, *arguments)

    def parts(*arguments):
        yield next(photo_listing.parts(*arguments))
        change()

    with monkeypatch.context() as patch:
        if during == "a part":
            patch.setattr(Session, "run", session_run)
        else:
            patch.setattr(predict_parts, "listing", SimpleNamespace(parts=parts))
        result = predict(work, tmp_path / "out", *FORMAT, photos=f"--listing={listing}")
    assert_one_line(result, "list.txt' has changed while it was read")
    assert list(contents(tmp_path / "out")) == ["part-00000.parquet"]
    shutil.copy(work / "list.txt", listing)
    assert predict(work, tmp_path / "out", *FORMAT, photos=f"--listing={listing}").status == 0
    assert contents(tmp_path / "out") == contents(alone)


def test_a_photo_that_memory_is_not_enough_for_stops_no_other(work, alone, tmp_path, monkeypatch):
    real = pipeline.read_channels

    def read(sample):
        if sample.stem == STEMS[40]:
            raise OutOfMemory("out of memory while testing")
        return real(sample)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "read_channels", read)
        for _ in range(2):
            result = predict(work, tmp_path / "out", *FORMAT)
            assert result.status == 1 and "error: 1 photos have no mask" in result.err
            missing = [row for row in rows(tmp_path / "out") if row.rle is None]
            assert [(row.id, row.problem) for row in missing] == [
                (STEMS[40], "out of memory while testing")
            ]
    assert predict(work, tmp_path / "out", *FORMAT).status == 0
    assert contents(tmp_path / "out") == contents(alone)


def test_an_interrupt_at_the_end_of_a_part_ends_the_run(work, alone, tmp_path, monkeypatch):
    real = Session.run

    def session_run(self, *arguments):
        return dataclasses.replace(real(self, *arguments), interrupted=True)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "run", session_run)
        assert predict(work, tmp_path / "out", *FORMAT).status == 130
    assert list(contents(tmp_path / "out")) == ["part-00000.parquet"]
    assert predict(work, tmp_path / "out", *FORMAT).status == 0
    assert contents(tmp_path / "out") == contents(alone)


def test_an_interrupt_while_a_part_is_read_back_keeps_it(work, alone, tmp_path, monkeypatch):
    real, broken = rle_parquet.read, path_of(work, STEMS[3])

    def read(path):
        if path.name.startswith("."):  # before it gets its name
            signal.getsignal(signal.SIGINT)(signal.SIGINT, None)
        return real(path)

    whole = broken.read_bytes()
    for content, lacking in ((b"", [STEMS[3]]), (whole, [])):  # a part is made, and completed
        broken.write_bytes(content)
        with monkeypatch.context() as patch:
            patch.setattr(rle_parquet, "read", read)
            assert predict(work, tmp_path / "out", *FORMAT).status == 130
        (kept,) = rle_parquet.list_parts(tmp_path / "out")
        assert [row.id for row in real(kept) if row.rle is None] == lacking
    assert predict(work, tmp_path / "out", *FORMAT).status == 0
    assert contents(tmp_path / "out") == contents(alone)


def test_parts_become_a_submission(alone, pngs, tmp_path):
    out = f"--submissions_dir={tmp_path}"
    sample = "--pred_sample_csv="
    one = run("encode", f"--pred_mask_dir={pngs}", out, "--submission_name=one.csv.gz", sample)
    assert one.status == 0, one.err
    name = "--submission_name=parts.csv.gz"
    result = run("encode", f"--pred_mask_dir={alone}", out, name)
    assert result.status == 0, result.err
    assert "200 rows of 7 Parquet files" in result.out
    assert (tmp_path / "parts.csv.gz").read_bytes() == (tmp_path / "one.csv.gz").read_bytes()
    checked = run("encode", f"--check={tmp_path / 'parts.csv.gz'}", f"--pred_mask_dir={pngs}")
    assert checked.status == 0, checked.err
    for flag, words in (
        ("--num_shards=2 --shard=0", "leave --num_shards and --ray_address out"),
        ("--pred_sample_csv=s.csv", "s.csv"),
        ("--threshold=90", "--threshold=90 contradicts"),
        ("--merge_shards=2", "--merge_shards=2 has no effect"),
    ):
        assert_one_line(run("encode", f"--pred_mask_dir={alone}", out, *flag.split()), words)
    for name in ("evaluate", "ensemble"):
        given = {"evaluate": "--pred_mask_dir", "ensemble": "--pred_mask_dirs"}[name]
        flags = [f"{given}={alone}"] + [f"--pred_mask_dir={tmp_path}/e"] * (name == "ensemble")
        refused = run(name, *flags, f"--dataset_dir={pngs}")
        assert refused.status == 1


def test_photos_without_a_mask_have_no_row(work, tmp_path):
    names = [f"{path_of(work, stem)}" for stem in STEMS[:40]] + ["none.png"]
    (tmp_path / "list.csv").write_text(
        "id,path\n" + "".join(f"p/{i},{name}\n" for i, name in enumerate(names))
    )
    out = tmp_path / "out"
    result = predict(work, out, *FORMAT, photos=f"--listing={tmp_path / 'list.csv'}")
    assert_one_line(result, "1 photos have no mask")
    flags = f"--pred_mask_dir={out}", f"--submissions_dir={tmp_path}", "--submission_name=s.csv"
    assert_one_line(run("encode", *flags), "1 photos of", "could not be read", "--force")
    assert run("encode", *flags, "--force").status == 0
    assert (tmp_path / "s.csv.forced.json").is_file()
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == "img,rle_mask"
    assert [line.partition(",")[0] for line in lines[1:]] == [f"p/{i}" for i in range(40)]
    decoded = run("decode_submission", f"--submission={out}", f"--out_dir={tmp_path / 'pngs'}")
    assert decoded.status == 0, decoded.err
    assert "1 photos of" in decoded.err and len(list((tmp_path / "pngs").glob("*.png"))) == 40


def test_parts_are_decoded_and_scored(work, alone, pngs, tmp_path):
    result = run("decode_submission", f"--submission={alone}", f"--out_dir={tmp_path / 'out'}")
    assert result.status == 0, result.err
    for path in pngs.glob("*.png"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    for flag in ("--img_width=5", "--order=column-major", f"--test_data_dir={work / 'flat'}"):
        refused = run("decode_submission", f"--submission={alone}", f"--out_dir={tmp_path}", flag)
        assert_one_line(refused, "the Parquet files")
    missing = run("decode_submission", f"--submission={work}", f"--out_dir={tmp_path / 'x'}")
    assert_one_line(missing, "is a folder")
    truths = f"--truth_dir={pngs}", "--mask_suffix="
    result = run("score_submission", f"--submission={alone}", *truths)
    assert result.status == 0, result.err
    assert "mean Dice 1.00000" in result.out


def test_rows_come_in_order_and_groups_by_their_size(tmp_path, monkeypatch, alone):
    import pyarrow.parquet

    monkeypatch.setattr(rle_parquet, "GROUP", 4)
    monkeypatch.setattr(rle_parquet, "GROUP_CHARACTERS", 100)
    every = [Row(str(i), f"{i}.jpg", 2, 3, "1 2 " * 9) for i in range(10)]
    with rle_parquet.writing(tmp_path, 0, manifest.read(alone)) as made:
        ordered = InOrder(made.add, [row.id for row in every])
        for i in (1, 0, 3, 2, 9, 8, 7, 6, 5, 4):
            ordered.put(str(i), every[i])
    path = tmp_path / rle_parquet.name(0)
    assert list(rle_parquet.read(path)) == every
    metadata = pyarrow.parquet.read_metadata(path)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 3, 3, 1]


def test_counting_masks_keeps_none_of_them():
    counts = Counts(127)
    for i in range(20):
        counts.add(np.full((2, 2), 255 * (i > 0), np.uint8))
    assert (len(counts), counts.constant()) == (20, (OBJECT, 0.95))
    assert not any(isinstance(value, list) for value in vars(counts).values())
