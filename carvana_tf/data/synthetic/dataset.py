"""Writes rendered cars in the layout of the Carvana competition."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from carvana_tf.data.images import write_gif_mask, write_photo
from carvana_tf.data.synthetic import bodies, render, rendering, studio
from carvana_tf.failures import named
from carvana_tf.filenames import SAMPLE_SUBMISSION
from carvana_tf.files import make_folder, write_text

# Folders of photos and of their masks. No product reads `test_masks`; it lets a
# demonstration score what it predicted.
SPLITS = {"train": "train_masks", "test": "test_masks"}
_RENDERER = 1
_MAKERS = ("Alder", "Corvane", "Dunmore", "Elara", "Fenwick", "Halden", "Kestrel", "Lumen")
_TRIMS = ("Base", "Touring", "Sport", "Limited")


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """What decides every byte of a rendered dataset.

    Attributes:
        train_cars: Cars with masks in `train_masks`.
        test_cars: Further cars, without.
        views: Photos of each car, evenly spaced around it.
        width: Photo width in pixels.
        height: Photo height in pixels.
        seed: Seed of everything random.
    """

    train_cars: int
    test_cars: int
    views: int
    width: int
    height: int
    seed: int


@dataclasses.dataclass(frozen=True)
class _Job:
    folder: Path
    settings: DemoSettings
    split: str
    index: int


def make_dataset(
    folder: Path, settings: DemoSettings, processes: int = 1, overwrite: bool = False
) -> int:
    """Renders a dataset; the same settings give the same bytes, however many processes.

    Args:
        folder: Where `train`, `train_masks`, `test`, `test_masks`, `sample_submission.csv`,
            `metadata.csv` and, last, the stamp `demo_dataset.json` go.
        settings: What to render.
        processes: Processes that render, one car each at a time.
        overwrite: Replace photos and masks that are there already.

    Returns:
        How many photos were written; 0 when the folder holds this dataset already.

    Raises:
        UserError: The folder holds other photos and `overwrite` is False.
    """
    folder = Path(folder)
    stamp = {"renderer": _RENDERER, **dataclasses.asdict(settings)}
    if not rendering.begin(folder, stamp, overwrite=overwrite):
        return 0
    counts = {"train": settings.train_cars, "test": settings.test_cars}
    jobs = [_Job(folder, settings, split, i) for split in SPLITS for i in range(counts[split])]
    for split, masks in SPLITS.items():
        make_folder(folder / split)
        make_folder(folder / masks)
    rows = dict[str, tuple]()
    total = len(jobs) * settings.views
    for row in rendering.run(_render_car, jobs, processes, total):
        rows[row[0]] = row
    tested = [
        f"{car_id(settings.seed, 'test', i)}_{view + 1:02d}.jpg"
        for i in range(settings.test_cars)
        for view in range(settings.views)
    ]
    sample = pd.DataFrame({"img": sorted(tested), "rle_mask": "1 1"})
    write_text(folder / SAMPLE_SUBMISSION, sample.to_csv(index=False))
    columns = ["id", "year", "make", "model", "trim1", "trim2"]
    metadata = pd.DataFrame([rows[name] for name in sorted(rows)], columns=columns)
    write_text(folder / "metadata.csv", metadata.to_csv(index=False))
    rendering.finish(folder, stamp)
    return total


def car_id(seed: int, split: str, index: int) -> str:
    """The twelve hexadecimal digits that name a car."""
    return hashlib.sha256(f"{seed}/{split}/{index}".encode()).hexdigest()[:12]


def _render_car(job: _Job) -> tuple[int, tuple[str, int, str, str, str, str]]:
    """Renders and writes every view of a car; how many, and its row of `metadata.csv`."""
    settings = job.settings
    name = car_id(settings.seed, job.split, job.index)
    number = list(SPLITS).index(job.split)
    seeds = [settings.seed, number, job.index]
    rng = np.random.default_rng(seeds)
    with named("rendering", job.folder / job.split / f"{name}_01.jpg"):
        # Test cars begin elsewhere in the round of classes and colours.
        design = bodies.draw_design(rng, job.index + 19 * number)
        scene = studio.draw_studio(rng, settings.width, settings.height, design.length)
        car = render.build_car(design, settings.width / 960)
        noise = render.noise_tile(settings.height, settings.width, settings.seed)
    quality = int(rng.integers(82, 96))
    for view in range(settings.views):
        angle = 2 * np.pi * view / settings.views
        stem = f"{name}_{view + 1:02d}"
        target = job.folder / job.split / f"{stem}.jpg"
        random = np.random.default_rng([*seeds, view])
        with named("rendering", target):
            photo, mask = render.render(car, scene, angle, random, noise)
        write_photo(target, photo, quality)
        write_gif_mask(job.folder / SPLITS[job.split] / f"{stem}_mask.gif", mask)
    maker, trim = rng.choice(_MAKERS), rng.choice(_TRIMS)
    doors = f"{2 * design.shape.doors}dr {design.kind}"
    year, model = int(rng.integers(2008, 2018)), f"{design.kind[:1].upper()}{rng.integers(2, 10)}"
    return settings.views, (name, year, str(maker), model, str(trim), doors)
