"""Other ways to make a cut-out's opacity and colours."""

from collections.abc import Callable

import cv2
import numpy as np

from carvana_tf.masks.cutouts import matting


def _box(values: np.ndarray, radius: int) -> np.ndarray:
    return cv2.blur(values, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT)


def guided_filter(photo: np.ndarray, grey: np.ndarray, radius: int = 8) -> np.ndarray:
    """The mask with a sharp edge, made a local linear function of the photo, and stretched.

    He, Sun, Tang, "Guided Image Filtering", PAMI 2013, at the photo's own size.
    """
    guide = photo.astype(np.float32) / np.float32(255)
    values = matting.sharpened(grey)
    mean, value = _box(guide, radius), _box(values, radius)
    shared = _box(guide * values[..., None], radius) - mean * value[..., None]
    pairs = guide[..., :, None] * guide[..., None, :]
    squares = np.stack([_box(np.ascontiguousarray(pairs[..., i, :]), radius) for i in range(3)], -2)
    squares -= mean[..., :, None] * mean[..., None, :]
    squares += np.eye(3, dtype=np.float32) * np.float32(1e-4)
    slope = np.linalg.solve(squares, shared[..., None])[..., 0]
    offset = value - (slope * mean).sum(-1)
    linear = (_box(slope, radius) * guide).sum(-1) + _box(offset, radius)
    return np.clip((linear - 0.15) / 0.7, 0, 1)


def full_size_blur_fusion(photo: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blur fusion as published (Forte, ICIP 2021), with its radii and at the photo's own size."""
    image = photo.astype(np.float32) / np.float32(255)
    share = alpha[..., None].astype(np.float32)
    front = back = image
    for size in (90, 6):
        total = cv2.blur(alpha.astype(np.float32), (size, size))[..., None]
        fronts = cv2.blur(front * share, (size, size)) / (total + np.float32(1e-5))
        back = cv2.blur(back * (1 - share), (size, size)) / (1 - total + np.float32(1e-5))
        front = np.clip(fronts + share * (image - share * fronts - (1 - share) * back), 0, 1)
    return front * 255


def multi_level() -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """Multi-level foreground estimation by pymatting (Germer et al., ICPR 2020), if installed."""
    try:
        from pymatting import estimate_foreground_ml
    except ImportError:
        return None

    def estimate(photo: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        return 255 * estimate_foreground_ml(photo / 255.0, alpha.astype(np.float64))

    estimate(np.zeros((8, 8, 3)), np.zeros((8, 8)))  # it compiles when it is first called
    return estimate
