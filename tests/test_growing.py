"""Submissions that are gone on with, and ends in order."""

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from carvana_tf.data import bad_files
from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import write_mask, write_photo, write_probability
from carvana_tf.errors import UserError
from carvana_tf.filenames import SUBMISSION
from carvana_tf.masks import growing, submission
from carvana_tf.masks.growing import Growing
from carvana_tf.tasks import MASKS
from carvana_tf.tasks.masks import writers

ROOT = Path(__file__).parents[1]
COLUMNS = ("img", "rle_mask")
NAMES = ["a.jpg", 'b"\n,.jpg', "c\rd.jpg", os.fsdecode(b"\xe9.jpg"), "e.jpg", "f.jpg"]


def line(name):
    return submission.row_line(name, f"1 {len(name)}")


def whole(folder, suffix=".csv.gz", **given):
    with Growing(folder, "s", COLUMNS, compressed=suffix == ".csv.gz", **given) as grown:
        for name in NAMES:
            grown.add(line(name))
        grown.finish(folder / f"whole{suffix}")
    return (folder / f"whole{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
@pytest.mark.parametrize("after", range(1, len(NAMES) + 1))
def test_a_file_gone_on_with_is_that_of_one_run(tmp_path, after, suffix):
    given = {"compressed": suffix == ".csv.gz", "stamps": NAMES}
    with pytest.raises(KeyboardInterrupt), Growing(tmp_path, "s", COLUMNS, **given) as grown:
        for name in NAMES[:after]:
            grown.add(line(name))
        raise KeyboardInterrupt
    assert {path.name for path in tmp_path.iterdir()} == {".s.partial", ".s.partial.json"}
    with Growing(tmp_path, "s", COLUMNS, **given) as grown:
        assert grown.done == NAMES[:after]
        for name in NAMES[after:]:
            grown.add(line(name))
        grown.finish(tmp_path / f"s{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"s{suffix}"]
    assert (tmp_path / f"s{suffix}").read_bytes() == whole(tmp_path / "other", suffix)
    rows = list(submission.read_rows(tmp_path / f"s{suffix}"))
    assert rows == [(name, f"1 {len(name)}") for name in NAMES]


def test_nothing_begun_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), Growing(tmp_path / "s", "s", COLUMNS):
        raise KeyboardInterrupt
    assert not list((tmp_path / "s").iterdir())


def test_what_was_not_saved_is_written_again(tmp_path, monkeypatch):
    """As after SIGKILL: rows beyond the last save, and half of one, are in the file."""
    monkeypatch.setattr(growing, "SAVED_EVERY", 2)
    grown = Growing(tmp_path, "s", COLUMNS)
    grown.__enter__()
    for name in NAMES[:5]:
        grown.add(line(name))
    grown._file.write(line(NAMES[5]).packed[:7])
    grown._file.close()
    with Growing(tmp_path, "s", COLUMNS) as again:
        assert again.done == NAMES[:4]
        for name in NAMES[4:]:
            again.add(line(name))
        again.finish(tmp_path / "s.csv.gz")
    assert (tmp_path / "s.csv.gz").read_bytes() == whole(tmp_path / "other")


def begin(folder, **given):
    with Growing(folder, "s", COLUMNS, **given) as grown:
        for name in NAMES[:3]:
            grown.add(line(name))


@pytest.mark.parametrize("damage", ["flip", "short", "state", "no state", "zeros"])
def test_damaged_rows_are_written_again(tmp_path, damage):
    begin(tmp_path)
    rows, state = tmp_path / ".s.partial", tmp_path / ".s.partial.json"
    data = bytearray(rows.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
    elif damage == "short":
        del data[-3:]
    elif damage == "zeros":
        data[20:] = bytes(len(data) - 20)
    elif damage == "state":
        state.write_text("{")
    else:
        state.unlink()
    rows.write_bytes(data)
    with Growing(tmp_path, "s", COLUMNS) as grown:
        assert grown.done == []
        for name in NAMES:
            grown.add(line(name))
        grown.finish(tmp_path / "s.csv.gz")
    assert (tmp_path / "s.csv.gz").read_bytes() == whole(tmp_path / "other")


@pytest.mark.parametrize(
    "other",
    [{"identity": "x"}, {"stamps": ["a.jpg", "changed", *NAMES[2:]]}, {"compressed": False}],
)
def test_rows_of_other_masks_are_dropped(tmp_path, other):
    begin(tmp_path, stamps=NAMES)
    with Growing(tmp_path, "s", COLUMNS, **({"stamps": NAMES} | other)) as grown:
        assert grown.done == []


def test_one_process_at_a_time(tmp_path):
    with Growing(tmp_path, "s", COLUMNS) as grown:
        grown.add(line("a"))
        with pytest.raises(UserError, match="another process"), Growing(tmp_path, "s", COLUMNS):
            pass


def make_masks(folder, count=12):
    random = np.random.default_rng(0)
    for i in range(count):
        write_probability(folder / f"m{i:03d}.png", random.integers(0, 256, (6, 7), np.uint8))
    return submission.rows_of_folder(folder, ".jpg")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_encoding_ends_in_order_and_goes_on(tmp_path, monkeypatch, number):
    rows = make_masks(tmp_path / "masks")
    submission.write(tmp_path / "once.csv.gz", rows)
    read, calls = submission.read_grey, []

    def signalled(path):
        calls.append(path.name)
        if len(calls) == 5:  # as the handler is called, wherever the main thread is
            signal.getsignal(number)(number, None)
        return read(path)

    monkeypatch.setattr(submission, "read_grey", signalled)
    with pytest.raises(KeyboardInterrupt):
        submission.write(tmp_path / "out/first.csv.gz", rows, threads=1)
    hidden = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(hidden) == 2 and all(name.startswith(".submission-") for name in hidden)
    first = len(calls)
    submission.write(tmp_path / "out/second.csv.gz", rows, threads=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["second.csv.gz"]
    data = (tmp_path / "out/second.csv.gz").read_bytes()
    assert data == (tmp_path / "once.csv.gz").read_bytes()
    assert len(calls) - first < len(rows.images)  # the first ones were not read again
    assert calls[first] != "m000.png"


def test_encoding_goes_on_after_a_bad_mask_was_replaced(tmp_path):
    rows = make_masks(tmp_path / "masks")
    whole_mask = rows.masks[6].read_bytes()
    submission.write(tmp_path / "once.csv.gz", rows)
    rows.masks[6].write_bytes(b"")
    rows.masks[9].write_bytes(b"")
    with pytest.raises(UserError, match="2 masks are unreadable"):
        submission.write(tmp_path / "out/s.csv.gz", rows)
    listed = tables_of(tmp_path / "out" / bad_files.NAME)
    assert [Path(file).name for file, _ in listed] == ["m006.png", "m009.png"]
    rows.masks[6].write_bytes(whole_mask)
    rows.masks[9].unlink()
    rows = submission.rows_of_folder(tmp_path / "masks", ".jpg")
    submission.write(tmp_path / "out/s.csv.gz", rows)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s.csv.gz"]
    assert len(list(submission.read_rows(tmp_path / "out/s.csv.gz"))) == 11


def tables_of(path):
    from carvana_tf.data.tables import read_table

    return [cells for _, cells in read_table(path)[1]]


def make_samples(folder, count):
    found = []
    for i in range(count):
        write_photo(folder / f"p{i}.png", np.zeros((4, 5, 3), np.uint8))
        found.append(Sample(f"p{i}", "p", folder / f"p{i}.png"))
    return found


def test_rows_of_a_prediction_are_kept_and_a_bad_photo_stops_none(tmp_path):
    samples, out = make_samples(tmp_path / "photos", 5), tmp_path / "out"
    values = np.full((4, 5), 200, np.uint8)
    with pytest.raises(KeyboardInterrupt), writers.create("rle", out, samples) as output:
        output.write(samples[0], output.encode(values, None))
        output.write(samples[3], output.encode(values, None))  # overtook two
        raise KeyboardInterrupt
    assert writers.begun(out) == {"p0"}
    assert not (out / SUBMISSION).exists()
    with writers.create("rle", out, samples[1:]) as output:
        output.skip(samples[2], "unreadable")
        for i in (4, 1, 3):
            output.write(samples[i], output.encode(values, None))
    assert names_in(out) == ["p0.png", "p1.png", "p3.png", "p4.png"]
    assert writers.begun(out) == {"p0", "p1", "p3", "p4"}  # the bad one may be replaced
    with writers.create("rle", out, samples[2:3]) as output:
        output.write(samples[2], output.encode(values, None))
    assert names_in(out) == ["p0.png", "p1.png", "p3.png", "p4.png", "p2.png"]
    assert writers.begun(out) is None
    assert [path.name for path in out.iterdir()] == [SUBMISSION]


def names_in(folder):
    with gzip.open(folder / SUBMISSION, "rt") as stream:
        return [row.split(",")[0] for row in stream.read().splitlines()[1:]]


def run(script, *flags, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / script), *flags], cwd=cwd, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_ensembling_lists_all_bad_masks_and_does_the_rest(tmp_path):
    for name in "ab":
        make_masks(tmp_path / name)
    whole_mask = (tmp_path / "a/m003.png").read_bytes()
    for broken in ("a/m003.png", "b/m007.png"):
        (tmp_path / broken).write_bytes(b"\x89PNG broken")
    flags = ("ensemble.py", "--pred_mask_dirs", "a", "b", "--force", "--pred_mask_dir=out")
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 1 and "2 photos have no combined mask" in done.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 10
    assert [row[0] for row in tables_of(tmp_path / "out/bad_files.csv")] == ["m003.png", "m007.png"]
    (tmp_path / "a/m003.png").write_bytes(whole_mask)
    (tmp_path / "b/m007.png").write_bytes((tmp_path / "a/m007.png").read_bytes())
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 0 and "10 already combined" in done.stdout
    assert not (tmp_path / "out/bad_files.csv").exists()


def test_folds_list_all_bad_masks(make_dataset):
    root = make_dataset()
    for stem in ("car00_01", "car02_02"):
        (root / f"train_masks/{stem}_mask.gif").write_bytes(b"")
    before = (root / "folds.csv").read_text()
    done = run("make_folds.py", f"--dataset_dir={root}", "--n_folds=2", cwd=root)
    assert done.returncode == 1 and "2 files cannot be read" in done.stderr
    listed = tables_of(root / "bad_files.csv")
    assert [Path(file).name for file, _ in listed] == ["car00_01_mask.gif", "car02_02_mask.gif"]
    assert (root / "folds.csv").read_text() == before


def test_bad_files_of_samples(tmp_path):
    samples = []
    for i in range(5):
        write_photo(tmp_path / f"p{i}.jpg", np.zeros((8, 9, 3), np.uint8))
        write_mask(tmp_path / f"p{i}_mask.png", np.eye(8, 9, dtype=bool))
        sample = Sample(f"p{i}", "p", tmp_path / f"p{i}.jpg", tmp_path / f"p{i}_mask.png")
        samples.append(sample)
    bad_files.refuse(samples, tmp_path / "run", 2, "the first step", MASKS)
    samples[0].photo.write_bytes(b"")
    samples[0].mask.write_bytes(b"")
    write_mask(samples[2].mask, np.eye(4, 9, dtype=bool))
    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3)))[1].tobytes()
    samples[4].photo.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"4 files cannot be read, found before the first step"):
        bad_files.refuse(samples, tmp_path / "run", 2, "the first step", MASKS)
    listed = tables_of(tmp_path / "run/bad_files.csv")
    named = ["p0.jpg", "p0_mask.png", "p2_mask.png", "p4.jpg"]
    assert [Path(file).name for file, _ in listed] == named
    assert "its photo is 9x8" in listed[2][1]
