"""Parts of the photos of a folder, for processes that share the work without knowing each other.

Which shard a photo is in depends on its name alone: on the first 8 bytes of the SHA-256 of its
stem in Unicode's composed form (NFC), as an integer, modulo the number of shards. So no photo is
in two shards, nor in none, whatever else lies in the folder and in which order it is listed.
"""

import contextlib
import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from carvana_tf import files
from carvana_tf.errors import UserError
from carvana_tf.flags import option

FOLDER = "shards"
"""In a folder of masks or submissions: what belongs to one shard, in a folder for each."""
RECORD = "shard.json"
"""In the folder of a shard that has finished."""
MOST = 10_000
"""Shards of one folder: each has a folder in `FOLDER`."""

_NAME = re.compile(r"(\d{5})-of-(\d{5})")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of several parts.

    Attributes:
        number: From 0.
        count: How many parts there are.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"

    def has(self, stem: str) -> bool:
        """Whether a photo is in this part."""
        return shard_of(stem, self.count) == self.number

    def folder(self, target: Path) -> Path:
        """Where, in a folder that all shards fill, this one keeps what is its own."""
        return Path(target) / FOLDER / f"{self.number:05d}-of-{self.count:05d}"


@dataclasses.dataclass(frozen=True)
class ShardOptions:
    """Which part of the photos this process does."""

    num_shards: int | None = option(
        None,
        "Into how many parts the photos are divided, for as many processes, on one machine or "
        "several, that fill one folder; each gets its own --shard. With --ray_address by default "
        "as many as the cluster can do at once. See docs/scale.md.",
        lower=1,
        upper=MOST,
    )
    shard: int | None = option(None, "The part that this process does, from 0.", lower=0)
    ray_address: str | None = option(
        None,
        "Do all shards as tasks of a Ray cluster whose machines share their folders: local (this "
        "machine alone), auto (the cluster that runs here) or its head's address, as "
        "10.0.0.1:6379.",
    )

    def __post_init__(self) -> None:
        if self.ray_address and self.shard is not None:
            raise UserError(
                f"--ray_address={self.ray_address} does all shards, and --shard={self.shard} is "
                "one; leave out either."
            )
        if self.ray_address:
            return
        if self.shard is not None and self.num_shards is None:
            raise UserError(f"--shard={self.shard} needs --num_shards: how many shards there are.")
        if self.num_shards is not None and self.shard is None:
            raise UserError(
                f"--num_shards={self.num_shards} needs --shard, the one that this process does: "
                f"0 to {self.num_shards - 1}; or --ray_address, for all."
            )
        if self.shard is not None and self.num_shards is not None and self.shard >= self.num_shards:
            raise UserError(
                f"--shard={self.shard} is outside of --num_shards={self.num_shards}; give 0 to "
                f"{self.num_shards - 1}."
            )

    @property
    def chosen(self) -> Shard | None:
        """The part; None where this process does all."""
        if self.shard is None or self.num_shards is None:
            return None
        return Shard(self.shard, self.num_shards)

    @property
    def divided(self) -> bool:
        """Whether there are shards, be it one that this process does or all."""
        return self.num_shards is not None or bool(self.ray_address)


def shard_of(stem: str, count: int) -> int:
    """The number of the shard that a photo is in, 0 to `count - 1`."""
    name = unicodedata.normalize("NFC", stem).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % count


def own_folder(folder: Path, shard: Shard | None) -> Path:
    """Where a process keeps what is not shared: its shard's folder, or the whole one."""
    return Path(folder) if shard is None else shard.folder(folder)


@contextlib.contextmanager
def held(folder: Path, shard: Shard | None) -> Iterator[None]:
    """Keeps out of an output folder all processes but those of other shards.

    Raises:
        UserError: Another process does this shard, or fills the folder alone.
    """
    if shard is None:
        with files.held(folder):
            yield
        return
    with files.held(folder, shared=True), files.held(shard.folder(folder)):
        yield


def begin(folder: Path, shard: Shard | None) -> None:
    """Notes that a shard has not finished."""
    if shard is not None:
        (shard.folder(folder) / RECORD).unlink(missing_ok=True)


def finish(folder: Path, shard: Shard | None, **known: object) -> None:
    """Notes that a shard has finished, and what is known of its result."""
    if shard is not None:
        files.write_json(shard.folder(folder) / RECORD, known)


def unfinished(folder: Path) -> str:
    """Which shards of a folder have not finished, for a message; "" where none is known."""
    inside = Path(folder) / FOLDER
    found = [match for path in inside.glob("*") if (match := _NAME.fullmatch(path.name))]
    if not found:
        return ""
    count = max(int(match[2]) for match in found)
    every = (Shard(number, count) for number in range(count))
    missing = [each.number for each in every if not (each.folder(folder) / RECORD).is_file()]
    if not missing:
        return ""
    named = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
    return f"of {count} shards these have not finished: {named}"
