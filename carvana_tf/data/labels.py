"""Tables that say which labels each photo has, the reading of all their forms, and submissions.

A label is the name of a class and holds no blank, because blanks separate the labels of a photo.
A class id is its place in the list of classes.
"""

import dataclasses
import gzip
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from carvana_tf.data import names
from carvana_tf.data.tables import (
    ENCODING,
    ERRORS,
    format_line,
    read_lines,
    read_sample_table,
    read_table,
    write_table,
)
from carvana_tf.errors import UserError
from carvana_tf.failures import first_few
from carvana_tf.files import atomic_path

COLUMNS = ("id", "labels")
"""Of the form that `write` writes."""
SAMPLE_COLUMNS = ("image_id", "labels")
"""What a sample submission usually has."""
ON_UNKNOWN = ("error", "skip", "add")
"""What may become of labels that the given classes lack."""

_ID_NAMES = frozenset(
    f"{what}{part}"
    for what in ("", "image", "img", "photo", "picture", "file")
    for part in ("", "id", "name", "file", "filename", "path")
) - {""}
_LABEL_NAMES = frozenset(("labelname", "label", "classname", "class", "tag", "category"))
_LABELS_NAMES = frozenset(("labels", "labelnames", "classes", "tags", "categories", *_LABEL_NAMES))
_LOOKED_AT = frozenset(("confidence", "source"))  # the second is part of the form, and says nothing
_CLASS_ID = re.compile("[0-9]{1,6}")  # an id of more digits would fill memory with classes
_SEPARATORS = re.compile("[,;|]")
_MOST_SHOWN = 80  # characters of what a message quotes
_FORMS = (
    "a header with ImageID, any column and LabelName, then a row for each label; rows of id and "
    "labels, with the header id,labels or none; or a line with a photo and class numbers for each "
    "photo, between blanks"
)

_Row = tuple[int, str, list[str]]
"""A line number, a photo and some of its labels."""


@dataclasses.dataclass(frozen=True)
class Notes:
    """What was put in order while a table was read.

    Attributes:
        repeated_photos: Rows of photos that had one before; their labels were merged. Not
            counted where a table has a row for each label.
        repeated_labels: Labels that their photo had already.
        absent: Rows with the confidence 0, which say that a photo does not show the class.
        unknown: Labels that were left out because the given classes lack them, and how often.
        joined: Classes whose names look like several, as "cat,dog".
    """

    repeated_photos: int = 0
    repeated_labels: int = 0
    absent: int = 0
    unknown: Mapping[str, int] = dataclasses.field(default_factory=dict)
    joined: Sequence[str] = ()

    def sentences(self) -> list[str]:
        """The same for people; nothing where nothing was to do."""
        labels = sum(self.unknown.values())
        found = [
            (self.repeated_photos, "rows name a photo that had one before: merged"),
            (self.repeated_labels, "labels are repeated: counted once"),
            (self.absent, "rows of confidence 0 say what a photo does not show: left out"),
            (labels, f"labels are of unknown classes: left out ({first_few(list(self.unknown))})"),
            (
                len(self.joined),
                "classes have a comma, semicolon or bar in their names, but blanks separate the "
                f"labels of a photo: correct them if they are several ({first_few(self.joined)})",
            ),
        ]
        return [f"{count} {what}" for count, what in found if count]


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """The labels of photos.

    Attributes:
        classes: Names; the place of each is its id.
        labels: By photo, in the order of the table, the ids of its classes, ascending, each
            once. A photo may have none.
        notes: Of its reading.
    """

    classes: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    notes: Notes = dataclasses.field(default_factory=Notes, compare=False)


@dataclasses.dataclass(frozen=True)
class Matched:
    """A table and photos side by side.

    Attributes:
        labels: Class ids by photo, in the order of the photos.
        without_photo: Photos of the table that there are not.
        without_labels: Photos that the table does not name.
    """

    labels: dict[str, tuple[int, ...]]
    without_photo: list[str]
    without_labels: list[str]


