"""Writes rendered photos with labels, in the layout of the Inclusive Images Challenge."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from carvana_tf.data import tables
from carvana_tf.data.images import write_photo
from carvana_tf.data.synthetic import rendering, scenes
from carvana_tf.data.synthetic.render import noise_tile
from carvana_tf.failures import named
from carvana_tf.files import make_folder, write_text

TRAIN, STAGE1, STAGE2 = "train", "test", "test_stage2"
REGIONS = {TRAIN: scenes.HOME, STAGE1: scenes.ABROAD, STAGE2: scenes.ABROAD}
"""Where the photos of each folder come from."""
HUMAN_LABELS, TUNING_LABELS = "train_human_labels.csv", "tuning_labels.csv"
SAMPLES = {STAGE1: "stage1_sample_submission.csv", STAGE2: "stage2_sample_submission.csv"}
TRUTHS = {STAGE1: "stage1_truth.csv", STAGE2: "stage2_truth.csv"}
"""Which a competition would keep; no product reads them but an evaluation."""

_RENDERER = 1
_PER_JOB = 8
_REPEATED = 20  # of so many photos one has a label that two people gave
_PLACEHOLDER = "vehicle car"


@dataclasses.dataclass(frozen=True)
class LabelSettings:
    """What decides every byte of a rendered dataset with labels.

    Attributes:
        train_photos: Photos in `train`, from the first region.
        tuning_photos: The first of `test` that have labels, too.
        test_photos: Photos in `test`, from the second region.
        test_stage2_photos: Photos in `test_stage2`, from the second region.
        width: Photo width in pixels.
        height: Photo height in pixels.
        seed: Seed of everything random.
    """

    train_photos: int
    tuning_photos: int
    test_photos: int
    test_stage2_photos: int
    width: int
    height: int
    seed: int

    @property
    def counts(self) -> dict[str, int]:
        """Photos by folder."""
        return {
            TRAIN: self.train_photos,
            STAGE1: self.test_photos,
            STAGE2: self.test_stage2_photos,
        }


@dataclasses.dataclass(frozen=True)
class _Job:
    folder: Path
    settings: LabelSettings
    split: str
    numbers: range


def make_dataset(
    folder: Path, settings: LabelSettings, processes: int = 1, overwrite: bool = False
) -> int:
    """Renders a dataset; the same settings give the same bytes, however many processes.

    Args:
        folder: Where the folders of `REGIONS`, the tables and, last, the stamp go.
        settings: What to render.
        processes: Processes that render, a few photos each at a time.
        overwrite: Replace the images of an earlier dataset.

    Returns:
        How many photos were written; 0 when the folder holds this dataset already.

    Raises:
        UserError: The folder holds other photos and `overwrite` is False.
    """
    folder = Path(folder)
    stamp = {"renderer": _RENDERER, "task": "labels", **dataclasses.asdict(settings)}
    if not rendering.begin(folder, stamp, overwrite=overwrite):
        return 0
    jobs = []
    for split, count in settings.counts.items():
        make_folder(folder / split)
        starts = range(0, count, _PER_JOB)
        parts = [range(first, min(first + _PER_JOB, count)) for first in starts]
        jobs += [_Job(folder, settings, split, part) for part in parts]
    labels: dict[str, dict[str, list[str]]] = {split: {} for split in settings.counts}
    total = sum(settings.counts.values())
    for split, found in rendering.run(_render, jobs, processes, total):
        labels[split].update(found)
    _write_tables(folder, settings, labels)
    rendering.finish(folder, stamp)
    return total


def photo_id(seed: int, split: str, number: int) -> str:
    """The sixteen hexadecimal digits that name a photo."""
    return hashlib.sha256(f"{seed}/labels/{split}/{number}".encode()).hexdigest()[:16]


def _render(job: _Job) -> tuple[int, tuple[str, dict[str, list[str]]]]:
    """Renders and writes some photos; how many, their folder, and their labels by id."""
    settings, found = job.settings, {}
    region, place = REGIONS[job.split], list(REGIONS).index(job.split)
    with named("rendering the photos of", job.folder / job.split):
        noise = noise_tile(settings.height, settings.width, settings.seed)
    for number in job.numbers:
        rng = np.random.default_rng([settings.seed, 7, place, number])
        name = photo_id(settings.seed, job.split, number)
        target, size = job.folder / job.split / f"{name}.jpg", (settings.width, settings.height)
        with named("rendering", target):
            photo, things, _ = scenes.draw_scene(region, rng, *size, noise)
        write_photo(target, photo, int(rng.integers(86, 96)))
        drawn = set[str]().union(*(thing.labels for thing in things))
        found[name] = [label for label in scenes.LABELS if label in drawn]
    return len(job.numbers), (job.split, found)


def _write_tables(
    folder: Path, settings: LabelSettings, labels: dict[str, dict[str, list[str]]]
) -> None:
    """Writes the tables of the challenge; the order of their rows is that of the rendering."""
    ids = {
        split: [photo_id(settings.seed, split, number) for number in range(count)]
        for split, count in settings.counts.items()
    }
    rows = []
    for i, name in enumerate(ids[TRAIN]):
        found = labels[TRAIN][name]
        rows += [(name, "verification", label, 1) for label in found]
        if i % _REPEATED == 0:
            rows.append((name, "crowdsource-verification", found[0], 1))
    header = ("ImageID", "Source", "LabelName", "Confidence")
    tables.write_table(folder / HUMAN_LABELS, header, rows)
    tuning = [(name, " ".join(labels[STAGE1][name])) for name in ids[STAGE1]]
    lines = map(tables.format_line, tuning[: settings.tuning_photos])
    write_text(folder / TUNING_LABELS, "".join(lines))
    for split, sample in SAMPLES.items():
        placeholders = ((name, _PLACEHOLDER) for name in ids[split])
        tables.write_table(folder / sample, ("image_id", "labels"), placeholders)
        truth = ((name, " ".join(labels[split][name])) for name in ids[split])
        tables.write_table(folder / TRUTHS[split], ("id", "labels"), truth)
