"""Test-time augmentation: views of a batch in, one averaged prediction out."""

from collections.abc import Callable

import numpy as np


def _same(batch: np.ndarray) -> np.ndarray:
    return batch


def _hflip(batch: np.ndarray) -> np.ndarray:
    return batch[:, :, ::-1]


# Each view is its own inverse: applied to a prediction it undoes itself.
_VIEWS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], ...]] = {
    "none": (_same,),
    "hflip": (_same, _hflip),
}

NAMES = tuple(_VIEWS)


def expand(batch: np.ndarray, name: str) -> np.ndarray:
    """All views of a batch, one after the other.

    Args:
        batch: `[B, H, W, C]`.
        name: One of `NAMES`.

    Returns:
        `[views * B, H, W, C]`.
    """
    return np.concatenate([view(batch) for view in _VIEWS[name]])


def merge(predictions: np.ndarray, name: str) -> np.ndarray:
    """The mean over views of what was predicted for `expand`'s result.

    Args:
        predictions: `float32[views * B, H, W]`.
        name: One of `NAMES`.

    Returns:
        `float32[B, H, W]`.
    """
    views = _VIEWS[name]
    pairs = zip(views, np.split(predictions, len(views)), strict=True)
    parts = [view(part) for view, part in pairs]
    return parts[0] if len(parts) == 1 else np.stack(parts).mean(axis=0, dtype=np.float32)
