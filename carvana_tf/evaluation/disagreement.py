"""How little the masks of one photo agree on where its contour is.

The measure of a photo that is worth annotating: query by committee (Seung et al., COLT 1992), with
the mutual information of Houlsby et al. ("Bayesian active learning for classification and
preference learning", 2011; BALD, for images Gal et al., ICML 2017) as the disagreement of the
committee. With one mask it is the entropy (uncertainty sampling, Lewis and Gale, SIGIR 1994).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from carvana_tf.data.images import resize
from carvana_tf.evaluation.boundary import border_band
from carvana_tf.evaluation.counts import dice
from carvana_tf.evaluation.pictures import fit

SIDE = 1024
"""Larger masks are compared at this longer side."""
BAND = 0.005
"""Half the width of the band around a contour, as a share of the photo's diagonal."""

_SURE = 0.1  # a probability nearer to 0 or 1 is sure
_MOST = 255


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """What the masks of a photo say of each other.

    Attributes:
        score: Mean over the pixels near a contour, in bits, 0..1: of K masks the mutual
            information between a pixel's class and the mask that is asked, of one mask the entropy.
        least: The two masks that agree least, by number, and their Dice; None of one mask.
        unsure: Share of these pixels with a mean probability from 0.1 to 0.9.
        empty: The masks without any object, by number.
    """

    score: float
    least: tuple[int, int, float] | None
    unsure: float
    empty: tuple[int, ...]


def shrunk(grey: np.ndarray) -> np.ndarray:
    """A mask `uint8[H, W]` whose longer side is at most `SIDE`."""
    return resize(grey, *fit(grey.shape, SIDE))


def measure(greys: Sequence[np.ndarray], thresholds: Sequence[int]) -> Disagreement:
    """How little K masks of a photo agree, or how unsure one is.

    With p_k the probabilities of a pixel and h the binary entropy in bits, the score of the pixel
    is h(mean of p_k) - mean of h(p_k); for masks of two values that is the entropy of their votes.
    The mean is over a band of constant width around the contours of all masks, so that it does not
    grow with the object. Where no mask has a contour, the band is the whole photo.

    Args:
        greys: K times `uint8[H, W]`, `round(255 p)`.
        thresholds: K; a grey value greater than this is object.
    """
    masks = [grey > threshold for grey, threshold in zip(greys, thresholds, strict=True)]
    radius = max(2, math.ceil(BAND * math.hypot(*masks[0].shape)))
    band = np.logical_or.reduce([border_band(mask, radius) for mask in masks])
    if not band.any():
        band[:] = True
    near = [grey[band] for grey in greys]
    total = np.sum(near, axis=0, dtype=np.uint32)
    bits = _entropies(_MOST * len(greys))[total]
    if len(greys) > 1:
        single = _entropies(_MOST)
        bits -= np.mean([single[values] for values in near], axis=0)
    pairs = [
        (i, j, dice(masks[i], masks[j])) for i, j in itertools.combinations(range(len(masks)), 2)
    ]
    mean = total / (_MOST * len(greys))
    return Disagreement(
        max(0.0, float(bits.mean())),
        min(pairs, key=lambda pair: pair[2]) if pairs else None,
        float(np.mean((mean >= _SURE) & (mean <= 1 - _SURE))),
        tuple(i for i, mask in enumerate(masks) if not mask.any()),
    )


def _entropies(most: int) -> np.ndarray:
    """`float64[most + 1]`: the binary entropy in bits of 0, 1/most, ..., 1."""
    p = np.arange(most + 1) / most
    inner = p[1:-1]
    entropy = np.zeros(most + 1)
    entropy[1:-1] = -inner * np.log2(inner) - (1 - inner) * np.log2(1 - inner)
    return entropy
