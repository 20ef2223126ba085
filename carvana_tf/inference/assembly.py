"""From photos to what the networks see, and from what they give to one mask per photo.

Photos are cut to their boxes, sized, flipped and batched; outputs are averaged over flips,
networks and scales, brought to the photo's own size and put where the box was. Nothing
here knows a thread.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import equalise, quantise
from carvana_tf.data.sizing import Sizing
from carvana_tf.errors import UserError
from carvana_tf.failures import list_names
from carvana_tf.inference import tiling, tta
from carvana_tf.inference.engines import Engine
from carvana_tf.inference.engines.base import NotANumber
from carvana_tf.inference.tiling import Large, Tiling
from carvana_tf.masks import boxes
from carvana_tf.masks.boxes import Box

Images = Sequence[np.ndarray] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        batch_size: Photos per batch, at least 1, flips coming on top; or tiles.
        tta: One of `tta.VIEWS`.
        readers: Threads that decode and prepare.
        writers: Threads that restore, encode and write.
        average: One of `tta.AVERAGES`, for views and networks alike.
        tiling: How inputs are cut, None for whole ones.
        boxes: By stem, the part of each photo that is predicted; None for all of it.
        inputs_at_once: How many a network gets in one call at most; None is no limit.
        streams: How many threads call the networks of a device at most; None is no limit.
        large: How large inputs are cut, for want of memory.
    """

    batch_size: int = 1
    tta: str = "none"
    readers: int = 2
    writers: int = 2
    average: str = "probability"
    tiling: Tiling | None = None
    boxes: Mapping[str, Box] | None = None
    inputs_at_once: int | None = None
    streams: int | None = None
    large: Large | None = None

    def tiling_of(self, height: int, width: int) -> Tiling | None:
        """The tiling that cuts an input of this size; None where it stays whole."""
        large = self.large is not None and height * width >= self.large.pixels
        cut = self.large.tiling if self.large and large else self.tiling
        return cut if cut and not cut.covers(height, width) else None

    @property
    def least(self) -> bool:
        """Whether nothing needs less memory than these, unless photos are cut."""
        return relieved(self, None, (1,), cuts=False) is None

    @property
    def photos_at_once(self) -> int:
        """How many are read for one batch: where tiles are cut, a photo may be huge."""
        return self.batch_size if self.tiling is None else 1


class Way(NamedTuple):
    """One of the ways in which every photo meets networks."""

    sizing: Sizing
    scale: float

    def of(self, size: tuple[int, int]) -> Sizing:
        """The sizing for a photo, or its box, of (height, width)."""
        return self.sizing.at_scale(self.scale, *size)


