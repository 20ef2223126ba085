"""What the files of a dataset were when somebody looked at it, to notice later damage.

Most formats have no checksums: zeros in a BMP or a flipped bit in a JPEG are other pixels and
no error. `tools/check_data.py --write` records size and SHA-256 of every file in `NAME`, one in
each folder, and every later reading of a file that it lists compares them.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from carvana_tf.errors import UserError
from carvana_tf.files import digest, read_json, write_json

NAME = "dataset.digests.json"

_Table = dict[str, tuple[int, str]]
_KEPT = 1024
# By folder; read once in a process, unless photos are in more folders than are kept.
_tables: dict[Path, _Table] = {}


def write(folder: Path, files: Iterable[Path]) -> Path:
    """Records files of a folder, and returns the path of the record."""
    recorded = {path.name: [path.stat().st_size, digest(path)] for path in sorted(files)}
    target = folder / NAME
    write_json(target, {"files": recorded})
    _tables.pop(folder, None)
    return target


def forget(folder: Path) -> None:
    """Compares nothing in a folder from now on: it is about to be recorded again."""
    _tables[folder] = {}


def difference(path: Path, data: bytes) -> str | None:
    """How the content of a file differs from what was recorded, or None.

    Raises:
        UserError: The record itself is damaged.
    """
    recorded = _table(path.parent).get(path.name)
    if recorded is None:
        return None
    size, expected = recorded
    if len(data) != size:
        return f"has {len(data)} bytes, not the {size} of '{path.parent / NAME}'"
    if hashlib.sha256(data).hexdigest() != expected:
        return f"differs from the digest in '{path.parent / NAME}'"
    return None


def missing(folder: Path) -> list[str]:
    """The names that were recorded of a folder, but are not there."""
    return [name for name in _table(folder) if not (folder / name).is_file()]


def _table(folder: Path) -> _Table:
    known = _tables.get(folder)
    if known is not None:
        return known
    path = folder / NAME
    try:
        values = read_json(path)["files"] if path.is_file() else {}
        table = {name: (int(size), str(sha)) for name, (size, sha) in values.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"'{path}' is damaged; write it again with tools/check_data.py --write, or remove it."
        ) from error
    if len(_tables) >= _KEPT:
        _tables.clear()
    _tables[folder] = table
    return table
