"""What predicted masks become: probability PNGs, binary masks, cut-outs, or a submission."""

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carvana_tf.data import names
from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import encode_mask, encode_probability, to_uint8
from carvana_tf.data.resizing import Resizer
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.evaluation import constant
from carvana_tf.filenames import SUBMISSION
from carvana_tf.files import Group, write_bytes
from carvana_tf.masks import manifest, rle, submission
from carvana_tf.masks.cutouts import cutter
from carvana_tf.masks.cutouts.cutter import Cutter
from carvana_tf.masks.cutouts.options import CutoutOptions
from carvana_tf.masks.growing import Growing, InOrder, Part
from carvana_tf.masks.submission import COLUMNS

KINDS = ("probability", "mask", "cutout", "rle", "rle-parquet")
Encode = Callable[[np.ndarray, np.ndarray | None, Path | None], bytes]
OnMask = Callable[[np.ndarray], object]
TABLE, TABLES = SUBMISSION, ("rle",)
CUTOUT = CutoutOptions()
THRESHOLDED = ("mask", "rle", "rle-parquet")  # keep no probabilities, but what is above a threshold


def restore(output: np.ndarray, resizer: Resizer, size: tuple[int, int]) -> np.ndarray:
    """A network's output as probabilities of the photo's own size.

    Args:
        output: `[H', W']` or `[H', W', 1]`, `float32` in 0..1 or `uint8`.
        resizer: How the photo was brought to the network's input.
        size: Its own (height, width).
    """
    return resizer.restore(output.reshape(output.shape[:2]), *size)


def watch(threshold: int) -> constant.Counts:
    """Warns of masks of which nearly all show nothing; a grey value above `threshold` is object."""
    return constant.Counts(threshold)


def encoding(kind: str, threshold: int, cutout: CutoutOptions = CUTOUT) -> str:
    """How a manifest describes the values.

    Args:
        kind: One of `KINDS`.
        threshold: A grey value above it is object.
        cutout: What cut-outs are like.
    """
    return {
        "probability": manifest.ENCODING,
        "mask": f"{manifest.BINARY} of round(255p) > {threshold}",
        "cutout": cutter.describe(cutout),
        "rle": f"run lengths of round(255p) > {threshold}",
        "rle-parquet": f"run lengths of round(255p) > {threshold} in Parquet",
    }[kind]


@contextlib.contextmanager
def create(
    kind: str,
    folder: Path,
    samples: Sequence[Sample],
    threshold: int = DEFAULT_THRESHOLD,
    on_mask: OnMask | None = None,
    cutout: CutoutOptions = CUTOUT,
) -> Iterator["MaskOutput"]:
    """An output to be filled inside the block.

    Args:
        kind: One of `KINDS` but "rle-parquet", see `masks.rle_parquet`.
        folder: Where files go. PNGs appear one by one; `SUBMISSION`, with one row for each
            photo in their order, appears when the block succeeds. Rows of an interrupted run
            are kept, see `begun`, and those of photos that were skipped come last.
        samples: The photos that are still to be predicted.
        threshold: A grey value above it is object, where only that is kept.
        on_mask: Called with the `uint8[H, W]` of each mask, in any thread.
        cutout: What cut-outs are like.

    Raises:
        UserError: The submission cannot be written.
    """
    if kind == "rle":
        with _rows(folder) as growing:
            rows = InOrder(growing.add, [sample.photo.name for sample in samples])
            yield Submission(rows, threshold, on_mask)
            growing.finish(Path(folder) / SUBMISSION, keep=rows.skipped > 0)
        return
    encode: dict[str, Encode] = {
        "probability": lambda values, *_: encode_probability(values),
        "mask": lambda values, *_: encode_mask(values > threshold),
        "cutout": _cutouts(cutout),
    }
    cuts = kind == "cutout"
    suffix = cutout.suffix if cuts else ".png"
    with Group() as group:
        yield PngFolder(
            folder, encode[kind], group.write_bytes, on_mask, shows_photo=cuts, suffix=suffix
        )


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
    return PngFolder(folder, lambda values, *_: encode_probability(values), write_bytes)


