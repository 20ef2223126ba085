"""Numbers and points of annotations, which may be anything: checked once, here."""

import math
from typing import Any

import numpy as np

from carvana_tf.errors import UserError

FARTHEST = 1e6
"""Pixels that a point may lie from the corner of its photo: far more than any photo has."""


class BadAnnotation(UserError):
    """An annotation that means no area; the message says what is wrong, but not where."""


def points(value: Any, scale: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Points as `float64[N, 2]` of x, y.

    Args:
        value: A list of pairs, or x and y in turn.
        scale: What x and y are multiplied by.

    Raises:
        BadAnnotation: They are no numbers, or lie far outside of every photo.
    """
    try:
        array = np.asarray(value, np.float64)
        if array.ndim == 1 and len(array) % 2 == 0:
            array = array.reshape(-1, 2)
        if array.ndim != 2 or array.shape[1] != 2:
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise BadAnnotation("its points are no list of x and y") from None
    array = array * scale
    if not (np.abs(array) <= FARTHEST).all():  # also false for NaN
        raise BadAnnotation("a point of it is not a number, or lies far outside of the photo")
    return array


def number(value: Any, what: str) -> float:
    """A finite number, also written as text.

    Raises:
        BadAnnotation: It is none, or beyond every photo.
    """
    try:
        found = float(value)
    except (ValueError, TypeError, OverflowError):
        found = math.nan
    if not abs(found) <= FARTHEST:
        raise BadAnnotation(f"its {what} is {_short(value)}, expected a number")
    return found


def whole(value: Any, what: str) -> int:
    """A whole number that is not negative, also written as text.

    Raises:
        BadAnnotation: It is none, or beyond every photo.
    """
    found = number(value, what)
    if found != int(found) or found < 0:
        raise BadAnnotation(f"its {what} is {_short(value)}, expected a whole number from 0 on")
    return int(found)


def size_of(height: Any, width: Any) -> tuple[int, int]:
    """The size of an annotated photo.

    Raises:
        BadAnnotation: It is none.
    """
    found = whole(height, "height"), whole(width, "width")
    if not all(found):
        raise BadAnnotation("it has a size of 0 pixels")
    return found


def brief(text: str, most: int = 80) -> str:
    """The start of a text, for messages."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _short(value: Any) -> str:
    return brief(repr(value), 24)
