"""What predicted labels become: a table of scores."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from carvana_tf.data import names
from carvana_tf.data.dataset import Sample
from carvana_tf.data.resizing import Resizer
from carvana_tf.masks.growing import InOrder, Part
from carvana_tf.tasks.labels import table
from carvana_tf.tasks.labels.table import Scores


class Unwatched:
    """Looks at no prediction: labels have no constant ones that one could warn of."""

    def add(self, prediction: np.ndarray) -> None:
        """Takes it."""

    def warning(self, models: str) -> str | None:
        """None."""
        return None


class LabelWriters:
    """`tasks.base.Writers` of labels.

    Args:
        classes: Their names.
        score: Of the logits of a photo.
    """

    KINDS = ("scores",)
    THRESHOLDED = ()
    TABLE, TABLES = table.NAME, KINDS

    def __init__(self, classes: Sequence[str], score: Scores) -> None:
        self._classes = classes
        self._score = score

    def watch(self, threshold: int) -> Unwatched:
        """See `Writers.watch`."""
        return Unwatched()

    def encoding(self, kind: str, threshold: int, cutout: object = None) -> str:
        """See `Writers.encoding`."""
        return table.ENCODING

    def begun(self, folder: Path) -> set[str] | None:
        """See `Writers.begun`."""
        rows = table.growing(folder)
        if not rows.exists:
            return None
        with rows:
            return {names.stem(photo) for photo in rows.done}

    def discard(self, folder: Path) -> None:
        """See `Writers.discard`."""
        table.discard(folder)

    @contextlib.contextmanager
    def create(
        self,
        kind: str,
        folder: Path,
        samples: Sequence[Sample],
        threshold: int,
        on_mask: Callable[[np.ndarray], object],
        cutout: object = None,
    ) -> Iterator["ScoreTable"]:
        """See `Writers.create`; the table is there when the block succeeds."""
        with table.growing(folder) as rows:
            ordered = InOrder(rows.add, [sample.photo.name for sample in samples])
            yield ScoreTable(ordered, self._classes, self._score)
            rows.finish(Path(folder) / table.NAME, keep=ordered.skipped > 0)


class ScoreTable:
    """A `pipeline.Output` whose predictions are logits, `float32[K]`.

    Args:
        rows: Gets the rows.
        classes: Names of the classes.
        score: Of the logits of a photo.
    """

    shows_photo = takes_uint8 = False

    def __init__(self, rows: InOrder[Part], classes: Sequence[str], score: Scores) -> None:
        self._rows = rows
        self._classes = classes
        self._score = score

    def restore(self, output: np.ndarray, resizer: Resizer, size: tuple[int, int]) -> np.ndarray:
        """See `Output.restore`: labels have no size."""
        return output

    def encode(
        self, prediction: np.ndarray, photo: np.ndarray | None, path: Path | None = None
    ) -> bytes:
        """The ids of the best classes, and their scores."""
        ids, scores = self._score(prediction)
        return ids.astype("<i4").tobytes() + scores.astype("<f4").tobytes()

    def write(self, sample: Sample, data: bytes) -> None:
        """Adds a row as soon as all before it are added."""
        half = len(data) // 2
        labels = [self._classes[i] for i in np.frombuffer(data[:half], "<i4")]
        photo = sample.photo.name
        self._rows.put(photo, table.row(photo, labels, np.frombuffer(data[half:], "<f4")))

    def skip(self, sample: Sample, problem: str) -> None:
        """Lets the rows after it come."""
        self._rows.put(sample.photo.name, None)
