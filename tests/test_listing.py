"""Listings of photos: the rows of each format, in parts, in little memory, and what is refused."""

import gzip
import subprocess
import sys

import pytest

from carvana_tf.data import listing, storage
from carvana_tf.data.listing import Listing, Photos, Row
from carvana_tf.errors import UserError

arrow = pytest.importorskip("pyarrow", reason="pip install -e '.[parquet]'")
parquet = pytest.importorskip("pyarrow.parquet")

PATHS = [f"photos/{i // 10}/car{i:02d}_01.jpg" for i in range(25)]
ROWS = [Row(f"car{i:02d}_01", path) for i, path in enumerate(PATHS)]


def write(path, rows=ROWS, *, ids=False, group=7):
    """A listing of rows in the format that its name says."""
    table = {"id": [row.id for row in rows]} if ids else {}
    table["path"] = [row.path for row in rows]
    if path.suffix == ".parquet":
        path.parent.mkdir(exist_ok=True)
        parquet.write_table(arrow.table({"size": range(len(rows)), **table}), path, group)
    elif path.suffix == ".txt":
        path.write_text("\ufeff" + "".join(f"{row.path}\r\n\n" for row in rows))
    else:
        lines = [",".join(table), *map(",".join, zip(*table.values(), strict=True))]
        text = "\n".join(lines) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.csv.gz", "a.parquet"])
def test_rows_of_each_format(tmp_path, name):
    found = Listing(write(tmp_path / name))
    assert list(found.rows()) == list(enumerate(ROWS))
    assert found.check() == 25
    assert found.digest() == Listing(write(tmp_path / name)).digest()
    write(tmp_path / name, ROWS[1:])
    assert found.digest() != Listing(write(tmp_path / name)).digest()


@pytest.mark.parametrize(("first", "same"), [("a.jpg", False), ("/a.jpg", True), ("s3://a", True)])
def test_relative_paths_are_those_of_one_working_folder(tmp_path, monkeypatch, first, same):
    (tmp_path / "a.txt").write_text(f"{first}\n")
    found = Listing(tmp_path / "a.txt")
    before = found.digest()
    monkeypatch.chdir(tmp_path)
    assert (found.digest() == before) == same


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_ids_of_a_column(tmp_path, name):
    named = [Row(f"{row.path.partition('/')[0]}-{i}", row.path) for i, row in enumerate(ROWS)]
    assert [row for _, row in Listing(write(tmp_path / name, named, ids=True)).rows()] == named


def test_numbers_and_dictionaries_are_text(tmp_path):
    table = arrow.table({"id": [7, 8], "path": arrow.array(["a.jpg", "b.jpg"]).dictionary_encode()})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = [row for _, row in Listing(tmp_path / "a.parquet").rows()]
    assert found == [Row("7", "a.jpg"), Row("8", "b.jpg")]


def test_a_folder_of_parquet_files_is_one_listing(tmp_path):
    for number, start in enumerate((0, 9, 20)):
        end = (9, 20, 25)[number]
        write(tmp_path / "list" / f"{number}.parquet", ROWS[start:end], group=4)
    (tmp_path / "list/_SUCCESS").touch()
    found = Listing(tmp_path / "list")
    assert list(found.rows()) == list(enumerate(ROWS))
    assert dict(listing.parts(found, 6, lambda number: number in (1, 4))) == {
        1: ROWS[6:12],
        4: ROWS[24:],
    }


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.parquet"])
def test_parts_are_ranges_of_rows(tmp_path, name):
    found = Listing(write(tmp_path / name))
    every = dict(listing.parts(found, 10, lambda number: True))
    assert every == {0: ROWS[:10], 1: ROWS[10:20], 2: ROWS[20:]}
    for count in (2, 3):
        numbers = [range(start, 3, count) for start in range(count)]
        shards = [listing.parts(found, 10, each.__contains__) for each in numbers]
        assert dict(part for shard in shards for part in shard) == every
    assert dict(listing.parts(Photos(tmp_path, ROWS), 10, lambda number: number == 1)) == {
        1: ROWS[10:20]
    }


