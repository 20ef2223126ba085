"""Named steps that correct the shape of a finished mask.

Each step decides again which pixels are object, for one threshold. A pixel whose decision
(grey > threshold) stays keeps its grey value; one that changes becomes 0 or 255. So the result,
cut at this threshold, is the corrected mask. Cut at another one it is not: of a removed
component the dimmer pixels around it come back below, and kept ones are lost above.
"""

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError, unknown_name

# The roof fix of the first-place solution, in pixels of its photos.
_HEIGHT, _AREA = 1280, 1280 * 1918
_ROOF_AREA = 40000 / _AREA
_ROOF_ERODE = 10 / _HEIGHT
_ROOF_MARGIN = 50 / _HEIGHT

# Takes `uint8[H, W]` and the threshold, 0..254.
Step = Callable[[np.ndarray, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Steps in order; `text` is how the flag names them, `threshold` what they decide by."""

    text: str
    steps: tuple[Step, ...]
    threshold: int

    def __call__(self, grey: np.ndarray) -> np.ndarray:
        """`uint8[H, W]` to a new one, the input untouched."""
        for step in self.steps:
            grey = step(grey, self.threshold)
        return grey


def parse(names: Sequence[str], threshold: int = DEFAULT_THRESHOLD) -> Pipeline:
    """Steps from their names, as `("largest", "min_component:500")`.

    Args:
        names: As the flag has them.
        threshold: 0..254; a greater grey value is object.

    Raises:
        UserError: A name is unknown, or a number is missing, wrong or too much.
    """
    steps: list[Step] = []
    for text in names:
        name, colon, value = text.partition(":")
        if name == "min_component":
            if not value.isdecimal():
                raise UserError(
                    f"--postprocess '{text}' needs a number of pixels, as 'min_component:500'."
                )
            steps.append(_with_size(int(value)))
        elif name not in _PLAIN:
            raise unknown_name("--postprocess", name, (*_PLAIN, "min_component"))
        elif colon:
            raise UserError(f"--postprocess '{text}' takes no number; write '{name}'.")
        else:
            steps.append(_PLAIN[name])
    return Pipeline(",".join(names), tuple(steps), threshold)


def largest(grey: np.ndarray, threshold: int = DEFAULT_THRESHOLD) -> np.ndarray:
    """Keeps the largest 8-connected component."""
    labels, areas = label(grey > threshold)
    if len(areas) < 3:
        return grey
    return _decide(grey, labels == 1 + int(np.argmax(areas[1:])), threshold)


def min_component(grey: np.ndarray, pixels: int, threshold: int = DEFAULT_THRESHOLD) -> np.ndarray:
    """Removes 8-connected components of fewer than `pixels` pixels."""
    labels, areas = label(grey > threshold)
    keep = areas >= pixels
    keep[0] = False
    return _decide(grey, keep[labels], threshold)


def fill_holes(grey: np.ndarray, threshold: int = DEFAULT_THRESHOLD) -> np.ndarray:
    """Makes background that is not 4-connected to the border object."""
    labels, areas = label(grey <= threshold, connectivity=4)
    outside = np.zeros(len(areas), bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[edge] = True
    outside[0] = False  # label 0 is the object here
    return _decide(grey, ~outside[labels], threshold)


def convex_fill(grey: np.ndarray, threshold: int = DEFAULT_THRESHOLD) -> np.ndarray:
    """Replaces the object by the convex hull of its largest outline."""
    return _decide(grey, _hull(grey > threshold), threshold)


def convex_roof(grey: np.ndarray, threshold: int = DEFAULT_THRESHOLD) -> np.ndarray:
    """Fills an unreliable roof: where a large upper area is unsure, the hull of what is likely.

    The first-place solution's fix, its pixels scaled to the photo: grey 31..209 is
    unsure; each such area loses its upper 10 of 1280 rows (what its code does: OpenCV
    reads the kernel given as a tuple as two rows by one column); of the upper half, the
    largest outline must enclose more than 40000 of 1918x1280 pixels. In its box, grown by
    50 pixels inside the photo, the mask becomes the convex hull of the largest outline of
    grey > 55; elsewhere nothing changes.
    """
    height, width = grey.shape
    unsure = cv2.inRange(grey, np.array(31.0), np.array(209.0))
    rows = 1 + round(_ROOF_ERODE * height)
    above = np.ones((rows, 1), np.uint8)
    unsure = cv2.erode(unsure, above, anchor=(0, rows - 1))[: height // 2]
    outline = _largest_outline(unsure)
    if outline is None or cv2.contourArea(outline) <= _ROOF_AREA * height * width:
        return grey
    left, top, wide, high = cv2.boundingRect(outline)
    margin = round(_ROOF_MARGIN * height)
    box = (
        slice(max(0, top - margin), min(height, top + high + margin)),
        slice(max(0, left - margin), min(width, left + wide + margin)),
    )
    mask = grey > threshold
    mask[box] = _hull(grey[box] > 55)
    return _decide(grey, mask, threshold)


_PLAIN: dict[str, Step] = {
    "convex_roof": convex_roof,
    "convex_fill": convex_fill,
    "largest": largest,
    "fill_holes": fill_holes,
}


def _with_size(pixels: int) -> Step:
    return lambda grey, threshold: min_component(grey, pixels, threshold)


def _decide(grey: np.ndarray, mask: np.ndarray, threshold: int) -> np.ndarray:
    changed = (grey > threshold) != mask
    return np.where(changed, mask.astype(np.uint8) * np.uint8(255), grey)


def label(mask: np.ndarray, connectivity: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the connected components of `bool[H, W]`.

    Returns:
        `int32[H, W]`, 0 for what is False, and the areas in pixels by number.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        np.ascontiguousarray(mask).view(np.uint8), connectivity=connectivity
    )
    return labels, stats[:, cv2.CC_STAT_AREA]


def _largest_outline(mask: np.ndarray) -> np.ndarray | None:
    outlines, _ = cv2.findContours(
        np.ascontiguousarray(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    return max(outlines, key=cv2.contourArea, default=None)


def _hull(mask: np.ndarray) -> np.ndarray:
    filled = np.zeros(mask.shape, np.uint8)
    outline = _largest_outline(np.ascontiguousarray(mask).view(np.uint8))
    if outline is not None:
        cv2.fillConvexPoly(filled, cv2.convexHull(outline), 1)
    return filled.view(bool)