class MaskOutput(abc.ABC):
    """A `pipeline.Output` of masks: predictions are `[H, W]`, `float32` in 0..1 or `uint8`.

    Args:
        on_mask: As of `create`.
        shows_photo: Whether a photo's pixels are written.
    """

    takes_uint8 = True

    def __init__(self, on_mask: OnMask | None, *, shows_photo: bool = False) -> None:
        self.shows_photo = shows_photo
        self._on_mask = on_mask

    def restore(self, output: np.ndarray, resizer: Resizer, size: tuple[int, int]) -> np.ndarray:
        """See `Output.restore`."""
        return restore(output, resizer, size)

    @abc.abstractmethod
    def encode(
        self, prediction: np.ndarray, photo: np.ndarray | None, path: Path | None = None
    ) -> Any:
        """See `Output.encode`."""

    @abc.abstractmethod
    def write(self, sample: Sample, data: Any) -> None:
        """See `Output.write`."""

    @abc.abstractmethod
    def skip(self, sample: Sample, problem: str) -> None:
        """See `Output.skip`."""

    def _grey(self, prediction: np.ndarray) -> np.ndarray:
        """The `uint8[H, W]` of a mask."""
        grey = prediction if prediction.dtype == np.uint8 else to_uint8(prediction)
        if self._on_mask is not None:
            self._on_mask(grey)
        return grey


class PngFolder(MaskOutput):
    """One PNG, or file of another format, per photo, named as the photo.

    Args:
        folder: Where they go.
        encode: Of `uint8[H, W]` and, where `shows_photo`, the photo and its file,
            the bytes of a PNG.
        save: Writes bytes to a path.
        on_mask: As of `create`.
        shows_photo: Whether a photo's pixels are written.
        suffix: Of the files.
    """

    def __init__(
        self,
        folder: Path,
        encode: Encode,
        save: Callable[[Path, bytes], object],
        on_mask: OnMask | None = None,
        *,
        shows_photo: bool = False,
        suffix: str = ".png",
    ) -> None:
        super().__init__(on_mask, shows_photo=shows_photo)
        self._suffix = suffix
        self._folder = Path(folder)
        self._encode = encode
        self._save = save

    def encode(
        self, prediction: np.ndarray, photo: np.ndarray | None, path: Path | None = None
    ) -> bytes:
        """The bytes of a PNG."""
        return self._encode(self._grey(prediction), photo, path)

    def path(self, sample: Sample) -> Path:
        """Where a photo's PNG lies."""
        return self._folder / f"{sample.stem}{self._suffix}"

    def write(self, sample: Sample, data: bytes) -> None:
        """Writes a PNG, whole or not at all."""
        self._save(self.path(sample), data)

    def skip(self, sample: Sample, problem: str) -> None:
        """Nothing: the photo has no PNG."""


class Submission(MaskOutput):
    """Rows of a submission, in the order of the photos.

    Args:
        rows: Gets them.
        threshold: A grey value above it is object.
        on_mask: As of `create`.
    """

    def __init__(self, rows: InOrder[Part], threshold: int, on_mask: OnMask | None = None) -> None:
        super().__init__(on_mask)
        self._rows = rows
        self._threshold = threshold

    def encode(
        self, prediction: np.ndarray, photo: np.ndarray | None, path: Path | None = None
    ) -> bytes:
        """The run lengths of the mask, decoded back and compared."""
        return run_lengths(self._grey(prediction), self._threshold).encode()

    def write(self, sample: Sample, data: bytes) -> None:
        """Writes a row as soon as all before it are written."""
        image = sample.photo.name
        self._rows.put(image, submission.row_line(image, data.decode()))

    def skip(self, sample: Sample, problem: str) -> None:
        """Lets the rows after it come."""
        self._rows.put(sample.photo.name, None)


def run_lengths(grey: np.ndarray, threshold: int) -> str:
    """The run lengths of what is above a threshold in `uint8[H, W]`, decoded back and compared.

    Raises:
        RuntimeError: They decode to something else.
    """
    bits = rle.pack(grey, threshold)
    text = rle.to_text(rle.encode_packed(bits, grey.size))
    rle.verify(text, bits, *grey.shape)
    return text


def _cutouts(options: CutoutOptions) -> Encode:
    made = Cutter(options)

    def encode(values: np.ndarray, photo: np.ndarray | None, path: Path | None) -> bytes:
        if photo is None:
            raise ValueError("a cut-out needs the photo.")
        return made.encode(values, photo, path)

    return encode
