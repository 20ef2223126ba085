"""Lists everything wrong with a dataset, each finding with its fix.

python tools/check_data.py --dataset_dir=input

The exit status is 1 where something would break a run, else 0.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from carvana_tf.cli import Command
from carvana_tf.data import checks, digests, names
from carvana_tf.data.folds import find_folds_file, read_folds
from carvana_tf.data.tables import write_table
from carvana_tf.errors import Problems, UserError
from carvana_tf.flags import Values, option
from carvana_tf.options import DatasetOptions


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """What to check, and where to report it."""

    train_data_dir_name: str = option("train", "Folder of the photos, inside --dataset_dir.")
    train_mask_dir_name: str = option(
        "train_masks", "Folder of the masks, inside --dataset_dir.", alias="train_mask_dir"
    )
    report: str | None = option(None, "CSV file for every finding; the table shows a few of each.")
    threads: int = option(4, "Threads that read photos and masks.", lower=1)
    write: bool = option(
        False,
        f"Where nothing is an error, record sizes and digests in '{digests.NAME}' of each folder; "
        "whatever reads a file of them later compares it.",
    )


def validate(values: Values, problems: Problems) -> None:
    """Adds folders that do not exist, and flags that do not say how files are read."""
    dataset, options = values[DatasetOptions], values[CheckOptions]
    for flag in ("train_data_dir_name", "train_mask_dir_name"):
        problems.attempt(dataset.existing_folder, getattr(options, flag), flag)
    problems.attempt(lambda: dataset.naming)
    problems.attempt(lambda: dataset.reading)


def run(values: Values) -> int:
    """Checks the dataset and prints one table."""
    dataset, options = values[DatasetOptions], values[CheckOptions]
    photo_dir = dataset.folder(options.train_data_dir_name)
    mask_dir = dataset.folder(options.train_mask_dir_name)
    folders = dict.fromkeys((photo_dir, mask_dir))
    if options.write:
        for folder in folders:
            digests.forget(folder)
    findings = checks.check_dataset(
        photo_dir,
        mask_dir,
        dataset.naming,
        _find_folds(dataset, photo_dir, values.is_set("folds_source")),
        options.threads,
        dataset.reading,
    )
    if options.report is not None:
        _write_report(Path(options.report), findings)
    if findings:
        print(checks.table(findings))
    counts = [sum(f.severity == severity for f in findings) for severity in checks.SEVERITIES]
    print("{} errors, {} warnings, {} notes".format(*counts))
    if counts[0]:
        if options.write:
            print("nothing was recorded, because of the errors")
        return 1
    if options.write:
        for folder in folders:
            images = [
                path
                for path in folder.iterdir()
                if path.is_file() and names.extension(path.name).lower() in names.MASK_SUFFIXES
            ]
            print(f"{len(images)} digests -> {digests.write(folder, images)}")
    return 0


def _find_folds(dataset: DatasetOptions, photo_dir: Path, named: bool) -> Path | None:
    """The folds file, unless there is none or the one found is of another dataset."""
    try:
        path = find_folds_file(dataset.folds_source, Path(dataset.dataset_dir))
    except UserError:
        return None
    if path.parent == Path(dataset.dataset_dir) or named:
        return path
    # The working folder's file may be that of the Carvana cars, which comes with the code.
    try:
        ids = set(read_folds(path)["id"])
        stems = [names.stem(photo.name) for photo in photo_dir.iterdir()]
        known = names.match(ids, {*stems, *map(dataset.naming.group, stems)}, f"'{path}'")
    except (UserError, OSError):
        return path  # damaged: the check says so
    return path if known else None


def _write_report(path: Path, findings: Sequence[checks.Finding]) -> None:
    write_table(path, checks.COLUMNS, ((f.severity, f.file, f.what, f.fix) for f in findings))


COMMAND = Command(__doc__, (CheckOptions, DatasetOptions), run, validate)
