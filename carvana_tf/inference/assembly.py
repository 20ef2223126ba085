"""From photos to what the networks see, and from what they give to one mask per photo.

Photos are cut to their boxes, sized, flipped and batched; outputs are averaged over flips,
networks and scales, brought to the photo's own size and put where the box was. Nothing
here knows a thread.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import equalise, quantise
from carvana_tf.data.sizing import Sizing
from carvana_tf.errors import UserError
from carvana_tf.inference import tiling, tta
from carvana_tf.inference.engines import Engine
from carvana_tf.inference.tiling import Tiling
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
    """

    batch_size: int = 1
    tta: str = "none"
    readers: int = 2
    writers: int = 2
    average: str = "probability"
    tiling: Tiling | None = None
    boxes: Mapping[str, Box] | None = None

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
        """The tiling where it cuts images."""
        cut = self._settings.tiling
        return cut if cut and not cut.covers(*images[0].shape[:2]) else None

    def predict(self, engines: Sequence[Engine], batch: Batch) -> dict[Way, np.ndarray]:
        """For each way the sum over its networks, so that one array per way travels on.

        Returns:
            `float32[B, H, W]` on the scale of `tta.to_average`, the mean over flips; or
            `uint8[B, H, W]` from a network that rounds by itself.
        """
        sums: dict[Way, np.ndarray] = {}
        for way, inputs in batch.inputs.items():
            for engine in engines:
                if engine.sizing == way.sizing:
                    output = self._run(engine, inputs)
                    sums[way] = sums[way] + output if way in sums else output
        return sums

    def _run(self, engine: Engine, inputs: Images) -> np.ndarray:
        def network(stacked: np.ndarray) -> np.ndarray:
            output = engine.predict(stacked[..., : engine.channels])
            return tta.to_average(output, self._settings.average)

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
        if self._plain and engine.quantised is not None:
            return engine.quantised(stacked[..., : engine.channels])
        return tta.merge(network(stacked), self._views.flips)

    def restore(self, item: Item, sums: Mapping[Way, np.ndarray]) -> np.ndarray:
        """The mask of one photo.

        Args:
            item: The photo.
            sums: What `predict` gave for it, `[H', W']` each.

        Returns:
            `uint8[H, W]`, `round(255 p)`; 0 outside the box.

        Raises:
            UserError: A network gave NaN.
        """
        restored = [way.of(item.seen).restore(one, *item.seen) for way, one in sums.items()]
        values = restored[0] if restored[0].dtype == np.uint8 else self._mean(item, restored)
        return values if item.box is None else boxes.paste(values, item.box, *item.size)

    def _mean(self, item: Item, restored: Sequence[np.ndarray]) -> np.ndarray:
        mean = sum(restored[1:], start=restored[0])
        if self._terms > 1:
            mean = mean / np.float32(self._terms)
        # The least of several numbers is NaN if one is.
        if math.isnan(mean.min()):
            raise UserError(
                f"the network gives NaN for '{item.sample.photo}'; try --dtype=float32, else "
                "train it anew with a lower --learning_rate."
            )
        return quantise(tta.from_average(mean, self._settings.average))
