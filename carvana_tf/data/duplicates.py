"""Copies of one photo under several names, found although re-encoded or resized.

Studio photos of different cars look alike: a perceptual hash alone takes them for
copies. It only picks the pairs worth comparing; small high-pass pictures, in which the
common background and the brightness cancel out, then decide.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from carvana_tf.data.images import resize

_HASH_SIDE = 8  # 64 bits
_HASH_BITS = 8  # differing bits at most; copies were seen to differ in 6
_DETAIL_SIDE = 64
_DETAIL_BLUR = 4.0
# Copies (JPEG quality 30, half size, 20 % brighter) correlate above 0.98, the most similar
# photos of two different cars of the Carvana studio by 0.77.
_SAME_DETAIL = 0.93
_FLAT = 0.25  # grey levels of detail below which a picture shows nothing to compare
_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What is kept of a photo to compare it.

    Attributes:
        hash: `float32[64]` of -1 and 1: signs of the lowest frequencies.
        detail: `float16[4096]`, the high-pass thumbnail with mean 0 and norm 1; zeros for
            a photo without detail, which is like no other.
    """

    hash: np.ndarray
    detail: np.ndarray


def fingerprint(photo: np.ndarray) -> Fingerprint:
    """The fingerprint of a `uint8[H, W, 3]` photo.

    The hash is the DCT hash of Zauner ("Implementation and benchmarking of perceptual
    image hash functions", 2010): the 8x8 lowest frequencies of a 32x32 thumbnail against
    their median.
    """
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = resize(grey, _DETAIL_SIDE, _DETAIL_SIDE)
    side = _HASH_SIDE
    low = cv2.dct(resize(small, 4 * side, 4 * side))[:side, :side].ravel()
    signs = np.where(low > np.median(low[1:]), 1, -1).astype(np.float32)
    detail = small - cv2.GaussianBlur(small, (0, 0), _DETAIL_BLUR)
    detail -= detail.mean()
    norm = np.linalg.norm(detail) if detail.std() > _FLAT else np.inf
    return Fingerprint(signs, (detail.ravel() / norm).astype(np.float16))


def find_copies(prints: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
    """The pairs (i, j), i < j, of fingerprints of the same photo."""
    if not prints:
        return
    hashes = np.stack([one.hash for one in prints])
    nearly = hashes.shape[1] - 2 * _HASH_BITS  # dot product of two signs at that distance
    for start in range(0, len(hashes), _BLOCK):
        products = hashes[start : start + _BLOCK] @ hashes[start:].T
        for row, column in np.argwhere(np.triu(products >= nearly, k=1)):
            i, j = int(start + row), int(start + column)
            likeness = prints[i].detail.astype(np.float32) @ prints[j].detail.astype(np.float32)
            if likeness > _SAME_DETAIL:
                yield i, j
