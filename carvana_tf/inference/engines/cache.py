"""Converted networks beside their model files: one archive each, whole or absent."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from carvana_tf.errors import UserError
from carvana_tf.files import atomic_path, read_json, write_json

Parts = dict[str, bytes]
"""The files of a converted network by name."""


def entry(model_file: Path, engine: str, depends_on: Any) -> Path:
    """Where a converted network is kept: `best.keras` -> `best.engines/<engine>-<digest>.zip`.

    Args:
        model_file: The file it was converted from.
        engine: For which engine.
        depends_on: All that decides what the conversion gives, as JSON holds it.
    """
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    folder = model_file.with_name(f"{model_file.name.split('.')[0]}.engines")
    return folder / f"{engine}-{digest[:12]}.zip"


def fetch(path: Path, make: Callable[[], Parts], tell: Callable[[str], object]) -> Parts:
    """What an archive holds; made anew where it is missing or damaged.

    Args:
        path: From `entry`.
        make: Converts the network.
        tell: Gets a line where the result cannot be kept.
    """
    try:
        return _read(path)
    except (OSError, zipfile.BadZipFile, zlib.error):
        parts = make()
    try:
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
    except (UserError, OSError) as error:
        tell(f"the converted network is not kept and will be made again: {error}")
    return parts


def read_note(path: Path) -> dict[str, Any] | None:
    """The JSON beside an archive, or None where there is none or it is damaged."""
    try:
        note = read_json(path)
    except UserError:
        return None
    return note if isinstance(note, dict) else None


def write_note(path: Path, note: dict[str, Any]) -> None:
    """Writes JSON beside an archive, where that can be done."""
    try:
        write_json(path, note)
    except (UserError, OSError):
        return  # `fetch` has told


def _read(path: Path) -> Parts:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
