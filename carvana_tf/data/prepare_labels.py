"""The labels of prepared photos as one clean table, and their split for training."""

import dataclasses
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from carvana_tf.data import names, tables
from carvana_tf.data.labels import LabelTable
from carvana_tf.errors import UserError
from carvana_tf.failures import first_few

SEED = 0xDEADFACE
"""Of the split of the Inclusive Images Challenge's 4th-place solution."""
VALIDATION, TRAINING = 0, 1
"""The folds of a split: training with --fold=0 validates on the first."""


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The photos that have labels.

    Attributes:
        table: Theirs alone, by stem, in the order of the source.
        sentences: For people, what was put in order and what has no counterpart.
    """

    table: LabelTable
    sentences: tuple[str, ...]


def of_photos(table: LabelTable, photos: Sequence[Path], source: Path) -> Labelled:
    """The part of a table that is of some photos.

    Args:
        table: Any.
        photos: Files, at least one.
        source: Where the table is from, for messages.

    Raises:
        UserError: Names are ambiguous, or no photo has a label.
    """
    stems = [names.stem(path.name) for path in photos]
    (stem, count), *_ = Counter(stems).most_common(1)
    if count > 1:
        both = [str(path) for path in photos if names.stem(path.name) == stem]
        raise UserError(
            f"{first_few(both)} have one name, so '{source}' cannot say which it means; rename "
            "them, or prepare their folders one by one."
        )
    found = names.match(table.labels, stems, f"'{source}'")
    of_stem = {stem: table.labels[name] for name, stem in found.items()}
    if not any(of_stem.values()):
        raise UserError(
            f"'{source}' has no labels of these photos (its first is '{next(iter(table.labels))}', "
            f"the first photo '{stems[0]}'); name the table that belongs to --photo_dirs."
        )
    sentences = list(table.notes.sentences())
    for missing, what in (
        ([name for name in table.labels if name not in found], "photos of the table are not there"),
        ([stem for stem in stems if stem not in of_stem], "photos are not in the table"),
    ):
        if missing:
            sentences.append(f"{len(missing)} {what} ({first_few(missing)})")
    kept = LabelTable(table.classes, of_stem, table.notes)
    return Labelled(kept, tuple(sentences))


def split(ids: Iterable[str], ratio: float, seed: int) -> dict[str, int]:
    """The fold of each photo: `VALIDATION` or `TRAINING`.

    Sorted, shuffled by Python's generator, and the last share validates: so the 4th-place
    solution of the Inclusive Images Challenge chose its 1 %, and equal seeds choose the same.

    Args:
        ids: Of the photos, in any order.
        ratio: The share that validates, above 0 and below 1.
        seed: Of the shuffle.

    Raises:
        UserError: One side would be empty.
    """
    order = sorted(ids)
    random.Random(seed).shuffle(order)
    validating = round(ratio * len(order))
    if not 0 < validating < len(order):
        raise UserError(
            f"--val_ratio={ratio:g} of {len(order)} photos with labels are {validating} to "
            f"validate on and {len(order) - validating} to train on; choose another share."
        )
    first = len(order) - validating
    return {name: VALIDATION if i >= first else TRAINING for i, name in enumerate(order)}


def write_split(path: Path, folds: dict[str, int]) -> None:
    """Writes a split as a table of folds, whole or not at all."""
    tables.write_table(path, ("id", "fold"), sorted(folds.items()))