def test_row_groups_of_no_wanted_part_are_not_read(tmp_path, monkeypatch):
    read = []
    batches = parquet.ParquetFile.iter_batches

    def iter_batches(self, size, row_groups, columns):
        read.extend(row_groups)
        return batches(self, size, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", iter_batches)
    assert dict(listing.parts(Listing(write(tmp_path / "a.parquet", group=5)), 10, (1).__eq__)) == {
        1: ROWS[10:20]
    }
    assert read == [2, 3]


def damaged(path):
    path.write_bytes(b"PAR1 and no more")


WRONG = {
    "no file": ("a.txt", lambda path: None, "does not exist"),
    "another format": ("a.json", lambda path: path.touch(), "ends in none of .txt, .csv"),
    "an empty folder": ("a", lambda path: path.mkdir(), "holds no .parquet file"),
    "no rows": ("a.txt", lambda path: path.write_text("\n\n"), "has no rows"),
    "another column": ("a.csv", lambda path: path.write_text("url\na.jpg\n"), "no column 'path'"),
    "no header": ("a.csv", lambda path: path.write_text("a.jpg\nb.jpg\n"), "(it has a.jpg)"),
    "an empty path": ("a.csv", lambda p: p.write_text("path,id\na.jpg,a\n,b\n"), "row 2 of"),
    "an empty id": ("a.csv", lambda p: p.write_text("path,id\na.jpg,\n"), "row 1 of"),
    "a zero byte": ("a.txt", lambda path: path.write_bytes(b"a\0b\n"), "no text in UTF-8"),
    "UTF-16": ("a.txt", lambda p: p.write_text("a.jpg\n", encoding="utf-16"), "no text in UTF-8"),
    "no UTF-8": ("a.txt", lambda path: path.write_bytes(b"caf\xe9.jpg\n"), "no UTF-8"),
    "a long line": ("a.txt", lambda path: path.write_text("a" * 70000), "65,536 characters"),
    "damage": ("a.parquet", damaged, "cannot read the listing"),
    "numbers": (
        "a.parquet",
        lambda path: parquet.write_table(arrow.table({"path": [1, 2]}), path),
        "'path' of .* holds int64, not text",
    ),
    "nothing": (
        "a.parquet",
        lambda path: parquet.write_table(arrow.table({"path": ["a.jpg", None]}), path),
        "row 2 of .* has no path",
    ),
    "another storage": ("a.txt", lambda p: p.write_text("nosuch://a.jpg\n"), "no storage"),
}


@pytest.mark.parametrize("name, make, words", WRONG.values(), ids=WRONG)
def test_what_is_refused(tmp_path, name, make, words):
    make(tmp_path / name)
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace(")", r"\)")) as error:
        Listing(tmp_path / name).check()
    assert "\n" not in str(error.value)


def test_ids_that_repeat_are_found_far_apart(tmp_path):
    rows = [Row("", f"a/{i}.jpg") for i in range(40_000)]
    rows[39_000] = Row("", "b/123.png")
    found = Listing(write(tmp_path / "a.txt", rows))
    words = r"rows 124 \('a/123.jpg'\) and 39001 \('b/123.png'\) .* have the id '123'"
    with pytest.raises(UserError, match=words):
        found.check()
    composed, decomposed = Row("caf\u00e9", "a.jpg"), Row("cafe\u0301", "b.jpg")
    with pytest.raises(UserError, match=r"rows 1 .* and 2 "):
        Listing(write(tmp_path / "b.csv", [composed, decomposed], ids=True)).check()


def test_equal_hashes_are_no_equal_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "hash", len, raising=False)
    assert Listing(write(tmp_path / "a.txt")).check() == 25


def write_many(path, count):
    names = (f"photos/{i // 10_000:05d}/{i:012x}_01.jpg" for i in range(count))
    if path.suffix == ".txt":
        path.write_text("\n".join(names))
    else:
        parquet.write_table(arrow.table({"path": list(names)}), path)  # one row group
    return path


def test_nothing_is_kept_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "_BATCH", 1000)

    def most_blocks(count):
        found = Listing(write_many(tmp_path / f"{count}.txt", count))
        blocks = []
        rows = found.rows

        def sampled(*arguments):
            for place, row in rows(*arguments):
                if place % 1000 == 999:
                    blocks.append(sys.getallocatedblocks())
                yield place, row

        monkeypatch.setattr(found, "rows", sampled)
        assert found.check() == count
        for _, part in listing.parts(found, 2000, lambda number: number % 3 == 0):
            assert len(part) == 2000
        return max(blocks) - blocks[0]

    assert most_blocks(100_000) < most_blocks(10_000) + 10_000


CHILD = r"""
import re, sys
from pathlib import Path
from carvana_tf.data import listing

found = listing.Listing(Path(sys.argv[1]))
found.digest(), found.check()
for _ in listing.parts(found, 10_000, lambda number: number % 2 == 0):
    pass
# Not `ru_maxrss`, which begins with that of the parent.
print(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.txt", "a.parquet"])
def test_a_million_rows_need_little_more_memory_than_ten_thousand(tmp_path, name):
    peaks = []
    for count in (10_000, 1_000_000):
        command = [sys.executable, "-c", CHILD, str(write_many(tmp_path / name, count))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    # MiB; the paths themselves are 38.
    assert peaks[1] - peaks[0] < 30


@pytest.mark.parametrize(
    "path, scheme, name",
    [
        ("photos/a.jpg", "", "a.jpg"),
        ("/photos/a b.jpg", "", "a b.jpg"),
        ("C:/a.jpg", "", "a.jpg"),
        ("s3://bucket/x/a.jpg", "s3", "a.jpg"),
        ("HTTPS://host/x/a.jpg?key=1/2", "https", "a.jpg"),
        ("s3://bucket/a?b.jpg", "s3", "a?b.jpg"),
    ],
)
def test_names_of_paths_and_urls(path, scheme, name):
    assert (storage.scheme(path), storage.file_name(path)) == (scheme, name)


@pytest.mark.parametrize("path, extra", [("a.parquet", "parquet"), ("a.txt", "remote")])
def test_packages_that_are_missing_are_one_line(tmp_path, monkeypatch, path, extra):
    write(tmp_path / path, [Row("a", "memory://a.jpg")])
    for package in ("pyarrow", "fsspec"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"pip install -e '\.\[{extra}\]'$"):
        Listing(tmp_path / path).check()


def test_a_storage_whose_package_is_missing_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    write(tmp_path / "a.txt", [Row("a", "s3://bucket/a.jpg")])
    with pytest.raises(UserError, match=r"'s3://bucket/a.jpg' needs .*'\.\[remote\]'$"):
        Listing(tmp_path / "a.txt").check()
