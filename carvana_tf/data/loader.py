"""Training batches: a pure function of the seed and the step."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from carvana_tf.data import storage
from carvana_tf.data.augment import apply, draw, join
from carvana_tf.data.cache import make_cache
from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import UnreadableImage, decode_photo, read_grey, read_photo, read_size
from carvana_tf.data.presets import Augmentation
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.failures import named


def read_channels(sample: Sample) -> np.ndarray:
    """A sample's photo and its stacked channels, `uint8[H, W, 3 + N]`.

    Raises:
        UserError: A file is unreadable, or a stacked channel has another size.
    """
    photo = sample.pixels
    if photo is None and sample.url is not None:
        photo = decode_photo(sample.url, storage.read(sample.url), sample.reading)
    elif photo is None:
        photo = read_photo(sample.photo, sample.reading)
    if not sample.stacked:
        return photo
    channels = [read_grey(path) for path in sample.stacked]
    for path, channel in zip(sample.stacked, channels, strict=True):
        check_size(path, channel.shape[:2], photo.shape[:2])
    return np.dstack([photo, *channels])


def check_size(path: Path, size: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuses an image that is not as large as its photo.

    Raises:
        UnreadableImage: Its (height, width) is another.
    """
    if size != expected:
        raise UnreadableImage(
            f"'{path}' is {size[1]}x{size[0]} but its photo is {expected[1]}x{expected[0]}; "
            "replace the wrong one."
        )


