"""Validation on whole photos, scored at their original size.

Where memory is not enough for a single photo, its input is cut into tiles, as in prediction.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from carvana_tf import replicas
from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import read_size
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory, named
from carvana_tf.inference import tiling
from carvana_tf.inference.tiling import LargeInputs
from carvana_tf.progress import report
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

    runner = _Runner(network, resizer.stride)
    # Each of these takes some 40 bytes a pixel to score: one at a time.
    huge = any(math.prod(read_size(sample.photo)) > _HUGE for sample in samples)
    threads, ahead = (1, 1) if huge else (threads, 0)

    def read(sample: Sample) -> _Read:
        with named("validating", sample.photo):
            photo, target = task.read(sample)
            return _Read(sample, resizer.whole(photo), photo.shape[:2], target)

    def predict() -> Iterator[tuple[_Read, np.ndarray]]:
        for batch in _batches(ordered_map(read, samples, threads, ahead), batch_size):
            outputs = runner.run(batch)
            light = [each._replace(photo=_NONE) for each in batch]  # inputs are large
            yield from zip(light, outputs, strict=True)

    def score(predicted: tuple[_Read, np.ndarray]) -> Any:
        (sample, _, size, target), output = predicted
        with named("scoring", sample.photo):
            prediction = task.restore(output, resizer, size)
            show(sample, target, prediction)
            return task.score(target, prediction, loss)

    return task.summarize(ordered_map(score, predict(), threads, ahead))


class _Read(NamedTuple):
    """A photo as the network takes it, its own (height, width), and its target."""

    sample: Sample
    photo: np.ndarray
    size: tuple[int, int]
    target: Any


_NONE = np.empty(0)
_HUGE = 1 << 25  # pixels


class _Runner:
    """Runs a network on batches of photos, with what fits into memory."""

    def __init__(self, network: keras.Model, stride: int) -> None:
        self._network = network
        self._stride = stride
        # Only images are put together again, and other networks take one size alone.
        shape = network.input_shape[1:3], len(network.output_shape)
        self._cuts = shape == ((None, None), 4)
        self._large: LargeInputs | None = None

    def run(self, batch: Sequence[_Read]) -> np.ndarray:
        """Predicts `float32[B, …]`; where memory is not enough half a batch at a time, then tiles.

        Raises:
            UserError: It is not enough for a photo in tiles either.
        """
        while True:
            try:
                with named("validating", *(each.sample.photo for each in batch)):
                    return self._predict([each.photo for each in batch])
            except OutOfMemory as error:
                if replicas.is_joined():  # the others do not take less with this one
                    raise
                if half := len(batch) // 2:
                    break
                self._cut(batch[0].photo, error)
        return np.concatenate([self.run(batch[:half]), self.run(batch[half:])])

    def _predict(self, photos: Sequence[np.ndarray]) -> np.ndarray:
        pixels = math.prod(photos[0].shape[:2])
        if self._large is None or pixels < self._large.pixels:
            return self._call(np.stack(photos))
        tiles = self._large.tiling
        whole = (None,)  # the one view
        outputs = tiling.predict(
            lambda cut: self._call(cut)[..., 0],
            *(photos, whole, tiles),
            stride=self._stride,
            batch_size=1,
        )
        return outputs[..., None]

    def _call(self, photos: np.ndarray) -> np.ndarray:
        return replicas.predict_on_batch(self._network, photos)

    def _cut(self, photo: np.ndarray, error: OutOfMemory) -> None:
        """Notes that inputs of this size and larger are cut from now on, or smaller than so far."""
        pixels = math.prod(photo.shape[:2])
        cut = tiling.halve(pixels, None, self._large, [self._stride]) if self._cuts else None
        if cut is None:
            raise UserError(
                f"{error}, one by one; use --size_policy=resize, a smaller --network, or "
                "--fold=none."
            ) from error
        self._large = cut
        report(f"{error}; going on with {cut}, which may change the scores a little")


def _batches(reads: Iterable[_Read], size: int) -> Iterator[list[_Read]]:
    """Runs of neighbours of equal input shape, at most `size` long."""
    for _, run in itertools.groupby(reads, key=lambda each: each.photo.shape):
        while batch := list(itertools.islice(run, size)):
            yield batch
