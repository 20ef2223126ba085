"""How long the steps of a training take on this machine, from a few real ones."""

import contextlib
import dataclasses
import io
import statistics
import tempfile
import time
from collections.abc import Sequence

import keras

from carvana_tf.data.dataset import Sample
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory, is_out_of_memory
from carvana_tf.models import registry, weights
from carvana_tf.models.encoders import RANDOM
from carvana_tf.models.options import ModelOptions
from carvana_tf.options import DatasetOptions
from carvana_tf.training.options import TrainingOptions
from carvana_tf.training.proposal import Shape, Start
from carvana_tf.training.run import train_split
from carvana_tf.training.splits import Split

_WARM_UP, _STEPS = 2, 5


@dataclasses.dataclass(frozen=True)
class Timing:
    """What was measured.

    Attributes:
        start: Seconds from the call to the end of the first step.
        step: Median seconds of a step.
        save: Seconds from the last step to the end.
    """

    start: float
    step: float
    save: float


class _Clock(keras.callbacks.Callback):
    """Notes the times at which steps end."""

    def __init__(self) -> None:
        super().__init__()
        self.times = [time.monotonic()]

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.monotonic())


def time_steps(
    samples: Sequence[Sample], dataset: DatasetOptions, start: Start, shape: Shape
) -> Timing:
    """Trains for a few steps in a folder that is removed again.

    Args:
        samples: To train on; a part of them is.
        dataset: How they are read.
        start: Network and weights.
        shape: Of the input.

    Raises:
        OutOfMemory: Memory is not enough for such a batch.
        UserError: The weights do not fit, or photos cannot be read.
    """
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = TrainingOptions.of(
            **dataclasses.asdict(dataset),
            network=start.network,
            weights=start.weights,
            foreign_weights=start.weights != RANDOM,
            size_policy=shape.policy,
            input_height=shape.height,
            input_width=shape.width,
            batch_size=shape.batch,
            fold="none",
            epochs=1,
            steps_per_epoch=_WARM_UP + _STEPS,
            patience=0,
            models_dir=folder,
        )
        some = samples[: 4 * shape.batch]
        try:
            train_split(options, Split(None, some, []), callbacks=[clock])
        except UserError as error:
            if is_out_of_memory(error.__cause__):
                raise OutOfMemory(str(error), shape.pixels) from error
            raise
    first, *_ = gaps = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    saved = time.monotonic() - clock.times[-1]
    return Timing(first, statistics.median(gaps[_WARM_UP:]), saved)


def why_unfit(network: str, source: str) -> str:
    """Why weights do not fit a network; empty where they do.

    Args:
        network: As --network has it.
        source: As --weights has it; 'imagenet' is downloaded.
    """
    keras.utils.clear_session()
    try:
        weights.load_into(registry.build(ModelOptions(network)), source)
    except UserError as error:
        return str(error)
    return ""
