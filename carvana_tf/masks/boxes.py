"""Boxes around the object of a mask, with sides a network accepts."""

import dataclasses

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle in the photo's pixels; it may reach into the padding around the photo."""

    left: int
    top: int
    width: int
    height: int


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
    mask = (grey > threshold).view(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count == 1:
        return frame
    largest = stats[1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))]
    left, top, width, height = (int(value) for value in largest[:4])
    left, width = _grow(left, width, frame.left, frame.width, margin, multiple)
    top, height = _grow(top, height, frame.top, frame.height, margin, multiple)
    return Box(left, top, width, height)


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
