"""The neighbourhood of a mask's contour: where masks of one object differ."""

import cv2
import numpy as np

# 10 pixels on each side of the contour, as the 4th-place system's metrics have it.
BAND = 10


def border_band(truth: np.ndarray, radius: int = BAND) -> np.ndarray:
    """`bool[H, W]`: pixels within `radius` of the contour, measured in the maximum norm."""
    window = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    grey = truth.astype(np.uint8)
    near_object, near_rest = cv2.dilate(grey, window), cv2.dilate(1 - grey, window)
    return np.logical_and(near_object, near_rest)


def contour(mask: np.ndarray) -> np.ndarray:
    """`bool[H, W]`: object pixels with a background pixel above, below, left or right.

    Where the photo ends the object is taken to go on: its edge is no contour.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(mask.astype(np.uint8), cross, borderType=cv2.BORDER_REPLICATE)
    return np.logical_and(mask, inner == 0)


def within(pixels: np.ndarray, distance: float) -> np.ndarray:
    """`bool[H, W]`: what lies at most `distance` (Euclidean) from a True pixel."""
    reach = int(distance)
    squares = np.arange(-reach, reach + 1) ** 2
    disk = (squares[:, None] + squares <= distance**2).astype(np.uint8)
    return cv2.dilate(pixels.astype(np.uint8), disk) > 0
