"""Which file a name in a table or folder stands for, whatever bytes it is made of."""

import csv
import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carvana_tf.data import names, tables
from carvana_tf.data.dataset import Naming, Sample, find_samples, with_stacked_channels
from carvana_tf.data.folds import fold_of_samples, make_folds, read_folds, write_folds
from carvana_tf.data.images import read_grey, write_mask, write_photo, write_probability
from carvana_tf.errors import UserError
from carvana_tf.evaluation import pairs, rows
from carvana_tf.filenames import MANIFEST
from carvana_tf.files import digest_of_lines, read_json, write_bytes, write_json
from carvana_tf.masks import manifest, rle, submission, verification
from carvana_tf.masks.boxes import Box, read_boxes

ROOT = Path(__file__).parents[1]
COMPOSED = unicodedata.normalize("NFC", "é_1")
ODD = [
    "scan_1",
    "scan_1.5",
    "a.b.c",
    "007",
    "1e5",
    "1.0",
    "NA",
    "null",
    "a b",
    "a  b",
    "a,b",
    'a"b',
    "line\nend",
    "return\rend",
    "-dash",
    "--flag=1",
    "x.JPG",
    "\N{GRINNING FACE}" * 60,
    COMPOSED,
    os.fsdecode(b"latin\xe9"),
    "100%",
    "=1+1",
    "'quoted'",
    "[a]*?",
]


@pytest.mark.parametrize(
    ("name", "stem", "extension"),
    [
        ("a.jpg", "a", ".jpg"),
        ("a.JPeG", "a", ".JPeG"),
        ("scan_1.5", "scan_1.5", ""),
        ("scan_1.5.tif", "scan_1.5", ".tif"),
        ("a.b.c.png", "a.b.c", ".png"),
        ("a.jpg.png", "a.jpg", ".png"),
        ("folder.5/a.webp", "a", ".webp"),
        (".jpg", ".jpg", ""),
        ("a.", "a.", ""),
        ("a.jpg ", "a.jpg ", ""),
        ("", "", ""),
    ],
)
def test_a_stem_loses_a_known_extension_alone(name, stem, extension):
    assert (names.stem(name), names.extension(name)) == (stem, extension)


@pytest.mark.parametrize(
    ("ids", "keys", "found"),
    [
        (["scan_1", "scan_1.5"], ["scan_1", "scan_1.5"],
         {"scan_1": "scan_1", "scan_1.5": "scan_1.5"}),
        (["scan_1.jpg", "scan_1.5.jpg"], ["scan_1", "scan_1.5"],
         {"scan_1.jpg": "scan_1", "scan_1.5.jpg": "scan_1.5"}),
        (["scan_1.5"], ["scan_1"], {}),
        (["test/a.jpg"], ["a"], {"test/a.jpg": "a"}),
        (["a"], ["a.jpg"], {"a": "a.jpg"}),
        (["a.png"], ["a.jpg"], {"a.png": "a.jpg"}),
        # Each names one exactly, so neither is in doubt.
        (["a", "a.jpg"], ["a", "a.jpg"], {"a": "a", "a.jpg": "a.jpg"}),
        ([COMPOSED], [unicodedata.normalize("NFD", COMPOSED)],
         {COMPOSED: unicodedata.normalize("NFD", COMPOSED)}),
        (["A"], ["a"], {}),
    ],
)  # fmt: skip
def test_what_a_name_stands_for(ids, keys, found):
    assert names.match(ids, keys, "t.csv") == found


@pytest.mark.parametrize(
    ("ids", "keys", "message"),
    [
        (["a.jpg", "a.png"], ["a"], "t.csv has 'a.jpg' and 'a.png', which both stand for 'a'"),
        (["a", "a.jpg"], ["a"], "both stand for 'a'"),
        (["a.jpg"], ["a", "a.jpg"], "'a.jpg' in t.csv may stand for 'a.jpg' or 'a'"),
        (["a"], ["a.jpg", "a.png"], "may stand for 'a.jpg' or 'a.png'"),
        (["x/a.jpg", "y/a.jpg"], ["a"], "both stand for 'a'"),
    ],
)
def test_a_name_in_doubt_is_refused(ids, keys, message):
    with pytest.raises(UserError, match=re.escape(message)):
        names.match(ids, keys, "t.csv")


