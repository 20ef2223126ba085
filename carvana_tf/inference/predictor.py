"""From photos to batches of network inputs, and from outputs to one prediction per photo.

Photos are cut to their boxes, sized, flipped and batched; outputs are averaged over flips,
networks and scales, brought to the photo's own size and put where the box was. Nothing
here depends on threads, or on what is predicted.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import equalise
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.failures import list_names
from carvana_tf.inference import tiling, tta
from carvana_tf.inference.engines import Engine
from carvana_tf.inference.engines.base import NotANumber
from carvana_tf.inference.tiling import LargeInputs, Tiling
from carvana_tf.masks import boxes
from carvana_tf.masks.boxes import Box

Images = Sequence[np.ndarray] | np.ndarray
Restore = Callable[[np.ndarray, Resizer, tuple[int, int]], np.ndarray]
"""Of a network's output, how it met the photo, and the photo's size; see `pipeline.Output`."""


@dataclasses.dataclass(frozen=True)
class PipelineSettings:
    """How photos are batched, seen and predicted, and by how many threads.

    Attributes:
        batch_size: Photos per batch, at least 1, flips coming on top; or tiles.
        tta: One of `tta.VIEWS`.
        readers: Threads that decode and prepare.
        writers: Threads that restore, encode and write.
        average: One of `tta.AVERAGES`, for views and networks alike.
        tiling: How inputs are cut, None for whole ones.
        boxes: By stem, the part of each photo that is predicted; None for all of it.
        inputs_per_call: How many a network gets in one call at most; None is no limit.
        streams: How many threads call the networks of a device at most; None is no limit.
        large: Which inputs are cut because memory was not enough for them, and how.
    """

    batch_size: int = 1
    tta: str = "none"
    readers: int = 2
    writers: int = 2
    average: str = "probability"
    tiling: Tiling | None = None
    boxes: Mapping[str, Box] | None = None
    inputs_per_call: int | None = None
    streams: int | None = None
    large: LargeInputs | None = None

    def tiling_of(self, height: int, width: int) -> Tiling | None:
        """The tiling that cuts an input of this size; None where it stays whole."""
        large = self.large is not None and height * width >= self.large.pixels
        cut = self.large.tiling if self.large and large else self.tiling
        return cut if cut and not cut.covers(height, width) else None

    @property
    def is_least(self) -> bool:
        """Whether nothing needs less memory than these, unless photos are cut."""
        return reduce_memory(self, None, (1,), cuts=False) is None

    @property
    def calls_singly(self) -> bool:
        """Whether a network gets one input at a time."""
        views = self.inputs_per_call or len(tta.VIEWS[self.tta].flips)
        return self.batch_size == views == 1

    @property
    def photos_per_batch(self) -> int:
        """How many are read for one batch: where tiles are cut, a photo may be huge."""
        return self.batch_size if self.tiling is None else 1


class InputView(NamedTuple):
    """One of the forms in which networks get every photo: a resizer, a scale and a window."""

    resizer: Resizer
    scale: float
    window: tuple[float, float] | None = None

    def resizer_for(self, size: tuple[int, int]) -> Resizer:
        """The resizer for a photo, or its box, of (height, width)."""
        return self.resizer.at_scale(self.scale, *size)

    def show(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The network's input for an image whose contrast is equalised already.

        Args:
            image: `uint8[H, W, C]`, a photo or its box.
            size: Its (height, width).
        """
        resizer = dataclasses.replace(self.resizer_for(size), clahe=False)
        return resizer.whole(image) if self.window is None else resizer.window(image, *self.window)


