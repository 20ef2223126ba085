"""Copies of one photo under several names: re-encoded, resized, cropped, brightened, mirrored.

Studio photos of different cars look alike, since all but the car is the same. So a small
descriptor only picks the most similar photos of each; these are registered and compared
block by block: in a copy every block that shows something shows the same, in the photo of
another car those of the car differ, however much the background agrees.
`benchmarks/copies.py` measures both kinds of error.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from carvana_tf.data.images import resize

# The descriptor: the fine structure of a picture of 32x32, between these two blurs.
_SMALL = 32
_SMALL_BLURS = (1.0, 4.0)
# Of the photos that may be copies, the most similar ones are compared, if they correlate at
# least so. Measured: copies are never less similar than 0.74. All but one of 960 rendered ones
# are among the first three, one cropped twice is the sixth, after other cars in the same pose.
_NEIGHBOURS = 6
_SIMILAR = 0.7
# What is compared: pictures of 192x192 in blocks of 16x16, between these two blurs.
_SIDE = 192
_BLOCK = 16
_BLURS = (1.0, 3.0)
_VISIBLE = 1.0  # grey levels (root mean square) of detail that a block must have to count
_ENOUGH_BLOCKS = 6  # fewer show too little to compare
_LEAST_VALID = 0.4  # share of a block's pixels that both pictures have
_WHITE = 250  # brightened photos are cut off above
# At most 5 % of the blocks of a copy correlate less. Measured: copies above 0.81, photos of
# different real cars below 0.15, the most similar of 318 rendered cars 0.74.
_ODD_BLOCKS = 0.05
_SAME = 0.77
# Registration: a first estimate on the grey picture of 64x64; where three quarters of the
# blocks agree by then, it is refined on the details.
_COARSE_SIDE = 64
_REFINE_BLURS = (1.0, 4.0)
_WORTH_REFINING = (0.25, 0.5)
_COARSE_STEPS, _FINE_STEPS = 50, 15
_LEAST_DARK = 0.1  # share of pixels; with fewer below white, white ones count too
_CONVERGED = 1e-4
_ROWS = 1024  # of the matrix of similarities at once


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What is kept of a photo to compare it.

    Attributes:
        descriptor: `float32[32, 32]` with mean 0 and norm 1; zeros for a flat photo.
        picture: `uint8[192, 192]`, the photo in grey, squeezed to a square.
    """

    descriptor: np.ndarray
    picture: np.ndarray


@dataclasses.dataclass(frozen=True, order=True)
class Copy:
    """Two fingerprints of the same photo.

    Attributes:
        first: Number of the one.
        second: Number of the other, larger.
        turned: Whether one is mirrored or turned by a multiple of 90 degrees.
    """

    first: int
    second: int
    turned: bool


def fingerprint(photo: np.ndarray) -> Fingerprint:
    """The fingerprint of a `uint8[H, W, 3]` photo."""
    picture = resize(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), _SIDE, _SIDE)
    small = resize(picture.astype(np.float32), _SMALL, _SMALL)
    descriptor = _between(small, *_SMALL_BLURS)
    descriptor -= descriptor.mean()
    norm = np.linalg.norm(descriptor)
    # Below a hundredth of a grey level there is nothing but rounding.
    return Fingerprint(descriptor / norm if norm > 0.01 * _SMALL else descriptor * 0, picture)


def find_copies(
    prints: Sequence[Fingerprint], labels: np.ndarray | None = None, threads: int = 4
) -> list[Copy]:
    """The pairs of fingerprints of the same photo.

    Of more than seven copies of one photo, each is paired with six others at least.

    Args:
        prints: The fingerprints.
        labels: `int[len(prints), L]`: a pair that shares any label, in its column, is of no
            interest (photos of one car, or of one fold). None: all pairs are.
        threads: Threads that compare.

    Returns:
        The pairs, in order.
    """
    if not prints:
        return []
    if labels is None:
        labels = np.arange(len(prints))[:, None]
    candidates = _candidates(prints, labels)
    with ThreadPoolExecutor(threads) as pool:
        turned = pool.map(lambda pair: _compare(prints, *pair), candidates.items())
        return [
            Copy(*pair, turn > 0)
            for pair, turn in zip(candidates, turned, strict=True)
            if turn is not None
        ]


def _candidates(
    prints: Sequence[Fingerprint], labels: np.ndarray
) -> dict[tuple[int, int], list[int]]:
    """The pairs worth comparing, in order, and the turns of the second that are similar."""
    descriptors = np.stack([one.descriptor for one in prints])
    flat = descriptors.reshape(len(prints), -1)
    turned = [_turned(descriptors, turn).reshape(len(prints), -1) for turn in range(8)]
    pairs: dict[tuple[int, int], list[int]] = {}
    for start in range(0, len(prints), _ROWS):
        rows = slice(start, start + _ROWS)
        alike = np.stack([flat[rows] @ other.T for other in turned])
        best = alike.max(0)
        best[(labels[rows, None] == labels[None]).any(-1)] = -1
        nearest = np.argsort(-best, axis=1)[:, :_NEIGHBOURS]
        for row, columns in enumerate(nearest):
            for column in columns:
                if best[row, column] >= _SIMILAR:
                    order = np.argsort(-alike[:, row, column], kind="stable")
                    turns = [int(t) for t in order if alike[t, row, column] >= _SIMILAR]
                    i, j = start + row, int(column)
                    if i > j:
                        # Turning the first is turning the second back.
                        i, j, turns = j, i, [_INVERSE[turn] for turn in turns]
                    pairs.setdefault((i, j), turns)
    return dict(sorted(pairs.items()))


