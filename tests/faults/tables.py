"""Mutated tables, recipes, manifests and flag files: what every reader must refuse in one line.

`python tests/faults/tables.py` makes 500 files, reads each as the scripts do, and prints what
became of them. The files depend on their number alone.
"""

import gzip
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import numpy as np
from faults.memory import growth
from faults.results import Result

from carvana_tf import filenames, flags
from carvana_tf.data import labels
from carvana_tf.data.dataset import Sample
from carvana_tf.data.folds import read_folds
from carvana_tf.errors import UserError
from carvana_tf.masks import boxes, manifest, rle, submission
from carvana_tf.masks.boxes import Box
from carvana_tf.recipe import recipe

MOST_SECONDS, MOST_MEGABYTES = 60, 2000
STEMS = ("a_01", "a_02", "b_01")


def samples() -> list[Sample]:
    return [Sample(stem, stem.split("_")[0], Path(f"{stem}.jpg")) for stem in STEMS]


def with_boxes(path: Path) -> None:
    photo = np.zeros((40, 60, 3), np.uint8)
    for stem, box in boxes.read_boxes(path, samples()).items():
        if isinstance(box, Box):
            boxes.cut(photo, box, Path(f"{path.name}: {stem}"))


def with_rows(path: Path) -> None:
    for image, text in submission.read_rows(path):
        try:
            rle.decode_packed(text, 40, 60)
        except UserError as error:
            raise UserError(f"'{path}', '{image}': {error}") from error


def with_classes(path: Path) -> None:
    labels.read(path, ("cat", "dog", "car"), "skip")


def with_manifest(path: Path) -> None:
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    path.rename(folder / filenames.MANIFEST)
    try:
        made = manifest.read(folder)
        assert made is not None
        manifest.check_encoding(folder, made)
        manifest._plain(made)
    finally:
        (folder / filenames.MANIFEST).rename(path)


class Reader(NamedTuple):
    """A kind of file: its ending, a sound one, and what reads it."""

    suffix: str
    sound: str
    read: Callable[[Path], object]


BOXES = "id,left,top,width,height\n" + "".join(f"{stem},0,0,32,32\n" for stem in STEMS)
FOLDS = "id,fold,area\na,0,120\nb,1,340\nc,0,77\n"
ROWS = "img,rle_mask\n" + "".join(f"{stem}.jpg,1 5 100 40\n" for stem in STEMS)
HUMAN_LABELS = "ImageID,Source,LabelName,Confidence\n"
HUMAN_LABELS += "".join(f"{stem},crowd,{name},1\n" for stem in STEMS for name in ("cat", "dog"))
LABELS = "".join(f"{stem},cat dog\n" for stem in STEMS)
LABEL_LIST = "".join(f"train/{stem}.jpg 0 2\n" for stem in STEMS)
CLASSES = "label\n/m/01\n/m/02\n/m/03\n"
RECIPE = """
description: two networks
folds: {n_folds: 3}
predict: {pred_tta: hflip}
ensemble: {fit_weights: true}
members:
  - name: a
    flags: {network: simple_unet, epochs: 2, learning_rate: 0.001}
  - name: b
    flags: {network: unet_bn, batch_size: 4}
    weight: 2
"""
MANIFEST = """{
  "models": [{"file": "best.keras", "digest": "00", "network": "resnet50", "fold": 0}],
  "out_of_fold": true, "tta": "none", "engine": "keras", "dtype": "float32", "photos": 3,
  "photos_digest": "00", "encoding": "grey8 round(255p)", "version": "0.1.0"
}"""
FLAGS = "# a recipe\n--network=simple_unet\n--epochs=2\n--learning_rate=0.001\n"

READERS = {
    "boxes": Reader(".csv", BOXES, with_boxes),
    "folds": Reader(".csv", FOLDS, read_folds),
    "submission": Reader(".csv", ROWS, with_rows),
    "sample": Reader(".csv.gz", ROWS, submission.read_sample),
    "human labels": Reader(".csv", HUMAN_LABELS, labels.read),
    "labels": Reader(".csv", LABELS, labels.read),
    "list of labels": Reader(".txt", LABEL_LIST, with_classes),
    "classes": Reader(".csv", CLASSES, labels.read_classes),
    "recipe": Reader(".yaml", RECIPE, recipe.read),
    "manifest": Reader(".json", MANIFEST, with_manifest),
    "flags": Reader(".flags", FLAGS, flags.read_flagfile),
}


# --- mutations of text ---

NUMBERS = ["-1", "0", "1e308", "nan", "inf", "9" * 30, "9" * 5000, "1000000000", "0x10", "1_0", "٣"]
TEXTS = [
    *("", "\0", "\ufeff", "\u2028", "é" * 300, '"', '"' * 3, "'", ",", ";", "\r", "\n\n", "=cmd()"),
    *("\x1b[31m", "{", "}", "[[", "&a", "*a", "<<: *a", "!!python/object:os.system", "!!binary x"),
    *("2024-13-45", "? [1]", "%TAG", "- - - -", "null", "true", "{}", "[]", "--", "--flagfile=x"),
]


def replace_number(text: str, chance: random.Random) -> bytes:
    digits = [i for i, c in enumerate(text) if c.isdigit()]
    at = chance.choice(digits)
    return (text[:at] + chance.choice(NUMBERS) + text[at + 1 :]).encode()


