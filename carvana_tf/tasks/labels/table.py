"""A table of scores: which labels a photo has, and how sure that is.

`scores.csv.gz` has a row for each photo: its name, the names of its best classes, the best first,
and their scores in 0..1, both between blanks. Next to it lies the manifest that says what made it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from carvana_tf.data.tables import ERRORS, format_line, read_table
from carvana_tf.errors import UserError
from carvana_tf.filenames import MANIFEST
from carvana_tf.masks import manifest
from carvana_tf.masks.growing import Growing, Part, compress

NAME = "scores.csv.gz"
COLUMNS = ("id", "labels", "scores")
ENCODING = "scores of the best labels"


@dataclasses.dataclass(frozen=True)
class PhotoLabels:
    """The scored labels of a photo.

    Attributes:
        photo: The name of its file.
        labels: Names of classes, the best first.
        scores: `float32[k]` in 0..1, of each.
    """

    photo: str
    labels: tuple[str, ...]
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class ScoreFolder:
    """A folder with a table of scores.

    Attributes:
        path: The folder.
        manifest: What made it, None if unknown.
    """

    path: Path
    manifest: manifest.Manifest | None

    @property
    def out_of_fold(self) -> bool | None:
        """Whether it is known that no model saw a photo, nor its group; None without manifest."""
        return None if self.manifest is None else self.manifest.out_of_fold

    def rows(self) -> Iterator[PhotoLabels]:
        """The photos in the order of the table, one in memory at once.

        Raises:
            UserError: The table is damaged, or has a photo twice.
        """
        path = self.path / NAME
        header, lines = read_table(path)
        if tuple(header) != COLUMNS:
            raise UserError(
                f"'{path}' starts with {','.join(header[:4])}, expected {','.join(COLUMNS)}; "
                "predict it again with --task=labels."
            )
        seen: set[str] = set()
        for number, (photo, names, texts) in lines:
            labels = tuple(names.split())
            try:
                scores = np.array([float(text) for text in texts.split()], np.float32)
            except ValueError:
                scores = np.empty(0, np.float32)
            wrong = len(scores) != len(labels) or len(set(labels)) < len(labels)
            # Written so that NaN is wrong, too.
            if wrong or not ((scores >= 0) & (scores <= 1)).all() or (np.diff(scores) > 0).any():
                raise UserError(
                    f"line {number} of '{path}' must have a score of 0 to 1 for each of its "
                    "labels, the best first; predict it again."
                )
            if photo in seen:
                raise UserError(f"'{path}' has '{photo}' twice (line {number}); remove one.")
            seen.add(photo)
            yield PhotoLabels(photo, labels, scores)


def open_scores(folder: Path) -> ScoreFolder:
    """A folder with a table of scores.

    Raises:
        UserError: It has none, or its manifest says that it holds something else.
    """
    folder = Path(folder)
    made = manifest.read(folder)
    if made is not None and made.task != manifest.LABELS:
        raise UserError(
            f"'{folder / MANIFEST}' says that it holds {made.task}; leave --task=labels out, or "
            "name a folder of labels."
        )
    if not (folder / NAME).is_file():
        raise UserError(
            f"'{folder}' has no '{NAME}'; predict into it with a model of labels first, or correct "
            "its name."
        )
    return ScoreFolder(folder, made)


def row(photo: str, labels: Sequence[str], scores: Sequence[float] | np.ndarray) -> Part:
    """One line of the table; seven digits are what float32 holds."""
    cells = (photo, " ".join(labels), " ".join(f"{score:.7g}" for score in scores))
    return compress(format_line(cells).encode(errors=ERRORS))


def growing(folder: Path) -> Growing:
    """The table of a folder while it is being written; a finished one is gone on with.

    Raises:
        UserError: The finished one is damaged.
    """
    folder = Path(folder)
    rows = Growing(folder, NAME, COLUMNS)
    if not rows.exists and (folder / NAME).is_file():
        _, lines = read_table(folder / NAME)
        with rows:
            for _, cells in lines:
                rows.add(compress(format_line(cells).encode(errors=ERRORS)))
    return rows


def discard(folder: Path) -> None:
    """Removes the table of a folder, finished or not."""
    Growing(Path(folder), NAME, COLUMNS).discard()
    (Path(folder) / NAME).unlink(missing_ok=True)


Scores = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of logits `float32[K]` the ids of the best classes and their scores, best first."""
