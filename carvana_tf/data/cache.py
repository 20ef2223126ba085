"""Decoded photos kept for the next pass: in memory while it suffices, or on disk."""

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

import carvana_tf
from carvana_tf.data.dataset import Sample
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.files import atomic_path, digest_of_lines, make_folder

CACHES = ("auto", "memory", "disk", "none")
"""The values of --cache."""

# Share of the free memory, or disk space, at the start that "auto" may take.
_SHARE = 0.3

# Where Linux reports how much that is, of the machine and of a container (control groups 2).
_MACHINE = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")


class Cache(Protocol):
    """Arrays by the number of their sample; any thread may ask and keep."""

    def get(self, index: int) -> np.ndarray | None:
        """The array kept for a sample, not to be written to, or None."""

    def keep(self, index: int, layers: np.ndarray) -> bool:
        """Keeps an array if there is space for it; returns whether there was."""


def make_cache(
    kind: str, samples: Sequence[Sample], resizer: Resizer, folder: Path | None = None
) -> Cache:
    """The cache of one training set.

    Args:
        kind: "memory": all photos; "auto": as many as fit into 30 % of the memory that
            is free now, and, with `folder`, others there, in 30 % of its disk's free space;
            "disk": all, as arrays in `folder`, for later runs too; "none".
        samples: Whose decoded arrays it will hold.
        resizer: At whose resolution.
        folder: For "disk", and "auto" if it is given.

    Raises:
        UserError: The folder is missing or cannot be made.
    """
    if kind == "disk":
        if folder is None:
            raise UserError("--cache=disk needs --cache_dir, a folder for decoded photos.")
        return DiskCache(folder, samples, resizer)
    space = {"memory": float("inf"), "auto": _SHARE * available_memory(), "none": 0.0}
    memory = MemoryCache(space[kind])
    if kind != "auto" or folder is None:
        return memory
    disk = DiskCache(folder, samples, resizer, _SHARE * shutil.disk_usage(make_folder(folder)).free)
    return _Layered((memory, disk))


class MemoryCache:
    """Keeps arrays until they fill `space` bytes, and then those it has."""

    def __init__(self, space: float) -> None:
        self._space = space
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, index: int) -> np.ndarray | None:
        """See `Cache`."""
        with self._lock:
            return self._kept.get(index)

    def keep(self, index: int, layers: np.ndarray) -> bool:
        """See `Cache`."""
        with self._lock:
            if index not in self._kept and layers.nbytes <= self._space:
                self._kept[index] = layers
                self._space -= layers.nbytes
            return index in self._kept


class DiskCache:
    """Keeps arrays as `.npy` files, which are mapped into memory when they are used.

    A file's name says which sample it is of, at which resolution, and how large and how
    old the sample's files were: a changed photo is decoded again, and its old array
    removed. Folds, runs and processes may share a folder. Of new arrays, as many are kept
    as fit into `space` bytes.
    """

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Sample],
        resizer: Resizer,
        space: float = float("inf"),
    ) -> None:
        self._folder = make_folder(folder)
        self._space = space
        self._lock = threading.Lock()
        size = (resizer.height, resizer.width) if resizer.policy == "resize" else "full"
        self._names = [_name(sample, f"{size} clahe {resizer.clahe}") for sample in samples]

    def get(self, index: int) -> np.ndarray | None:
        """See `Cache`."""
        try:
            return np.load(self._folder / "-".join(self._names[index]), mmap_mode="r")
        except (OSError, EOFError, ValueError):  # absent, or not whole for reasons beyond us
            return None

    def keep(self, index: int, layers: np.ndarray) -> bool:
        """See `Cache`.

        Raises:
            UserError: The disk is full, and `space` had no bound.
        """
        with self._lock:
            if layers.nbytes > self._space:
                return False
            self._space -= layers.nbytes
        sample, state = self._names[index]
        path = self._folder / f"{sample}-{state}"
        try:
            with atomic_path(path, durable=False) as temporary:
                np.save(temporary, layers)
        except OSError as error:
            if self._space < float("inf"):  # others have filled the disk
                return False
            raise UserError(
                f"cannot write '{path}': {error.strerror}; make room, or choose another "
                "--cache_dir or --cache=none."
            ) from error
        for old in self._folder.glob(f"{sample}-*.npy"):
            if old != path:
                old.unlink(missing_ok=True)
        return True


class _Layered:
    """Keeps each array in the first cache that has space for it."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        self._caches = caches

    def get(self, index: int) -> np.ndarray | None:
        """See `Cache`."""
        found = (cache.get(index) for cache in self._caches)
        return next((layers for layers in found if layers is not None), None)

    def keep(self, index: int, layers: np.ndarray) -> bool:
        """See `Cache`."""
        return any(cache.keep(index, layers) for cache in self._caches)


def _name(sample: Sample, look: str) -> tuple[str, str]:
    """What the array of a sample is called: by its files' names, and by their state."""
    paths = [path for path in (sample.photo, sample.mask, *sample.stacked) if path]
    stats = [path.stat() for path in paths]
    files = [f"{i} {path.resolve()}" for i, path in enumerate(paths)]
    states = [f"{i} {stat.st_size} {stat.st_mtime_ns}" for i, stat in enumerate(stats)]
    identity = digest_of_lines([*files, look, f"soft {sample.soft}", f"{sample.reading}"])
    state = digest_of_lines([*states, f"version {carvana_tf.__version__}"])
    return identity[:24], f"{state[:16]}.npy"


def available_memory() -> float:
    """Bytes that can be had without swapping; 0 where it is unknown."""
    try:
        # Pages that cache files count as free, unlike in SC_AVPHYS_PAGES.
        machine = 1024 * _numbers(_MACHINE)["MemAvailable:"]
    except (OSError, KeyError):
        return 0
    try:
        limit, used = (int((_CONTAINER / f"memory.{n}").read_text()) for n in ("max", "current"))
        return min(machine, limit - used + _numbers(_CONTAINER / "memory.stat")["inactive_file"])
    except (OSError, KeyError, ValueError):  # no container, or none with a limit ("max")
        return machine


def _numbers(path: Path) -> dict[str, int]:
    """The lines of a file of the kernel, `name number ...`."""
    rows = [line.split() for line in path.read_text().splitlines()]
    return {row[0]: int(row[1]) for row in rows}
