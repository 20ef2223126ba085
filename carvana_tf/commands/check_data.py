"""Lists everything wrong with a dataset, each finding with its fix.

python tools/check_data.py --dataset_dir=input

What no flag says it finds by looking: which folders hold photos and masks, how masks are named,
which photos are a group. --write remembers it for all commands.

The exit status is 1 where something would break a run, else 0.
"""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from carvana_tf.cli import Command
from carvana_tf.data import checks, description, digests, layout, mask_values, names
from carvana_tf.data.folds import find_folds_file, read_folds
from carvana_tf.data.names import printable
from carvana_tf.errors import Problems, UserError
from carvana_tf.filenames import DATASET
from carvana_tf.flags import Values, option
from carvana_tf.options import DatasetOptions, masks_folder, photos_folder
from carvana_tf.tasks.options import TaskOptions


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """What to check, and where to report it."""

    train_data_dir_name: str = photos_folder()
    train_mask_dir_name: str = masks_folder()
    report: str | None = option(None, "CSV file for every finding; the table shows a few of each.")
    threads: int = option(4, "Threads that read photos and masks.", lower=1)
    write: bool = option(
        False,
        f"Where nothing is an error, record the layout in '{DATASET}' of --dataset_dir, where "
        f"every command finds it, and sizes and digests in '{digests.NAME}' of each folder; "
        "whatever reads a file of them later compares it.",
    )


def validate(values: Values, problems: Problems) -> None:
    """Adds folders that do not exist, and flags that do not say how files are read."""
    dataset, options = values[DatasetOptions], values[CheckOptions]
    known, there = _given(values), Path(dataset.dataset_dir).is_dir()
    for key, flag in layout.FLAGS.items():
        if key in known or not there:  # else it is looked for
            problems.attempt(dataset.existing_folder, getattr(options, flag), flag)
    problems.attempt(lambda: dataset.naming)
    problems.attempt(lambda: dataset.reading)


def _given(values: Values) -> dict[str, Any]:
    """The keys that the command line or the dataset's description gives, with their values."""
    named = {key: layout.FLAGS.get(key, key) for key in description.KEYS}
    known = description.read(Path(values[DatasetOptions].dataset_dir))
    set_flags = {
        key: values.flag(flag)
        for key, flag in named.items()
        if flag in values and values.is_set(flag)
    }
    return known | set_flags


def _find_layout(values: Values) -> layout.Layout:
    """What is given, and what looking finds; printed.

    Raises:
        UserError: Something is ambiguous, and it is needed.
    """
    found = layout.find(Path(values[DatasetOptions].dataset_dir), _given(values))
    for key, value in found.values.items():
        if found.how[key] != layout.GIVEN and value != layout.USUAL.get(key, value):
            print(printable(f"{key}: {value!r} ({found.how[key]})"))
    for sentence in found.unclear:
        print(printable(f"unclear: {sentence}"))
    if found.unclear and values[CheckOptions].write:
        raise UserError(f"nothing was recorded, because it is unclear: {'; '.join(found.unclear)}.")
    return found


def run(values: Values) -> int:
    """Checks the dataset and prints one table."""
    dataset, options = values[DatasetOptions], values[CheckOptions]
    found = _find_layout(values)
    naming = ("mask_suffix", "mask_extension", "group_pattern", "folds_source")
    dataset = dataclasses.replace(dataset, **{key: found.values[key] for key in naming})
    photo_dir = dataset.folder(found.values["photos"])
    mask_dir = dataset.folder(found.values["masks"])
    folders = dict.fromkeys((photo_dir, mask_dir))
    if options.write:
        for folder in folders:
            digests.forget(folder)
    findings = checks.check_dataset(
        photo_dir,
        mask_dir,
        dataset.naming,
        find_folds(dataset, photo_dir, values.is_set("folds_source")),
        options.threads,
        dataset.reading,
    )
    if show_findings(findings, options.report):
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
        _write_description(dataset, found, findings)
    return 0


def _write_description(
    dataset: DatasetOptions, found: layout.Layout, findings: Sequence[checks.Finding]
) -> None:
    """Writes the layout, as far as it is inside the dataset's folder."""
    values, how = dict(found.values), dict(found.how)
    for key in ("mask_values", "photo_depth", "max_pixels"):
        values[key] = getattr(dataset, key)
    kinds = collections.Counter(f.kind for f in findings if f.kind.startswith("mask "))
    notes = "".join(f"; {count}: {kind}" for kind, count in kinds.items())
    surely = " without doubt" if dataset.mask_values == mask_values.AUTO else ""
    how["mask_values"] = f"every mask was read so{surely}{notes}"
    how["photo_depth"] = "every photo was read so"
    how["max_pixels"] = "no image has more"
    root = Path(dataset.dataset_dir)
    for key, value in list(values.items()):
        outside = key in layout.FLAGS and dataset.folder(value) != root / value
        try:
            description.check({key: value}, key)
        except UserError:
            outside = True
        if outside:
            how[key] = f"'{values.pop(key)}' is not inside this folder; give the flag"
    if root.is_dir():  # else all folders are elsewhere
        print(f"layout -> {description.write(root, values, how)}")


def show_findings(findings: Sequence[checks.Finding], report: str | None) -> bool:
    """Prints what was found, and writes it where asked; returns whether there are errors."""
    if report is not None:
        checks.write(Path(report), findings)
    if findings:
        print(checks.table(findings))
    counts = checks.counts(findings)
    print("{} errors, {} warnings, {} notes".format(*counts))
    return counts[0] > 0


def find_folds(dataset: DatasetOptions, photo_dir: Path, named: bool) -> Path | None:
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


COMMAND = Command(
    __doc__,
    (TaskOptions, CheckOptions, DatasetOptions),
    run,
    validate,
    variants={"labels": "carvana_tf.commands.check_data_labels"},
)
