"""Masks of a large set as run lengths in Parquet files of one folder, its parts.

    part-00000.parquet, part-00001.parquet, …    rows of the listing in its order, no row left out

Each part has so many rows (the last one may have fewer), is whole or absent, and was read back and
compared before it got its name. Its metadata (`METADATA`) say what made it. Columns:

    id       text     the photo's name, unique in the folder
    path     text     where the photo was, as the listing has it
    height   int32    of photo and mask in pixels; null where the photo could not be read
    width    int32
    rle      text     run lengths as in a submission, see `rle`; null where there is no mask
    problem  text     why there is none, else null
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from carvana_tf.data import names
from carvana_tf.data.listing import EXTRA
from carvana_tf.data.storage import file_name
from carvana_tf.errors import UserError
from carvana_tf.failures import describe, installed
from carvana_tf.filenames import MANIFEST, PARTS
from carvana_tf.files import atomic_path
from carvana_tf.masks import manifest
from carvana_tf.masks.manifest import Manifest
from carvana_tf.shards import unfinished

METADATA = "carvana_tf"
"""Key of the metadata of a part: JSON with its number, counts, and the manifest of its masks."""
MOST_PARTS = 10_000
"""Parts of one folder, so that file systems and people can list it."""
GROUP, GROUP_CHARACTERS = 500, 32 << 20
"""Rows of a row group, fewer where their run lengths are so many: so much is in memory at once."""

_BUFFER = 1 << 20  # bytes


class Row(NamedTuple):
    """A row of a part; see the module."""

    id: str
    path: str
    height: int | None = None
    width: int | None = None
    rle: str | None = None
    problem: str | None = None

    @property
    def image(self) -> str:
        """The first column of a submission: the photo's file name, or the id if that is another."""
        name = file_name(self.path)
        return name if names.stem(name) == self.id else self.id


@dataclasses.dataclass(frozen=True)
class Known:
    """What a part says of itself.

    Attributes:
        path: Its file.
        rows: How many it has.
        unreadable: How many of them have no mask.
    """

    path: Path
    rows: int
    unreadable: int