def read(path: Path, classes: Sequence[str] | None = None, on_unknown: str = "error") -> LabelTable:
    """Reads a table of labels, whose form is recognised by its content.

    - Human labels of Open Images: a header; photo in the first column, label in the third, a row
      for each label. Rows with 0 in a column Confidence say that the photo does not show it.
    - Tuning labels of the Inclusive Images Challenge: no header; `id,label label …`.
    - Ours: as those, with the header `id,labels`. A photo may have no label.
    - Lists of the challenge's 4th-place solution: `train/id.jpg 5 17 …`, with class ids.

    Photos and labels that are there more than once are merged, and counted in the notes.

    Args:
        path: The table, `.csv`, `.csv.gz` or any other name.
        classes: Names in the order of their ids, so that these stay; by default ids are given
            by first appearance, and the classes of a list of ids are called by their ids.
        on_unknown: What becomes of labels that `classes` lacks: an "error", "skip" leaves them
            out, "add" appends new classes.

    Raises:
        UserError: The file is damaged, empty or of another form, a row has no photo or no
            label, or a label is unknown; the message names the line.
        ValueError: `classes` has a name twice, or `on_unknown` is something else.
    """
    if on_unknown not in ON_UNKNOWN:
        raise ValueError(f"on_unknown is '{on_unknown}', not one of {', '.join(ON_UNKNOWN)}")
    lines = read_lines(path)
    number, cells = next(lines, (0, []))
    if not cells:
        raise UserError(f"'{path}' is empty; it needs the labels of photos: {_FORMS}.")
    cells = _trimmed(cells)
    reading = _Reading(path, classes, on_unknown)
    if len(cells) == 1:
        reading.add_all(reading.lists(_chain(number, cells, lines)))
    elif len(cells) > 2:
        reading.add_all(reading.human(cells, lines), one_row=False)
    elif _plain(cells[0]) in _ID_NAMES and _plain(cells[1]) in _LABELS_NAMES:
        reading.add_all(reading.pairs(lines, needs_labels=False))
    else:
        reading.add_all(reading.pairs(_chain(number, cells, lines), needs_labels=True))
    return reading.table()


def ignored_columns(path: Path) -> list[str]:
    """The columns of a table with a row for each label that `read` does not look at.

    Raises:
        UserError: The file is missing or damaged.
    """
    _, cells = next(read_lines(path), (0, []))
    return [
        name
        for number, name in enumerate(_trimmed(cells))
        if len(cells) > 2 and number not in (0, 2) and _plain(name) not in _LOOKED_AT
    ]


