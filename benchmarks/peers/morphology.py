"""Operations on a mask `bool[H, W]`, by this toolkit and by the libraries it may call."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import skimage
from scipy import ndimage

from carvana_tf.data.images import read_grey
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.evaluation import boundary
from carvana_tf.masks import postprocess
from carvana_tf.memory import keep_freed_memory
from harness import Rounds

_SMALL = 50  # pixels
_WINDOW = 2 * boundary.BAND + 1


def run(rounds: Rounds, folder: str, operation: str, library: str) -> None:
    """One operation on the masks of a folder, in memory, in one thread."""
    cv2.setNumThreads(1)
    keep_freed_memory()  # as all commands
    function = OPERATIONS[operation][library]
    masks = [read_grey(path) > DEFAULT_THRESHOLD for path in sorted(Path(folder).iterdir())]
    for _ in rounds:
        for mask in masks:
            function(mask)


def _opencv_components(mask: np.ndarray, least: int | None = None) -> np.ndarray:
    """Components of at least so many pixels, or the largest one."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    if least is None:
        return labels == 1 + areas[1:].argmax()
    keep = areas >= least
    keep[0] = False
    return keep[labels]


def _scipy_largest(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()


def _skimage_holes(mask: np.ndarray) -> np.ndarray:
    labels = skimage.measure.label(np.pad(~mask, 1, constant_values=True), connectivity=1)
    return (labels != labels[0, 0])[1:-1, 1:-1]


def _skimage_band(mask: np.ndarray) -> np.ndarray:
    window = skimage.morphology.footprint_rectangle((_WINDOW,) * 2, decomposition="separable")
    return skimage.morphology.dilation(mask, window) != skimage.morphology.erosion(mask, window)


OPERATIONS: dict[str, dict[str, Callable[[np.ndarray], object]]] = {
    "largest component": {
        "ours": postprocess.largest_component,
        "OpenCV": _opencv_components,
        "SciPy": _scipy_largest,
    },
    "small components": {
        "ours": lambda mask: skimage.morphology.remove_small_objects(
            mask, max_size=_SMALL - 1, connectivity=2
        ),
        "OpenCV": lambda mask: _opencv_components(mask, _SMALL),
    },
    "fill holes": {
        "ours": postprocess.without_holes,
        "scikit-image": _skimage_holes,
        "SciPy": ndimage.binary_fill_holes,
    },
    "convex hull": {
        "ours": postprocess.convex_hull,
        "scikit-image": lambda mask: skimage.morphology.convex_hull_image(
            postprocess.largest_component(mask)
        ),
    },
    "band around the contour": {
        "ours": boundary.border_band,
        "scikit-image": _skimage_band,
        "SciPy": lambda mask: (
            ndimage.maximum_filter(mask, _WINDOW) != ndimage.minimum_filter(mask, _WINDOW)
        ),
    },
    "contour": {
        "ours": boundary.contour,
        "scikit-image": lambda mask: (
            mask & skimage.segmentation.find_boundaries(mask, connectivity=1, mode="inner")
        ),
    },
    "within 2 pixels of it": {
        "ours": lambda mask: boundary.within(boundary.contour(mask), 2.0),
        "SciPy": lambda mask: ndimage.distance_transform_edt(~boundary.contour(mask)) <= 2.0,
        "scikit-image": lambda mask: skimage.morphology.dilation(
            boundary.contour(mask), skimage.morphology.disk(2)
        ),
    },
}
