"""Pictures of a mask against its ground truth, for reports and the demo.

Colours are those of the Okabe-Ito palette, which colour-blind readers distinguish; its
reddish purple is darkened so that a fine line shows on a bright photo.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from carvana_tf.data.images import resize, resize_mask
from carvana_tf.data.threshold import DEFAULT_THRESHOLD

TRUTH = (0, 158, 115)
PREDICTION = (204, 51, 140)
MISSED = (213, 94, 0)
EXTRA = (86, 180, 233)

ERRORS = ((0, 0, 0), (255, 255, 255), MISSED, EXTRA)
"""Colours of background, object, missed and extra pixels."""
OUTLINES = ((0, 0, 0, 0), (*TRUTH, 255), (*PREDICTION, 255))
"""Colours of nothing, and of the borders of ground truth and prediction."""

MEMBERS = (PREDICTION, EXTRA, MISSED, TRUTH, (240, 228, 66), (0, 114, 178))
"""Colours of the contours of several masks; more masks begin again."""

_PAPER = (255, 255, 255)
_INK = (40, 40, 40)
_LABEL_HEIGHT = 26
_GAP = 8
_SEAM, _GREY = 4, 127  # between the pictures of a montage


def side_by_side(
    photo: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    width: int = 1500,
    title: str = "",
) -> np.ndarray:
    """Photo | truth | prediction, with the prediction's wrong pixels coloured, labelled.

    Args:
        photo: `uint8[H, W, 3]`.
        truth: `bool[H, W]`.
        prediction: `bool[H, W]`.
        width: Columns of the picture.
        title: Name of the photo, shown above it.

    Returns:
        `uint8[height, width, 3]`; a panel is at most as high as it is wide.
    """
    panel = (width - 4 * _GAP) // 3
    scale = panel / max(truth.shape)
    height, columns = (max(1, round(n * scale)) for n in truth.shape)
    panels = (
        resize(photo, height, columns),
        _grey(truth, height, columns),
        error_map(truth, prediction, height, columns),
    )
    canvas = np.full((height + _LABEL_HEIGHT + _GAP, width, 3), _PAPER, np.uint8)
    for i, image in enumerate(panels):
        left = _GAP + i * (panel + _GAP)
        start = left + (panel - columns) // 2
        canvas[_LABEL_HEIGHT : _LABEL_HEIGHT + height, start : start + columns] = image
        if i == 0:
            _write(canvas, title or "photo", left)
        elif i == 1:
            _write(canvas, "truth", left)
        else:
            after = _write(canvas, "prediction:  ", left)
            after = _write(canvas, "missed  ", after, MISSED)
            _write(canvas, "extra", after, EXTRA)
    return canvas


def outline(
    photo: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], thickness: int = 2
) -> np.ndarray:
    """A copy of `uint8[H, W, 3]` with the borders of `bool[H, W]` drawn in an RGB colour."""
    return _draw_borders(photo.copy(), mask, colour, thickness, cv2.LINE_AA)


def outlines(
    photo: np.ndarray, truth: np.ndarray, prediction: np.ndarray, height: int, width: int
) -> np.ndarray:
    """The photo at `height` x `width` with a broad line for truth, a fine one for prediction."""
    drawn = outline(resize(photo, height, width), enlarged(truth, height, width), TRUTH, 4)
    return outline(drawn, enlarged(prediction, height, width), PREDICTION, 2)


def error_map(truth: np.ndarray, prediction: np.ndarray, height: int, width: int) -> np.ndarray:
    """The prediction in black and white with its wrong pixels coloured, `uint8[h, w, 3]`.

    Where the picture shrinks, a pixel is coloured when any pixel under it is wrong, so
    that an error one pixel wide is still seen.
    """
    picture = _grey(prediction, height, width)
    missed, extra = _wrong(truth, prediction, height, width)
    picture[missed], picture[extra] = MISSED, EXTRA
    return picture


def error_classes(truth: np.ndarray, prediction: np.ndarray, height: int, width: int) -> np.ndarray:
    """As `error_map`, as indices of `ERRORS`: `uint8[h, w]`."""
    classes = resize_mask(prediction, height, width).astype(np.uint8)
    missed, extra = _wrong(truth, prediction, height, width)
    classes[missed], classes[extra] = 2, 3
    return classes


def outline_classes(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The borders of two masks of one size as indices of `OUTLINES`: `uint8[h, w]`."""
    classes = np.zeros(truth.shape, np.uint8)
    for index, mask, thickness in ((1, truth, 4), (2, prediction, 2)):
        _draw_borders(classes, mask, index, thickness, cv2.LINE_8)
    return classes


