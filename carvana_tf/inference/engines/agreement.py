"""Outputs of an engine next to those of Keras in float32, on the same photos."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import UnreadableImage
from carvana_tf.data.loader import read_channels
from carvana_tf.failures import is_out_of_memory
from carvana_tf.inference.engines.base import Engine
from carvana_tf.progress import bar

PHOTOS = 16
_STEP = 64  # a multiple of every stride


def choose_photos(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` samples spread evenly over the list, or all where there are fewer."""
    places = np.linspace(0, len(samples) - 1, min(count, len(samples)))
    return [samples[round(place)] for place in places]


def outputs(
    engine: Engine, reference: Engine, samples: Iterable[Sample], side: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What both give for each photo, the reference first; unreadable photos are skipped.

    Where memory is not enough, inputs are cut further.

    Args:
        engine: To be judged.
        reference: The same network in float32.
        samples: Photos with the stacked channels the network takes.
        side: Larger inputs are cut to their middle of so many pixels, a multiple of the stride.
    """
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
        yield expected, found


def _middle(image: np.ndarray, side: int | None) -> np.ndarray:
    top, left = (max(0, n - side) // 2 if side else 0 for n in image.shape[:2])
    return image[top:, left:][:side, :side]