def test_values_get_the_name_of_their_key():
    assert names.rekey({"b.jpg": 2, "a.5": 1, "x": 3}, ["a.5", "b", "c"], "t") == {"a.5": 1, "b": 2}


def test_tables_keep_every_name_and_skip_blank_lines(tmp_path):
    frame = pd.DataFrame({"id": ODD, "value": range(len(ODD)), "share": 0.1})
    tables.write_frame(tmp_path / "t.csv", frame)
    read = tables.read_frame(tmp_path / "t.csv")
    assert read["id"].tolist() == ODD
    assert read["value"].tolist() == [str(i) for i in range(len(ODD))]
    with (tmp_path / "t.csv").open(newline="", errors="surrogateescape") as stream:
        assert [row[0] for row in csv.reader(stream)][1:] == ODD  # as Python's own reader has it
    text = "\ufeff\nid, fold ,,\n\na,1,,\n,,,\n  \nb,2\n\n"
    (tmp_path / "t.csv").write_text(text)
    assert tables.read_frame(tmp_path / "t.csv").to_dict("list") == {
        "id": ["a", "b"],
        "fold": ["1", "2"],
    }


def test_json_and_digests_take_any_name(tmp_path):
    write_json(tmp_path / "a.json", {name: [name] for name in ODD})
    assert read_json(tmp_path / "a.json") == {name: [name] for name in ODD}
    assert len({digest_of_lines([name]) for name in ODD}) == len(ODD)


