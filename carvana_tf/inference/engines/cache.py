"""Converted networks next to their model files: one archive each, whole or absent."""

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

# Of an archive: what it was made for, and the digests of its parts, which are stored as they are.
_CONTENTS, _OF = "contents.json", "of"
_MOST = 2
# What reading a damaged archive raises.
_DAMAGES = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,  # encrypted, unknown compression, too deep
    MemoryError,
)


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


def fetch(path: Path, make: Callable[[], Parts], report: Callable[[str], object]) -> Parts:
    """What an archive holds; made again where it is missing, damaged or another one's.

    Args:
        path: From `entry`.
        make: Converts the network.
        report: Gets a line where an archive is not used, or the result cannot be kept.
    """
    if path.is_file():
        try:
            return _read(path)
        except _DAMAGES as error:
            report(f"'{path}' is not what was kept there ({error}); it is made again")
    parts = make()
    contents = {_OF: path.stem, "parts": {name: _digest(data) for name, data in parts.items()}}
    try:
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr(_CONTENTS, json.dumps(contents))
            for name, data in parts.items():
                archive.writestr(name, data)
    except (UserError, OSError) as error:
        report(f"the converted network is not kept and will be made again: {error}")
    return parts


def read_note(path: Path) -> dict[str, Any]:
    """The JSON next to an archive; {} where there is none, or it is damaged or another one's."""
    try:
        note = read_json(path)
    except (UserError, RecursionError):
        return {}
    return note if isinstance(note, dict) and note.get(_OF) == path.stem else {}


def write_note(path: Path, note: dict[str, Any]) -> None:
    """Writes JSON next to an archive, where that can be done."""
    try:
        write_json(path, note | {_OF: path.stem})
    except (UserError, OSError):
        return  # `fetch` has reported it


def _read(path: Path) -> Parts:
    """The parts of an archive.

    Raises:
        ValueError: They are not what was put into it under this name, or another of `_DAMAGES`.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > _MOST * path.stat().st_size:
            raise ValueError("its parts declare more than it holds")
        contents = json.loads(archive.read(_CONTENTS))
        if contents[_OF] != path.stem:
            raise ValueError(f"it is '{contents[_OF]}'")
        parts = {}
        for name, digest in contents["parts"].items():
            parts[name] = archive.read(name)
            if _digest(parts[name]) != digest:
                raise ValueError(f"'{name}' has changed")
    return parts


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
