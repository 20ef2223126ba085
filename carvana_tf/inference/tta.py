"""Test-time augmentation: several views of each photo in, one averaged prediction out."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

AVERAGES = ("probability", "logit")

# Probabilities may be 0 or 1, whose log odds are infinite; float32 holds 1 - 1e-6.
_LEAST = np.float32(1e-6)


@dataclasses.dataclass(frozen=True)
class Views:
    """Every combination of a scale, a window and a flip.

    Attributes:
        scales: Factors on both sides of the input.
        flips: OpenCV's codes: None as it is, 1 left and right swapped, 0 top and bottom,
            -1 both. Each is its own inverse.
        windows: Which windows of a photo stand for it, (down, right) in 0..1 as of
            `Resizer.window`; () is the photo as its resizer shows it.
    """

    scales: tuple[float, ...] = (1.0,)
    flips: tuple[int | None, ...] = (None,)
    windows: tuple[tuple[float, float], ...] = ()


_FLIPS: dict[str, tuple[int | None, ...]] = {
    "none": (None,),
    "hflip": (None, 1),
    "flips": (None, 1, 0, -1),
}
_SCALES = (0.75, 1.0, 1.25)

VIEWS = {name: Views(flips=flips) for name, flips in _FLIPS.items()} | {
    "scales": Views(_SCALES),
    "hflip+scales": Views(_SCALES, _FLIPS["hflip"]),
    "flips+scales": Views(_SCALES, _FLIPS["flips"]),
    # The four corners and the middle, each with its mirror image (Krizhevsky et al., 2012).
    "ten_crop": Views(flips=_FLIPS["hflip"], windows=((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))),
}


def describe(name: str, average: str) -> str:
    """How a manifest describes the views and how they are averaged."""
    factors = ",".join(f"{scale:g}" for scale in VIEWS[name].scales)
    views = name.replace("scales", f"scales({factors})")
    return views if average == "probability" else f"{views}, mean of logits"


def flip(image: np.ndarray, code: int | None) -> np.ndarray:
    """A flipped view of the same memory, `[H, W]` or `[H, W, C]`."""
    if code is None:
        return image
    return image[:: -1 if code <= 0 else 1, :: -1 if code else 1]


def stack(images: Sequence[np.ndarray], flips: Sequence[int | None]) -> np.ndarray:
    """All flips of some images as one array, flip by flip.

    Args:
        images: B times `[H, W, C]`.
        flips: Of `Views`.

    Returns:
        `[flips * B, H, W, C]`; a single image that is not flipped is not copied.
    """
    if len(images) == 1 and tuple(flips) == (None,):
        return images[0][None]
    stacked = np.empty((len(flips), len(images), *images[0].shape), images[0].dtype)
    for row, code in zip(stacked, flips, strict=True):
        for target, image in zip(row, images, strict=True):
            if code is None:
                target[:] = image
            else:
                # Fifteen times faster than a copy of NumPy's view.
                cv2.flip(image, code, dst=target)
    return stacked.reshape(-1, *images[0].shape)


def merge(predictions: np.ndarray, flips: Sequence[int | None]) -> np.ndarray:
    """The mean over flips of what was predicted for `stack`'s result.

    Args:
        predictions: `float32[flips * B, H, W]`; what is no image is averaged as it is.
        flips: Of `Views`.

    Returns:
        `float32[B, H, W]`.
    """
    parts = predictions.reshape(len(flips), -1, *predictions.shape[1:])
    if len(parts) == 1:
        return parts[0]
    if predictions.ndim < 3:
        return parts.mean(axis=0)
    merged = np.empty(parts.shape[1:], np.float32)
    for i, target in enumerate(merged):
        target[:] = flip(parts[0, i], flips[0])
        for part, code in zip(parts[1:, i], flips[1:], strict=True):
            cv2.add(target, part if code is None else cv2.flip(part, code), dst=target)
    merged /= np.float32(len(parts))
    return merged


def to_average(probabilities: np.ndarray, average: str) -> np.ndarray:
    """Probabilities on the scale on which they are averaged.

    "probability": as they are. "logit": `log(p / (1 - p))` of p clipped to
    1e-6..1 - 1e-6, so that the mean over n views is
    `1 / (1 + exp(-(logit(p_1) + … + logit(p_n)) / n))`.
    """
    if average == "probability":
        return probabilities
    clipped = np.clip(probabilities, _LEAST, 1 - _LEAST)
    return np.log(clipped / (1 - clipped))


def from_average(mean: np.ndarray, average: str) -> np.ndarray:
    """Probabilities from means on the scale of `to_average`."""
    return mean if average == "probability" else 1 / (1 + np.exp(-mean))