@dataclasses.dataclass(frozen=True)
class PhotoInfo:
    """What is kept of a photo until its prediction is written.

    Attributes:
        sample: Which.
        size: Its own (height, width).
        box: The part that is predicted, None for all.
        pixels: `uint8[H, W, 3]` where the output shows the photo.
    """

    sample: Sample
    size: tuple[int, int]
    box: Box | None
    pixels: np.ndarray | None

    @property
    def seen_size(self) -> tuple[int, int]:
        """The (height, width) of what is predicted."""
        return self.size if self.box is None else (self.box.height, self.box.width)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Photos whose inputs have equal shapes.

    Attributes:
        photos: B photos.
        inputs: For each view B times `uint8[H, W, C]`, or, where no tiles are to be cut,
            `uint8[flips * B, H, W, C]`.
    """

    photos: list[PhotoInfo]
    inputs: dict[InputView, Images]


class Predictor:
    """Prepares photos for networks, runs these, and restores what they give.

    Args:
        engines: The networks of one device; other devices have the same.
        settings: How to run.
        restore: Brings an output to the photo's own size.
        shows_photo: Whether the pixels of photos are kept.
        takes_uint8: Whether predictions may be rounded to `uint8`.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        settings: PipelineSettings,
        restore: Restore,
        *,
        shows_photo: bool = False,
        takes_uint8: bool = False,
    ) -> None:
        self._settings = settings
        self._restore = restore
        self._shows_photo = shows_photo
        self._tta = tta.VIEWS[settings.tta]
        resizers = dict.fromkeys(engine.resizer for engine in engines)
        scales, windows = self._tta.scales, self._tta.windows or (None,)
        self._views = [InputView(*view) for view in itertools.product(resizers, scales, windows)]
        self._terms = len(engines) * len(scales) * len(windows)
        # Where nothing is averaged or interpolated, the device can round: a quarter of the bytes.
        self._rounds_on_device = (
            takes_uint8
            and self._terms == len(self._tta.flips) == 1
            and engines[0].resizer.policy != "resize"
        )

    def prepare(self, photos: Sequence[tuple[Sample, np.ndarray]]) -> list[Batch]:
        """Batches of equal shapes, in the order of the first photo of each.

        Args:
            photos: Decoded as `uint8[H, W, 3 + N]`.

        Raises:
            UserError: A box lies outside its photo.
        """
        groups: dict[tuple, list[tuple[PhotoInfo, list[np.ndarray]]]] = {}
        for sample, photo in photos:
            box = self._settings.boxes[sample.stem] if self._settings.boxes else None
            kept = photo[..., :3] if self._shows_photo else None
            info = PhotoInfo(sample, photo.shape[:2], box, kept)
            inputs = self._inputs(info, photo)
            groups.setdefault(tuple(x.shape for x in inputs), []).append((info, inputs))
        return [self._batch(*zip(*group, strict=True)) for group in groups.values()]

    def _inputs(self, info: PhotoInfo, photo: np.ndarray) -> list[np.ndarray]:
        """The input of each view; contrast is equalised over the whole photo, as in training."""
        by_clahe = {view.resizer.clahe: photo for view in self._views}
        if True in by_clahe:
            by_clahe[True] = equalise(photo)
        if info.box is not None:
            path = info.sample.photo
            by_clahe = {key: boxes.cut(image, info.box, path) for key, image in by_clahe.items()}
        return [view.show(by_clahe[view.resizer.clahe], info.seen_size) for view in self._views]

    def _batch(self, photos: Sequence[PhotoInfo], inputs: Sequence[list[np.ndarray]]) -> Batch:
        by_view = zip(self._views, zip(*inputs, strict=True), strict=True)
        return Batch(
            list(photos),
            {
                view: images if self._tiling(images) else tta.stack(images, self._tta.flips)
                for view, images in by_view
            },
        )

    def _tiling(self, images: Images) -> Tiling | None:
        return self._settings.tiling_of(*images[0].shape[:2])

    def predict(self, engines: Sequence[Engine], batch: Batch) -> dict[InputView, np.ndarray]:
        """For each view the sum over its networks.

        Returns:
            `float32[B, …]` on the scale of `tta.to_average`, the mean over flips; or
            `uint8[B, …]` rounded by the engine.

        Raises:
            UserError: A network gives NaN.
        """
        sums: dict[InputView, np.ndarray] = {}
        for view, inputs in batch.inputs.items():
            for engine in engines:
                if engine.resizer == view.resizer:
                    output = self._run_checked(engine, inputs, batch.photos)
                    sums[view] = sums[view] + output if view in sums else output
        return sums

    def _run_checked(
        self, engine: Engine, inputs: Images, photos: Sequence[PhotoInfo]
    ) -> np.ndarray:
        """What a network gives, unless that is NaN."""
        output = None
        with contextlib.suppress(NotANumber):
            output = self._run(engine, inputs, rounds=self._rounds_on_device)
        # Pixels cannot show it, and the sum is NaN if one value is.
        if output is not None and not _has_nan(output):
            return output
        if output is None:
            output = self._run(engine, inputs, rounds=False)
        bad = [p.sample.source for p, one in zip(photos, output, strict=True) if _has_nan(one)]
        if not bad:  # rounding on the device saw NaN, the same computation now has none
            names = list_names([photo.sample.source for photo in photos])
            raise UserError(
                f"the network of '{engine.path}' gave NaN for {names}, but not a second time; run "
                "the same command again, and try another --engine if it happens again."
            )
        raise UserError(
            f"the network of '{engine.path}' gives NaN for {list_names(bad)}; try "
            "--dtype=float32, else train it again with a lower --learning_rate."
        )

    def _run(self, engine: Engine, inputs: Images, *, rounds: bool) -> np.ndarray:
        most = self._settings.inputs_per_call

        def call(function: Callable[[np.ndarray], np.ndarray], stacked: np.ndarray) -> np.ndarray:
            stacked = stacked[..., : engine.channels]
            if most is None or len(stacked) <= most:
                return function(stacked)
            starts = range(0, len(stacked), most)
            return np.concatenate([function(stacked[i : i + most]) for i in starts])

        def network(stacked: np.ndarray) -> np.ndarray:
            return tta.to_average(call(engine.predict, stacked), self._settings.average)

        cut = self._tiling(inputs)
        if cut is not None:
            return tiling.predict(
                network,
                list(inputs),
                self._tta.flips,
                cut,
                stride=engine.resizer.stride,
                batch_size=self._settings.batch_size,
            )
        stacked = np.asarray(inputs)
        if rounds and engine.predict_uint8 is not None:
            return call(engine.predict_uint8, stacked)
        return tta.merge(network(stacked), self._tta.flips)

    def restore(self, photo: PhotoInfo, sums: Mapping[InputView, np.ndarray]) -> np.ndarray:
        """The prediction of one photo.

        Args:
            photo: Which.
            sums: What `predict` gave for it, by view.

        Returns:
            The mean of what `restore` gives for the views, `float32`, or `round(255 p)` as
            `uint8` where the engine rounded. An image is 0 outside the photo's box.
        """
        size = photo.seen_size
        restored = [self._restore(one, view.resizer_for(size), size) for view, one in sums.items()]
        values = restored[0] if restored[0].dtype == np.uint8 else self._mean(restored)
        if photo.box is None or values.ndim < 2:
            return values
        return boxes.paste(values, photo.box, *photo.size)

    def _mean(self, restored: Sequence[np.ndarray]) -> np.ndarray:
        mean = sum(restored[1:], start=restored[0])
        if self._terms > 1:
            mean = mean / np.float32(self._terms)
        return tta.from_average(mean, self._settings.average)