# Turns 0 to 3 are quarter turns, 4 to 7 the same of the mirrored picture.
_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)


def _turned(pictures: np.ndarray, turn: int) -> np.ndarray:
    """Pictures `[..., S, S]`, mirrored for turns from 4 on, then turned by quarters."""
    if turn >= 4:
        pictures = pictures[..., ::-1]
    return np.ascontiguousarray(np.rot90(pictures, turn % 4, axes=(-2, -1)))


def _compare(
    prints: Sequence[Fingerprint], pair: tuple[int, int], turns: Sequence[int]
) -> int | None:
    """The turn in which the second of a pair is a copy of the first, or None."""
    first, second = (prints[number].picture for number in pair)
    for turn in turns:
        if _is_copy(first, _turned(second, turn)):
            return turn
    return None


def _is_copy(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether `uint8[192, 192]` pictures show the same, up to a small affine distortion."""
    try:
        warp = _register(first, second)
        agreement = _agreement(first, second, warp)
        share, least = _WORTH_REFINING
        if _quantile(agreement, _ODD_BLOCKS) <= _SAME and _quantile(agreement, share) > least:
            agreement = _agreement(first, second, _refine(first, second, warp))
    except cv2.error:  # the registration does not converge: they have nothing in common
        return False
    return _quantile(agreement, _ODD_BLOCKS) > _SAME


def _quantile(values: np.ndarray, share: float) -> float:
    return float(np.quantile(values, share)) if len(values) >= _ENOUGH_BLOCKS else -1.0


def _register(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The affine map `float32[2, 3]` from pixels of the first picture to those of the second.

    By the enhanced correlation coefficient (Evangelidis and Psarakis, 2008).
    """
    x, y = (
        resize(picture, _COARSE_SIDE, _COARSE_SIDE).astype(np.float32)
        for picture in (first, second)
    )
    warp = _maximise(x, y, np.eye(2, 3, dtype=np.float32), steps=_COARSE_STEPS, blur=3)
    # Pixel x of the large pictures is (x + 0.5) / scale - 0.5 of the small ones.
    scale = _SIDE / _COARSE_SIDE
    shift = np.full(2, 0.5 * scale - 0.5, np.float32)
    warp[:, 2] = scale * warp[:, 2] + shift - warp[:, :2] @ shift
    return warp


def _refine(first: np.ndarray, second: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """The same on the details: clipped whites pull at the first estimate."""
    dark = (~_near_white(first)).astype(np.uint8)
    if dark.mean() < _LEAST_DARK:
        dark[:] = 1
    x, y = (_between(picture.astype(np.float32), *_REFINE_BLURS) for picture in (first, second))
    return _maximise(x, y, warp, dark, steps=_FINE_STEPS, blur=1)


def _maximise(
    first: np.ndarray,
    second: np.ndarray,
    warp: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    steps: int,
    blur: int,
) -> np.ndarray:
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, steps, _CONVERGED)
    if valid is None:
        valid = np.ones(first.shape, np.uint8)
    return cv2.findTransformECC(first, second, warp, cv2.MOTION_AFFINE, stop, valid, blur)[1]


def _agreement(first: np.ndarray, second: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """The correlation of details in each block in which either picture shows some."""
    x, y = first.astype(np.float32), _warped(second.astype(np.float32), warp)
    inside = _warped(np.ones_like(x), warp) > 0.999
    valid = (inside & ~_near_white(np.maximum(x, y))).astype(np.float32)
    x, y = (_between(values, *_BLURS, valid) for values in (x, y))
    xx, yy, xy, count = (_block_sums(values) for values in (x * x, y * y, x * y, valid))
    used = count > _LEAST_VALID * _BLOCK**2
    used &= np.maximum(xx, yy) > _VISIBLE**2 * count
    return xy[used] / np.sqrt(xx[used] * yy[used] + 1e-9)


def _warped(picture: np.ndarray, warp: np.ndarray) -> np.ndarray:
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, warp, (_SIDE, _SIDE), flags=how)


def _near_white(picture: np.ndarray) -> np.ndarray:
    white = (picture >= _WHITE).astype(np.uint8)
    return cv2.dilate(white, np.ones((3, 3), np.uint8)) > 0


def _between(
    values: np.ndarray, fine: float, coarse: float, valid: np.ndarray | None = None
) -> np.ndarray:
    """What two Gaussian blurs differ in; only of, and from, the `valid` pixels (1, else 0)."""
    if valid is None:
        return cv2.GaussianBlur(values, (0, 0), fine) - cv2.GaussianBlur(values, (0, 0), coarse)

    def blurred(sigma: float) -> np.ndarray:
        weight = np.maximum(cv2.GaussianBlur(valid, (0, 0), sigma), 1e-3)
        return cv2.GaussianBlur(values * valid, (0, 0), sigma) / weight

    return (blurred(fine) - blurred(coarse)) * valid


def _block_sums(values: np.ndarray) -> np.ndarray:
    side = _SIDE // _BLOCK
    return values.reshape(side, _BLOCK, side, _BLOCK).sum((1, 3))
