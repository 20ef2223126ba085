"""How a flag describes a loss of a task: by its name, or `name:parameter=number,…`."""

import functools
import importlib
import math
from collections.abc import Collection, Mapping

from carvana_tf.errors import UserError, unknown_name
from carvana_tf.tasks.base import Loss


class LossTable:
    """The losses of a task by name; their modules need Keras and are loaded when one is asked for.

    Attributes:
        rows: Name -> the module with the function of this name, and its keywords.
    """

    def __init__(
        self,
        package: str,
        rows: Mapping[str, tuple[str, tuple[str, ...]]],
        *,
        example: str,
        whole: Collection[str] = (),
        positive: Mapping[str, str] | None = None,
    ) -> None:
        """Makes a table.

        Args:
            package: Where the modules are.
            rows: See the attribute.
            example: A description that is right, for messages.
            whole: Keywords that are whole numbers.
            positive: Keywords that must not be 0, and what would happen if they were.
        """
        self.rows = rows
        self._package = package
        self._example = example
        self._whole = whole
        self._positive = positive or {}

    def parse(self, text: str) -> Loss:
        """The loss that `--loss_function` describes: its name, or `name:parameter=number,…`.

        Raises:
            UserError: As `check`.
        """
        name, parameters = self._split(text)
        return self.get(name, **parameters)

    def check(self, text: str) -> None:
        """Refuses what `parse` refuses, without Keras.

        Raises:
            UserError: The text is no such description; or as `get`.
        """
        name, parameters = self._split(text)
        self._checked(name, parameters)

    def get(self, name: str, /, **parameters: float) -> Loss:
        """The loss of that name.

        Args:
            name: One of `rows`.
            **parameters: Keywords of that loss in place of its published defaults.

        Raises:
            UserError: There is no such loss, or it has no such parameter; the nearest name
                is suggested. Or a parameter that counts is no whole number, or one that must
                not be 0 is.
        """
        values = self._checked(name, parameters)
        module, _ = self.rows[name]
        loss: Loss = getattr(importlib.import_module(f"{self._package}.{module}"), name)
        return functools.partial(loss, **values) if values else loss

    def _split(self, text: str) -> tuple[str, dict[str, float]]:
        name, colon, rest = text.partition(":")
        parameters: dict[str, float] = {}
        for part in rest.split(",") if colon else ():
            parameter, _, number = (side.strip() for side in part.partition("="))
            try:
                value = float(number)
            except ValueError:
                value = math.nan
            if not 0 <= value < math.inf or parameter in parameters:
                raise UserError(
                    f"--loss_function='{text}' cannot go on with '{part}'; it must be name or "
                    f"name:parameter=number,…, as {self._example}."
                )
            parameters[parameter] = value
        return name, parameters

    def _checked(self, name: str, parameters: Mapping[str, float]) -> dict[str, float]:
        """The parameters of a loss, whole numbers as such."""
        if name not in self.rows:
            raise unknown_name("--loss_function", name, self.rows)
        _, known = self.rows[name]
        for parameter, value in parameters.items():
            if not known:
                raise UserError(
                    f"--loss_function '{name}' takes no parameters; drop '{parameter}'."
                )
            if parameter not in known:
                raise unknown_name(f"--loss_function '{name}': parameter", parameter, known)
            if parameter in self._whole and value != int(value):
                raise UserError(
                    f"--loss_function '{name}': '{parameter}' must be a whole number, not {value}."
                )
        for parameter, otherwise in self._positive.items():
            if parameters.get(parameter, 1) <= 0:
                raise UserError(
                    f"--loss_function '{name}': '{parameter}' must be greater than 0; without it "
                    f"{otherwise}."
                )
        return {p: int(value) if p in self._whole else value for p, value in parameters.items()}
