"""Predictions that show nothing: every photo all object, or all background."""

from collections.abc import Sequence

import numpy as np

# A mask that leaves less than this share of its photo to the other class shows nothing.
_NEGLIGIBLE = 0.001
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


def _constant(
    objects: Sequence[int] | np.ndarray, pixels: Sequence[int] | np.ndarray
) -> str | None:
    shares = np.asarray(objects, float) / np.asarray(pixels, float)
    if not len(shares):
        return None
    if shares.max() < _NEGLIGIBLE:
        return BACKGROUND
    return OBJECT if shares.min() > 1 - _NEGLIGIBLE else None