def _has_nan(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and math.isnan(values.sum())


def reduce_memory(
    settings: PipelineSettings, pixels: int | None, strides: Sequence[int], *, cuts: bool
) -> tuple[PipelineSettings, str] | None:
    """Settings that need less memory: smaller batches, fewer threads, at last tiles.

    Args:
        settings: For which memory was not enough.
        pixels: Of the largest input where a network ran out of memory; None elsewhere.
        strides: Of all networks.
        cuts: Whether the networks take tiles.

    Returns:
        The settings and what they mean, in a few words; None where there are none.
    """
    change = functools.partial(dataclasses.replace, settings)
    if settings.batch_size > 1:
        size = settings.batch_size // 2
        return change(batch_size=size), f"with batches of {size}"
    if not settings.calls_singly:
        views = settings.inputs_per_call or len(tta.VIEWS[settings.tta].flips)
        return change(inputs_per_call=views // 2), f"with {views // 2} views of a photo at once"
    if (settings.readers, settings.writers, settings.streams) != (1, 1, 1):
        return change(readers=1, writers=1, streams=1), "with one photo at a time"
    if pixels is None or not cuts:
        return None
    large = tiling.halve(pixels, settings.tiling, settings.large, strides)
    return None if large is None else (change(large=large), f"with {large}")
