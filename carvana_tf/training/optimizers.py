"""Optimizers, and what Keras leaves to do around them: the last gradients, the averages."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from carvana_tf import devices, replicas
from carvana_tf.training.options import MOMENTUM, OptimizerOptions


class FusedAdam(keras.optimizers.Adam):
    """Adam, whose update is one operation where the backend has it."""

    def update_step(self, gradient, variable, learning_rate):
        """See `keras.optimizers.Adam`; the results differ by rounding only."""
        if not devices.has_fused_operations():
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        devices.fused_adam(
            variable,
            self._momentums[index].value,
            self._velocities[index].value,
            keras.ops.cast(gradient, variable.dtype),
            rate=keras.ops.cast(learning_rate, variable.dtype),
            step=keras.ops.cast(self.iterations + 1, variable.dtype),
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
        )


class FusedAdamW(FusedAdam, keras.optimizers.AdamW):
    """AdamW, as `FusedAdam`."""


_CLASSES: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adam": FusedAdam,
    "adamw": FusedAdamW,
    "sgd": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
}


def build(
    options: OptimizerOptions, rate: float | LearningRateSchedule
) -> keras.optimizers.Optimizer:
    """A new optimizer.

    Weight decay takes `rate * weight_decay * weight` off a weight at each update, whatever the
    optimizer. `ema` is that of `averaged`.

    Args:
        options: Which, and how.
        rate: A number, or a schedule over batches.
    """
    name, momentum = options.optimizer, options.momentum
    settings: dict[str, object] = {}
    if name in MOMENTUM:
        settings["momentum"] = MOMENTUM[name] if momentum is None else momentum
    if options.nesterov:
        settings["nesterov"] = True
    if options.weight_decay is not None:
        settings["weight_decay"] = options.weight_decay
    if options.gradient_accumulation > 1:
        settings["gradient_accumulation_steps"] = options.gradient_accumulation
    if options.ema:
        settings |= {"use_ema": True, "ema_momentum": options.ema}
    optimizer = _CLASSES[name](rate, global_clipnorm=options.clipnorm, **settings)
    # `fit` ends by writing the averages over the weights; here the training goes on.
    optimizer.finalize_variable_values = lambda variables: None
    return optimizer


def apply(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
) -> None:
    """As `optimizer.apply`, also for variables that are on several devices."""
    optimizer.apply(gradients, replicas.first_copies(variables))
    replicas.spread(variables)


def waiting(optimizer: keras.optimizers.Optimizer) -> int:
    """How many batches' gradients wait for a full accumulation."""
    inner = _inner(optimizer)
    every = inner.gradient_accumulation_steps
    return int(inner._iterations) % every if every else 0


def apply_remainder(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes an update of the mean of the gradients that are `waiting`, if any.

    To be called once, after the optimizer's last batch.
    """
    count = waiting(optimizer)
    if not count:
        return
    inner = _inner(optimizer)
    every, done = inner.gradient_accumulation_steps, int(inner._iterations)
    # Keras adds this to the waiting sum and divides by `every`; that gives sum / count.
    share = every / count - 1.0
    gradients = [keras.ops.multiply(sum_, share) for sum_ in inner._accumulated_gradients]
    rate = inner._learning_rate
    if isinstance(rate, LearningRateSchedule):
        inner._learning_rate = rate(done - 1)
    inner._iterations.assign(done - count + every - 1)
    apply(inner, gradients, inner._trainable_variables)
    inner._iterations.assign(done)
    inner._learning_rate = rate


def last_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """The learning rate of the last batch."""
    inner = _inner(optimizer)
    rate = inner._learning_rate
    if isinstance(rate, LearningRateSchedule):
        rate = rate(max(0, int(inner._iterations) - 1))
    return float(keras.ops.convert_to_numpy(rate))


@contextlib.contextmanager
def averaged(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Where the weights are their averages; without averages nothing changes.

    The moving statistics of BatchNormalization, averages themselves, stay.
    """
    inner = _inner(optimizer)
    if not inner.use_ema:
        yield
        return
    variables = inner._trainable_variables
    # Copies: the backend may hand out its own memory, and JAX gives it away with a step.
    weights = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    for variable, average in zip(variables, inner._model_variables_moving_average, strict=True):
        variable.assign(np.array(keras.ops.convert_to_numpy(average)))
    try:
        yield
    finally:
        for variable, value in zip(variables, weights, strict=True):
            variable.assign(value)


def _inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Ours, out of the loss-scaling one that Keras puts around it for float16."""
    return getattr(optimizer, "inner_optimizer", optimizer)
