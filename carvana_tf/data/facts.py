"""What photos and masks look like, as far as it decides how to train on them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from carvana_tf.data import bad_files
from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import UnreadableImage, read_mask, read_size
from carvana_tf.data.mask_values import all_empty
from carvana_tf.errors import UserError
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

MOST_MASKS = 200
"""Masks that are read; of more photos these are spread evenly over the list."""

_SPECK = 1e-5  # share of a photo below which a component counts as a speck, not as an object


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of the photos that have masks.

    Attributes:
        photos: How many.
        groups: How many groups they form.
        height: Median rows.
        width: Median columns.
        least: Rows and columns of the smallest photo, each the least of all.
        sizes: How many different sizes there are.
        area: Median share of a photo that its mask covers, 0..1.
        objects: Median number of connected parts in a mask that is not empty.
        side: Median side of an object (the root of its area) as a share of that of its
            photo (the root of its pixels), 0..1.
    """

    photos: int
    groups: int
    height: int
    width: int
    least: tuple[int, int]
    sizes: int
    area: float
    objects: float
    side: float


@dataclasses.dataclass(frozen=True)
class _Mask:
    """What is kept of one mask: its area and the sides of its objects, as shares of the photo."""

    area: float
    sides: np.ndarray


def measure(samples: Sequence[Sample], threads: int, folder: Path) -> Facts:
    """Looks at the sizes of all photos and at up to `MOST_MASKS` masks.

    Args:
        samples: Photos with masks, at least one.
        threads: That read.
        folder: Gets the list of files that cannot be read.

    Raises:
        UserError: A file cannot be read, or all masks are empty.
    """
    seen = samples
    if len(samples) > MOST_MASKS:
        seen = [samples[i * len(samples) // MOST_MASKS] for i in range(MOST_MASKS)]
    sizes = list(ordered_map(_read(lambda s: read_size(s.photo)), samples, threads))
    found = ordered_map(_read(_look), seen, threads)
    masks = list(bar(found, total=len(seen), desc="looking at masks", unit="mask"))
    bad = [
        (str(path), str(result))
        for path, result in (
            *((s.photo, r) for s, r in zip(samples, sizes, strict=True)),
            *((s.mask, r) for s, r in zip(seen, masks, strict=True)),
        )
        if isinstance(result, UnreadableImage)
    ]
    if bad:
        raise UserError(bad_files.describe(bad, folder, "a training is planned"))
    bad_files.record(folder, [])
    filled = [mask for mask in masks if len(mask.sides)]
    if not filled:
        raise all_empty(len(masks), "masks")
    rows, columns = np.transpose(sizes)
    return Facts(
        photos=len(samples),
        groups=len({sample.group for sample in samples}),
        height=round(float(np.median(rows))),
        width=round(float(np.median(columns))),
        least=(int(rows.min()), int(columns.min())),
        sizes=len(set(map(tuple, sizes))),
        area=float(np.median([mask.area for mask in masks])),
        objects=float(np.median([len(mask.sides) for mask in filled])),
        side=float(np.median([np.median(mask.sides) for mask in filled])),
    )


def _read(look):
    """A function of a sample that returns what cannot be read instead of raising it."""

    def looked(sample: Sample):
        try:
            return look(sample)
        except UnreadableImage as error:
            return error

    return looked


def _look(sample: Sample) -> _Mask:
    mask = read_mask(sample.mask or Path(), sample.reading).astype(np.uint8)
    areas = cv2.connectedComponentsWithStats(mask)[2][1:, cv2.CC_STAT_AREA] / mask.size
    return _Mask(float(mask.mean()), np.sqrt(areas[areas >= _SPECK]))