class Part:
    """Rows of a part that is being written, to be added by one thread at a time."""

    def __init__(self, writer: Any, arrow: ModuleType) -> None:
        self._writer = writer
        self._arrow = arrow
        self._waiting: list[Row] = []
        self._characters = 0
        self.digest = hashlib.sha256()
        self.rows = self.unreadable = 0

    def add(self, row: Row) -> None:
        """Adds the next row."""
        self._waiting.append(row)
        self._characters += len(row.rle or "")
        self.rows += 1
        self.unreadable += row.rle is None
        _hash(self.digest, row)
        if len(self._waiting) >= GROUP or self._characters >= GROUP_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that wait as a row group."""
        if self._waiting:
            columns = zip(*self._waiting, strict=True)
            table = self._arrow.table([*map(list, columns)], schema=_schema(self._arrow))
            self._writer.write_table(table)
            self._waiting.clear()
            self._characters = 0


def name(number: int) -> str:
    """The file name of a part."""
    return f"part-{number:05d}.parquet"


def list_parts(folder: Path) -> list[Path]:
    """The parts of a folder, in order."""
    return sorted(Path(folder).glob(PARTS))


@contextlib.contextmanager
def writing(folder: Path, number: int, made: Manifest) -> Iterator[Part]:
    """A part to be filled inside the block, whose end writes it, whole or not at all.

    Args:
        folder: Of the parts.
        number: Of this one.
        made: The manifest of its masks.

    Raises:
        UserError: pyarrow is not installed, or the folder cannot be written to.
        RuntimeError: What was written reads back as something else.
    """
    arrow, parquet = _arrow()
    with atomic_path(Path(folder) / name(number)) as temporary:
        writer = parquet.ParquetWriter(
            temporary,
            _schema(arrow),
            compression="zstd",
            use_dictionary=False,
            write_page_checksum=True,
        )
        with writer:
            part = Part(writer, arrow)
            yield part
            part.flush()
            facts = {
                "part": number,
                "rows": part.rows,
                "unreadable": part.unreadable,
                "manifest": dataclasses.asdict(made),
            }
            writer.add_key_value_metadata({METADATA: json.dumps(facts)})
        again = hashlib.sha256()
        for row in read(temporary):
            _hash(again, row)
        if again.digest() != part.digest.digest():
            raise RuntimeError(f"'{name(number)}' does not read back as it was written.")


def look(path: Path, made: Manifest) -> Known | None:
    """What a part says of itself; None where there is no such file, or no whole one.

    Args:
        path: Its file.
        made: The manifest of its folder.

    Raises:
        UserError: pyarrow is not installed, or the part was made in another way.
    """
    arrow, parquet = _arrow()
    if not path.is_file():
        return None
    try:
        metadata = parquet.read_metadata(path)
    except (arrow.ArrowException, OSError):
        return None
    try:
        facts = json.loads(metadata.metadata[METADATA.encode()])
        old = manifest.of_values(facts["manifest"])
        if name(facts["part"]) != path.name:
            raise ValueError(f"part {facts['part']}")
        known = Known(path, metadata.num_rows, facts["unreadable"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"'{path}' is no such part of a prediction, by the '{METADATA}' of its metadata "
            f"({describe(error)}); name another folder."
        ) from error
    fix = "use --overwrite, or another folder."
    manifest.refuse_difference(f"'{path}'", old, made, manifest.FREE_OF_PARTS, fix)
    return known


def read(path: Path) -> Iterator[Row]:
    """The rows of a part, a row group in memory at once.

    Raises:
        UserError: pyarrow is not installed, or the file is damaged or has other columns.
    """
    arrow, parquet = _arrow()
    try:
        with parquet.ParquetFile(
            path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
        ) as file:
            for batch in file.iter_batches(GROUP, columns=list(Row._fields)):
                yield from map(Row, *(batch.column(field).to_pylist() for field in Row._fields))
    except (arrow.ArrowException, OSError, KeyError) as error:
        raise UserError(
            f"'{path}' is damaged, or no part of a prediction ({describe(error)}); remove it, and "
            "run the prediction again."
        ) from error


def complete(folder: Path) -> list[Known]:
    """All parts of a folder, in order.

    Raises:
        UserError: They are not those of all photos of its manifest.
    """
    made = manifest.read(folder)
    if made is None:
        raise UserError(f"'{folder}' has parts but no {MANIFEST}; predict them again.")
    whole = [part for path in list_parts(folder) if (part := look(path, made))]
    there = sum(part.rows for part in whole)
    if there != made.photos:
        missing = unfinished(folder)
        raise UserError(
            f"the parts of '{folder}' have {there} of {made.photos} photos"
            f"{missing and f' ({missing})'}; run the prediction again to complete them."
        )
    return whole


def images(folder: Path) -> Iterator[tuple[str, str]]:
    """The image and the run lengths of each mask of all parts, as rows of a submission.

    Raises:
        UserError: As of `complete` and `read`.
    """
    return ((row.image, row.rle) for row in rows(complete(folder)) if row.rle is not None)


def rows(parts: Sequence[Known]) -> Iterator[Row]:
    """The rows of parts, one after the other."""
    return (row for part in parts for row in read(part.path))


def _schema(arrow: ModuleType) -> Any:
    types = {"height": arrow.int32(), "width": arrow.int32()}
    return arrow.schema([(field, types.get(field, arrow.string())) for field in Row._fields])


def _hash(digest: Any, row: Row) -> None:
    digest.update(repr(tuple(row)).encode())


def _arrow() -> tuple[ModuleType, ModuleType]:
    what = "run lengths in Parquet"
    return installed("pyarrow", what, EXTRA), installed("pyarrow.parquet", what, EXTRA)
