"""What stands for the files a step depends on: names, sizes and contents."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from carvana_tf import files
from carvana_tf.errors import UserError
from carvana_tf.filenames import MANIFEST
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

_THREADS = 4
_MANY = 1000  # files whose reading shows its progress
_SLACK = 2_000_000_000  # nanoseconds: file systems and clocks are not that exact


def fingerprint(path: Path) -> str:
    """What stands for a file's content, or for a folder of images: names, sizes, origin."""
    if path.is_file():
        return files.digest(path)
    if not path.is_dir():
        return "absent"
    lines = [f"{entry.name} {entry.stat().st_size}" for entry in _entries(path)]
    return files.digest_of_lines([*lines, fingerprint(path / MANIFEST)])


class Contents:
    """Digests of what folders hold, remembered as long as the files stay untouched.

    A data set is read once; later a look at each file's entry is enough: one that was changed
    since is read again, and if it was only copied or touched, found to be the same.
    """

    def __init__(self, folder: Path) -> None:
        """Reads nothing yet.

        Args:
            folder: Where digests are remembered, in a file for each folder. When they were taken
                is the time of that file, so that equal runs leave equal files.
        """
        self._folder = folder

    def of(self, path: Path) -> str:
        """The digest of a file, or of the names and contents of a folder's images."""
        if not path.is_dir():
            return fingerprint(path)
        now = time.time_ns() - _SLACK
        memory = self._folder / f"{files.digest_of_lines([str(path.absolute())])[:16]}.json"
        known, taken = _recall(memory)
        # No program can set back when a file's entry was last changed.
        stale = [
            entry.name
            for entry in _entries(path)
            if entry.name not in known or entry.stat().st_ctime_ns >= taken
        ]
        names = sorted(entry.name for entry in _entries(path))
        digests = ordered_map(lambda name: files.digest(path / name), stale, _THREADS)
        if len(stale) > _MANY:
            digests = bar(digests, total=len(stale), desc=f"reading {path.name}", unit="file")
        fresh = known | dict(zip(stale, digests, strict=True))
        found = {name: fresh[name] for name in names}
        if stale or found != known:
            files.write_json(memory, found)
            os.utime(memory, ns=(now, now))
        return files.digest_of_lines([f"{name} {digest}" for name, digest in found.items()])


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    with os.scandir(folder) as entries:
        for entry in entries:
            # Of JSON the origin alone counts: timings are no content.
            if entry.is_file() and not entry.name.endswith(".json") and entry.name[0] != ".":
                yield entry


def _recall(memory: Path) -> tuple[dict[str, str], int]:
    """The digests by name and when they were taken; none where the file is damaged."""
    try:
        known = files.read_json(memory) if memory.is_file() else {}
    except UserError:
        known = {}
    return (known, memory.stat().st_mtime_ns) if known and isinstance(known, dict) else ({}, 0)
