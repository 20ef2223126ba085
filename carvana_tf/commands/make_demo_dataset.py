"""Renders a photo studio with cars: photos, exact masks and the competition's tables.

python tools/make_demo_dataset.py --dataset_dir=input
"""

import dataclasses
import os
import time
from pathlib import Path

from carvana_tf.cli import Command
from carvana_tf.data.synthetic.dataset import DemoSettings, make_dataset
from carvana_tf.flags import Values, option


@dataclasses.dataclass(frozen=True)
class DemoOptions:
    """The dataset to render."""

    dataset_dir: str = option("input", "Folder to write the dataset to.")
    train_cars: int = option(12, "Cars with masks in train_masks.", lower=1)
    test_cars: int = option(4, "Further cars; their masks go to test_masks.", lower=0)
    views: int = option(16, "Photos of each car, evenly spaced around it.", lower=1, upper=99)
    width: int = option(960, "Photo width in pixels; the competition's is 1918.", lower=64)
    height: int = option(640, "Photo height in pixels; the competition's is 1280.", lower=48)
    seed: int = option(80, "Seed of everything that is random.", lower=0)
    processes: int | None = option(
        None,
        "Processes that render; by default one per core. The result does not depend on it.",
        lower=1,
    )
    overwrite: bool = option(False, "Delete the photos and masks --dataset_dir holds, then render.")


def run(values: Values) -> None:
    """Renders what is not there yet and says what was made."""
    options = values[DemoOptions]
    names = [field.name for field in dataclasses.fields(DemoSettings)]
    settings = DemoSettings(**{name: getattr(options, name) for name in names})
    start = time.perf_counter()
    processes = options.processes or os.cpu_count() or 1
    count = make_dataset(Path(options.dataset_dir), settings, processes, options.overwrite)
    if count == 0:
        print(f"{options.dataset_dir} holds this dataset already; nothing to do")
        return
    seconds = time.perf_counter() - start
    print(
        f"{options.train_cars} cars to train and {options.test_cars} to test, {count} photos "
        f"in {seconds:.0f} s ({count / seconds:.1f}/s) -> {options.dataset_dir}"
    )


COMMAND = Command(__doc__, (DemoOptions,), run)
