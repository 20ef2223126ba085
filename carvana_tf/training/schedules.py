"""Learning rates over the steps of a run."""

import dataclasses

import keras
from keras import ops

from carvana_tf.errors import UserError, unknown_name

SCHEDULES = ("constant", "cosine")
CLR_MODES = ("triangular", "triangular2", "exp_range")


@dataclasses.dataclass(frozen=True)
class Clr:
    """Settings of a cyclical learning rate, from `--clr base,max,step,mode`.

    Attributes:
        base: The lowest rate.
        top: The highest rate.
        step: Half a cycle, in optimiser steps.
        mode: "triangular"; "triangular2" halves the amplitude each cycle; "exp_range"
            multiplies it by `gamma ** step`, gamma being 1 as published.
    """

    base: float
    top: float
    step: int
    mode: str

    @classmethod
    def parse(cls, text: str) -> "Clr":
        """Reads `base,max,step,mode`.

        Raises:
            UserError: The text is something else.
        """
        parts = [part.strip() for part in text.split(",")]
        try:
            base, top, step, mode = parts
            clr = cls(float(base), float(top), int(step), mode)
        except ValueError as error:
            raise UserError(
                f"--clr='{text}' must be base,max,step,mode, as 0.00001,0.0001,500,triangular."
            ) from error
        if mode not in CLR_MODES:
            raise unknown_name("--clr mode", mode, CLR_MODES)
        if not 0 <= clr.base <= clr.top or clr.step < 1:
            raise UserError(f"--clr='{text}' needs 0 <= base <= max and a step of at least 1.")
        return clr


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
        """The rate at an optimiser step."""
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
        """The settings, as Keras wants them."""
        return {"clr": dataclasses.asdict(self._clr), "gamma": self._gamma}


def build(
    schedule: str, learning_rate: float, total_steps: int, warmup_steps: int, clr: str | None
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """What an optimiser takes as its learning rate.

    Args:
        schedule: "constant", or "cosine": down to zero at the last step.
        learning_rate: The highest rate.
        total_steps: Steps of the whole run.
        warmup_steps: Steps of a linear rise from zero, with "cosine".
        clr: `base,max,step,mode`; where given it replaces the schedule.

    Raises:
        UserError: `clr` or `schedule` is not understood.
    """
    if clr is not None:
        return CyclicalRate(Clr.parse(clr))
    if schedule == "constant":
        return learning_rate
    if schedule != "cosine":
        raise unknown_name("--lr_schedule", schedule, SCHEDULES)
    warmup_steps = min(warmup_steps, total_steps // 2)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else learning_rate,
        decay_steps=max(1, total_steps - warmup_steps),
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
