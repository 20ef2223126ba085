"""JSON files of annotations, of which nothing can be trusted."""

import json
from pathlib import Path
from typing import Any

from carvana_tf.errors import UserError
from carvana_tf.files import read_text

MOST_BYTES = 1 << 30
"""Of one annotation file: the largest of COCO has half of it."""


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: It is missing, too large or no JSON.
    """
    try:
        # Some tools of Windows write a byte order mark.
        return json.loads(read_text(path, MOST_BYTES).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not valid JSON ({error}); export it again.") from error


def json_text(value: Any) -> str:
    """A value as JSON in one line."""
    return json.dumps(value, separators=(",", ":"))


def records(document: Any, key: str, path: Path, *, missing_ok: bool = False) -> list[dict]:
    """A list of objects in a document.

    Raises:
        UserError: There is something else.
    """
    found = document.get(key, [] if missing_ok else None)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UserError(f"'{path}' has no list of objects '{key}'; export it again.")
    return found


def label_of(value: Any, otherwise: str) -> str:
    """The name of a class, or another where there is none."""
    return value if isinstance(value, str) and value else otherwise


def key_of(value: Any) -> int | str | None:
    """An id as it can be looked up; what is none stands for nothing."""
    return value if isinstance(value, (int, str)) else None
