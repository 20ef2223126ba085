"""Losses on probabilities, one value per photo, computed in float32.

Every loss takes `y_true` and `y_pred` of shape `[B, H, W, 1]` with values in 0..1
(targets may be soft where a mask was resized) and returns `float32[B]`. Parameters are
keywords whose defaults are the published values. The published systems pool their sums
over the batch; here every photo is on its own, so that it weighs the same whatever else
its batch holds. Every loss and its gradient is finite for every input, certainty
(0 and 1), empty and full masks included.

Sources: the 1st-place solution is asanakoy/kaggle_carvana_segmentation, the 4th-place solution
killthekitten/kaggle-carvana-2017; two more are by sohyongsheng (kaggle-carvana) and by
AlbertoSabater.
"""

import functools
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from carvana_tf.errors import UserError, unknown_name

Loss = Callable[[Any, Any], Any]

_SYNTAX = "it must be name or name:parameter=number,…, as bce_dice:bce_weight=1,dice_weight=1"

LOSSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "bce_dice": ("combined", ("bce_weight", "dice_weight", "smooth")),
    "dice": ("overlap", ("smooth",)),
    "crossentropy": ("pixelwise", ()),
    "crossentropy_boot": ("pixelwise", ("beta",)),
    "boot_soft": ("combined", ("beta", "bce_weight", "dice_weight")),
    "boot_hard": ("combined", ("beta", "bce_weight", "dice_weight")),
    "online_bootstrapping": ("pixelwise", ("pixels", "threshold")),
    "dice_coef_loss_border": ("contour", ("border_weight", "dice_weight")),
    "bce_dice_loss_border": ("contour", ("border_weight", "dice_weight")),
    "weighted_bce_dice": ("contour", ("boundary_weight",)),
    "log_dice": ("combined", ("smooth",)),
    "weighted_log_dice": ("contour", ("boundary_weight",)),
    "distance_weighted": ("contour", ("strength", "sigma")),
    "jaccard": ("overlap", ("smooth",)),
    "bce_jaccard": ("combined", ("bce_weight", "jaccard_weight", "smooth")),
    "focal": ("pixelwise", ("alpha", "gamma")),
    "tversky": ("overlap", ("alpha", "beta", "smooth")),
}
"""Name of `--loss_function` -> the module here with the function of this name, and its keywords.

The modules need Keras and are loaded when a loss is asked for.
"""

_WHOLE = ("pixels",)
"""Keywords that are whole numbers."""


def parse(text: str) -> Loss:
    """The loss that `--loss_function` describes: its name, or `name:parameter=number,…`.

    Raises:
        UserError: As `check`.
    """
    name, parameters = _split(text)
    return get(name, **parameters)


def check(text: str) -> None:
    """Refuses what `parse` refuses, without Keras.

    Raises:
        UserError: The text is no such description; or as `get`.
    """
    name, parameters = _split(text)
    _checked(name, parameters)


def get(name: str, /, **parameters: float) -> Loss:
    """The loss of that name.

    Args:
        name: One of `LOSSES`.
        **parameters: Keywords of that loss in place of its published defaults.

    Raises:
        UserError: There is no such loss, or it has no such parameter; the nearest name
            is suggested. Or a parameter that counts is no whole number, or `smooth` is 0.
    """
    values = _checked(name, parameters)
    module, _ = LOSSES[name]
    loss: Loss = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return functools.partial(loss, **values) if values else loss


def _split(text: str) -> tuple[str, dict[str, float]]:
    name, colon, rest = text.partition(":")
    parameters: dict[str, float] = {}
    for part in rest.split(",") if colon else ():
        parameter, _, number = (side.strip() for side in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf or parameter in parameters:
            raise UserError(f"--loss_function='{text}' cannot go on with '{part}'; {_SYNTAX}.")
        parameters[parameter] = value
    return name, parameters


def _checked(name: str, parameters: Mapping[str, float]) -> dict[str, float]:
    """The parameters of a loss, whole numbers as such."""
    if name not in LOSSES:
        raise unknown_name("--loss_function", name, LOSSES)
    _, known = LOSSES[name]
    for parameter, value in parameters.items():
        if not known:
            raise UserError(f"--loss_function '{name}' takes no parameters; drop '{parameter}'.")
        if parameter not in known:
            raise unknown_name(f"--loss_function '{name}': parameter", parameter, known)
        if parameter in _WHOLE and value != int(value):
            raise UserError(
                f"--loss_function '{name}': '{parameter}' must be a whole number, not {value}."
            )
    if parameters.get("smooth", 1) <= 0:
        raise UserError(
            f"--loss_function '{name}': 'smooth' must be greater than 0; without it an empty mask "
            "gives 0 / 0."
        )
    return {p: int(value) if p in _WHOLE else value for p, value in parameters.items()}