@dataclasses.dataclass(frozen=True)
class Item:
    """One photo on its way.

    Attributes:
        sample: Which.
        size: Its own (height, width).
        box: The part that is predicted, None for all.
        photo: `uint8[H, W, 3]` where the output shows it.
    """

    sample: Sample
    size: tuple[int, int]
    box: Box | None
    photo: np.ndarray | None

    @property
    def seen(self) -> tuple[int, int]:
        """The (height, width) of what is predicted."""
        return self.size if self.box is None else (self.box.height, self.box.width)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Photos that travel together.

    Attributes:
        items: B photos.
        inputs: For each way B times `uint8[H, W, C]`, or, where no tiles are to be cut,
            `uint8[flips * B, H, W, C]`.
    """

    items: list[Item]
    inputs: dict[Way, Images]


class Assembly:
    """How photos become inputs of given networks, and their outputs masks.

    Args:
        engines: The networks of one device; other devices have the same.
        settings: How to run.
        shows_photo: Whether items keep their photo.
    """

    def __init__(
        self, engines: Sequence[Engine], settings: Settings, *, shows_photo: bool = False
    ) -> None:
        self._settings = settings
        self._shows_photo = shows_photo
        self._views = tta.VIEWS[settings.tta]
        sizings = dict.fromkeys(engine.sizing for engine in engines)
        self._ways = [Way(sizing, scale) for sizing in sizings for scale in self._views.scales]
        self._terms = len(engines) * len(self._views.scales)
        # Nothing is averaged or interpolated: bytes can be rounded where the network runs.
        self._plain = (
            self._terms == len(self._views.flips) == 1 and engines[0].sizing.policy != "resize"
        )

    def prepare(self, photos: Sequence[tuple[Sample, np.ndarray]]) -> list[Batch]:
        """Batches of equal shapes, in the order of the first photo of each.

        Args:
            photos: Decoded as `uint8[H, W, 3 + N]`.

        Raises:
            UserError: A box lies outside its photo.
        """
        groups: dict[tuple, list[tuple[Item, list[np.ndarray]]]] = {}
        for sample, photo in photos:
            box = self._settings.boxes[sample.stem] if self._settings.boxes else None
            kept = photo[..., :3] if self._shows_photo else None
            item = Item(sample, photo.shape[:2], box, kept)
            inputs = self._inputs(item, photo)
            groups.setdefault(tuple(x.shape for x in inputs), []).append((item, inputs))
        return [self._batch(*zip(*group, strict=True)) for group in groups.values()]

    def _inputs(self, item: Item, photo: np.ndarray) -> list[np.ndarray]:
        """What each way sees. Contrast is equalised once, as in training over the whole photo."""
        looks = {way.sizing.clahe: photo for way in self._ways}
        if True in looks:
            looks[True] = equalise(photo)
        if item.box is not None:
            path = item.sample.photo
            looks = {clahe: boxes.cut(look, item.box, path) for clahe, look in looks.items()}
        return [
            dataclasses.replace(way.of(item.seen), clahe=False).whole(looks[way.sizing.clahe])
            for way in self._ways
        ]

    def _batch(self, items: Sequence[Item], inputs: Sequence[list[np.ndarray]]) -> Batch:
        by_way = zip(self._ways, zip(*inputs, strict=True), strict=True)
        return Batch(
            list(items),
            {
                way: images if self._tiled(images) else tta.stack(images, self._views.flips)
                for way, images in by_way
            },
        )

    def _tiled(self, images: Images) -> Tiling | None:
        return self._settings.tiling_of(*images[0].shape[:2])

    def predict(self, engines: Sequence[Engine], batch: Batch) -> dict[Way, np.ndarray]:
        """For each way the sum over its networks, so that one array per way travels on.

        Returns:
            `float32[B, H, W]` on the scale of `tta.to_average`, the mean over flips; or
            `uint8[B, H, W]` from a network that rounds by itself.

        Raises:
            UserError: A network gives NaN.
        """
        sums: dict[Way, np.ndarray] = {}
        for way, inputs in batch.inputs.items():
            for engine in engines:
                if engine.sizing == way.sizing:
                    output = self._numbers(engine, inputs, batch.items)
                    sums[way] = sums[way] + output if way in sums else output
        return sums

    def _numbers(self, engine: Engine, inputs: Images, items: Sequence[Item]) -> np.ndarray:
        """What a network gives, unless that is NaN."""
        output = None
        with contextlib.suppress(NotANumber):
            output = self._run(engine, inputs, rounds=True)
        # Grey values cannot show it, and the sum is NaN if one is.
        if output is not None and not _has_nan(output):
            return output
        if output is None:
            output = self._run(engine, inputs, rounds=False)
        bad = [item.sample.photo for item, one in zip(items, output, strict=True) if _has_nan(one)]
        if not bad:  # grey values showed that there was some, the same computation has none
            seen = list_names([item.sample.photo for item in items])
            raise UserError(
                f"the network of '{engine.path}' gave NaN for {seen}, but not a second time; run "
                "the same command again, and try another --engine if it happens again."
            )
        raise UserError(
            f"the network of '{engine.path}' gives NaN for {list_names(bad)}; try "
            "--dtype=float32, else train it again with a lower --learning_rate."
        )

    def _run(self, engine: Engine, inputs: Images, *, rounds: bool) -> np.ndarray:
        at_once = self._settings.inputs_at_once

        def call(function: Callable[[np.ndarray], np.ndarray], stacked: np.ndarray) -> np.ndarray:
            stacked = stacked[..., : engine.channels]
            if at_once is None or len(stacked) <= at_once:
                return function(stacked)
            starts = range(0, len(stacked), at_once)
            return np.concatenate([function(stacked[i : i + at_once]) for i in starts])

        def network(stacked: np.ndarray) -> np.ndarray:
            return tta.to_average(call(engine.predict, stacked), self._settings.average)

        cut = self._tiled(inputs)
        if cut is not None:
            return tiling.predict(
                network,
                list(inputs),
                self._views.flips,
                cut,
                stride=engine.sizing.stride,
                batch_size=self._settings.batch_size,
            )
        stacked = np.asarray(inputs)
        if self._plain and rounds and engine.quantised is not None:
            return call(engine.quantised, stacked)
        return tta.merge(network(stacked), self._views.flips)

    def restore(self, item: Item, sums: Mapping[Way, np.ndarray]) -> np.ndarray:
        """The mask of one photo.

        Args:
            item: The photo.
            sums: What `predict` gave for it, `[H', W']` each.

        Returns:
            `uint8[H, W]`, `round(255 p)`; 0 outside the box.
        """
        restored = [way.of(item.seen).restore(one, *item.seen) for way, one in sums.items()]
        values = restored[0] if restored[0].dtype == np.uint8 else self._mean(restored)
        return values if item.box is None else boxes.paste(values, item.box, *item.size)

    def _mean(self, restored: Sequence[np.ndarray]) -> np.ndarray:
        mean = sum(restored[1:], start=restored[0])
        if self._terms > 1:
            mean = mean / np.float32(self._terms)
        return quantise(tta.from_average(mean, self._settings.average))


def _has_nan(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and math.isnan(values.sum())


def relieved(
    settings: Settings, pixels: int | None, strides: Sequence[int], *, cuts: bool
) -> tuple[Settings, str] | None:
    """Settings that need less memory: smaller batches, fewer threads, at last tiles.

    Args:
        settings: For which memory was not enough.
        pixels: Of the largest input, where it was a network that ran out of it; None elsewhere.
        strides: Of all networks.
        cuts: Whether the networks take tiles.

    Returns:
        The settings and what they mean, in a few words; None where there are none.
    """
    change = functools.partial(dataclasses.replace, settings)
    if settings.batch_size > 1:
        size = settings.batch_size // 2
        return change(batch_size=size), f"with batches of {size}"
    views = settings.inputs_at_once or len(tta.VIEWS[settings.tta].flips)
    if views > 1:
        return change(inputs_at_once=views // 2), f"with {views // 2} views of a photo at once"
    if (settings.readers, settings.writers, settings.streams) != (1, 1, 1):
        return change(readers=1, writers=1, streams=1), "with one photo at a time"
    if pixels is None or not cuts:
        return None
    large = tiling.smaller(pixels, settings.tiling, settings.large, strides)
    return None if large is None else (change(large=large), f"with {large}")
