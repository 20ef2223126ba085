"""Everything wrong with photos and the table of their labels, each finding with its fix."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from carvana_tf.data import checks
from carvana_tf.data import labels as label_tables
from carvana_tf.data.checks import Finding
from carvana_tf.data.dataset import Naming, Sample
from carvana_tf.data.images import AS_DECLARED, Reading
from carvana_tf.data.labels import LabelTable, Matched
from carvana_tf.data.names import PHOTO_SUFFIXES
from carvana_tf.errors import UserError

_CORRECT = "correct the table"


def check_dataset(
    photo_dir: Path,
    table: Path,
    naming: Naming,
    folds: Path | None,
    threads: int = 4,
    reading: Reading = AS_DECLARED,
) -> list[Finding]:
    """Reads a table of labels and every photo that it names, and lists what is wrong.

    Args:
        photo_dir: Folder of the photos.
        table: The labels, in a form that `labels.read` knows.
        naming: What a group is.
        folds: The folds file, or None where there is none yet.
        threads: Threads that decode.
        reading: How the values in photos are understood.

    Returns:
        The findings, errors first.

    Raises:
        UserError: The folder is missing.
    """
    photos, findings = checks.scan(photo_dir, PHOTO_SUFFIXES)
    samples = [Sample(s, naming.group(s), path, reading=reading) for s, path in photos.items()]
    try:
        found = label_tables.read(table)
        matched = label_tables.match(found, [p.name for p in photos.values()], f"'{table}'")
    except UserError as error:
        findings.append(Finding("error", "bad table", str(table), str(error), _CORRECT))
    else:
        findings += _check_table(table, found)
        findings += _check_rows(table, photo_dir, found, matched)
        # Others are not trained on.
        samples = [sample for sample in samples if sample.photo.name in matched.labels]
    return checks.with_photos(findings, samples, photo_dir, folds, threads)


def _check_table(path: Path, table: LabelTable) -> Iterator[Finding]:
    """What was put in order in reading, columns that are not read, and rare classes."""
    for sentence in table.notes.sentences():
        yield Finding("warning", sentence, str(path), sentence, _CORRECT)
    for name in label_tables.ignored_columns(path):
        what = f"the column '{name}' is not read"
        yield Finding("note", "column is not read", str(path), what, "none needed")
    counts = Counter(i for ids in table.labels.values() for i in ids)
    for number, name in enumerate(table.classes):
        if counts[number] == 1:
            what = f"the class '{name}' has one photo"
            fix = "add photos of it: training or validation lacks it"
            yield Finding("note", "class has one photo", str(path), what, fix)


def _check_rows(
    path: Path, photo_dir: Path, table: LabelTable, matched: Matched
) -> Iterator[Finding]:
    """Rows without photo, photos without row, and photos without a label."""
    if not matched.labels:
        first = next(iter(table.labels))
        what = f"no photo of '{photo_dir}' is in the table, whose first is '{first}'"
        fix = "name the folder of its photos with --train_data_dir_name"
        yield Finding("error", "no photo has a row", str(path), what, fix)
        return
    for name in matched.without_photo:
        what = f"'{name}' has no photo in '{photo_dir}'"
        yield Finding("warning", "row has no photo", str(path), what, "add it, or remove the row")
    for name in matched.without_labels:
        fix = f"add it to '{path.name}'; training skips the photo"
        yield Finding("warning", "has no row", str(photo_dir / name), "has no row", fix)
    for name, ids in matched.labels.items():
        if not ids:
            fix = "none needed, if it shows none of the classes"
            yield Finding("note", "has no label", str(photo_dir / name), "has no label", fix)