class _Reading:
    """A table while it is read."""

    def __init__(self, path: Path, classes: Sequence[str] | None, on_unknown: str) -> None:
        self._path = path
        self._given = classes is not None
        self._on_unknown = on_unknown
        self._ids = {name: number for number, name in enumerate(classes or ())}
        if len(self._ids) != len(classes or ()):
            raise ValueError("a class is there twice")
        self._labels: dict[str, list[int]] = {}
        self._repeated_photos = self._absent = 0
        self._unknown: Counter[str] = Counter()

    def human(self, header: list[str], lines: Iterable[tuple[int, list[str]]]) -> Iterator[_Row]:
        """Rows of human labels of Open Images."""
        columns = [_plain(cell) for cell in header]
        if columns[0] not in _ID_NAMES or columns[2] not in _LABEL_NAMES:
            raise UserError(
                f"'{self._path}' starts with {_shown(','.join(header))}, which is no table of "
                f"labels; it must be {_FORMS}."
            )
        confidence = columns.index("confidence") if "confidence" in columns else None
        for number, cells in lines:
            cells = _trimmed(cells, len(header))
            if len(cells) != len(header):
                raise self._wrong(number, f"has {len(cells)} columns, the header {len(header)}")
            found = cells[2].split()
            if len(found) != 1:
                problem = (
                    f"has a blank in its label '{_shown(cells[2])}'" if found else "has no label"
                )
                raise self._wrong(number, problem)
            if confidence is not None and self._zero(number, cells[confidence]):
                self._absent += 1
                found = []
            yield number, cells[0], found

    def pairs(
        self, lines: Iterable[tuple[int, list[str]]], *, needs_labels: bool
    ) -> Iterator[_Row]:
        """Rows of a photo and its labels."""
        for number, cells in lines:
            cells = _trimmed(cells)
            if len(cells) != 2:
                raise self._wrong(number, f"has {len(cells)} columns, not id and labels")
            found = cells[1].split()
            if needs_labels and not found:
                raise self._wrong(number, "has no label")
            yield number, cells[0], found

    def lists(self, lines: Iterable[tuple[int, list[str]]]) -> Iterator[_Row]:
        """Lines of a photo and its class ids."""
        known = list(self._ids)
        for number, cells in lines:
            if len(cells) != 1:
                raise self._wrong(number, "has a comma, where class ids stand between blanks")
            photo, *texts = cells[0].split()
            if not texts and ";" in photo:
                raise self._wrong(number, "has a semicolon where a comma is due")
            if not texts:
                raise self._wrong(number, "has no label")
            for text in texts:
                if not _CLASS_ID.fullmatch(text):
                    raise self._wrong(
                        number, f"has '{_shown(text)}' where a class id, 0 or more, is due"
                    )
            numbers = list(map(int, texts))
            if not self._given:
                # Ids are those of the list, whichever appears first.
                known += map(str, range(len(known), max(numbers) + 1))
                self._ids.update((known[i], i) for i in range(len(self._ids), len(known)))
            elif max(numbers) >= len(known) and self._on_unknown == "add":
                raise self._wrong(
                    number, f"has the class id {max(numbers)}, but there are {len(known)} classes"
                )
            # With a blank, so that it is the name of no class.
            yield number, photo, [known[i] if i < len(known) else f"id {i}" for i in numbers]

    def add_all(self, rows: Iterable[_Row], *, one_row: bool = True) -> None:
        """Adds rows.

        Args:
            rows: Any.
            one_row: Whether each photo should have one only.
        """
        for number, photo, found in rows:
            if not photo.strip():
                raise self._wrong(number, "has no id of a photo")
            ids = self._labels.get(photo)
            if ids is None:
                ids = self._labels[photo] = []
            elif one_row:
                self._repeated_photos += 1
            for name in found:
                known = self._id(number, name)
                if known is not None:
                    ids.append(known)

    def table(self) -> LabelTable:
        """What was added."""
        if not self._labels:
            raise UserError(f"'{self._path}' has no rows; it needs the labels of photos.")
        labels = {photo: tuple(sorted(set(ids))) for photo, ids in self._labels.items()}
        repeated = sum(map(len, self._labels.values())) - sum(map(len, labels.values()))
        joined = () if self._given else tuple(filter(_SEPARATORS.search, self._ids))
        notes = Notes(self._repeated_photos, repeated, self._absent, dict(self._unknown), joined)
        return LabelTable(tuple(self._ids), labels, notes)

    def _id(self, number: int, name: str) -> int | None:
        known = self._ids.get(name)
        if known is None and self._given:
            if self._on_unknown == "error":
                raise UserError(
                    f"line {number} of '{self._path}' has the label '{_shown(name)}', which is "
                    f"none of the {len(self._ids)} known classes; correct it, or leave such labels "
                    "out with --unknown_labels=skip."
                )
            if self._on_unknown == "skip":
                self._unknown[name] += 1
                return None
        if known is None:
            known = self._ids[name] = len(self._ids)
        return known

    def _zero(self, number: int, text: str) -> bool:
        try:
            return float(text) == 0
        except ValueError:
            raise self._wrong(number, f"has the confidence '{_shown(text)}', no number") from None

    def _wrong(self, number: int, what: str) -> UserError:
        return UserError(f"line {number} of '{self._path}' {what}; correct the line.")


def write(path: Path, table: LabelTable) -> None:
    """Writes a table as `id,labels`, whole or not at all.

    A reader that is to give the same ids needs the classes, too: see `write_classes`.

    Raises:
        UserError: The name of a class holds a blank.
    """
    _check_names(table.classes)
    rows = ((p, " ".join(table.classes[i] for i in ids)) for p, ids in table.labels.items())
    write_table(path, COLUMNS, rows)


def write_classes(path: Path, classes: Sequence[str]) -> None:
    """Writes the names of classes in the order of their ids, whole or not at all.

    Raises:
        UserError: A name holds a blank.
    """
    _check_names(classes)
    write_table(path, ("label",), ((name,) for name in classes))


def read_classes(path: Path) -> tuple[str, ...]:
    """The names of classes in the order of their ids, as `write_classes` wrote them.

    Raises:
        UserError: The file is damaged or has another form, or a name twice.
    """
    header, rows = read_table(path)
    if header != ["label"]:
        raise UserError(
            f"'{path}' must have one column, label, with the names of the classes; it starts with "
            f"{_shown(','.join(header))}."
        )
    lines: dict[str, int] = {}
    for number, (name,) in rows:
        if name in lines:
            raise UserError(
                f"'{path}' has the class '{_shown(name)}' in lines {lines[name]} and {number}; "
                "keep one."
            )
        lines[name] = number
    _check_names(lines, f"'{path}': ")
    return tuple(lines)