def insert(text: str, chance: random.Random) -> bytes:
    at = chance.randrange(len(text) + 1)
    return (text[:at] + chance.choice(TEXTS) + text[at:]).encode("utf-8", "surrogatepass")


def delete(text: str, chance: random.Random) -> bytes:
    start = chance.randrange(len(text))
    return (text[:start] + text[start + chance.randint(1, 30) :]).encode()


def repeat_line(text: str, chance: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    return "".join(lines + [chance.choice(lines)] * chance.choice([1, 2, 5000])).encode()


def swap(text: str, chance: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    chance.shuffle(lines)
    return "".join(lines).encode()


def flip(text: str, chance: random.Random) -> bytes:
    data = bytearray(text.encode())
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def encode(text: str, chance: random.Random) -> bytes:
    return text.encode(chance.choice(["utf-16", "utf-32", "utf-8-sig", "cp500", "utf-16-le"]))


def noise(text: str, chance: random.Random) -> bytes:
    return chance.choice(
        [b"", chance.randbytes(500), b"\x1f\x8b\x08\0bad", b"PK\x03\x04", b"\xff" * 99]
    )


def nest(text: str, chance: random.Random) -> bytes:
    depth = chance.choice([30, 1000, 50_000])
    inner = chance.choice(["[", '{"a":', "{a: "]) * depth
    where = chance.choice(["", text + "\nmore: ", text[:-1] + ', "more": '])
    return (where + inner).encode()


def alias_bomb(text: str, chance: random.Random) -> bytes:
    levels, width = chance.choice([(9, 9), (30, 2), (6, 60)])
    lines = [f"a0: &a0 [{', '.join('x' * width)}]"]
    for n in range(1, levels):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]")
    bomb = "\n".join([*lines, f"description: *a{levels - 1}"])
    return chance.choice([f"{bomb}{text}", f"{text}{bomb}", "&a [*a]", "a: &a {b: *a}"]).encode()


def long_line(text: str, chance: random.Random) -> bytes:
    return (text + "1 " * (1 << 20)).encode()


MUTATIONS = (replace_number, insert, delete, repeat_line, swap, flip, encode, noise, nest)
MUTATIONS += (alias_bomb, long_line)


def packed_bomb(number: int) -> bytes:
    """300 MB and more of one line, of blank lines, of zeros or of one row in a megabyte."""
    piece = [b"1 ", b"\n", b"\0", b"a,1\n"][number] * (1 << 19)
    return gzip.compress(b"img,rle_mask\n" + piece * 300, 9)


def make(number: int, folder: Path) -> tuple[str, Path]:
    """Writes the file of a number; returns its kind and path."""
    chance = random.Random(number)
    kind = list(READERS)[number % len(READERS)]
    reader = READERS[kind]
    mutation = MUTATIONS[number // len(READERS) % len(MUTATIONS)]
    data = mutation(reader.sound, chance)
    if reader.suffix.endswith(".gz"):
        data = gzip.compress(data)
        if chance.random() < 0.3:
            data = data[: chance.randrange(len(data))]
    path = folder / f"{number:03d}-{kind}-{mutation.__name__}{reader.suffix}"
    path.write_bytes(data)
    return kind, path


def read(kind: str, path: Path) -> Result:
    """Reads a file and says what became of it."""
    start, outcome, message = time.perf_counter(), "loaded", ""
    with growth() as held:
        try:
            READERS[kind].read(path)
        except UserError as error:
            message = str(error)
            outcome = "refused" if path.stem in message else "refused, but not by name"
        except BaseException as error:
            outcome, message = "traceback", f"{type(error).__name__}: {error}"[:300]
    seconds, megabytes = time.perf_counter() - start, held.megabytes
    if seconds > MOST_SECONDS or megabytes > MOST_MEGABYTES:
        outcome, message = "too long or too much", f"{seconds:.0f} s, {megabytes:.0f} MB"
    return Result(kind, path.name, outcome, message, seconds, megabytes)


def run(numbers: range, folder: Path) -> Iterator[Result]:
    """Makes files and reads each."""
    for number in numbers:
        kind, path = make(number, folder)
        yield read(kind, path)
        path.unlink()


def main() -> int:
    """Prints a table by kind, and each file that was not handled as it should be."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as folder:
        results = list(run(range(count), Path(folder)))
        for number in range(4):
            bomb = Path(folder) / f"bomb{number}.csv.gz"
            bomb.write_bytes(packed_bomb(number))
            results.append(read("sample", bomb))
    print(
        f"{'kind':<16}{'files':>6}{'refused':>9}{'loaded':>8}{'wrong':>7}{'s max':>8}{'MB max':>8}"
    )
    for kind in READERS:
        own = [result for result in results if result.kind == kind]
        outcomes = Counter(result.outcome for result in own)
        wrong = len(own) - outcomes["refused"] - outcomes["loaded"]
        counts = f"{outcomes['refused']:>9}{outcomes['loaded']:>8}{wrong:>7}"
        most = f"{max(r.seconds for r in own):>8.2f}{max(r.megabytes for r in own):>8.0f}"
        print(f"{kind:<16}{len(own):>6}{counts}{most}")
    bad = [result for result in results if result.outcome not in ("refused", "loaded")]
    for result in bad:
        print(f"{result.outcome}: {result.name}: {result.message}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
