"""Whether an engine gives the labels that Keras gives in float32."""

import dataclasses
from collections.abc import Iterable
from typing import Self

import numpy as np

from carvana_tf.tasks.base import Verdict

ERROR = 0.01
CHANGED = 0.0005


@dataclasses.dataclass(frozen=True)
class LabelVerdict(Verdict):
    """How far an engine's labels are from the reference's, by the sigmoid of the logits.

    Attributes:
        error: The greatest difference of a probability, the mean over photos, 0..1.
        changed: Share of classes on the other side of 0.5, 0..1.
    """

    error: float
    changed: float

    @property
    def passed(self) -> bool:
        """See `Verdict.passed`."""
        return self.error < ERROR and self.changed <= CHANGED

    @classmethod
    def of(cls, outputs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Self:
        """See `Verdict.of`; outputs are logits, `float32[K]`."""
        errors, changed = [], []
        for pair in outputs:
            expected, found = (1 / (1 + np.exp(-np.clip(logits, -80, 80))) for logits in pair)
            errors.append(np.abs(expected - found).max())
            changed.append(np.mean((expected > 0.5) != (found > 0.5)))
        if not errors:
            return cls(0, 0.0, 0.0)
        return cls(len(errors), float(np.mean(errors)), float(np.mean(changed)))

    def __str__(self) -> str:
        return (
            f"probabilities move by {self.error:.5f} and {self.changed:.3%} of labels change on "
            f"{self.photos} photos (allowed: {ERROR}, {CHANGED:.2%})"
        )
