"""Whether an engine gives the masks that Keras gives in float32."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import UnreadableImage, to_uint8
from carvana_tf.data.loader import read_channels
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.evaluation.counts import dice_from_counts
from carvana_tf.failures import is_out_of_memory
from carvana_tf.inference.engines.base import Engine
from carvana_tf.progress import bar

PHOTOS = 16
FLIPS = 0.0002
DICE = 0.0001
_STEP = 64  # a multiple of every stride


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How far an engine's masks are from the reference's.

    Attributes:
        photos: How many were compared, at the network's own size.
        flips: Share of pixels on the other side of the threshold, 0..1.
        dice: By how much Dice moves, the mean over photos. Masks need not be known: it is
            the Dice that each mask can expect if the reference's probabilities are true.
    """

    photos: int
    flips: float
    dice: float

    @property
    def passed(self) -> bool:
        """Whether the engine may stand in for the reference."""
        return self.flips <= FLIPS and self.dice < DICE

    def __str__(self) -> str:
        return (
            f"{self.flips:.4%} of pixels flip, Dice moves by {self.dice:.6f} on {self.photos} "
            f"photos (allowed: {FLIPS:.2%}, {DICE})"
        )


def choose_photos(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples spread evenly over the list, or all where there are fewer."""
    places = np.linspace(0, len(samples) - 1, min(count, len(samples)))
    return [samples[round(place)] for place in places]


def compare(
    engine: Engine, reference: Engine, samples: Iterable[Sample], side: int | None = None
) -> Verdict:
    """Predicts photos with both; unreadable ones are skipped.

    Where memory is not enough, inputs are cut further.

    Args:
        engine: To be judged.
        reference: The same network in float32.
        samples: Photos with the stacked channels the network takes.
        side: Larger inputs are cut to their middle of so many pixels, a multiple of the stride.
    """
    flips, dice = [], []
    for sample in bar(list(samples), desc="checking engine", unit="photo"):
        try:
            photo = read_channels(sample)[..., : engine.channels]
        except UnreadableImage:
            continue
        whole = reference.resizer.whole(photo)
        while True:
            batch = _middle(whole, side)[None]
            try:
                expected, found = (each.predict(batch)[0] for each in (reference, engine))
                break
            except Exception as error:
                side = max(batch.shape[1:3]) // 2 // _STEP * _STEP
                if not (side and is_out_of_memory(error)):
                    raise
        masks = [to_uint8(p) > DEFAULT_THRESHOLD for p in (expected, found)]
        flips.append(np.mean(masks[0] != masks[1]))
        dice.append(_expected_dice(masks[1], expected) - _expected_dice(masks[0], expected))
    if not flips:
        return Verdict(0, 0.0, 0.0)
    return Verdict(len(flips), float(np.mean(flips)), float(abs(np.mean(dice))))


def _middle(image: np.ndarray, side: int | None) -> np.ndarray:
    top, left = (max(0, n - side) // 2 if side else 0 for n in image.shape[:2])
    return image[top:, left:][:side, :side]


def _expected_dice(mask: np.ndarray, probabilities: np.ndarray) -> float:
    """Dice of a mask and probabilities."""
    values = (probabilities[mask], probabilities, mask)
    overlap, area, predicted = (x.sum(dtype=np.float64) for x in values)
    return float(dice_from_counts(overlap, predicted + area))
