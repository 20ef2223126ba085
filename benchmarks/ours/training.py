"""Training with the training loop."""

import contextlib
import tempfile
from pathlib import Path

import numpy as np

from carvana_tf import devices
from carvana_tf.tasks import MASKS
from harness import Rounds
from inputs import random_batch

import keras  # isort: skip

from carvana_tf.models import registry
from carvana_tf.models.options import ModelOptions
from carvana_tf.tasks.masks import losses
from carvana_tf.training import optimizers
from carvana_tf.training.loop import TrainingPlan, train
from carvana_tf.training.options import OptimizerOptions


def train_steps(rounds: Rounds, network: str, size: int, batch_size: int, steps: int) -> None:
    """Trains with the training loop, from batches that lie in memory.

    Args:
        rounds: What to measure: `steps` batches each.
        network: A name of `--network`.
        size: Height and width of the photos.
        batch_size: Photos per batch.
        steps: Batches per round.
    """
    keras.config.set_dtype_policy(devices.compute_dtype("auto"))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Enough):
        train(
            TrainingPlan(
                network=registry.build(ModelOptions(network)),
                optimizer=lambda _: optimizers.build(OptimizerOptions("adam"), 1e-4),
                task=MASKS,
                loss=losses.get("bce_dice"),
                training=_Ready(size, batch_size, steps),  # type: ignore[arg-type]
                validation=[],
                epochs=1,
                steps_per_epoch=1_000_000,  # the rounds end the training
                validate_every=1,
                monitor="val_dice",
                patience=0,
                threads=1,
                folder=Path(folder),
                save_model=lambda path, scores: None,
                callbacks=[_Pause(rounds, steps)],
            )
        )


class _Ready:
    """Batches made in advance, for what the loop asks of a `TrainingSet`."""

    mixed_sizes = False

    def __init__(self, size: int, batch_size: int, steps: int) -> None:
        photos, masks = random_batch(size, batch_size * steps)
        self._batches = list(zip(np.split(photos, steps), np.split(masks, steps), strict=True))

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch number `step`, as `TrainingSet.batch` gives it."""
        return self._batches[step % len(self._batches)]


class _Enough(Exception):
    """There are no more rounds. Keras would swallow a StopIteration."""


class _Pause(keras.callbacks.Callback):
    """Holds the training after every so many steps until the next round is asked for."""

    def __init__(self, rounds: Rounds, steps: int) -> None:
        super().__init__()
        self._rounds = iter(rounds)
        self._steps = steps

    def on_train_begin(self, logs=None) -> None:
        self._wait()

    def on_train_batch_end(self, batch, logs=None) -> None:
        if (batch + 1) % self._steps == 0:
            self._wait()

    def _wait(self) -> None:
        if next(self._rounds, None) is None:
            raise _Enough
