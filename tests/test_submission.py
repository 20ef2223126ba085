"""Submissions: rows in order, verified, whole or absent."""

import csv
import gzip
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from carvana_tf.commands import encode
from carvana_tf.errors import UserError
from carvana_tf.files import digest_of_lines
from carvana_tf.masks import manifest, rle, submission
from carvana_tf.threads import ordered_map

REPOSITORY = Path(__file__).parents[1]


def independent_decode(text, shape):
    flat = np.zeros(shape[0] * shape[1], bool)
    numbers = [int(word) for word in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        flat[start - 1 : start - 1 + length] = True
    return flat.reshape(shape)


@pytest.fixture
def mask_dir(tmp_path):
    """Twenty noisy probability PNGs of two sizes."""
    folder = tmp_path / "masks"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(20):
        shape = (7, 11) if i % 2 else (9, 5)
        grey = random.integers(0, 256, shape, dtype=np.uint8)
        cv2.imwrite(str(folder / f"car{i:02d}_01.png"), grey)
    return folder


def read(path):
    with gzip.open(path, "rt", newline="") as stream:
        return list(csv.reader(stream))


def write_sample(path, images, columns=("img", "rle_mask")):
    lines = [",".join(columns), *(f"{image},1 1" for image in images)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_stand_for_the_masks_in_the_order_of_the_sample(mask_dir, tmp_path):
    images = [f"car{i:02d}_01.jpg" for i in (5, 0, 19, 7, 12, 3)]
    sample = write_sample(tmp_path / "sample.csv", images, ("image", "mask"))
    target = tmp_path / "out" / "s.csv.gz"
    rows = submission.rows_of_sample(mask_dir, sample)
    spent = submission.write(target, rows, threads=3)
    header, *lines = read(target)
    assert header == ["image", "mask"]
    assert [image for image, _ in lines] == images
    for image, text in lines:
        grey = cv2.imread(str(mask_dir / image.replace(".jpg", ".png")), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(independent_decode(text, grey.shape), grey > 127)
    assert len(rows.surplus) == 14 and "car01_01.png" in rows.surplus
    assert min(spent.read, spent.encode, spent.verify) > 0
    assert [path.name for path in target.parent.iterdir()] == ["s.csv.gz"]


def test_127_is_background_and_128_object(tmp_path):
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks/a.png"), np.array([[126, 127, 128, 255]], np.uint8))
    rows = submission.rows_of_folder(tmp_path / "masks", ".jpg")
    submission.write(tmp_path / "a.csv.gz", rows)
    submission.write(tmp_path / "b.csv.gz", rows, threshold=126)
    assert read(tmp_path / "a.csv.gz") == [["img", "rle_mask"], ["a.jpg", "3 2"]]
    assert read(tmp_path / "b.csv.gz")[1] == ["a.jpg", "2 3"]


def test_folder_order_and_equal_bytes_for_equal_rows(mask_dir, tmp_path):
    rows = submission.rows_of_folder(mask_dir, ".tif")
    submission.write(tmp_path / "one.csv.gz", rows, threads=1)
    submission.write(tmp_path / "two.csv.gz", rows, threads=8)
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()
    assert [row[0] for row in read(tmp_path / "one.csv.gz")[1:]] == [
        f"car{i:02d}_01.tif" for i in range(20)
    ]


def test_a_name_without_gz_is_not_compressed(mask_dir, tmp_path):
    for name in ("s.csv", "s.csv.gz"):
        submission.write(tmp_path / name, submission.rows_of_folder(mask_dir, ".jpg"))
    assert (tmp_path / "s.csv").read_bytes() == gzip.decompress(
        (tmp_path / "s.csv.gz").read_bytes()
    )
    assert submission.validate(tmp_path / "s.csv", mask_dir) == (20, ())


def test_the_file_is_one_gzip_member_of_plain_csv(mask_dir, tmp_path):
    (mask_dir / "car00_01.png").rename(mask_dir / "a,comma.png")
    rows = submission.rows_of_folder(mask_dir, ".jpg")
    submission.write(tmp_path / "s.csv.gz", rows, threads=2)
    data = (tmp_path / "s.csv.gz").read_bytes()
    one = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    text = one.decompress(data)
    assert one.eof and one.unused_data == b"" and data[4:8] == bytes(4)
    assert text.startswith(b'img,rle_mask\n"a,comma.jpg",') and b"\r" not in text
    table = pd.read_csv(tmp_path / "s.csv.gz", keep_default_na=False)
    assert list(zip(table["img"], table["rle_mask"], strict=True)) == [
        tuple(row) for row in read(tmp_path / "s.csv.gz")[1:]
    ]


def test_missing_masks_are_counted_and_named(mask_dir, tmp_path):
    sample = write_sample(tmp_path / "s.csv", ["car00_01.jpg", *(f"x{i}.jpg" for i in range(5))])
    with pytest.raises(UserError, match=r"5 of the 6 .*x0\.jpg, x1\.jpg, x2\.jpg and 2 more"):
        submission.rows_of_sample(mask_dir, sample)


def test_sample_of_another_dataset(mask_dir, tmp_path):
    sample = write_sample(tmp_path / "s.csv", ["x1.jpg", "x2.jpg"])
    with pytest.raises(UserError, match="names no image"):
        submission.rows_of_sample(mask_dir, sample)


@pytest.mark.parametrize(
    ("content", "expected_message"),
    [
        ("", "is empty"),
        ("img\na.jpg\n", "two columns"),
        ("img,rle_mask\n", "no rows"),
        ("img,rle_mask\na.jpg\n", "line 2"),
        ("img,rle_mask\ncar00_01.jpg,\n,1 1\n", "line 3 .* has no image"),
        ("img,rle_mask\ncar00_01.jpg,\ncar00_01.jpg,\n", "more than once"),
        ("img;rle_mask\na.jpg;\n", "semicolons between its columns"),
        ("car00_01.jpg,1 1\ncar03_01.jpg,1 1\n", "no header, but the row of 'car00_01.jpg'"),
        ("car00_01,1 1\ncar03_01,1 1\n", "no header, but the row of 'car00_01'"),
        (b"\xff\xfe\x00\xd8", "no CSV table in UTF-8"),
    ],
)
def test_bad_samples(mask_dir, tmp_path, content, expected_message):
    sample = tmp_path / "s.csv"
    sample.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=expected_message):
        submission.rows_of_sample(mask_dir, sample)


def test_missing_sample_and_missing_or_empty_folder(mask_dir, tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        submission.rows_of_sample(mask_dir, tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot read"):
        submission.rows_of_sample(mask_dir, tmp_path / "none.csv.gz")
    with pytest.raises(UserError, match="does not exist"):
        submission.rows_of_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no mask"):
        submission.rows_of_folder(tmp_path / "empty")


def test_damaged_pngs_are_named_and_nothing_is_written(mask_dir, tmp_path):
    (mask_dir / "car03_01.png").write_bytes(b"")
    whole = (mask_dir / "car08_01.png").read_bytes()
    (mask_dir / "car08_01.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"2 masks are unreadable.*car03_01.*car08_01"):
        submission.write(tmp_path / "out/s.csv.gz", submission.rows_of_folder(mask_dir, ".jpg"))
    assert not (tmp_path / "out/s.csv.gz").exists()


def test_an_encoder_that_errs_is_caught_before_the_file_appears(mask_dir, tmp_path, monkeypatch):
    encode = rle.encode_packed
    monkeypatch.setattr(rle, "encode_packed", lambda bits, pixels: encode(~bits, pixels))
    with pytest.raises(RuntimeError, match="do not decode"):
        submission.write(tmp_path / "out/s.csv.gz", submission.rows_of_folder(mask_dir, ".jpg"))
    assert list((tmp_path / "out").iterdir()) == []


def test_interruption_before_the_first_row_leaves_nothing(mask_dir, tmp_path, monkeypatch):
    read_grey, calls = submission.read_grey, []

    def interrupted(path):
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return read_grey(path)

    monkeypatch.setattr(submission, "read_grey", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submission.write(tmp_path / "out/s.csv.gz", submission.rows_of_folder(mask_dir, ".jpg"), 1)
    assert list((tmp_path / "out").iterdir()) == []


def test_look_ahead_is_bounded():
    taken = []

    def numbers():
        for i in range(1000):
            taken.append(i)
            yield i

    results = ordered_map(lambda i: -i, numbers(), threads=3)
    for i in range(50):
        assert next(results) == -i
        assert len(taken) - i <= 6
    assert list(results) == [-i for i in range(50, 1000)]


def describe(mask_dir, stems, encoding=manifest.ENCODING):
    stems = list(stems)
    made_by = manifest.Manifest(
        (), False, "none", "keras", "float32", len(stems), digest_of_lines(stems), encoding, "0"
    )
    manifest.write(mask_dir, made_by)


def test_the_manifest_is_believed(mask_dir, tmp_path):
    stems = [path.stem for path in mask_dir.glob("*.png")]
    describe(mask_dir, stems)
    assert len(submission.rows_of_folder(mask_dir, ".jpg").images) == 20
    describe(mask_dir, [*stems, "one_more"])
    refused = r"lists 21 photos, but .* holds 20 masks.*--force"
    sample = write_sample(tmp_path / "sample.csv", [f"{stem}.jpg" for stem in stems[:3]])
    submission.write(tmp_path / "s.csv", submission.rows_of_sample(mask_dir, sample, force=True))
    for reader in (
        lambda: submission.rows_of_folder(mask_dir, ".jpg"),
        lambda: submission.rows_of_sample(mask_dir, sample),
        lambda: submission.validate(tmp_path / "s.csv", mask_dir),
    ):
        with pytest.raises(UserError, match=refused):
            reader()
    forced = submission.rows_of_folder(mask_dir, ".jpg", force=True)
    assert len(forced.images) == 20 and len(forced.forced) == 1
    assert submission.validate(tmp_path / "s.csv", mask_dir, force=True)[0] == 3
    describe(mask_dir, stems, "logits")
    with pytest.raises(UserError, match="logits"):
        submission.rows_of_folder(mask_dir, ".jpg")


def test_validate_accepts_what_was_written(mask_dir, tmp_path):
    rows = submission.rows_of_folder(mask_dir, ".jpg")
    submission.write(tmp_path / "s.csv.gz", rows)
    assert submission.validate(tmp_path / "s.csv.gz", mask_dir) == (20, ())
    plain = tmp_path / "s.csv"
    lines = gzip.decompress((tmp_path / "s.csv.gz").read_bytes()).decode().splitlines()
    plain.write_text("\n".join(lines[:-1]) + "\n")
    assert submission.validate(plain, mask_dir) == (19, ("car19_01.png",))


def test_validate_names_rows_that_are_wrong(mask_dir, tmp_path):
    submission.write(tmp_path / "s.csv.gz", submission.rows_of_folder(mask_dir, ".jpg"))
    table = read(tmp_path / "s.csv.gz")
    table[1][1] = "1 1"
    table[4][1] = "3 2 1"
    table[9][0] = "stranger.jpg"
    bad = tmp_path / "bad.csv"
    bad.write_text("".join(",".join(row) + "\n" for row in table))
    with pytest.raises(UserError) as caught:
        submission.validate(bad, mask_dir)
    message = str(caught.value)
    for part in ("3 rows", "'car00_01.jpg' differs", "'car03_01.jpg'", "pairs", "stranger.jpg"):
        assert part in message


def test_validate_refuses_damaged_files(mask_dir, tmp_path):
    submission.write(tmp_path / "s.csv.gz", submission.rows_of_folder(mask_dir, ".jpg"))
    data = (tmp_path / "s.csv.gz").read_bytes()
    for damaged in (data[:-20], b"no gzip", b""):
        (tmp_path / "d.csv.gz").write_bytes(damaged)
        with pytest.raises(UserError):
            submission.validate(tmp_path / "d.csv.gz", mask_dir)
    (tmp_path / "d.csv").write_text("img,rle_mask\n")
    with pytest.raises(UserError, match="no rows"):
        submission.validate(tmp_path / "d.csv", mask_dir)
    (tmp_path / "d.csv").write_text("img,rle_mask\na.jpg,\na.jpg,\n")
    with pytest.raises(UserError, match="more than once"):
        submission.validate(tmp_path / "d.csv", mask_dir)


def test_names_are_checked_against_a_sample_in_any_order(tmp_path):
    images = [f"x{i}.jpg" for i in range(6)]
    sample = write_sample(tmp_path / "sample.csv", images)
    good = write_sample(tmp_path / "good.csv", images[::-1])
    assert submission.check_names(good, sample) == 6
    packed = tmp_path / "good.csv.gz"
    packed.write_bytes(gzip.compress(good.read_bytes()))
    assert submission.check_names(packed, sample) == 6


@pytest.mark.parametrize(
    ("images", "columns", "expected_message"),
    [
        (["a", "b"], ("img", "rle_mask"), "1 images are missing: c"),
        (["a", "b", "c", "d", "e"], ("img", "rle_mask"), "2 images are not in the sample: d, e"),
        (["a", "b", "x"], ("img", "rle_mask"), "missing: c; 1 images are not in the sample: x"),
        (["a", "b", "c", "b"], ("img", "rle_mask"), "the image 'b' more than once"),
        (["a", "b", "c"], ("id", "mask"), "columns id,mask, but .* has img,rle_mask"),
        ([], ("img", "rle_mask"), "no rows"),
    ],
)
def test_names_that_do_not_fit_the_sample(tmp_path, images, columns, expected_message):
    sample = write_sample(tmp_path / "sample.csv", ["a", "b", "c"])
    path = write_sample(tmp_path / "s.csv", images, columns)
    with pytest.raises(UserError, match=expected_message):
        submission.check_names(path, sample)


def run_script(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "generate_encoded_submission.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_script_writes_then_checks(mask_dir, tmp_path):
    done = run_script(
        "--pred_mask_dir=masks", "--pred_threads=2", "--image_extension=.jpg", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "submissions").iterdir()
    assert path.match("submission-????-??-??_??-??-??.csv.gz")
    assert "no sample 'input/sample_submission.csv'" in done.stdout
    assert "20 rows" in done.stdout and str(path.name) in done.stdout
    checked = run_script("--pred_mask_dir=masks", f"--check={path}", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "20 rows" in checked.stdout
    assert len(list((tmp_path / "submissions").iterdir())) == 1


def test_script_records_what_it_was_forced_to(mask_dir, tmp_path):
    stems = [path.stem for path in mask_dir.glob("*.png")]
    describe(mask_dir, [*stems, "one_more"])
    given = ("--pred_mask_dir=masks", "--submission_name=s.csv", "--image_extension=.jpg")
    refused = run_script(*given, cwd=tmp_path)
    assert refused.returncode == 1 and "(--force goes on" in refused.stderr
    done = run_script(*given, "--force", cwd=tmp_path)
    assert done.returncode == 0 and "warning: 'masks/manifest.json' lists 21" in done.stderr
    note = tmp_path / "submissions/s.csv.forced.json"
    assert "lists 21 photos" in json.loads(note.read_text())["forced"][0]
    describe(mask_dir, stems)
    assert run_script(*given, cwd=tmp_path).returncode == 0
    assert not note.exists()


def test_script_demands_a_row_for_every_mask(mask_dir, tmp_path):
    images = [f"car{i:02d}_01.jpg" for i in range(18)]
    sample = write_sample(tmp_path / "sample.csv", images)
    submission.write(tmp_path / "s.csv", submission.rows_of_sample(mask_dir, sample))
    checked = run_script("--pred_mask_dir=masks", "--check=s.csv", cwd=tmp_path)
    assert checked.returncode == 1
    assert "2 masks of 'masks' have no row in 's.csv': car18_01.png" in checked.stderr
    given = ("--pred_mask_dir=masks", "--check=s.csv")
    assert run_script(*given, "--pred_sample_csv=sample.csv", cwd=tmp_path).returncode == 0
    # The sample that writing would take is the one that checking takes.
    (tmp_path / "input").mkdir()
    sample.rename(tmp_path / "input" / "sample_submission.csv")
    done = run_script(*given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "18 rows of 's.csv' decode" in done.stdout


def test_two_submissions_of_one_second_have_two_names(tmp_path):
    for _ in range(3):
        encode.dated_path(tmp_path).touch()
    assert len(list(tmp_path.glob("submission-*.csv.gz"))) == 3


def test_script_demands_the_sample_it_was_given(mask_dir, tmp_path):
    done = run_script("--pred_mask_dir=masks", "--pred_sample_csv=none.csv", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: --pred_sample_csv: the file 'none.csv' does not exist; correct its name."
    ]
    assert not (tmp_path / "submissions").exists()


def test_script_checks_names_alone_or_names_and_masks(mask_dir, tmp_path):
    submission.write(tmp_path / "s.csv.gz", submission.rows_of_folder(mask_dir, ".jpg"))
    write_sample(tmp_path / "sample.csv", [f"car{i:02d}_01.jpg" for i in range(20)])
    given = ("--check=s.csv.gz", "--pred_sample_csv=sample.csv")
    done = run_script(*given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "20 rows of 's.csv.gz' are the images of 'sample.csv', each once" in done.stdout
    assert "were not compared" in done.stdout
    done = run_script(*given, "--pred_mask_dir=masks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "decode to the masks of 'masks'" in done.stdout
    write_sample(tmp_path / "sample.csv", ["car00_01.jpg"])
    done = run_script(*given, cwd=tmp_path)
    assert done.returncode == 1
    assert "19 images are not in the sample" in done.stderr
