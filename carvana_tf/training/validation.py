"""Validation on whole photos, scored at their original size."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory, named
from carvana_tf.tasks.base import Loss, Task
from carvana_tf.threads import ordered_map


def validate(
    network: keras.Model,
    samples: Sequence[Sample],
    resizer: Resizer,
    loss: Loss,
    task: Task,
    *,
    batch_size: int = 1,
    threads: int = 2,
    show: Callable[[Sample, Any, Any], object] = lambda *_: None,
) -> dict[str, float]:
    """Predicts every photo and scores it against its target.

    Args:
        network: Takes `[B, H, W, C]` in 0..255.
        samples: With targets.
        resizer: How a photo of any size meets the network.
        loss: Evaluated at the photo's own size too.
        task: What is predicted.
        batch_size: At most so many photos of equal input size at once.
        threads: For reading and for scoring.
        show: Called with each sample, its target and its prediction, in any thread.

    Returns:
        What `task.summarize` gives.
    """

    def read(sample: Sample) -> _Read:
        with named("validating", sample.photo):
            photo, target = task.read(sample)
            return _Read(sample, resizer.whole(photo), photo.shape[:2], target)

    def predict() -> Iterator[tuple[_Read, np.ndarray]]:
        for batch in _batches(ordered_map(read, samples, threads), batch_size):
            outputs = _outputs(network, batch)
            light = [each._replace(photo=_NONE) for each in batch]  # inputs are large
            yield from zip(light, outputs, strict=True)

    def score(predicted: tuple[_Read, np.ndarray]) -> Any:
        (sample, _, size, target), output = predicted
        with named("scoring", sample.photo):
            prediction = task.restore(output, resizer, size)
            show(sample, target, prediction)
            return task.score(target, prediction, loss)

    return task.summarize(ordered_map(score, predict(), threads))


class _Read(NamedTuple):
    """A photo as the network takes it, its own (height, width), and its target."""

    sample: Sample
    photo: np.ndarray
    size: tuple[int, int]
    target: Any


_NONE = np.empty(0)


def _outputs(network: keras.Model, batch: Sequence[_Read]) -> np.ndarray:
    """Predicts `float32[B, …]`, half of a batch at a time where memory is not enough."""
    try:
        with named("validating", *(each.sample.photo for each in batch)):
            photos = np.stack([each.photo for each in batch])
            return np.asarray(network.predict_on_batch(photos), np.float32)
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
