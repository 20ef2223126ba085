"""Lists everything wrong with photos and the table of their labels, each finding with its fix.

python tools/check_data.py --task=labels --dataset_dir=input --train_labels=train_labels.csv

The exit status is 1 where something would break a run, else 0.
"""

import dataclasses
from pathlib import Path

from carvana_tf.cli import Command
from carvana_tf.commands.check_data import find_folds, show_findings
from carvana_tf.data import label_checks
from carvana_tf.errors import Problems
from carvana_tf.flags import Values, option
from carvana_tf.options import DatasetOptions, photos_folder
from carvana_tf.tasks import TASKS
from carvana_tf.tasks.options import TaskOptions, grouped


@dataclasses.dataclass(frozen=True)
class LabelCheckOptions:
    """What to check, and where to report it."""

    train_data_dir_name: str = photos_folder()
    train_labels: str = option(
        "train_labels.csv",
        "Table of the labels of the photos, in --dataset_dir or anywhere.",
        key="labels",
    )
    report: str | None = option(None, "CSV file for every finding; the table shows a few of each.")
    threads: int = option(4, "Threads that read photos.", lower=1)


def validate(values: Values, problems: Problems) -> None:
    """Adds a folder or table that does not exist."""
    dataset, options = values[DatasetOptions], values[LabelCheckOptions]
    flag = "train_data_dir_name"
    problems.attempt(dataset.existing_folder, options.train_data_dir_name, flag)
    problems.attempt(_table, values)
    problems.attempt(lambda: dataset.naming)
    problems.attempt(lambda: dataset.reading)


def _table(values: Values) -> Path:
    table = values[LabelCheckOptions].train_labels
    return TASKS["labels"].existing_targets(values[DatasetOptions], table, "train_labels")


def run(values: Values) -> int:
    """Checks the dataset and prints one table."""
    options = values[LabelCheckOptions]
    dataset = grouped(values[DatasetOptions], values, TASKS["labels"])
    photo_dir = dataset.folder(options.train_data_dir_name)
    findings = label_checks.check_dataset(
        photo_dir,
        _table(values),
        dataset.naming,
        find_folds(dataset, photo_dir, values.is_set("folds_source")),
        options.threads,
        dataset.reading,
    )
    return int(show_findings(findings, options.report))


COMMAND = Command(__doc__, (TaskOptions, LabelCheckOptions, DatasetOptions), run, validate)
