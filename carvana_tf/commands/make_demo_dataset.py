"""Renders a dataset: a photo studio with cars, or photos of several things with labels.

python tools/make_demo_dataset.py --dataset_dir=input
python tools/make_demo_dataset.py --dataset_dir=input_labels --task=labels

Masks: photos, exact masks and the tables of the Carvana competition. Labels: photos and tables as
in the Inclusive Images Challenge; the tests, and the labels to tune on, come from another region,
where other things are frequent.
"""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any, ClassVar

from carvana_tf.cli import Command
from carvana_tf.data.synthetic import dataset, labelled
from carvana_tf.data.synthetic.dataset import DemoSettings
from carvana_tf.data.synthetic.labelled import LabelSettings
from carvana_tf.errors import Problems
from carvana_tf.files import held
from carvana_tf.flags import Needs, Values, option

MASKS, LABELS = "masks", "labels"
_SIZES = {MASKS: (960, 640), LABELS: (160, 120)}  # width, height


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """The dataset to render."""

    dataset_dir: str = option("input", "Folder to write the dataset to.")
    task: str = option(MASKS, "What the dataset is for.", choices=tuple(_SIZES))
    train_cars: int = option(12, "Cars with masks in train_masks.", lower=1)
    test_cars: int = option(4, "Further cars; their masks go to test_masks.", lower=0)
    views: int = option(16, "Photos of each car, evenly spaced around it.", lower=1, upper=99)
    train_photos: int = option(400, "Photos with labels in train.", lower=1)
    test_photos: int = option(120, "Photos in test, for stage 1.", lower=1)
    tuning_photos: int = option(60, "Those of --test_photos with labels to tune on.", lower=1)
    test_stage2_photos: int = option(120, "Photos in test_stage2.", lower=1)
    width: int | None = option(
        None,
        "Photo width in pixels; by default 960 (the competition's is 1918), with labels 160.",
        lower=64,
    )
    height: int | None = option(
        None,
        "Photo height in pixels; by default 640 (the competition's is 1280), with labels 120.",
        lower=48,
    )
    seed: int = option(80, "Seed of everything that is random.", lower=0)
    processes: int | None = option(
        None,
        "Processes that render; by default one per core. The result does not depend on it.",
        lower=1,
    )
    overwrite: bool = option(False, "Delete the photos and masks --dataset_dir holds, then render.")

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("train_cars", "test_cars", "views"),
            lambda o: o.task == MASKS,
            "with --task=labels",
        ),
        Needs(
            ("train_photos", "test_photos", "tuning_photos", "test_stage2_photos"),
            lambda o: o.task == LABELS,
            "without --task=labels",
        ),
    )


def validate(values: Values, problems: Problems) -> None:
    """Adds more photos to tune on than there are."""
    options = values[DemoOptions]
    problems.add(
        f"--tuning_photos={options.tuning_photos} are more than --test_photos="
        f"{options.test_photos}, of which they are a part; lower the first.",
        options.task == LABELS and options.tuning_photos > options.test_photos,
    )


def run(values: Values) -> None:
    """Renders what is not there yet and says what was made."""
    options = values[DemoOptions]
    folder, processes = Path(options.dataset_dir), options.processes or os.cpu_count() or 1
    width, height = _SIZES[options.task]
    chosen = dataclasses.asdict(options)
    chosen |= {"width": options.width or width, "height": options.height or height}
    start = time.perf_counter()
    if options.task == LABELS:
        of_labels = LabelSettings(**_of(LabelSettings, chosen))
        with held(folder):
            count = labelled.make_dataset(folder, of_labels, processes, options.overwrite)
        made = f"{options.train_photos} photos to train, {options.tuning_photos} to tune,"
    else:
        of_cars = DemoSettings(**_of(DemoSettings, chosen))
        with held(folder):
            count = dataset.make_dataset(folder, of_cars, processes, options.overwrite)
        made = f"{options.train_cars} cars to train and {options.test_cars} to test,"
    if count == 0:
        print(f"{folder} holds this dataset already; nothing to do")
        return
    seconds = time.perf_counter() - start
    print(f"{made} {count} photos in {seconds:.0f} s ({count / seconds:.1f}/s) -> {folder}")


def _of(kind: type, chosen: dict[str, Any]) -> dict[str, Any]:
    return {field.name: chosen[field.name] for field in dataclasses.fields(kind)}


COMMAND = Command(__doc__, (DemoOptions,), run, validate)
