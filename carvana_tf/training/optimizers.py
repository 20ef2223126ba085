"""Optimisers, and what Keras leaves to do around them: the last gradients, the averages."""

import contextlib
from collections.abc import Callable, Iterator

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from carvana_tf import devices
from carvana_tf.errors import UserError, unknown_name


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
    """AdamW likewise."""


OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {
    "adam": FusedAdam,
    "adamw": FusedAdamW,
    "sgd": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
}
_MOMENTUM = {"sgd": 0.9, "rmsprop": 0.0}


def build(
    name: str,
    rate: float | LearningRateSchedule,
    *,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    accumulation: int = 1,
    ema: float = 0.0,
) -> keras.optimizers.Optimizer:
    """A fresh optimiser.

    Args:
        name: One of `OPTIMIZERS`.
        rate: A number, or a schedule over batches.
        momentum: Of sgd (0.9 where None) or rmsprop (0).
        nesterov: Nesterov's momentum, with sgd.
        weight_decay: Each update takes `rate * weight_decay * weight` off a weight,
            whatever the optimiser; None is Keras' default, 0.004 for adamw and else 0.
        clipnorm: The gradient of all weights together is scaled down to this norm.
        accumulation: Batches whose mean gradient makes one update.
        ema: Momentum of an average of the weights over the batches, see `averaged`; 0 is
            none.

    Raises:
        UserError: The name is unknown, or a setting does not suit the optimiser.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("--optimizer", name, OPTIMIZERS)
    settings: dict[str, object] = {}
    if name in _MOMENTUM:
        settings["momentum"] = _MOMENTUM[name] if momentum is None else momentum
    elif momentum is not None:
        raise UserError(f"--momentum={momentum} does not suit --optimizer={name}; drop it.")
    if nesterov:
        if name != "sgd" or settings["momentum"] == 0:
            raise UserError("--nesterov needs --optimizer=sgd and a --momentum above 0.")
        settings["nesterov"] = True
    if weight_decay is not None:
        settings["weight_decay"] = weight_decay
    if accumulation > 1:
        settings["gradient_accumulation_steps"] = accumulation
    if ema:
        settings |= {"use_ema": True, "ema_momentum": ema}
    optimizer = OPTIMIZERS[name](rate, global_clipnorm=clipnorm, **settings)
    # `fit` ends by writing the averages over the weights; here the training goes on.
    optimizer.finalize_variable_values = lambda variables: None
    return optimizer


def waiting(optimizer: keras.optimizers.Optimizer) -> int:
    """How many batches' gradients wait for a full accumulation."""
    inner = _inner(optimizer)
    every = inner.gradient_accumulation_steps
    return int(inner._iterations) % every if every else 0


def apply_remainder(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes an update of the mean of the gradients that are `waiting`, if any.

    To be called once, after the optimiser's last batch.
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
    inner.apply(gradients, inner._trainable_variables)
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
    # Copies: the backend may hand out its own memory.
    weights = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    for variable, average in zip(variables, inner._model_variables_moving_average, strict=True):
        variable.assign(average)
    try:
        yield
    finally:
        for variable, value in zip(variables, weights, strict=True):
            variable.assign(value)


def _inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Ours, out of the loss-scaling one that Keras puts around it for float16."""
    return getattr(optimizer, "inner_optimizer", optimizer)
