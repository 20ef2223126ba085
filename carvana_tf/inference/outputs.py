"""What predictions become: probability PNGs, binary masks, cut-outs, or a submission."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from carvana_tf.data import names
from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import encode_cutout, encode_mask, encode_probability
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.filenames import SUBMISSION
from carvana_tf.files import Group, write_bytes
from carvana_tf.masks import manifest, rle, submission
from carvana_tf.masks.growing import Growing
from carvana_tf.masks.submission import COLUMNS

KINDS = ("probability", "mask", "cutout", "rle")
Encode = Callable[[np.ndarray, np.ndarray | None], bytes]
DECIDED = ("mask", "rle")  # keep no probabilities, but what is above a threshold


class Output(Protocol):
    """Where masks go; any thread may call it."""

    @property
    def shows_photo(self) -> bool:
        """Whether `encode` needs the photo."""

    def encode(self, values: np.ndarray, photo: np.ndarray | None) -> bytes:
        """What is written for one photo.

        Args:
            values: `uint8[H, W]`, `round(255 p)`.
            photo: `uint8[H, W, 3]` where `shows_photo`.
        """

    def write(self, sample: Sample, data: bytes) -> None:
        """Writes what `encode` gave for a photo."""

    def skip(self, sample: Sample) -> None:
        """Goes on without a photo, which cannot be read."""


def encoding(kind: str, threshold: int) -> str:
    """What a manifest says of the values.

    Args:
        kind: One of `KINDS`.
        threshold: A grey value above it is object.
    """
    return {
        "probability": manifest.ENCODING,
        "mask": f"{manifest.BINARY} of round(255p) > {threshold}",
        "cutout": "rgba8 photo with alpha round(255p)",
        "rle": f"run lengths of round(255p) > {threshold}",
    }[kind]


@contextlib.contextmanager
def create(
    kind: str, folder: Path, samples: Sequence[Sample], threshold: int = DEFAULT_THRESHOLD
) -> Iterator[Output]:
    """An output to be filled inside the block.

    Args:
        kind: One of `KINDS`.
        folder: Where files go. PNGs appear one by one; `SUBMISSION`, with one row for each
            photo in their order, appears when the block succeeds. Rows of an interrupted run
            are kept, see `begun`, and those of photos that were skipped come last.
        samples: The photos that are still to be predicted.
        threshold: A grey value above it is object, where only that is kept.

    Raises:
        UserError: The submission cannot be written.
    """
    if kind == "rle":
        with _rows(folder) as growing:
            rows = Submission(growing, samples, threshold)
            yield rows
            growing.finish(Path(folder) / SUBMISSION, keep=rows.skipped > 0)
        return
    encode: dict[str, Encode] = {
        "probability": lambda values, _: encode_probability(values),
        "mask": lambda values, _: encode_mask(values > threshold),
        "cutout": _cutout,
    }
    with Group() as group:
        yield PngFolder(folder, encode[kind], group.write_bytes, shows_photo=kind == "cutout")


def begun(folder: Path) -> set[str] | None:
    """The stems whose rows are there already; None where no submission was begun."""
    growing = _rows(folder)
    if not growing.exists:
        return None
    with growing:
        return {names.stem(image) for image in growing.done}


def discard(folder: Path) -> None:
    """Removes the rows of a submission that was begun."""
    _rows(folder).discard()


def _rows(folder: Path) -> Growing:
    return Growing(Path(folder), SUBMISSION, COLUMNS)


def probabilities(folder: Path) -> "PngFolder":
    """Probability PNGs in a folder, each on the disk when it is written."""
    return PngFolder(folder, lambda values, _: encode_probability(values), write_bytes)


@dataclasses.dataclass(frozen=True)
class PngFolder:
    """One PNG per photo, named as the photo."""

    folder: Path
    encode: Encode
    save: Callable[[Path, bytes], object]
    shows_photo: bool = False

    def path(self, sample: Sample) -> Path:
        """Where a photo's PNG lies."""
        return Path(self.folder) / f"{sample.stem}.png"

    def write(self, sample: Sample, data: bytes) -> None:
        """Writes a PNG, whole or not at all."""
        self.save(self.path(sample), data)

    def skip(self, sample: Sample) -> None:
        """Nothing: the photo has no PNG."""


class Submission:
    """Rows of a submission in the order of the photos, whichever is finished first.

    What waits is a text per photo that overtook another, and photos overtake one another
    only while they are on their way, so memory does not grow with their number.

    Attributes:
        skipped: How many photos have no row, because they cannot be read.
    """

    shows_photo = False

    def __init__(
        self,
        growing: Growing,
        samples: Sequence[Sample],
        threshold: int,
    ) -> None:
        self.skipped = 0
        self._growing = growing
        self._threshold = threshold
        self._to_come = iter([sample.photo.name for sample in samples])
        self._next = next(self._to_come, None)
        self._waiting: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def encode(self, values: np.ndarray, photo: np.ndarray | None) -> bytes:
        """The run lengths of the mask, decoded back and compared."""
        bits = rle.pack(values, self._threshold)
        text = rle.to_text(rle.encode_packed(bits, values.size))
        rle.verify(text, bits, *values.shape)
        return text.encode()

    def write(self, sample: Sample, data: bytes) -> None:
        """Writes a row as soon as all before it are written."""
        self._take(sample, data.decode())

    def skip(self, sample: Sample) -> None:
        """Lets the rows after it come."""
        self._take(sample, None)

    def _take(self, sample: Sample, text: str | None) -> None:
        with self._lock:
            self.skipped += text is None
            self._waiting[sample.photo.name] = text
            while self._next in self._waiting:
                row = self._waiting.pop(self._next)
                if row is not None:
                    self._growing.add(submission.row_line(self._next, row))
                self._next = next(self._to_come, None)


def _cutout(values: np.ndarray, photo: np.ndarray | None) -> bytes:
    if photo is None:
        raise ValueError("a cut-out needs the photo.")
    return encode_cutout(photo, values)