class Targets(Protocol):
    """What a training set needs of a task, see `tasks.base.Task`."""

    def read_planes(self, sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
        """A photo with its stacked channels, and its plane or None."""

    def target(self, sample: Sample, plane: np.ndarray | None) -> np.ndarray:
        """What the loss compares with an output, from the transformed plane."""


class TrainingSet:
    """Samples in a shuffled, endless, repeatable order.

    Sample number `g` of a run is photo `order[g % n]` of pass `g // n`, where each
    pass has its own order; its random transformation comes from a generator seeded by
    (seed, pass, photo). So a batch depends on the seed and its number alone, not on
    threads, nor on where a run was interrupted. Pseudo-labelled samples have passes of
    their own and are spread evenly among the others.

    Attributes:
        samples: The training samples, pseudo-labelled ones last.
        task: What is predicted.
        resizer: How photos become network inputs.
        batch_size: Samples per batch, always full.
        mixed_sizes: Whether batches differ in height and width.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        resizer: Resizer,
        augmentation: Augmentation,
        task: Targets,
        *,
        batch_size: int,
        seed: int,
        cache: str = "auto",
        cache_dir: Path | None = None,
        pseudo: Sequence[Sample] = (),
        pseudo_share: float | None = None,
    ) -> None:
        """Looks at the photos' sizes.

        Args:
            samples: With targets.
            resizer: How photos become network inputs.
            augmentation: What may be drawn for each.
            task: What is predicted.
            batch_size: Samples per batch.
            seed: Of every draw.
            cache: Where decoded photos are kept, see `cache.make_cache`.
            cache_dir: Folder of the cache on disk.
            pseudo: Samples with predicted targets.
            pseudo_share: How many of all drawn are of these, above 0 and below 1; None
                is in proportion to their numbers.

        Raises:
            UserError: A photo is unreadable, smaller than the training crop, or, for
                batches of whole photos, of another size than the rest.
        """
        self.samples = [*samples, *pseudo]
        self._labelled = len(samples)
        share = len(pseudo) / len(self.samples) if pseudo_share is None else pseudo_share
        self._pseudo_share = share if pseudo else 0.0
        self.resizer = resizer
        self.task = task
        self.batch_size = batch_size
        self._augmentation = augmentation
        self._seed = seed
        sizes = [read_size(sample.photo) for sample in self.samples]
        self._check_sizes(sizes)
        self.mixed_sizes = resizer.policy == "pad" and len(set(sizes)) > 1
        self._cache = make_cache(cache, self.samples, resizer, cache_dir)

    def steps_per_pass(self) -> int:
        """Steps in which every photo with a hand-made mask is seen once, rounded up."""
        # A little less, so that the rounding of the share does not add a step.
        drawn = self._labelled / (1.0 - self._pseudo_share) - 1e-6
        return math.ceil(drawn / self.batch_size)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch number `step` of the run, from 0.

        Returns:
            `uint8[B, H, W, C]` photos and `float32[B, …]` targets.
        """
        first = step * self.batch_size
        pairs = [self.sample(g) for g in range(first, first + self.batch_size)]
        with named("preparing", *self.photos(step)):
            photos, targets = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
            return photos, targets

    def photos(self, step: int) -> list[Path]:
        """The photos of batch number `step` of the run."""
        first = step * self.batch_size
        picked = (self.pick(g)[1] for g in range(first, first + self.batch_size))
        return [self.samples[index].photo for index in picked]

    def sample(self, g: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample number `g` of the run, `uint8[H, W, C]`, and its target, `float32[…]`."""
        number, index = self.pick(g)
        random = np.random.default_rng((self._seed, number, index))
        with named("preparing", self.samples[index].photo):
            layers, has_plane = self._decoded(index)
            transform = draw(self._augmentation, random, layers.shape[:2])
            window = self._window(layers.shape[:2], random)
            photo, plane = apply(layers, transform, window, has_plane=has_plane)
            if plane is not None:
                plane = self.resizer.pad(plane)
            return self.resizer.pad(photo), self.task.target(self.samples[index], plane)

    def pick(self, g: int) -> tuple[int, int]:
        """The pass that sample number `g` belongs to, and its place in `samples`."""
        before = math.floor(g * self._pseudo_share)
        if math.floor((g + 1) * self._pseudo_share) > before:
            pseudo = len(self.samples) - self._labelled
            number, place = divmod(before, pseudo)
            return number, self._labelled + int(_order((self._seed, number, 0, 1), pseudo)[place])
        number, place = divmod(g - before, self._labelled)
        return number, int(_order((self._seed, number), self._labelled)[place])

    def _window(
        self, size: tuple[int, int], random: np.random.Generator
    ) -> tuple[float, float, int, int]:
        if self.resizer.policy != "crop":
            return 0, 0, *size
        height, width = self.resizer.height, self.resizer.width
        top = int(random.integers(size[0] - height + 1))
        left = int(random.integers(size[1] - width + 1))
        return top, left, height, width

    def _decoded(self, index: int) -> tuple[np.ndarray, bool]:
        """Photo and plane at the network's resolution, joined; whether there is a plane."""
        layers = self._cache.get(index)
        if layers is None:
            photo, plane = self.task.read_planes(self.samples[index])
            scaled = None if plane is None else self.resizer.scale(plane)
            layers = join(self.resizer.scale(photo), scaled)
            self._cache.keep(index, layers)
        return layers, layers.shape[2] > 3 + len(self.samples[index].stacked)

    def _check_sizes(self, sizes: list[tuple[int, int]]) -> None:
        policy, height, width = self.resizer.policy, self.resizer.height, self.resizer.width
        for sample, size in zip(self.samples, sizes, strict=True):
            if policy == "crop" and (size[0] < height or size[1] < width):
                raise UserError(
                    f"the crop of {width}x{height} is larger than '{sample.photo}' "
                    f"({size[1]}x{size[0]}); lower --input_width and --input_height or use "
                    "--size_policy=resize."
                )
            if policy == "pad" and self.batch_size > 1 and size != sizes[0]:
                raise UserError(
                    f"'{sample.photo}' ({size[1]}x{size[0]}) differs in size from the first "
                    f"photo ({sizes[0][1]}x{sizes[0][0]}); --size_policy=pad then needs "
                    "--batch_size=1."
                )


@functools.lru_cache(maxsize=8)
def _order(seed: tuple[int, ...], count: int) -> np.ndarray:
    """A pass's order; batches of two passes and of both kinds of samples are made at once."""
    return np.random.default_rng(seed).permutation(count)