def match(table: LabelTable, photos: Iterable[str], where: str = "the label table") -> Matched:
    """Which labels each photo has, by the one comparison of names that all tables share.

    Args:
        table: Any.
        photos: Names of photos, with or without extension, each once.
        where: What holds the table, for messages.

    Raises:
        UserError: As of `names.match`.
    """
    photos = dict.fromkeys(photos)
    found = names.match(table.labels, photos, where)
    photo_names = {photo: name for name, photo in found.items()}
    return Matched(
        {photo: table.labels[photo_names[photo]] for photo in photos if photo in photo_names},
        [name for name in table.labels if name not in found],
        [photo for photo in photos if photo not in photo_names],
    )


def read_sample(path: Path) -> tuple[tuple[str, str], list[str]]:
    """The column names of a sample submission, and its photos in their order.

    Raises:
        UserError: The file is damaged, has no row or not two columns, or a photo twice.
    """
    return read_sample_table(path, SAMPLE_COLUMNS)


def write_submission(
    path: Path, sample_csv: Path, answers: Mapping[str, Sequence[str]]
) -> list[str]:
    """Writes the labels of photos in the order of a sample submission, whole or not at all.

    What was written is read again, by pandas, and compared before the file gets its name.

    Args:
        path: The `.csv` or `.csv.gz` file.
        sample_csv: The sample; its column names and photos are used.
        answers: By photo, with or without extension, the labels, the best last.

    Returns:
        The photos of the sample that have no answer; their rows have no label.

    Raises:
        UserError: The sample is damaged, no photo of it has an answer, names are ambiguous, or
            a label holds a blank.
        RuntimeError: The file does not say what it should: a fault of this program.
    """
    columns, photos = read_sample(sample_csv)
    _check_names(dict.fromkeys(name for found in answers.values() for name in found))
    keys = names.match(photos, answers, f"'{sample_csv}'")
    if not keys:
        raise UserError(
            f"'{sample_csv}' names no photo that was predicted (its first is '{photos[0]}'); give "
            "the sample that belongs to them."
        )
    rows = [(p, list(answers[keys[p]]) if p in keys else []) for p in photos]
    text = format_line(columns) + "".join(format_line((p, " ".join(found))) for p, found in rows)
    data = text.encode(ENCODING, ERRORS)
    compressed = Path(path).suffix == ".gz"
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(data, mtime=0) if compressed else data)
        _verify(temporary, compressed, columns, rows)
    return [photo for photo in photos if photo not in keys]


def _verify(
    path: Path, compressed: bool, columns: tuple[str, str], rows: Sequence[tuple[str, list[str]]]
) -> None:
    """Compares a submission with what was to be written, by a reader that shares no code with us.

    Raises:
        RuntimeError: They differ.
    """
    table = pd.read_csv(
        path,
        header=None,
        dtype=str,
        na_filter=False,
        skip_blank_lines=False,
        encoding=ENCODING,
        encoding_errors=ERRORS,
        compression="gzip" if compressed else None,
    )
    found = list(table.itertuples(index=False, name=None))
    if not found or found[0] != columns or len(found) != len(rows) + 1:
        raise RuntimeError(f"a submission of {len(rows)} rows was written as {len(found) - 1}")
    for (photo, labels), cells in zip(rows, found[1:], strict=True):
        if cells[0] != photo or cells[1].split() != labels:
            raise RuntimeError(f"the row of '{photo}' was written as {cells}")


def _check_names(classes: Iterable[str], where: str = "") -> None:
    """Refuses names that the table cannot hold between blanks.

    Args:
        classes: The names.
        where: What holds them, for the message ("'classes.csv': ").
    """
    for name in classes:
        if len(name.split()) != 1 or name != name.strip():
            raise UserError(
                f"{where}the class '{_shown(name)}' has no name or one with a blank, but blanks "
                "separate the labels of a photo; rename it, with _ for each blank."
            )


def _shown(text: str) -> str:
    """A text for messages: one line of it, and no more than a name has."""
    shown = names.printable(text)
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"


def _trimmed(cells: list[str], least: int = 2) -> list[str]:
    """Without the empty cells that spreadsheets add at the end."""
    while len(cells) > least and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _plain(name: str) -> str:
    """The name of a column in small letters, without what separates its words."""
    return re.sub("[-_ ]", "", name.strip().lower())


def _chain(
    number: int, cells: list[str], lines: Iterable[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    yield number, cells
    yield from lines