@pytest.mark.parametrize("name", ["\N{GRINNING FACE}" * 60 + ".png", "a." + "b" * 250, "c" * 255])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    write_bytes(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture
def work(tmp_path):
    """Photos of odd names in two formats, their masks, predictions and a table of each kind."""
    for number, stem in enumerate(ODD):
        grey = np.zeros((8, 9), np.uint8)
        grey.ravel()[number : number + 20] = 255
        suffix = ".PNG" if number % 3 == 0 else ".jpg"
        write_photo(tmp_path / f"input/train/{stem}{suffix}", np.dstack([grey] * 3))
        write_mask(tmp_path / f"input/train_masks/{stem}_m.png", grey > 0)
        write_probability(tmp_path / f"masks/{stem}.png", grey)
    made = manifest.Manifest(
        ({"fold": 0},), True, "none", "keras", "float32", len(ODD), digest_of_lines(ODD),
        manifest.ENCODING, "0",
        extensions=manifest.extensions_of(
            (names.stem(path.name), names.extension(path.name))
            for path in (tmp_path / "input/train").iterdir()
        ),
    )  # fmt: skip
    manifest.write(tmp_path / "masks", made)
    return tmp_path


def expected(number):
    return f"{number + 1} 20"


def photo_names(work):
    return {names.stem(path.name): path.name for path in (work / "input/train").iterdir()}


def test_samples_folds_boxes_and_channels_find_their_own(work):
    samples = find_samples(work / "input/train", work / "input/train_masks", Naming("_m"))
    assert {sample.stem for sample in samples} == set(ODD)
    assert all(sample.mask.name == f"{sample.stem}_m.png" for sample in samples)
    of_id = {stem: i % 2 for i, stem in enumerate(ODD)}
    for known in ({stem: stem for stem in ODD}, photo_names(work)):
        table = pd.DataFrame({"id": [known[stem] for stem in ODD], "fold": list(of_id.values())})
        write_folds(work / "f.csv", table)
        found = fold_of_samples(samples, read_folds(work / "f.csv"))
        assert found == [of_id[sample.stem] for sample in samples]
        lines = [[known[stem], i, 0, 1, 1] for i, stem in enumerate(ODD)]
        tables.write_table(work / "b.csv", ["id", "left", "top", "width", "height"], lines)
        boxes = read_boxes(work / "b.csv", samples)
        assert boxes == {stem: Box(i, 0, 1, 1) for i, stem in enumerate(ODD)}
    stacked = with_stacked_channels(samples, work / "masks", 1)
    assert all(sample.stacked[0].name == f"{sample.stem}.png" for sample in stacked)


def test_folds_are_made_and_read_again(tmp_path):
    folds = make_folds(pd.DataFrame({"id": ODD, "area": range(len(ODD))}), 3)
    write_folds(tmp_path / "f.csv", folds)
    pd.testing.assert_frame_equal(read_folds(tmp_path / "f.csv"), folds, check_dtype=False)


@pytest.mark.parametrize("style", ["stem", "name", "decomposed"])
def test_each_row_of_a_submission_gets_its_own_mask(work, style):
    known = photo_names(work) if style == "name" else {stem: stem for stem in ODD}
    if style == "decomposed":
        known = {stem: unicodedata.normalize("NFD", stem) for stem in ODD}
    sample = work / "sample.csv"
    tables.write_table(sample, ["img", "rle_mask"], [[known[stem], "1 1"] for stem in ODD])
    found = submission.rows_of_sample(work / "masks", sample)
    submission.write(work / "s.csv.gz", found)
    assert tables.read_frame(work / "s.csv.gz").values.tolist() == [
        [known[stem], expected(i)] for i, stem in enumerate(ODD)
    ]
    assert submission.validate(work / "s.csv.gz", work / "masks") == (len(ODD), ())
    truths = {sample.stem: sample.mask for sample in find_samples(
        work / "input/train", work / "input/train_masks", Naming("_m"))}  # fmt: skip
    scored = rows.score(work / "s.csv.gz", truths, Naming("_m"), threads=1)
    assert scored.photos["dice"].tolist() == [1.0] * len(ODD)
    predictions = {names.stem(p.name): p for p in (work / "masks").glob("*.png")}
    matched = pairs.match(predictions, truths, Naming("_m"), {})
    assert len(matched.pairs) == len(ODD)
    assert all(pair.prediction.name == f"{pair.stem}.png" for pair in matched.pairs)


def test_photos_have_their_own_names_where_no_sample_names_them(work):
    of_stem = photo_names(work)
    for given in ({}, {"photo_dir": work / "input/train"}):
        found = submission.rows_of_folder(work / "masks", **given)
        assert list(found.images) == [of_stem[path.name[:-4]] for path in found.masks]
        assert len(found.images) == len(ODD)
    (work / "masks" / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"--test_data_dir.*--image_extension"):
        submission.rows_of_folder(work / "masks")


def test_two_rows_may_not_share_a_mask(tmp_path):
    write_probability(tmp_path / "masks/a.png", np.zeros((3, 4), np.uint8))
    (tmp_path / "s.csv").write_text("img,rle_mask\na.jpg,\na.png,\n")
    with pytest.raises(UserError, match="both stand for 'a'"):
        submission.rows_of_sample(tmp_path / "masks", tmp_path / "s.csv")
    with pytest.raises(UserError, match=r"'a.png' and 'a.jpg' stand for one mask"):
        submission.validate(tmp_path / "s.csv", tmp_path / "masks")


def test_the_check_of_rows_shares_no_mistake_with_what_chose_their_masks(tmp_path, monkeypatch):
    for i, stem in enumerate(["scan_1", "scan_1.5"]):
        write_probability(tmp_path / f"masks/{stem}.png", np.full((2, 2), 255 * i, np.uint8))
    (tmp_path / "sample.csv").write_text("img,rle_mask\nscan_1,\nscan_1.5,\n")
    monkeypatch.setattr(names, "match", lambda ids, keys, where: dict.fromkeys(ids, "scan_1"))
    wrong = submission.rows_of_sample(tmp_path / "masks", tmp_path / "sample.csv")
    with pytest.raises(RuntimeError, match=r"'scan_1.5' would get the mask 'scan_1.png'"):
        submission.write(tmp_path / "s.csv", wrong)
    assert not (tmp_path / "s.csv").exists()
    # A file that was written with the mistake is found, too.
    (tmp_path / "s.csv").write_text("img,rle_mask\nscan_1,\nscan_1.5,\n")
    with pytest.raises(UserError, match=r"'scan_1.5' differs from its mask"):
        submission.validate(tmp_path / "s.csv", tmp_path / "masks")


def test_a_row_in_doubt_is_found_by_the_check(tmp_path):
    files = [tmp_path / "a.png", tmp_path / "a.jpg.png"]
    masks = verification.Masks(files)
    assert masks.claim("a.jpg") == files[1]
    assert masks.doubts() == ["'a.jpg' may stand for 'a.jpg.png' or 'a.png'"]
    assert masks.claim("a") == files[0]
    assert masks.doubts() == [] and masks.unclaimed() == ()


def run(*command, cwd):
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip


def test_commands_take_and_print_any_name(work):
    naming = ["--dataset_dir=input", "--mask_suffix=_m", "--group_pattern=(.+)"]
    commands = [
        ["make_folds.py", *naming, "--n_folds=2"],
        ["tools/check_data.py", *naming, "--report=report.csv"],
        ["evaluate.py", *naming, "--pred_mask_dir=masks", "--fold=1"],
        ["ensemble.py", "--pred_mask_dirs=masks", "--pred_mask_dir=both"],
        ["tools/find_bounding_boxes.py", "--pred_mask_dir=both"],
        ["generate_encoded_submission.py", "--pred_mask_dir=both", "--submission_name=s.csv"],
        ["generate_encoded_submission.py", "--pred_mask_dir=both", "--check=submissions/s.csv"],
        ["tools/score_submission.py", *naming, "--submission=submissions/s.csv",
         "--truth_dir=train_masks", "--scores_csv=scores.csv"],
    ]  # fmt: skip
    for script, *flags in commands:
        done = run(ROOT / script, *flags, cwd=work)
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        assert b"Traceback" not in done.stderr and b"UnicodeEncodeError" not in done.stderr
    assert {row[0] for _, row in tables.read_lines(work / "scores.csv")} - {"id"} == set(ODD)
    assert sorted(tables.read_frame(work / "boxes.csv")["id"].tolist()) == sorted(ODD)
    rows = tables.read_frame(work / "submissions/s.csv")
    assert set(rows["img"]) == set(photo_names(work).values())
    for image, text in zip(rows["img"], rows["rle_mask"], strict=True):
        grey = read_grey(work / "masks" / f"{names.stem(image)}.png")
        assert np.array_equal(rle.decode(text, *grey.shape), grey > 127)
    assert json.loads((work / "both/manifest.json").read_text())["photos"] == len(ODD)
    page = (work / "masks/evaluation/report.html").read_bytes()
    page.decode()  # is UTF-8 whatever the names


def test_an_error_names_a_file_that_is_no_utf8(tmp_path):
    photo = tmp_path / "input/train" / os.fsdecode(b"a  b\xe9\x1b[31m\n.jpg")
    write_photo(photo, np.zeros((4, 4, 3), np.uint8))
    write_photo(photo.with_suffix(".png"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "input/train_masks").mkdir()
    done = run(ROOT / "make_folds.py", "--n_folds=2", cwd=tmp_path)
    (line,) = done.stderr.decode("ascii").splitlines()
    assert line.startswith("error: ") and r"a  b\udce9\x1b[31m" in line


def test_a_sample_knows_its_group_whatever_its_name():
    assert Naming().group("line\nend_07") == "line\nend"
    assert Sample("a", "a", Path("a.jpg")).stem == "a"
