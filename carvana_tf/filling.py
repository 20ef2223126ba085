"""Output folders that a command fills with many files, among others that may be there."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from carvana_tf.errors import UserError
from carvana_tf.failures import first_few
from carvana_tf.files import digest_of_lines, held, read_json, write_json

UNFINISHED = "unfinished.json"


@contextlib.contextmanager
def filling(
    folder: Path,
    settings: Mapping[str, Any],
    present: Callable[[], Sequence[Path]],
    *,
    flag: str,
    overwrite: bool,
) -> Iterator[list[Path]]:
    """Holds a folder while files are made in it, and remembers until the end that they are not all
    there: `UNFINISHED` in the folder says what is being made, and which files it replaces.

    Args:
        folder: Where files are made.
        settings: All that decides what they hold, as JSON has it.
        present: Lists those of the files to be made that are there.
        flag: That of the folder, for messages.
        overwrite: Whether files that are there may be replaced.

    Yields:
        Those that an interrupted run with the same settings has made.

    Raises:
        UserError: Another process works in the folder, or files are there that no such run has
            made, and `overwrite` is False.
    """
    settings = json.loads(json.dumps(settings))
    record = Path(folder) / UNFINISHED
    with held(folder):
        begun = _read(record)
        goes_on, found = begun.get("settings") == settings, present()
        if found and not goes_on and not overwrite:
            listed = first_few([path.name for path in found])
            raise UserError(
                f"'{folder}' holds {len(found)} of these files already ({listed}); use "
                f"--overwrite, or another --{flag}."
            )
        times = {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}
        replaced = begun["replaces"] if goes_on else times
        write_json(record, {"settings": settings, "replaces": replaced})
        made = [name for name, time in times.items() if replaced.get(name) != time]
        yield [Path(folder) / name for name in made]
        record.unlink(missing_ok=True)


def state_of(paths: Sequence[Path]) -> str:
    """A digest of names, sizes and times of files, which changes when one of them does."""
    stats = [(path, path.stat()) for path in paths if path.exists()]
    return digest_of_lines([f"{path.name} {s.st_size} {s.st_mtime_ns}" for path, s in stats])


def _read(record: Path) -> dict[str, Any]:
    """What a record says; nothing where it is missing or damaged."""
    if not record.is_file():
        return {}
    try:
        known = read_json(record)
    except UserError:
        return {}
    return known if isinstance(known, dict) and "replaces" in known else {}
