"""Named steps that correct the shape of a finished mask.

Each step decides again which pixels are object, for one threshold. A pixel whose decision
(grey > threshold) stays keeps its grey value; one that changes becomes 0 or 255. So the result,
cut at this threshold, is the corrected mask. Cut at another one it is not: of a removed
component the dimmer pixels around it come back below, and kept ones are lost above.

scikit-image labels; filling and convex hulls are OpenCV's, which takes less than a fifth of the
time of the faster one of scikit-image and SciPy (benchmarks/morphology.csv).
"""

import dataclasses
import functools
import threading
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

_LOADING = threading.Lock()

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
    return _decide(grey, largest_component(grey > threshold), threshold)


def min_component(grey: np.ndarray, pixels: int, threshold: int = DEFAULT_THRESHOLD) -> np.ndarray:
    """Removes 8-connected components of fewer than `pixels` pixels."""
    kept = _scikit_image()[1](grey > threshold, max_size=max(pixels - 1, 0), connectivity=2)
    return _decide(grey, kept, threshold)


def fill_holes(grey: np.ndarray, threshold: int = DEFAULT_THRESHOLD) -> np.ndarray:
    """Makes background that is not 4-connected to the border object."""
    return _decide(grey, without_holes(grey > threshold), threshold)


def convex_fill(grey: np.ndarray, threshold: int = DEFAULT_THRESHOLD) -> np.ndarray:
    """Replaces the object by the convex hull of its largest outline."""
    return _decide(grey, convex_hull(grey > threshold), threshold)


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
    mask[box] = convex_hull(grey[box] > 55)
    return _decide(grey, mask, threshold)


_PLAIN: dict[str, Step] = {
    "convex_roof": convex_roof,
    "convex_fill": convex_fill,
    "largest": largest,
    "fill_holes": fill_holes,
}


def _with_size(pixels: int) -> Step:
    return lambda grey, threshold: min_component(grey, pixels, threshold)


@functools.cache
def _scikit_image() -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """`label` and `remove_small_objects`; they load SciPy, which not every command needs.

    One thread loads both: modules of scikit-image import one another, and threads that load two
    of them at once may get one that is loaded in part.
    """
    with _LOADING:
        from skimage.measure import label
        from skimage.morphology import remove_small_objects
    return label, remove_small_objects


def label(mask: np.ndarray, connectivity: int = 2) -> np.ndarray:
    """The number of each pixel's component, from 1 in reading order; 0 is the background.

    Args:
        mask: `bool[H, W]`.
        connectivity: 1: of the 4 neighbours; 2: of all 8.
    """
    return _scikit_image()[0](mask, connectivity=connectivity)


def largest_component(mask: np.ndarray, connectivity: int = 2) -> np.ndarray:
    """The largest component of `bool[H, W]`, of equal ones the first in reading order.

    Args:
        mask: May be empty, and so is the result.
        connectivity: 1: of the 4 neighbours; 2: of all 8.
    """
    labels = label(mask, connectivity)
    areas = np.bincount(labels.ravel())[1:]  # 0 is the background
    return labels == 1 + areas.argmax() if len(areas) else mask


def without_holes(mask: np.ndarray) -> np.ndarray:
    """`bool[H, W]` with the background that is not 4-connected to the border filled."""
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    cv2.floodFill(framed, None, (0, 0), 2, flags=4)
    return framed[1:-1, 1:-1] != 2


def _decide(grey: np.ndarray, mask: np.ndarray, threshold: int) -> np.ndarray:
    changed = (grey > threshold) != mask
    result = grey.copy()
    result[changed] = mask[changed] * np.uint8(255)
    return result


def _largest_outline(mask: np.ndarray) -> np.ndarray | None:
    outlines, _ = cv2.findContours(
        np.ascontiguousarray(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    return max(outlines, key=cv2.contourArea, default=None)


def convex_hull(mask: np.ndarray) -> np.ndarray:
    """The convex hull of the largest outline of `bool[H, W]`."""
    filled = np.zeros(mask.shape, np.uint8)
    outline = _largest_outline(np.ascontiguousarray(mask).view(np.uint8))
    if outline is not None:
        cv2.fillConvexPoly(filled, cv2.convexHull(outline), 1)
    return filled.view(bool)
