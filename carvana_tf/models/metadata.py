"""The metadata of a model file: the names that others rely on, and their valid values."""

import re
from collections.abc import Callable
from pathlib import Path
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from carvana_tf.errors import UserError
from carvana_tf.masks.manifest import LABELS, MASKS

UNKNOWN_ORIGIN = "unknown_origin"
"""Metadata of a model that started from weights whose training photos are not known."""

_MOST_REPETITIONS = 4  # of a pattern; each may try all lengths of a name


def check(path: Path, metadata: dict[str, Any]) -> None:
    """Refuses metadata that `train.py` does not write.

    Raises:
        UserError: A value is of another type, or out of its range.
    """
    for name, value in metadata.items():
        right, expected = _KNOWN.get(name, (None, ""))
        if right is not None and value is not None and not right(value):
            raise UserError(
                f"'{path}' says {name}={ascii(value)[:60]}, expected {expected}; its metadata is "
                "damaged, or not written by train.py."
            )
    height, width = metadata.get("input_height") or 0, metadata.get("input_width") or 0
    if height * width > _MOST_PIXELS:
        raise UserError(
            f"'{path}' says that it takes {height} x {width} pixels, expected at most "
            f"{_MOST_PIXELS:,}; its metadata is damaged."
        )


def _is_count(most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 0 <= value <= most


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_pattern(value: Any) -> bool:
    """Whether a regular expression may be run on names of files: some take forever."""
    if not isinstance(value, str) or len(value) > 200:
        return False
    try:
        groups, parsed = re.compile(value).groups, _parser.parse(value)
    except (re.error, OverflowError, RecursionError):
        return False
    return groups > 0 and _repetitions(parsed) <= _MOST_REPETITIONS


def _repetitions(parsed: Any, inside: bool = False) -> int:
    """How many parts of a pattern may match more or less; those inside others count for many."""
    count = 0
    for operation, argument in parsed:
        if operation in (_parser.MAX_REPEAT, _parser.MIN_REPEAT):
            least, most, part = argument
            varies = most != least
            count += _MOST_REPETITIONS + 1 if inside and varies else int(varies)
            count += _repetitions(part, inside or int(most) > 1)
        elif operation is _parser.BRANCH:
            count += _MOST_REPETITIONS + 1 if inside else 1
            count += sum(_repetitions(part, inside) for part in argument[1])
        elif operation is _parser.SUBPATTERN:
            count += _repetitions(argument[-1], inside)
        elif operation not in (_parser.LITERAL, _parser.NOT_LITERAL, _parser.IN, _parser.ANY):
            # Look-around and references back are left out; anchors are cheap.
            count += 0 if operation is _parser.AT else _MOST_REPETITIONS + 1
    return count


def _is_a(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


_MOST_PIXELS = 1 << 26
_TASKS = (MASKS, LABELS)
# What prediction and training rely on; null is as good as missing.
_KNOWN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "network": (_is_a(str), "a name"),
    "decoder": (_is_a(str), "a name"),
    "preprocessing": (_is_a(str), "a name"),
    "stride": (lambda value: _is_count(1024)(value) and value > 0, "a number of 1 to 1024"),
    "size_policy": (lambda value: value in ("pad", "crop", "resize"), "pad, crop or resize"),
    "input_height": (_is_count(1 << 15), "a number of 0 to 32768"),
    "input_width": (_is_count(1 << 15), "a number of 0 to 32768"),
    "stacked_channels": (_is_count(64), "a number of 0 to 64"),
    "photo_channels": (lambda value: value in (1, 3), "1 or 3"),
    "photo_depth": (_is_count(32), "a number of bits"),
    "clahe": (_is_a(bool), "true or false"),
    "fold": (lambda value: value == "none" or _is_count(10**6)(value), "a number, or 'none'"),
    "training_groups": (_is_names, "a list of names"),
    "val_groups": (_is_names, "a list of names"),
    "labelled_groups_digest": (_is_a(str), "a digest"),
    "group_pattern": (_is_pattern, "a regular expression with a parenthesis"),
    "scores": (_is_a(dict), "an object"),
    "chosen_by": (_is_a(str), "a name"),
    "task": (lambda value: value in _TASKS, "one of " + ", ".join(_TASKS)),
    "classes": (_is_names, "a list of names"),
    "scoring": (lambda value: value in ("ranking", "sigmoid"), "ranking or sigmoid"),
    "top_k": (lambda value: _is_count(1 << 20)(value) and value > 0, "a number from 1"),
    UNKNOWN_ORIGIN: (_is_a(bool), "true or false"),
}
