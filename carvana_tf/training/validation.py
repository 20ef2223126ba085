"""Validation on whole photos, scored at their original size."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.loader import read_pair
from carvana_tf.data.sizing import Sizing
from carvana_tf.evaluation import constant
from carvana_tf.progress import report
from carvana_tf.threads import ordered_map
from carvana_tf.training.losses import Loss
from carvana_tf.training.metrics import photo_metrics


def validate(
    network: keras.Model,
    samples: Sequence[Sample],
    sizing: Sizing,
    loss: Loss,
    *,
    batch_size: int = 1,
    threads: int = 2,
    show: Callable[[Sample, np.ndarray, np.ndarray], object] = lambda *_: None,
) -> dict[str, float]:
    """Predicts every photo and scores it against its mask.

    Args:
        network: Takes `[B, H, W, C]` in 0..255, gives `float32[B, H, W, 1]`.
        samples: With masks.
        sizing: How a photo of any size meets the network.
        loss: Evaluated at the photo's own size too.
        batch_size: At most so many photos of equal input size at once.
        threads: For reading and for scoring.
        show: Called with each sample, its `bool[H, W]` mask and `float32[H, W]` probabilities,
            in any thread.

    Returns:
        Means over photos: those of `photo_metrics`, and `loss`.
    """

    def read(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        photo, mask = read_pair(sample)
        return sizing.whole(photo), mask

    def predict() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in _batches(ordered_map(read, samples, threads), batch_size):
            photos = np.stack([photo for photo, _ in batch])
            outputs = np.asarray(network.predict_on_batch(photos), np.float32)
            for (_, mask), output in zip(batch, outputs, strict=True):
                yield mask, output[..., 0]

    def score(scored: tuple[Sample, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        sample, (mask, output) = scored
        probabilities = sizing.restore(output, *mask.shape)
        called = int(np.count_nonzero(probabilities >= 0.5))
        counts.append((called, int(np.count_nonzero(mask)), mask.size))
        show(sample, mask, probabilities)
        values = loss(mask[None, ..., None].astype(np.float32), probabilities[None, ..., None])
        value = float(keras.ops.convert_to_numpy(values)[0])
        return {"loss": value, **photo_metrics(mask, probabilities)}

    counts: list[tuple[int, int, int]] = []
    rows = list(ordered_map(score, zip(samples, predict(), strict=True), threads))
    kind = constant.constant_prediction(*zip(*counts, strict=True))
    if kind is not None:
        report(constant.warning(kind, len(counts), "validation photos"))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _batches(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], size: int
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Runs of neighbours of equal input shape, at most `size` long."""
    for _, run in itertools.groupby(pairs, key=lambda pair: pair[0].shape):
        while batch := list(itertools.islice(run, size)):
            yield batch
