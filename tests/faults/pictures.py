"""Damaged pictures: how many of them are noticed, by format and kind of damage.

python tests/faults/pictures.py --count=2000

A damaged file counts as accepted where its pixels are read and differ from those of the
whole file. What a format without checksums cannot reveal stays accepted: docs/reliability.md
has the shares.
"""

import argparse
import dataclasses
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

from carvana_tf.data import decoding

HOLE = 512
"""Bytes of zeros, as a lost sector of a disk leaves them."""
SIZE = (480, 640)
FORMATS = ("png", "jpg", "tif", "webp", "gif", "bmp")


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """`uint8[H, W, 3]`, smooth with noise, different for each number."""
    random = np.random.default_rng(number)
    small = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    smooth = cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
    return np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def mask(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """`uint8[H, W]` of 0 and 255: an ellipse with a ragged edge."""
    random = np.random.default_rng(number)
    height, width = size
    field = cv2.resize(random.normal(0, 1, (12, 16)).astype(np.float32), (width, height))
    y, x = np.mgrid[:height, :width]
    distance = np.hypot((y / height - 0.5) / 0.35, (x / width - 0.5) / 0.35)
    return ((distance + 0.1 * field < 1) * 255).astype(np.uint8)


def encode(suffix: str, number: int, size: tuple[int, int] = SIZE) -> bytes:
    """A whole file: masks as GIF and, half of them, PNG; photos as the others."""
    drawn = suffix == "gif" or (suffix == "png" and number % 2)
    array = mask(number, size) if drawn else picture(number, size)
    options: dict[str, object] = {}
    if suffix == "jpg":
        options = {"quality": 90, "progressive": bool(number % 4 == 3)}
    elif suffix == "tif":
        options = {"compression": ("raw", "tiff_lzw", "tiff_adobe_deflate")[number % 3]}
    elif suffix == "webp":
        options = {"lossless": bool(number % 2), "quality": 85, "method": 0}
    stream = io.BytesIO()
    kinds = {"jpg": "JPEG", "tif": "TIFF"}
    PIL.Image.fromarray(array).save(stream, kinds.get(suffix, suffix.upper()), **options)
    return stream.getvalue()


def hole(data: bytes, random: np.random.Generator) -> bytes:
    """512 bytes become 0."""
    length = min(HOLE, len(data) // 4)
    start = int(random.integers(0, len(data) - length))
    return data[:start] + bytes(length) + data[start + length :]


def flip(data: bytes, random: np.random.Generator) -> bytes:
    """One bit changes."""
    place, bit = int(random.integers(len(data))), int(random.integers(8))
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def truncation(data: bytes, random: np.random.Generator) -> bytes:
    """The end is missing."""
    return data[: int(random.integers(1, len(data)))]


DAMAGE: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "hole": hole,
    "flip": flip,
    "truncation": truncation,
}


@dataclasses.dataclass(frozen=True)
class Damaged:
    """One damaged file: its format, kind of damage, content, and the whole file."""

    suffix: str
    kind: str
    data: bytes
    whole: bytes


def generate(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> Iterator[Damaged]:
    """So many damaged files, of each format and kind in turn; the same for the same seed."""
    cells = [(suffix, kind) for suffix in FORMATS for kind in DAMAGE]
    for i in range(count):
        suffix, kind = cells[i % len(cells)]
        whole = encode(suffix, i // len(cells), size)
        damaged = DAMAGE[kind](whole, np.random.default_rng((seed, i)))
        if damaged != whole:
            yield Damaged(suffix, kind, damaged, whole)


def is_accepted(damaged: Damaged, folder: Path) -> bool:
    """Whether the file is read without an error, with other pixels than the whole one."""
    path = folder / f"p.{damaged.suffix}"
    path.write_bytes(damaged.data)
    try:
        read = _pixels(path)
    except decoding.UnreadableImage:
        return False
    path.write_bytes(damaged.whole)
    expected = _pixels(path)
    return read.shape != expected.shape or not np.array_equal(read, expected)


def _pixels(path: Path) -> np.ndarray:
    picture = decoding.decode(path)
    return picture.values if picture.palette is None else picture.palette[picture.values]


def shares(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> dict[tuple[str, str], float]:
    """The share of files accepted with wrong pixels, by format and kind of damage."""
    found: dict[tuple[str, str], list[bool]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for damaged in generate(count, seed, size):
            accepted = is_accepted(damaged, Path(folder))
            found.setdefault((damaged.suffix, damaged.kind), []).append(accepted)
    return {cell: float(np.mean(results)) for cell, results in found.items()}


def main() -> None:
    """Prints a table of the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = shares(options.count, options.seed)
    print("| format | " + " | ".join(DAMAGE) + " |")
    print("|---|" + "---|" * len(DAMAGE))
    for suffix in FORMATS:
        cells = [f"{found.get((suffix, kind), 0):.1%}" for kind in DAMAGE]
        print(f"| {suffix} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
