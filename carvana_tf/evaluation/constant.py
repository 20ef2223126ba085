"""Predictions that show nothing: every photo all object, or all background."""

import threading
from collections.abc import Sequence

import numpy as np

# A mask that leaves less than this share of its photo to the other class shows nothing.
_NEGLIGIBLE = 0.001
_NEARLY_ALL = 0.9
OBJECT, BACKGROUND = "object", "background"
_CAUSES = (
    "likely causes: too few steps for the moving averages of BatchNormalization (train longer, or "
    "lower --bn_momentum), a --learning_rate far too high or too low, or masks that are inverted "
    "or empty (tools/check_data.py)"
)


def constant_prediction(
    predicted: Sequence[int] | np.ndarray,
    true: Sequence[int] | np.ndarray | None,
    pixels: Sequence[int] | np.ndarray,
) -> str | None:
    """Which class every photo is predicted as, all over, though the truth differs.

    Args:
        predicted: For each of N photos, how many pixels are called object.
        true: How many of them are; None where that is not known.
        pixels: How many each has.

    Returns:
        `OBJECT`, `BACKGROUND`, or None: the predictions differ, or the truth is as constant.
    """
    kind = _constant(predicted, pixels)
    truth = None if true is None else _constant(true, pixels)
    return kind if kind != truth else None


def warning(kind: str, photos: int, what: str = "photos") -> str:
    """One line about what `constant_prediction` found."""
    return f"warning: all of the {photos} {what} are predicted as {kind} all over; {_CAUSES}."


def warning_of_models(models: str, kind: str, share: float, photos: int) -> str:
    """One line about masks of which nearly all show nothing.

    Args:
        models: Their files.
        kind: As of `Counts.constant`.
        share: Of the photos, 0..1.
        photos: How many were predicted.
    """
    return (
        f"WARNING: {models} predicts {share:.0%} of the {photos} photos as {kind} all over; do not "
        f"use these masks before you have looked at some of them; {_CAUSES}."
    )


class Counts:
    """What predicted masks show, added up by any thread."""

    def __init__(self, threshold: int) -> None:
        """Nothing yet.

        Args:
            threshold: A grey value above it is object.
        """
        self._threshold = threshold
        self._lock = threading.Lock()
        self._masks = 0
        self._all_over = {OBJECT: 0, BACKGROUND: 0}

    def __len__(self) -> int:
        return self._masks

    def add(self, values: np.ndarray) -> None:
        """Counts a mask of grey values, `uint8[H, W]`, by the share of its object pixels."""
        share = float(np.count_nonzero(values > self._threshold)) / values.size
        with self._lock:
            self._masks += 1
            self._all_over[OBJECT] += share > 1 - _NEGLIGIBLE
            self._all_over[BACKGROUND] += share < _NEGLIGIBLE

    def constant(self) -> tuple[str | None, float]:
        """The class of nearly all masks that show one all over, and their share; else None."""
        for kind, masks in self._all_over.items():
            share = masks / max(self._masks, 1)
            if share >= _NEARLY_ALL:
                return kind, share
        return None, 0.0

    def warning(self, models: str) -> str | None:
        """One line about masks of which nearly all show nothing; None where they do not.

        Args:
            models: The files of what predicted them.
        """
        kind, share = self.constant()
        return kind and warning_of_models(models, kind, share, len(self))


def _constant(
    objects: Sequence[int] | np.ndarray, pixels: Sequence[int] | np.ndarray
) -> str | None:
    shares = np.asarray(objects, float) / np.asarray(pixels, float)
    if not len(shares):
        return None
    if shares.max() < _NEGLIGIBLE:
        return BACKGROUND
    return OBJECT if shares.min() > 1 - _NEGLIGIBLE else None
