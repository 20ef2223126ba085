"""The shadow of an object on the ground, as the opacity of a black layer.

What is assumed, because one photo does not show the ground without its shadow: the camera is
upright; the ground's light changes little along a row of the photo, so that the ground to the left
and right of the object, beyond the reach of the shadow, shows how bright it would be without; the
shadow lies next to the lower half of the object or below it, and touches it. Dark marks on the
ground that touch the shadow are taken for a part of it.
"""

import cv2
import numpy as np

_SIDE = 640  # pixels of the longer side at which shadows, which are soft, are found
_REACH = 0.4  # of the object's height, so far a shadow goes
_FROM, _RAMP = 0.55, 0.15  # of its height from above: there shadows begin, so soft
_NOISE = 0.04  # darkening that is none
_LARGEST = 0.9  # opacity
_VISIBLE = 0.01  # opacity of what shows the object


def shadow(photo: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """How much darker the ground is than it would be without the object.

    Args:
        photo: `uint8[H, W, 3]` RGB.
        alpha: `float32[H, W]`, the object's opacity.

    Returns:
        `float32[H, W]` in 0..0.9: 1 - light / light without the object; 0 where there is no shadow.
        Behind the object it goes on smoothly.
    """
    height, width = alpha.shape
    scale = max(1.0, max(height, width) / _SIDE)
    size = (max(1, round(width / scale)), max(1, round(height / scale)))
    luma = cv2.cvtColor(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    object_ = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA) > _VISIBLE
    _, top, _, tall = cv2.boundingRect(object_.view(np.uint8))
    if not tall:
        return np.zeros_like(alpha)
    reach = max(2.0, _REACH * tall)
    # A pixel farther, because the photo's own pixels at the edge are mixed.
    ground = cv2.erode((~object_).view(np.uint8), np.ones((3, 3), np.uint8))
    away = cv2.distanceTransform((~object_).view(np.uint8), cv2.DIST_L2, 3)
    light = luma.astype(np.float32)
    unshadowed = _along_rows(light, (away > reach).astype(np.float32))
    dark = _filled(1 - light / np.maximum(unshadowed, 1), ground.astype(np.float32))
    dark = cv2.GaussianBlur(cv2.medianBlur(dark.astype(np.float32), 5), (0, 0), 2.0)
    dark = np.clip((dark - _NOISE) / (1 - _NOISE), 0, _LARGEST)
    below = (np.arange(size[1]) - (top + _FROM * tall)) / max(1.0, _RAMP * tall)
    dark *= np.clip(below, 0, 1)[:, None]
    dark *= np.clip(2 - 2 * away / reach, 0, 1)
    dark[_apart(dark > 0, object_)] = 0
    found = np.asarray(cv2.resize(dark.astype(np.float32), (width, height)))
    return np.clip(found, 0, _LARGEST)


def _along_rows(light: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Means of what is known nearby, rather along rows than across them."""
    height, width = light.shape
    total = np.full_like(light, 1e-6)
    result = total * (light * known).sum() / max(known.sum(), 1)
    for rows, columns, weight in ((height, width, 1e-5), (25, width, 1e-2), (9, width // 2, 1.0)):
        kernel = (2 * (columns // 2) + 1, 2 * (rows // 2) + 1)
        count = cv2.boxFilter(known, -1, kernel, borderType=cv2.BORDER_CONSTANT)
        result += weight * cv2.boxFilter(light * known, -1, kernel, borderType=cv2.BORDER_CONSTANT)
        total += weight * count
    return result / total


def _apart(dark: np.ndarray, object_: np.ndarray) -> np.ndarray:
    """The dark pixels whose area does not touch the object."""
    _, labels = cv2.connectedComponents(dark.view(np.uint8), connectivity=8)
    near = cv2.dilate(object_.view(np.uint8), np.ones((5, 5), np.uint8)) > 0
    touching = np.unique(labels[near & dark])
    return dark & ~np.isin(labels, touching)


def _filled(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Values that go on where they are not known: means of nearer ones count far more."""
    total, result = np.zeros_like(values), np.zeros_like(values)
    for radius, weight in ((2, 1.0), (16, 1e-3), (64, 1e-6)):
        kernel = (2 * radius + 1,) * 2
        result += weight * cv2.blur(values * known, kernel)
        total += weight * cv2.blur(known, kernel)
    smooth = result / np.maximum(total, 1e-9)
    return np.where(known > 0, values, smooth)
