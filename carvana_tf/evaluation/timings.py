"""How long predictions and the steps of a recipe took, as their `timings.json` says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carvana_tf.errors import UserError
from carvana_tf.files import read_json


def read(path: Path) -> dict[str, Any]:
    """What a file of times holds, possibly nested; nothing where there is none.

    Raises:
        UserError: It is damaged.
    """
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"'{path}' does not hold times; remove it.")
    return found


def seconds(times: Any) -> dict[str, float]:
    """Those of the times that are numbers; none where `times` is no mapping."""
    found = times if isinstance(times, Mapping) else {}
    numbers = {k: v for k, v in found.items() if isinstance(v, (int, float))}
    return {name: value for name, value in numbers.items() if not isinstance(value, bool)}
