"""Tiles for photos too large for the device: cut with overlap, predicted, blended.

Along each side the tiles' weights sum to 1 everywhere. Between two neighbours they go
over from one to the other as a raised cosine in the middle half of the overlap asked for,
so the outer quarter of it at least, where a tile has the least context, has weight 0. A
network that looks no farther than this quarter gives what it would give for the whole
photo; tiles start at multiples of its stride, so that its pooling falls on the same pixels.
One that looks farther differs near the seams, which the window makes smooth.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from carvana_tf.errors import UserError
from carvana_tf.inference.tta import flip

_LEAST_SIDE = 64  # of tiles that are cut because memory was not enough


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How inputs are cut.

    Attributes:
        size: Height and width of a tile; an input that is smaller on one side is cut
            along the other only.
        overlap: Pixels that neighbours share at least, less than `size`.
    """

    size: int
    overlap: int

    def covers(self, height: int, width: int) -> bool:
        """Whether an input fits into one tile."""
        return height <= self.size and width <= self.size

    def __str__(self) -> str:
        return f"{self.size} overlap {self.overlap}"


@dataclasses.dataclass(frozen=True)
class LargeInputs:
    """Which inputs are cut because memory was not enough for them, and how.

    Attributes:
        pixels: Inputs of so many pixels or more are cut.
        tiling: How they are cut.
    """

    pixels: int
    tiling: Tiling

    def __str__(self) -> str:
        return f"inputs of {self.pixels:,} pixels or more in tiles of {self.tiling}"


def halve(
    pixels: int, tiling: Tiling | None, large: LargeInputs | None, strides: Sequence[int]
) -> LargeInputs | None:
    """Tiles of half the side of what was too large for the memory; None if they become tiny.

    Args:
        pixels: Of the input.
        tiling: Of `--tile_size`, or None.
        large: How large inputs are cut already, or None.
        strides: Of all networks.
    """
    sides = [math.isqrt(pixels)]
    sides += [tiling.size] if tiling else []
    sides += [large.tiling.size] if large and pixels >= large.pixels else []
    stride = math.lcm(*strides)
    side = min(sides) // 2 // stride * stride
    if side < max(_LEAST_SIDE, 2 * stride):
        return None
    overlap = math.ceil(side / 4 / stride) * stride
    return LargeInputs(min([pixels, *([large.pixels] if large else [])]), Tiling(side, overlap))


def from_flags(size: int, overlap: int | None, strides: Sequence[int]) -> Tiling | None:
    """The tiling that flags ask for.

    Args:
        size: Of `--tile_size`; 0 means whole photos.
        overlap: Of `--tile_overlap`, rounded up to the stride; None is a quarter of `size`.
        strides: Of all networks.

    Raises:
        UserError: The size is no multiple of them, does not exceed the overlap, or is missing.
    """
    if not size:
        if overlap is not None:
            raise UserError(f"--tile_overlap={overlap} needs --tile_size; give both, or none.")
        return None
    stride = math.lcm(*strides)
    if size % stride:
        nearest = max(round(size / stride), 1) * stride
        raise UserError(
            f"--tile_size={size} is no multiple of {stride}, the stride of the network; the "
            f"nearest is {nearest}."
        )
    wanted = size // 4 if overlap is None else overlap
    rounded = math.ceil(wanted / stride) * stride
    if rounded >= size:
        raise UserError(
            f"--tile_overlap={wanted} (in steps of {stride}) must be less than "
            f"--tile_size={size}; lower the first, or raise the second."
        )
    return Tiling(size, rounded)


def predict(
    network: Callable[[np.ndarray], np.ndarray],
    images: Sequence[np.ndarray],
    flips: Sequence[int | None],
    tiling: Tiling,
    *,
    stride: int,
    batch_size: int,
) -> np.ndarray:
    """The mean over flips of what a network gives for images, tile by tile.

    No more than one batch of tiles is cut at any moment.

    Args:
        network: `uint8[N, H', W', C]` -> `float32[N, H', W']`; every call has tiles of one
            size, H' and W' being `tiling.size` or, where the image is smaller, its own.
        images: B times `uint8[H, W, C]`, sides being multiples of the stride.
        flips: Of `tta.Views`.
        tiling: How to cut.
        stride: The network's.
        batch_size: Tiles per call.

    Returns:
        `float32[B, H, W]`.
    """
    height, width = images[0].shape[:2]
    rows, columns = (tile_sides(n, tiling, stride) for n in (height, width))
    total = np.zeros((len(images), height, width), np.float32)
    # A flipped image is predicted into its sum flipped likewise, which is unflipped then.
    pairs = list(zip(images, total, strict=True))
    views = [(flip(image, code), flip(sums, code)) for code in flips for image, sums in pairs]
    tiles = itertools.product(views, rows, columns)
    while batch := list(itertools.islice(tiles, batch_size)):
        cut = [image[row.pixels, column.pixels] for (image, _), row, column in batch]
        for ((_, sums), row, column), values in zip(batch, network(np.stack(cut)), strict=True):
            sums[row.pixels, column.pixels] += values * row.weights[:, None] * column.weights
    return total / np.float32(len(flips)) if len(flips) > 1 else total


@dataclasses.dataclass(frozen=True)
class TileSide:
    """One side of a tile: which pixels, and the `float32[size]` weight of each."""

    pixels: slice
    weights: np.ndarray


def tile_sides(length: int, tiling: Tiling, stride: int) -> list[TileSide]:
    """The tiles along one side of an image; their weights sum to 1 at every pixel."""
    size = min(tiling.size, length)
    # As few as overlap enough, evenly spread; counted in strides, where all is whole.
    spare = (length - size) // stride
    step = (tiling.size - tiling.overlap) // stride
    gaps = math.ceil(spare / step)
    starts = [i * spare // max(gaps, 1) * stride for i in range(gaps + 1)]
    seams = [(start + size + after) / 2 for start, after in itertools.pairwise(starts)]
    ends = zip(starts, [-math.inf, *seams], [*seams, math.inf], strict=True)
    return [
        TileSide(
            slice(start, start + size), _window(start, size, before, after, tiling.overlap / 2)
        )
        for start, before, after in ends
    ]


def _window(start: int, size: int, before: float, after: float, width: float) -> np.ndarray:
    """Rises around one seam and falls around the next, as steep at all seams."""
    centres = start + np.arange(size) + 0.5

    def risen(seam: float) -> np.ndarray:
        share = np.clip((centres - seam) / max(width, 1e-3) + 0.5, 0, 1)
        return 0.5 - 0.5 * np.cos(np.pi * share)

    return (risen(before) - risen(after)).astype(np.float32)
