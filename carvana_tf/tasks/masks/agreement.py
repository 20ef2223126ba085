"""Whether an engine gives the masks that Keras gives in float32."""

import dataclasses
from collections.abc import Iterable
from typing import Self

import numpy as np

from carvana_tf.data.images import to_uint8
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.evaluation.counts import dice_from_counts
from carvana_tf.tasks.base import Verdict

FLIPS = 0.0002
DICE = 0.0001


@dataclasses.dataclass(frozen=True)
class MaskVerdict(Verdict):
    """How far an engine's masks are from the reference's, at the network's own size.

    Attributes:
        flips: Share of pixels on the other side of the threshold, 0..1.
        dice: By how much Dice moves, the mean over photos. Masks need not be known: it is
            the Dice that each mask can expect if the reference's probabilities are true.
    """

    flips: float
    dice: float

    @property
    def passed(self) -> bool:
        """See `Verdict.passed`."""
        return self.flips <= FLIPS and self.dice < DICE

    @classmethod
    def of(cls, outputs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Self:
        """See `Verdict.of`; outputs are `float32[H, W]` in 0..1."""
        flips, dice = [], []
        for expected, found in outputs:
            masks = [to_uint8(p) > DEFAULT_THRESHOLD for p in (expected, found)]
            flips.append(np.mean(masks[0] != masks[1]))
            dice.append(_expected_dice(masks[1], expected) - _expected_dice(masks[0], expected))
        if not flips:
            return cls(0, 0.0, 0.0)
        return cls(len(flips), float(np.mean(flips)), float(abs(np.mean(dice))))

    def __str__(self) -> str:
        return (
            f"{self.flips:.4%} of pixels flip, Dice moves by {self.dice:.6f} on {self.photos} "
            f"photos (allowed: {FLIPS:.2%}, {DICE})"
        )


def _expected_dice(mask: np.ndarray, probabilities: np.ndarray) -> float:
    """Dice of a mask and probabilities."""
    values = (probabilities[mask], probabilities, mask)
    overlap, area, predicted = (x.sum(dtype=np.float64) for x in values)
    return float(dice_from_counts(overlap, predicted + area))
