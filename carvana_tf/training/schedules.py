"""Learning rates over the steps of a run."""

import dataclasses
from collections.abc import Sequence

import keras
from keras import ops

from carvana_tf.training.options import ScheduleOptions
from carvana_tf.training.rates import PUBLISHED, Clr, parse_rates


class CyclicalRate(keras.optimizers.schedules.LearningRateSchedule):
    """Cyclical learning rate.

    `rate = base + (top - base) * max(0, 1 - |step / half - 2 * cycle + 1|) * scale` with
    `cycle = floor(1 + step / (2 * half))`; Smith, "Cyclical Learning Rates for Training
    Neural Networks", 2017.
    """

    def __init__(self, clr: Clr, gamma: float = 1.0) -> None:
        self._clr = clr
        self._gamma = gamma

    def __call__(self, step):
        """The rate at an optimizer step."""
        clr = self._clr
        step = ops.cast(step, "float32")
        cycle = ops.floor(1.0 + step / (2.0 * clr.step))
        height = ops.maximum(0.0, 1.0 - ops.abs(step / clr.step - 2.0 * cycle + 1.0))
        if clr.mode == "triangular2":
            height = height / ops.power(2.0, cycle - 1.0)
        elif clr.mode == "exp_range":
            height = height * ops.power(self._gamma, step)
        return clr.base + (clr.top - clr.base) * height

    def get_config(self) -> dict:
        """See Keras."""
        return {"clr": dataclasses.asdict(self._clr), "gamma": self._gamma}


class EpochRates(keras.optimizers.schedules.LearningRateSchedule):
    """A rate for each epoch, numbered from 0; the last one stays."""

    def __init__(self, rates: Sequence[float], steps_per_epoch: int) -> None:
        self._rates = tuple(rates)
        self._steps_per_epoch = steps_per_epoch

    def __call__(self, step):
        """The rate at a step."""
        epoch = ops.floor_divide(ops.cast(step, "int32"), self._steps_per_epoch)
        rates = ops.convert_to_tensor(self._rates, "float32")
        return ops.take(rates, ops.minimum(epoch, len(self._rates) - 1))

    def get_config(self) -> dict:
        """See Keras."""
        return {"rates": self._rates, "steps_per_epoch": self._steps_per_epoch}


class Continued(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule over a run's batches for an optimizer that is made during the run."""

    def __init__(
        self, rate: keras.optimizers.schedules.LearningRateSchedule, start: int, repeat_every: int
    ) -> None:
        """Keeps the schedule of the run.

        Args:
            rate: The schedule of the run.
            start: Batches before the optimizer was made.
            repeat_every: Batches after which one of them comes again, which is an update
                but no progress of the schedule; 0 is never.
        """
        self._rate = rate
        self._every = repeat_every
        self._start = start + (start // repeat_every if repeat_every else 0)

    def __call__(self, step):
        """The rate at an update."""
        step = ops.cast(step, "int32") + self._start
        return self._rate(step - step // (self._every + 1) if self._every else step)

    def get_config(self) -> dict:
        """See Keras."""
        return {"rate": self._rate, "start": self._start, "repeat_every": self._every}


def build(
    options: ScheduleOptions, *, epochs: int, steps_per_epoch: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """What an optimizer takes as its learning rate.

    "cosine" goes down to zero at the last step; "step" is
    `learning_rate * decay_factor ** (epoch // decay_every)`.

    Args:
        options: The schedule. `learning_rate` may be None where it sets all rates itself.
        epochs: Of the whole run.
        steps_per_epoch: Batches in each.
    """
    schedule, rate = options.lr_schedule, options.learning_rate or 0.0
    if options.clr is not None:
        return CyclicalRate(Clr.parse(options.clr))
    if ":" in schedule:
        return EpochRates(parse_rates(schedule, epochs), steps_per_epoch)
    if schedule == "constant":
        return rate
    if schedule == "cosine":
        return _cosine(rate, epochs * steps_per_epoch, options.warmup_steps)
    if schedule == "step":
        decays = [epoch // options.decay_every for epoch in range(epochs)]
        factors = [options.decay_factor**decay for decay in decays]
    else:
        factors = [PUBLISHED[schedule](epoch) for epoch in range(epochs)]
    return EpochRates([rate * factor for factor in factors], steps_per_epoch)


def continued(
    rate: float | keras.optimizers.schedules.LearningRateSchedule, start: int, repeat_every: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """A run's rate for an optimizer made before batch `start`; see `Continued`."""
    if isinstance(rate, float) or not (start or repeat_every):
        return rate
    return Continued(rate, start, repeat_every)


def _cosine(
    learning_rate: float, total_steps: int, warmup_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    warmup_steps = min(warmup_steps, total_steps // 2)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else learning_rate,
        decay_steps=max(1, total_steps - warmup_steps),
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