def montage(panels: Sequence[np.ndarray], columns: int = 2) -> np.ndarray:
    """Pictures of one size next to each other, `uint8[h, w, 3]` each, row by row."""
    height, width = panels[0].shape[:2]
    rows = -(-len(panels) // columns)
    canvas = np.full(
        (rows * (height + _SEAM) - _SEAM, columns * (width + _SEAM) - _SEAM, 3), _GREY, np.uint8
    )
    for i, panel in enumerate(panels):
        top, left = (i // columns) * (height + _SEAM), (i % columns) * (width + _SEAM)
        canvas[top : top + height, left : left + width] = panel
    return canvas


def contours(photo: np.ndarray, masks: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The photo at `height` x `width` with a line for each `bool[H, W]` mask, in `MEMBERS`."""
    drawn = resize(photo, height, width)
    for i, mask in enumerate(masks):
        drawn = outline(drawn, enlarged(mask, height, width), MEMBERS[i % len(MEMBERS)], 1)
    return drawn


def contact_sheet(
    tiles: Sequence[tuple[str, Sequence[np.ndarray]]],
    columns: int,
    legend: Sequence[tuple[str, tuple[int, int, int]]],
) -> np.ndarray:
    """Titled rows of pictures in a grid, below a line of coloured names.

    Args:
        tiles: A title and P pictures `uint8[h, w, 3]` each, of any sizes; at least one.
        columns: Tiles in a row.
        legend: Names and their RGB colours.
    """
    height, width = (max(p.shape[axis] for _, row in tiles for p in row) for axis in (0, 1))
    width += _GAP
    step_down, step_right = height + _LABEL_HEIGHT, width * max(len(row) for _, row in tiles)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    shape = (_LABEL_HEIGHT + rows * step_down, _GAP + columns * step_right, 3)
    canvas = np.full(shape, _PAPER, np.uint8)
    after = _GAP
    for name, colour in legend:
        after = _write(canvas, f"{name}   ", after, colour)
    for i, (title, row) in enumerate(tiles):
        top, left = i // columns * step_down + _LABEL_HEIGHT, i % columns * step_right + _GAP
        # A view, so that a long title ends with its tile.
        tile = canvas[top : top + step_down, left : left + step_right - _GAP]
        _write(tile, title, 0)
        for j, picture in enumerate(row):
            h, w = picture.shape[:2]
            tile[_LABEL_HEIGHT : _LABEL_HEIGHT + h, j * width : j * width + w] = picture
    return canvas


def busiest(wrong: np.ndarray, height: int, width: int) -> tuple[slice, slice]:
    """The window of half of `height` x `width` with the most True pixels of `bool[H, W]`.

    It is half the photo where that is smaller.
    """
    rows, columns = (
        min(shown, whole + 1) // 2
        for shown, whole in zip((height, width), wrong.shape, strict=True)
    )
    total = cv2.integral(wrong.astype(np.uint8))
    if not total[-1, -1]:  # all windows are equal, and of a huge photo they are many
        top, left = (
            (whole - n) // 2 for whole, n in zip(wrong.shape, (rows, columns), strict=True)
        )
        return np.s_[top : top + rows, left : left + columns]
    count = (total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns]) + total[
        :-rows, :-columns
    ]
    # Many windows may be equally bad: the one nearest to their middle, not the first.
    # An array of their places would need gigabytes where every pixel of a large photo is wrong.
    equal = count == count.max()
    distances = [
        np.abs(places - np.average(places, weights=np.count_nonzero(equal, axis=1 - axis)))
        for axis, places in enumerate(map(np.arange, equal.shape))
    ]
    far = np.add.outer(*distances)
    far[~equal] = np.inf
    top, left = divmod(int(far.argmin()), equal.shape[1])
    return np.s_[top : top + rows, left : left + columns]


def enlarged(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A `bool[H, W]` mask at another size, its edge kept smooth, `bool[height, width]`."""
    return resize(mask.astype(np.uint8) * 255, height, width) > DEFAULT_THRESHOLD


def fit(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """The (height, width) of a picture whose longer side is at most `side`."""
    scale = min(1.0, side / max(shape))
    height, width = (max(2, round(n * scale)) for n in shape)
    return height, width


def _draw_borders(
    canvas: np.ndarray,
    mask: np.ndarray,
    colour: int | tuple[int, int, int],
    thickness: int,
    line: int,
) -> np.ndarray:
    """Draws onto `uint8[H, W]` or `uint8[H, W, 3]` and returns it."""
    # Beyond the edge an object goes on: without it the edge itself would be drawn as a border.
    margin = thickness + 1
    wider = np.pad(mask.astype(np.uint8), margin, mode="edge")
    found, _ = cv2.findContours(
        wider, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=(-margin, -margin)
    )
    scalar = colour if isinstance(colour, tuple) else (colour,)
    return cv2.drawContours(canvas, found, -1, scalar, thickness, line)


def _wrong(
    truth: np.ndarray, prediction: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels are missed, and where they are extra: two `bool[h, w]`."""
    shrinks = height <= truth.shape[0] and width <= truth.shape[1]
    missed, extra = (
        resize(wrong.astype(np.float32), height, width) > (0.0 if shrinks else 0.5)
        for wrong in (truth & ~prediction, prediction & ~truth)
    )
    return missed, extra


def _grey(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    grey = resize(mask.astype(np.uint8) * 255, height, width)
    return np.repeat(grey[..., None], 3, axis=2)


def _write(canvas: np.ndarray, text: str, left: int, colour: tuple[int, int, int] = _INK) -> int:
    """Writes a label in the top margin and returns the column where it ends."""
    style = (cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    text = text.encode("ascii", "replace").decode()  # all that OpenCV's fonts have
    (length, _), _ = cv2.getTextSize(text, *style)
    font, size, thickness = style
    cv2.putText(canvas, text, (left, 18), font, size, colour, thickness, cv2.LINE_AA)
    return left + length
