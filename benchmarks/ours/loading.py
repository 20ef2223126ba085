"""Training samples: decoded, cropped and transformed."""

from pathlib import Path

import cv2

from carvana_tf.data.dataset import Sample
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.presets import PRESETS
from carvana_tf.data.resizing import Resizer
from carvana_tf.tasks import MASKS
from carvana_tf.threads import ordered_map
from harness import Rounds


def load(
    rounds: Rounds, pairs: tuple[tuple[str, str], ...], crop: int, preset: str, threads: int,
    cache: str,
) -> None:  # fmt: skip
    """Draws as many samples as there are photos.

    Args:
        rounds: What to measure.
        pairs: Paths of photos and of their masks.
        crop: Height and width of the windows.
        preset: A value of --augmentation.
        threads: How many.
        cache: A value of --cache.
    """
    cv2.setNumThreads(1)
    samples = [Sample(Path(p).stem, Path(p).stem, Path(p), Path(m)) for p, m in pairs]
    resizer = Resizer("crop", crop, crop, 32)
    training = TrainingSet(
        samples, resizer, PRESETS[preset], MASKS, batch_size=1, seed=80, cache=cache
    )
    first = 0
    for _ in rounds:
        numbers = range(first, first + len(samples))
        for _ in ordered_map(training.sample, numbers, threads):
            pass
        first += len(samples)
