"""Validation on whole photos, scored at their original size."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.loader import read_pair
from carvana_tf.data.sizing import Sizing
from carvana_tf.errors import UserError
from carvana_tf.evaluation import constant
from carvana_tf.failures import OutOfMemory, named
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

    def read(sample: Sample) -> _Read:
        with named("validating", sample.photo):
            photo, mask = read_pair(sample)
            return _Read(sample, sizing.whole(photo), mask)

    def predict() -> Iterator[tuple[Sample, np.ndarray, np.ndarray]]:
        for batch in _batches(ordered_map(read, samples, threads), batch_size):
            for (sample, _, mask), output in zip(batch, _outputs(network, batch), strict=True):
                yield sample, mask, output

    def score(scored: tuple[Sample, np.ndarray, np.ndarray]) -> dict[str, float]:
        with named("scoring", scored[0].photo):
            return _score(*scored)

    def _score(sample: Sample, mask: np.ndarray, output: np.ndarray) -> dict[str, float]:
        probabilities = sizing.restore(output, *mask.shape)
        called = int(np.count_nonzero(probabilities >= 0.5))
        counts.append((called, int(np.count_nonzero(mask)), mask.size))
        show(sample, mask, probabilities)
        values = loss(mask[None, ..., None].astype(np.float32), probabilities[None, ..., None])
        value = float(keras.ops.convert_to_numpy(values)[0])
        return {"loss": value, **photo_metrics(mask, probabilities)}

    counts: list[tuple[int, int, int]] = []
    rows = list(ordered_map(score, predict(), threads))
    kind = constant.constant_prediction(*zip(*counts, strict=True))
    if kind is not None:
        report(constant.warning(kind, len(counts), "validation photos"))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


class _Read(NamedTuple):
    """A photo as the network takes it, and its mask."""

    sample: Sample
    photo: np.ndarray
    mask: np.ndarray


def _outputs(network: keras.Model, batch: Sequence[_Read]) -> np.ndarray:
    """Predicts `float32[B, H, W]`, half of a batch at a time where memory is not enough."""
    try:
        with named("validating", *(each.sample.photo for each in batch)):
            photos = np.stack([each.photo for each in batch])
            return np.asarray(network.predict_on_batch(photos), np.float32)[..., 0]
    except OutOfMemory as error:
        half = len(batch) // 2
        if not half:
            raise UserError(
                f"{error}, which is validated whole; use --size_policy=resize, a smaller "
                "--network, or --fold=none."
            ) from error
    return np.concatenate([_outputs(network, batch[:half]), _outputs(network, batch[half:])])


def _batches(reads: Iterable[_Read], size: int) -> Iterator[list[_Read]]:
    """Runs of neighbours of equal input shape, at most `size` long."""
    for _, run in itertools.groupby(reads, key=lambda each: each.photo.shape):
        while batch := list(itertools.islice(run, size)):
            yield batch
