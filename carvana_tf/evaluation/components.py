"""Dice after dropping small components, for many minimum sizes at once."""

from collections.abc import Sequence

import cv2
import numpy as np

from carvana_tf.errors import UserError

# Every threshold needs its own labelling, so not all 256 are tried; 127 is among them.
THRESHOLDS = np.arange(63, 192, 16)


def parse_sizes(words: Sequence[str]) -> tuple[int, ...]:
    """Minimum sizes in pixels as a flag gives them, ascending; 0 (drop nothing) is added.

    Raises:
        UserError: One is no whole number.
    """
    strangers = [word for word in words if not (word.isascii() and word.isdigit())]
    if strangers:
        raise UserError(
            f"--min_components has '{strangers[0]}'; give whole numbers of pixels, as 0,100,1000."
        )
    return tuple(sorted({0, *map(int, words)})) if words else ()


def dice(grey: np.ndarray, truth: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Dice of a photo with the components below each minimum size dropped.

    One labelling per threshold gives the area and the right pixels of each component,
    from which every minimum size follows.

    Args:
        grey: `uint8[H, W]`, `round(255p)`.
        truth: `bool[H, W]`.
        sizes: Minimum sizes in pixels; a component (8 neighbours) with fewer is dropped.

    Returns:
        `float64[T, S]`, for each of `THRESHOLDS` and each of `sizes`; 1 where nothing
        is called object and nothing is.
    """
    table = np.zeros((len(THRESHOLDS), len(sizes)))
    area_of_truth = np.count_nonzero(truth)
    for row, threshold in zip(table, THRESHOLDS, strict=True):
        called = (grey > threshold).astype(np.uint8)
        number, labels, stats, _ = cv2.connectedComponentsWithStats(called, connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA].astype(np.int64)
        right = np.bincount(labels[truth], minlength=number)[1:]
        for i, size in enumerate(sizes):
            kept = areas >= size
            total = int(areas[kept].sum()) + area_of_truth
            row[i] = 2 * int(right[kept].sum()) / total if total else 1.0
    return table
