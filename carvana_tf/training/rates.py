"""What `--lr_schedule` and `--clr` say, as numbers; `schedules` makes Keras' schedules of them."""

import dataclasses
import math
from collections.abc import Callable

from carvana_tf.errors import UserError, unknown_name

CLR_MODES = ("triangular", "triangular2", "exp_range")


@dataclasses.dataclass(frozen=True)
class Clr:
    """Settings of a cyclical learning rate, from `--clr base,max,step,mode`.

    Attributes:
        base: The lowest rate.
        top: The highest rate.
        step: Half a cycle, in optimizer steps.
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
        if not 0 <= clr.base <= clr.top < math.inf or clr.step < 1:
            raise UserError(f"--clr='{text}' needs 0 <= base <= max and a step of at least 1.")
        return clr


def _albu(epoch: int) -> float:
    """x 0.1 every 12 epochs; from epoch 23 on cycles of five."""
    return 0.1 ** (epoch // 12) if epoch < 23 else (1.0, 1.0, 0.1, 0.1, 0.01)[(epoch - 23) % 5]


# What --learning_rate is multiplied by in each epoch from 0: the parts of the 1st-place solution.
PUBLISHED: dict[str, Callable[[int], float]] = {
    "000-vgg11v1": lambda epoch: (1.0, 1.0, 0.1, 0.01)[epoch % 20 // 5],
    "000-albu": _albu,
    # It counts epochs from 1, so that the cycle begins at its second rate: 1, 1/2, 1/2, 1/4, 1.
    "000-ternaus": lambda epoch: 0.5 ** ((epoch + 1) % 5 // 2),
}
SCHEDULES = ("constant", "cosine", "step", *PUBLISHED)


def parse_rates(text: str, epochs: int) -> list[float]:
    """The rates of `epochs` epochs from `epoch:rate` pairs, as "0:1e-4,12:1e-5".

    Raises:
        UserError: The text is something else.
    """
    fix = "it must be epoch:rate pairs from epoch 0 up, as 0:1e-4,12:1e-5."
    pairs: dict[int, float] = {}
    for part in text.split(","):
        try:
            epoch, rate = part.split(":")
            first, value = int(epoch), float(rate)
        except ValueError as error:
            raise UserError(f"--lr_schedule='{text}' has '{part}' in it; {fix}") from error
        if not (0 <= value < math.inf) or first <= max(pairs, default=-1):
            raise UserError(f"--lr_schedule='{text}' cannot go on with '{part}'; {fix}")
        pairs[first] = value
    if 0 not in pairs:
        raise UserError(f"--lr_schedule='{text}' does not say what epoch 0 has; {fix}")
    return [pairs[max(first for first in pairs if first <= epoch)] for epoch in range(epochs)]


def depends_on_length(schedule: str, clr: str | None = None) -> bool:
    """Whether the rates of a run's first epochs depend on how many follow."""
    return clr is None and schedule == "cosine"
