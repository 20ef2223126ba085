"""How often a mask with soft edges is taken for a trimap, and a trimap for such a mask.

CARVANA_DIR=/path/to/carvana NUCLEI_DIR=/path/to/nuclei python benchmarks/trimaps.py

Masks of 0 and 255 are resized or blurred, and saved as JPEG or PNG: each must be read. The same
masks with a border of another grey, so saved, must be refused, because the border may be
background, object or neither; the same where it was drawn first and resized to so few pixels.
"""

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from carvana_tf.cli import Command, main
from carvana_tf.data.dataset import list_images
from carvana_tf.data.decoding import Picture
from carvana_tf.data.images import read_mask
from carvana_tf.data.mask_values import AUTOMATIC, Ambiguous, interpret
from carvana_tf.data.names import MASK_SUFFIXES
from carvana_tf.flags import Values, option
from carvana_tf.threads import ordered_map
from results import PlaceOptions, print_table, replace_rows

QUALITIES = (60, 70, 80, 90, 100, None)
"""Of JPEG; None is PNG."""
BORDERS = (1, 2, 3, 4, 6)
RESIZED_BORDERS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
"""Of masks at a quarter of their size, or of nuclei that were enlarged before."""
_SHRINK = 4
LEVELS = (64, 96, 128, 160, 192)
SCALES = (0.1, 0.25, 1 / 3, 0.5, 0.6, 0.75, 1.25, 4 / 3, 1.5)
METHODS = {
    "area": cv2.INTER_AREA,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "Lanczos": cv2.INTER_LANCZOS4,
}
BLURS = (0.8, 1.5)
SETS = {"real_cars": ("CARVANA_DIR", "train_masks"), "nuclei": ("NUCLEI_DIR", "masks")}
_LEAST_SIDE = 48  # of a resized mask
_MOST_PIXELS = 1 << 22


@dataclasses.dataclass(frozen=True)
class TrimapOptions:
    """What only this benchmark needs."""

    threads: int = option(2, "Threads that make and read masks.", lower=1)


def run(values: Values) -> None:
    """Measures each set whose variable is set and replaces its rows of the table."""
    place, options = values[PlaceOptions], values[TrimapOptions]
    for name, (variable, folder) in SETS.items():
        if variable not in os.environ:
            print(f"{name}: skipped, {variable} is not set")
            continue
        paths = list(list_images(Path(os.environ[variable]) / folder, MASK_SUFFIXES).values())
        rows = _measure(paths, options.threads)
        print(f"\n{name}")
        print_table(rows)
        replace_rows(Path(place.out_dir) / "trimaps.csv", rows, {"set": name})


def _measure(paths: list[Path], threads: int) -> list[dict[str, Any]]:
    tried: Counter[tuple[str, str]] = Counter()
    refused: Counter[tuple[str, str]] = Counter()
    numbered = list(enumerate(paths))
    for results in ordered_map(lambda pair: list(_one(*pair)), numbered, threads):
        for kind, saved, no in results:
            tried[kind, saved] += 1
            refused[kind, saved] += no
    return [
        {"masks_of": kind, "saved_as": saved, "masks": count, "refused": refused[kind, saved]}
        for (kind, saved), count in sorted(tried.items())
    ]


def _one(number: int, path: Path) -> Iterator[tuple[str, str, bool]]:
    """What becomes of one mask: the kind, how it was saved, and whether it was refused."""
    mask = read_mask(path).view(np.uint8) * np.uint8(255)
    random = np.random.default_rng(number)
    for kind, soft in _soft(mask):
        # All qualities of every size would take hours.
        for quality in random.permutation(len(QUALITIES))[:2]:
            yield kind, *_read(soft, QUALITIES[quality])
    for width in BORDERS:
        scale = float(random.choice([s for s in SCALES if _fits(mask, s)]))
        small = cv2.resize(mask, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        level = int(random.choice(LEVELS))
        drawn = _with_border((small > 127) * np.uint8(255), width, level)
        if 255 not in drawn:  # nothing is left inside of the border
            continue
        for quality in QUALITIES:
            yield f"border of {width}", *_read(drawn, quality)
    for resized_width, drawn in _resized_borders(mask, random):
        for quality in random.permutation(len(QUALITIES))[:2]:
            yield f"border resized to {resized_width:g}", *_read(drawn, QUALITIES[quality])


def _resized_borders(
    mask: np.ndarray, random: np.random.Generator
) -> Iterator[tuple[float, np.ndarray]]:
    """The width after resizing, and the trimap."""
    if min(mask.shape) < _SHRINK * _LEAST_SIDE or mask.size < 1 << 18:
        mask = np.kron(mask, np.ones((_SHRINK, _SHRINK), np.uint8))
    for width in RESIZED_BORDERS:
        drawn = _with_border(mask, round(width * _SHRINK), int(random.choice(LEVELS)))
        if 255 in drawn:
            code = METHODS[str(random.choice(list(METHODS)))]
            scale = 1 / _SHRINK
            yield width, cv2.resize(drawn, None, fx=scale, fy=scale, interpolation=code)


def _soft(mask: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield "two values", mask
    for sigma in BLURS:
        yield f"blurred by {sigma}", cv2.GaussianBlur(mask, (0, 0), sigma)
    for scale in SCALES:
        for method, code in METHODS.items():
            if _fits(mask, scale):
                resized = cv2.resize(mask, None, fx=scale, fy=scale, interpolation=code)
                yield f"resized by {method}", resized


def _fits(mask: np.ndarray, scale: float) -> bool:
    sides = scale * min(mask.shape)
    return sides >= _LEAST_SIDE and mask.size * scale**2 <= _MOST_PIXELS


def _with_border(mask: np.ndarray, width: int, level: int) -> np.ndarray:
    """A ring of so many pixels: the outer half of it on the background."""

    def disc(radius: int) -> np.ndarray:
        shape = cv2.MORPH_CROSS if radius == 1 else cv2.MORPH_ELLIPSE
        return cv2.getStructuringElement(shape, (2 * radius + 1,) * 2)

    outer = cv2.dilate(mask, disc(width // 2))
    return np.where(cv2.erode(mask, disc(width - width // 2)) > 0, 255, (outer > 0) * level).astype(
        np.uint8
    )


def _read(grey: np.ndarray, quality: int | None) -> tuple[str, bool]:
    if quality is not None:
        data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        grey = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))
    saved = "PNG" if quality is None else f"JPEG quality {quality}"
    try:
        interpret(Picture(grey, lossy=quality is not None), AUTOMATIC)
    except Ambiguous:
        return saved, True
    return saved, False


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, TrimapOptions), run)))
