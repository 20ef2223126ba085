"""From a photo's own size to a network's input and exactly back.

The one place that resizes or pads for a network: training, validation and prediction
all call it, so they cannot differ.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from carvana_tf.data.images import equalise, resize

POLICIES = ("crop", "resize", "pad")

_PIXELS = 384 * 384
"""Of a resized photo, unless a size is given: what two cores train in minutes an epoch."""
_CROP = 1024
"""Height and width of a crop, unless they are given: those of the 4th-place solution."""


@dataclasses.dataclass(frozen=True)
class Resizer:
    """How photos of any size meet a fully convolutional network.

    Attributes:
        policy: "resize": the whole photo is resized to `height` x `width` and
            probabilities are interpolated back. "pad": the whole photo at full
            resolution. "crop": trained on random `height` x `width` windows at full
            resolution; a whole photo is treated as in "pad". "centre": the middle window of
            that size stands for the photo, which is enlarged where it is smaller; for networks
            that give no image.
        height: Rows of the resized photo or of the training window; 0 for "pad".
        width: Its columns.
        stride: The network's total stride; every input is padded to multiples of it by
            reflection, half on each side, the odd pixel at the bottom and right.
        clahe: Whether a photo's luma is equalised first, see `images.equalise`.
    """

    policy: str
    height: int
    width: int
    stride: int
    clahe: bool = False

    def whole(self, image: np.ndarray) -> np.ndarray:
        """The network input for a whole `[H, W]` or `[H, W, C]` image."""
        return (
            self.window(image, 0.5, 0.5) if self.policy == "centre" else self.pad(self.scale(image))
        )

    def window(self, image: np.ndarray, down: float, right: float) -> np.ndarray:
        """One window of an image, with "centre".

        Args:
            image: `[H, W]` or `[H, W, C]`.
            down: Where it lies, 0 at the top, 1 at the bottom.
            right: The same, 0 at the left.

        Returns:
            `[height, width]` or `[height, width, C]`.
        """
        image = self.scale(image)
        top, left = (
            round((n - side) * share)
            for n, side, share in zip(
                image.shape, (self.height, self.width), (down, right), strict=False
            )
        )
        return image[top : top + self.height, left : left + self.width]

    def centred(self) -> "Resizer":
        """The same with "centre" for "crop": how a network that gives no image sees a photo."""
        return dataclasses.replace(self, policy="centre") if self.policy == "crop" else self

    def scale(self, image: np.ndarray) -> np.ndarray:
        """The image at the network's resolution, before padding; `[H, W, C]` is a photo."""
        if self.clahe and image.ndim == 3:
            image = equalise(image)
        if self.policy == "resize":
            return resize(image, self.height, self.width)
        enlarge = max(self.height / image.shape[0], self.width / image.shape[1])
        if self.policy == "centre" and enlarge > 1:
            return resize(image, *(math.ceil(n * enlarge - 1e-6) for n in image.shape[:2]))
        return image

    def pad(self, image: np.ndarray) -> np.ndarray:
        """Pads to multiples of the stride; an image that fits is returned as it is."""
        (top, bottom), (left, right) = (self._margins(n) for n in image.shape[:2])
        if not top + bottom + left + right:
            return image
        padded = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_REFLECT_101)
        return padded.reshape(*padded.shape[:2], *image.shape[2:])  # OpenCV drops a single channel

    def restore(self, probabilities: np.ndarray, height: int, width: int) -> np.ndarray:
        """Undoes `whole`.

        Args:
            probabilities: `[H', W']` of float32 or uint8, the network's output for one photo.
            height: The photo's own rows.
            width: The photo's own columns.

        Returns:
            `[height, width]` of the same type, a view of the input where nothing is resized.
        """
        inner = (self.height, self.width) if self.policy == "resize" else (height, width)
        top, left = (self._margins(n)[0] for n in inner)
        cut = probabilities[top : top + inner[0], left : left + inner[1]]
        return resize(cut, height, width)

    def at_scale(self, scale: float, height: int, width: int) -> "Resizer":
        """How one whole photo meets the network when seen larger or smaller.

        Args:
            scale: Factor on both sides of what the network sees.
            height: The photo's own rows.
            width: Its columns.
        """
        if scale == 1:
            return self
        seen = (self.height, self.width) if self.policy == "resize" else (height, width)
        rows, columns = (max(round(n * scale), 1) for n in seen)
        return dataclasses.replace(self, policy="resize", height=rows, width=columns)

    def _margins(self, length: int) -> tuple[int, int]:
        missing = -length % self.stride
        return missing // 2, missing - missing // 2


def input_size(
    policy: str,
    sizes: Iterable[tuple[int, int]],
    stride: int,
    *,
    height: int | None = None,
    width: int | None = None,
) -> tuple[int, int]:
    """The size of a network's input in training, where flags leave it open.

    A crop is of 1024, or of the smallest photo, less what does not divide by the stride. A
    resized photo has the photos' median ratio of width to height and the pixels of 384x384, or
    of the median photo where that has less, each side rounded to a multiple of the stride.

    Args:
        policy: One of `POLICIES`.
        sizes: (height, width) of the training photos, at least one; looked at where flags leave
            something open.
        stride: The network's total stride.
        height: What a flag says, or None.
        width: What a flag says, or None.

    Returns:
        (height, width); zeros for "pad".
    """
    if policy == "pad":
        return 0, 0
    if height is not None and width is not None:
        return height, width
    sizes = list(sizes)
    if policy == "crop":
        least = (min(each) for each in zip(*sizes, strict=True))
        rows, columns = (max(min(n, _CROP) // stride * stride, stride) for n in least)
        return height or rows, width or columns
    ratio = float(np.median([w / h for h, w in sizes]))
    pixels = min(float(np.median([h * w for h, w in sizes])), _PIXELS)

    def rounded(length: float) -> int:
        return max(round(length / stride), 1) * stride

    if height is None and width is None:
        return rounded((pixels / ratio) ** 0.5), rounded((pixels * ratio) ** 0.5)
    return height or rounded((width or 0) / ratio), width or rounded((height or 0) * ratio)


def small_crop(
    sizes: Sequence[tuple[int, int]], crop: tuple[int, int], stride: int
) -> tuple[int, tuple[int, int]] | None:
    """The photo for which a crop of `input_size` is far smaller than others would have it.

    Args:
        sizes: (height, width) of the training photos, at least one.
        crop: What `input_size` gave for them.
        stride: The network's total stride.

    Returns:
        The index of the smallest photo, and the crop that half of the photos hold; None where the
        crop has at least half the pixels of that.
    """
    typical = [sorted(side)[len(side) // 2] for side in zip(*sizes, strict=True)]
    usual = input_size("crop", [(typical[0], typical[1])], stride)
    if 2 * crop[0] * crop[1] >= usual[0] * usual[1]:
        return None
    side = 0 if crop[0] / usual[0] <= crop[1] / usual[1] else 1
    return min(range(len(sizes)), key=lambda i: sizes[i][side]), usual
