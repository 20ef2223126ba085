"""The text of `--augmentation`: a preset, and amounts that replace its own.

`001:zoom=0.2,shift=0.1` is the 4th-place solution's preset with a zoom of 0.8..1.2 and shifts
of up to a tenth of each side. `format_amounts` writes what `parse` reads.
"""

import dataclasses
import math
from typing import Any

from carvana_tf.data.presets import BORDERS, NEVER, PRESETS, Amount, Augmentation, Chance
from carvana_tf.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class Operation:
    """What one name in `--augmentation` sets.

    Attributes:
        lower: The least value.
        upper: The greatest value.
        fields: The fields of `Augmentation` it sets; empty: the one of its own name.
        centre: What an amount `a` is either way of: a..b is drawn from `centre - a` to
            `centre + a`. None: the value is a probability.
        chance: Whether an `@probability` may follow the amount.
    """

    lower: float
    upper: float
    fields: tuple[str, ...] = ()
    centre: float | None = 0.0
    chance: bool = False

    @property
    def syntax(self) -> str:
        """What may stand after the operation's `=`."""
        bounds = f"{self.lower:g}..{self.upper:g}"
        if self.centre is None:
            return f"a probability, {bounds}"
        most = min(self.upper - self.centre, self.centre - self.lower)
        probability = ", @probability" if self.chance else ""
        return f"0..{most:g} or low..high within {bounds}{probability}"


_PROBABILITY = Operation(0.0, 1.0, centre=None)
_ZOOM = Operation(0.05, 20.0, centre=1.0)
_SHARE = Operation(-1.0, 1.0)
_LEVELS = Operation(-255.0, 255.0)
_FACTOR = Operation(-1.0, 4.0, chance=True)

OPERATIONS: dict[str, Operation] = {
    "hflip": _PROBABILITY,
    "vflip": _PROBABILITY,
    "geometry": _PROBABILITY,
    "zoom": _ZOOM,
    "zoom_y": _ZOOM,
    "zoom_x": _ZOOM,
    "shift": dataclasses.replace(_SHARE, fields=("shift_y", "shift_x")),
    "shift_y": _SHARE,
    "shift_x": _SHARE,
    "rotation": Operation(-180.0, 180.0),
    "shear": Operation(-1.5, 1.5),
    "brightness": _FACTOR,
    "contrast": _FACTOR,
    "saturation": _FACTOR,
    "hsv": _PROBABILITY,
    "hue": Operation(-90.0, 90.0),
    "hsv_saturation": _LEVELS,
    "value": _LEVELS,
    "channel_shift": dataclasses.replace(_LEVELS, chance=True),
    "grey": _PROBABILITY,
    "grey_car": _PROBABILITY,
    "clahe": _PROBABILITY,
}
"""Every operation but `border`, whose value is one of `BORDERS`."""

_BORDER = "border"
_HSV = ("hue", "hsv_saturation", "value")

HELP = (
    f"Random transformations of the training photos: {', '.join(PRESETS)}; with amounts that "
    "replace the preset's as 001:zoom=0.2,shift=0.1 or none:rotation=-5..10,brightness=0.3@0.5 "
    "(an amount either way, a range low..high, @probability). Operations: "
    f"{', '.join(OPERATIONS)}, {_BORDER}."
)
"""The help text of `--augmentation`."""


def parse(text: str) -> Augmentation:
    """What `--augmentation` asks for: `preset` or `preset:operation=amount,…`.

    `zoom` sets the factors of both axes where the preset draws one for each, and else
    their common one. An operation that the preset never draws gets the probability 1,
    unless one is given.

    Raises:
        UserError: There is no such preset or operation, or its value is out of range.
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if name not in PRESETS:
        raise unknown_name("--augmentation", name, PRESETS)
    preset = PRESETS[name]
    changes: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        operation, equals, value = (side.strip() for side in part.partition("="))
        if operation != _BORDER and operation not in OPERATIONS:
            raise unknown_name(
                f"--augmentation='{text}': the operation", operation, (*OPERATIONS, _BORDER)
            )
        found = _read(operation, value, preset) if equals else None
        if found is None:
            raise _refusal(text, part, operation)
        if found.keys() & changes.keys():
            raise UserError(f"--augmentation='{text}' sets '{operation}' twice; drop one.")
        changes |= found
    if changes.keys() & set(_HSV) and "hsv" not in changes and not preset.hsv:
        changes["hsv"] = 1.0 - changes.get("grey_car", preset.grey_car)
    try:
        return dataclasses.replace(preset, **changes)
    except ValueError as error:
        raise UserError(f"--augmentation='{text}': {error}") from error


def format_amounts(augmentation: Augmentation) -> str:
    """All that may be drawn, as `parse` reads it after `none:`; "none" where nothing is."""
    parts = []
    for field in dataclasses.fields(augmentation):
        value = getattr(augmentation, field.name)
        if value == field.default:
            continue
        if isinstance(value, Chance):
            parts.append(f"{field.name}={_format(value.limit)}@{value.probability:g}")
        else:
            parts.append(f"{field.name}={_format(value)}")
    return ",".join(parts) or "none"


def _read(name: str, text: str, preset: Augmentation) -> dict[str, Any] | None:
    """The fields that `name=text` sets; None where the text is no value of the operation."""
    if name == _BORDER:
        return {name: text} if text in BORDERS else None
    operation = OPERATIONS[name]
    if operation.centre is None:
        probability = _number(text)
        return {name: probability} if 0 <= probability <= 1 else None
    amount, at, chance = text.partition("@")
    values = [_number(side) for side in amount.split("..")]
    if len(values) == 1:
        values = [operation.centre - values[0], operation.centre + values[0]]
    if len(values) != 2 or not operation.lower <= values[0] <= values[1] <= operation.upper:
        return None
    value: Any = (values[0], values[1])
    if operation.chance:
        before = getattr(preset, name)
        probability = _number(chance) if at else 1.0 if before == NEVER else before.probability
        if not 0 <= probability <= 1:
            return None
        value = Chance(probability, (values[0], values[1]))
    elif at:
        return None
    fields = operation.fields or (name,)
    per_axis = preset.zoom_y != (1.0, 1.0) or preset.zoom_x != (1.0, 1.0)
    if name == "zoom" and per_axis:
        fields = ("zoom_y", "zoom_x")
    return dict.fromkeys(fields, value)


def _refusal(text: str, part: str, name: str) -> UserError:
    takes = f"one of {', '.join(BORDERS)}" if name == _BORDER else OPERATIONS[name].syntax
    every = ", ".join((*OPERATIONS, _BORDER))
    return UserError(
        f"--augmentation='{text}' cannot take '{part.strip()}': {name} is {takes}. "
        f"Operations: {every}."
    )


def _number(text: str) -> float:
    """The number in a text; NaN, which is within no bounds, where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _format(value: Amount | str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, tuple):
        return f"{value:g}"
    low, high = value
    return f"{high:g}" if low == -high else f"{low:g}..{high:g}"
