"""Draws a contact sheet of transformed training photos, masks outlined: what training sees.

python tools/show_augmentation.py --dataset_dir=input --augmentation=001:zoom=0.2,shift=0.1
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from carvana_tf.cli import Command
from carvana_tf.data import amounts
from carvana_tf.data.augment import apply, draw, join
from carvana_tf.data.dataset import Sample, find_samples
from carvana_tf.data.images import resize, write_photo
from carvana_tf.data.presets import Augmentation
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import Problems
from carvana_tf.evaluation.pictures import PREDICTION, outline
from carvana_tf.failures import named
from carvana_tf.flags import Values, option
from carvana_tf.options import DatasetOptions, masks_folder, photos_folder
from carvana_tf.progress import bar
from carvana_tf.tasks.masks import read_pair


@dataclasses.dataclass(frozen=True)
class SheetOptions:
    """The photos, and what is drawn of them."""

    train_data_dir_name: str = photos_folder()
    train_mask_dir_name: str = masks_folder()
    augmentation: str = option("default", amounts.HELP)
    samples: int = option(12, "Transformed photos on the sheet.", lower=1)
    columns: int = option(4, "Photos side by side.", lower=1)
    tile: int = option(400, "Longest side of each photo, in pixels.", lower=32)
    seed: int = option(80, "Seed of the photos and of their transformations.", lower=0)
    out: str = option("augmentation.jpg", "JPEG or PNG file to write.")


def validate(values: Values, problems: Problems) -> None:
    """Adds folders that do not exist, and flags that have no such value."""
    dataset, options = values[DatasetOptions], values[SheetOptions]
    if Path(options.out).suffix.lower() not in (".jpg", ".jpeg", ".png"):
        problems.add(f"--out must end in .jpg or .png, received '{options.out}'.")
    for flag in ("train_data_dir_name", "train_mask_dir_name"):
        problems.attempt(dataset.existing_folder, getattr(options, flag), flag)
    problems.attempt(lambda: dataset.naming)
    problems.attempt(lambda: dataset.reading)
    problems.attempt(amounts.parse, options.augmentation)


def run(values: Values) -> None:
    """Draws photos at random, transforms them and writes the sheet."""
    dataset, options = values[DatasetOptions], values[SheetOptions]
    target = Path(options.out)
    samples = find_samples(
        dataset.folder(options.train_data_dir_name),
        dataset.folder(options.train_mask_dir_name),
        dataset.naming,
        dataset.reading,
    )
    augmentation = amounts.parse(options.augmentation)
    random = np.random.default_rng(options.seed)
    # Each photo once before any comes again.
    rounds = math.ceil(options.samples / len(samples))
    order = np.concatenate([random.permutation(len(samples)) for _ in range(rounds)])
    chosen = [samples[i] for i in order[: options.samples]]
    tiles = [
        transformed(sample, augmentation, options.tile, (options.seed, number))
        for number, sample in enumerate(bar(chosen, desc="transforming", unit="photo"))
    ]
    write_photo(target, sheet(tiles, options.columns))
    print(f"augmentation {options.augmentation}: {amounts.format_amounts(augmentation)}")
    print(f"{len(tiles)} photos -> {target}")


def transformed(
    sample: Sample, augmentation: Augmentation, longest: int, seed: tuple[int, int]
) -> np.ndarray:
    """A sample scaled to `longest`, transformed and outlined, as `uint8[h, w, 3]`."""
    photo, mask = read_pair(sample)
    with named("transforming", sample.photo):
        return _drawn(photo, mask, augmentation, longest, seed)


def _drawn(
    photo: np.ndarray,
    mask: np.ndarray,
    augmentation: Augmentation,
    longest: int,
    seed: tuple[int, int],
) -> np.ndarray:
    scale = longest / max(mask.shape)
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    photo = resize(photo, height, width)
    soft = resize(mask.astype(np.uint8) * 255, height, width)
    transform = draw(augmentation, np.random.default_rng(seed), (height, width))
    photo, plane = apply(join(photo, soft), transform, (0, 0, height, width))
    return outline(photo, np.asarray(plane) > DEFAULT_THRESHOLD, PREDICTION, 1)


def sheet(tiles: list[np.ndarray], columns: int, gap: int = 6) -> np.ndarray:
    """Tiles of any size in rows of `columns` on white paper, `uint8[height, width, 3]`."""
    columns = min(columns, len(tiles))
    height = max(tile.shape[0] for tile in tiles) + gap
    width = max(tile.shape[1] for tile in tiles) + gap
    rows = math.ceil(len(tiles) / columns)
    paper = np.full((rows * height + gap, columns * width + gap, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        top, left = gap + row * height, gap + column * width
        paper[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return paper


COMMAND = Command(__doc__, (SheetOptions, DatasetOptions), run, validate)
