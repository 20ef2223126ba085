"""Boxes around the object of a mask, with sides a network accepts."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from carvana_tf.data import names
from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import read_size
from carvana_tf.data.tables import read_table
from carvana_tf.errors import UserError
from carvana_tf.masks.postprocess import largest_component

_COLUMNS = ("left", "top", "width", "height")
HEADER = ("id", *_COLUMNS)
# The 4th-place solution published boxes in the frame it padded photos to.
_PUBLISHED = ("y_start", "y_end", "x_start", "x_end")
PUBLISHED_HEADER = ("filename", *_PUBLISHED)
PUBLISHED_MULTIPLE = 64
_MOST_PIXELS = 1_000_000
# How far a box may reach beyond its photo: to the next multiple of a network's stride.
_MOST_PADDING = 1024


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle in the photo's pixels; it may reach into the padding around the photo."""

    left: int
    top: int
    width: int
    height: int


def read_boxes(path: Path, samples: Sequence[Sample]) -> dict[str, Box]:
    """The box of every photo, by stem; rows of other photos are skipped.

    Args:
        path: A table with `id,left,top,width,height`, as `tools/find_bounding_boxes.py`
            writes it, or with `filename,y_start,y_end,x_start,x_end`, as the 4th-place
            solution published it: pixels of the frame that is padded to multiples of 64.
        samples: The photos.

    Raises:
        UserError: The table is missing or damaged, or a photo has no box.
    """
    rows = names.rekey(_read_rows(path), [sample.stem for sample in samples], f"'{path}'")
    missing = [sample.stem for sample in samples if sample.stem not in rows]
    if missing:
        raise UserError(
            f"'{path}' has no box for {len(missing)} of {len(samples)} photos, the first is "
            f"'{missing[0]}'; predict all photos once without --use_bounding_boxes, and find the "
            "boxes of those masks with tools/find_bounding_boxes.py."
        )
    boxes = {sample.stem: _box(rows[sample.stem], sample) for sample in samples}
    for stem, box in boxes.items():
        if min(box.width, box.height) < 1:
            raise UserError(
                f"'{path}': '{stem}' has a box of {box.width}x{box.height} pixels; correct the row."
            )
    return boxes


def cut(image: np.ndarray, box: Box, path: Path) -> np.ndarray:
    """The pixels of a box, reflected where it reaches outside.

    Args:
        image: `[H, W, C]`.
        box: With at least one pixel of the image.
        path: The image's file, for the message.

    Raises:
        UserError: It has none.
    """
    rows, columns = _inside(box, *image.shape[:2])
    inner = image[rows, columns]
    beyond = max(box.height - image.shape[0], box.width - image.shape[1]) > _MOST_PADDING
    if not inner.size or beyond:
        raise UserError(
            f"the box of '{path}' ({box}) lies outside its {image.shape[1]}x{image.shape[0]} "
            "pixels; find the boxes of these photos with tools/find_bounding_boxes.py again."
        )
    if inner.shape[:2] == (box.height, box.width):
        return inner
    top, left = rows.start - box.top, columns.start - box.left
    bottom, right = box.height - inner.shape[0] - top, box.width - inner.shape[1] - left
    return cv2.copyMakeBorder(inner, top, bottom, left, right, cv2.BORDER_REFLECT_101)


def paste(values: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """Undoes `cut` for `[box.height, box.width]`: `[height, width]`, 0 outside the box."""
    rows, columns = _inside(box, height, width)
    whole = np.zeros((height, width), values.dtype)
    whole[rows, columns] = values[
        rows.start - box.top : rows.stop - box.top,
        columns.start - box.left : columns.stop - box.left,
    ]
    return whole


def padded_frame(height: int, width: int, multiple: int) -> Box:
    """The photo with its sides padded to multiples, half (rounded down) of it left and above."""
    wide, high = _round_up(width, multiple), _round_up(height, multiple)
    return Box(-((wide - width) // 2), -((high - height) // 2), wide, high)


def find_box(grey: np.ndarray, *, threshold: int, margin: int, multiple: int) -> Box:
    """The box of the largest 4-connected component, grown and kept inside the padded frame.

    Args:
        grey: `uint8[H, W]`.
        threshold: A grey value greater than this is object.
        margin: Pixels added on each side, as far as the frame goes.
        multiple: Both sides become multiples of it.

    Returns:
        The box; the whole padded frame where the mask is empty.
    """
    height, width = grey.shape
    frame = padded_frame(height, width, multiple)
    left, top, width, height = cv2.boundingRect(
        largest_component(grey > threshold, connectivity=1).view(np.uint8)
    )
    if not width:
        return frame
    left, width = _grow(left, width, frame.left, frame.width, margin, multiple)
    top, height = _grow(top, height, frame.top, frame.height, margin, multiple)
    return Box(left, top, width, height)


def published_row(name: str, box: Box, height: int, width: int) -> list[str | int]:
    """A row as the 4th-place solution published it, in the order of `PUBLISHED_HEADER`.

    Args:
        name: The photo's file name.
        box: As of `find_box` with a multiple of 64.
        height: The photo's own rows.
        width: Its columns.
    """
    frame = padded_frame(height, width, PUBLISHED_MULTIPLE)
    top, left = box.top - frame.top, box.left - frame.left
    return [name, top, top + box.height, left, left + box.width]


def _grow(
    start: int, length: int, origin: int, extent: int, margin: int, multiple: int
) -> tuple[int, int]:
    low = max(start - margin, origin)
    high = min(start + length + margin, origin + extent)
    # The frame is a multiple itself, so rounding up cannot pass it.
    size = _round_up(high - low, multiple)
    centred = low - (size - (high - low)) // 2
    return min(max(centred, origin), origin + extent - size), size


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _inside(box: Box, height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns of an image that lie in a box."""
    return (
        slice(max(box.top, 0), max(min(box.top + box.height, height), 0)),
        slice(max(box.left, 0), max(min(box.left + box.width, width), 0)),
    )


def _read_rows(path: Path) -> dict[str, dict[str, int]]:
    """The numbers of each row by the name in its first column."""
    header, lines = read_table(path)
    if set(header[1:]) not in ({*_COLUMNS}, {*_PUBLISHED}):
        raise UserError(
            f"'{path}' must have the columns id,{','.join(_COLUMNS)} (or "
            f"{','.join(PUBLISHED_HEADER)}); it has '{','.join(header)}'."
        )
    rows: dict[str, dict[str, int]] = {}
    for number, (name, *cells) in lines:
        if name in rows:
            raise UserError(f"line {number} of '{path}' is a second box of '{name}'; keep one.")
        try:
            rows[name] = dict(zip(header[1:], map(_pixels, cells), strict=True))
        except ValueError as error:
            raise UserError(
                f"line {number} of '{path}' is no row of boxes ({error}); correct it, or write "
                "the table again."
            ) from error
    return rows


def _pixels(cell: str) -> int:
    value = int(cell)
    if abs(value) > _MOST_PIXELS:
        raise ValueError(f"{value:,} is no number of pixels")
    return value


def _box(row: dict[str, int], sample: Sample) -> Box:
    if "left" in row:
        return Box(**row)
    frame = padded_frame(*read_size(sample.photo), PUBLISHED_MULTIPLE)
    return Box(
        frame.left + row["x_start"],
        frame.top + row["y_start"],
        row["x_end"] - row["x_start"],
        row["y_end"] - row["y_start"],
    )
