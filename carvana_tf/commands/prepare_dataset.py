"""Resizes the photos of a dataset once, and their masks with them, into an output folder.

python tools/prepare_dataset.py --dataset_dir=input --photo_dirs=train,test \\
    --mask_dirs=train_masks --longer_side=1024 --output_dir=input_1024
python tools/prepare_dataset.py --dataset_dir=input --photo_dirs=train --shorter_side=256 \\
    --labels=train_human_labels.csv --val_ratio=0.01 --output_dir=input_256

What is done already is kept: the same command goes on after an interruption. As the published
systems prepared theirs:
Labels (4th place of the Inclusive Images Challenge): --shorter_side=256
Masks (AlbertoSabater): --size=768x768 --photo_format=png
"""

import dataclasses
import os
import re
import sys
import time
from pathlib import Path
from typing import ClassVar

from carvana_tf.cli import Command
from carvana_tf.data import bad_files, labels, prepare_labels
from carvana_tf.data.labels import LabelTable
from carvana_tf.data.prepare import (
    AREA,
    BILINEAR,
    FORMATS,
    INTERPOLATIONS,
    Outcome,
    PrepareSettings,
    Size,
    Source,
    prepare,
)
from carvana_tf.errors import Problems, UserError
from carvana_tf.flags import Needs, Values, option
from carvana_tf.options import DatasetOptions


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What is resized, and to what."""

    photo_dirs: tuple[str, ...] = option(
        ("train",),
        "Folders of photos, inside --dataset_dir, comma-separated; folders in them are kept.",
        key="photos",
    )
    mask_dirs: tuple[str, ...] = option(
        (),
        "Folders of masks, for the first, second, … of --photo_dirs. Masks become PNGs of 0 and "
        "255 of the size of their photo, and keep their names.",
        alias="mask_dir",
    )
    output_dir: str | None = option(
        None, "Folder for the results, each in a folder of its source's name."
    )
    shorter_side: int | None = option(
        None, "Resize to this length of the shorter side, keeping the aspect ratio.", lower=1
    )
    longer_side: int | None = option(
        None, "Resize to this length of the longer side, keeping the aspect ratio.", lower=1
    )
    size: str | None = option(
        None, "Resize to this width and height, as 768x768, whatever the aspect ratio."
    )
    interpolation: str | None = option(
        None,
        "Of photos that shrink: area averages, which avoids aliasing; bilinear takes the nearest "
        "four pixels, as OpenCV does by itself. By default bilinear with --shorter_side, as "
        "the published system of labels did, else area. Those that grow are always bilinear.",
        choices=INTERPOLATIONS,
    )
    photo_format: str = option("jpg", "Format of the photos.", choices=tuple(FORMATS))
    jpeg_quality: int = option(95, "Quality of JPEG photos.", lower=1, upper=100)
    labels: str | None = option(
        None,
        "Table of the photos' labels, in --dataset_dir or anywhere; docs/labels.md has its forms. "
        "The labels of prepared photos are written to --output_dir as one clean table.",
    )
    labels_out: str | None = option(
        None, "Name of that table, by default that of --labels.", advanced=True
    )
    val_ratio: float = option(
        0.0,
        "Share of the photos with labels to validate on: they are fold 0 of --folds_source in "
        "--output_dir, all others fold 1, so that --fold=0 trains on those. 0 writes no folds.",
        lower=0,
        upper=1,
    )
    seed: int = option(
        prepare_labels.SEED, "Seed of the choice of these; 0xDEADFACE is that system's.", lower=0
    )
    threads: int | None = option(
        None, "Threads that read, resize and write; by default one per core.", lower=1
    )
    overwrite: bool = option(
        False, "Remove what --output_dir holds of these folders, then prepare them."
    )

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(("jpeg_quality",), lambda o: o.photo_format == "jpg", "without --photo_format=jpg"),
        Needs(("labels_out", "val_ratio"), lambda o: o.labels is not None, "without --labels"),
        Needs(("seed",), lambda o: o.val_ratio > 0, "without --val_ratio"),
    )

    @property
    def settings_size(self) -> Size:
        """The size that the three flags ask for.

        Raises:
            UserError: Not one of them is set, or `--size` is no size.
        """
        given = [self.shorter_side, self.longer_side, self.size]
        if sum(each is not None for each in given) != 1:
            raise UserError(
                "give one of --shorter_side=256, --longer_side=1024 and --size=768x768."
            )
        if self.size is None:
            return Size(self.shorter_side or 0, self.longer_side or 0)
        found = re.fullmatch(r"\s*([1-9]\d{0,5})\s*[xX]\s*([1-9]\d{0,5})\s*", self.size)
        if found is None:
            raise UserError(f"--size='{self.size}' is no size; write width and height, as 768x768.")
        return Size(exact=(int(found[2]), int(found[1])))


def validate(values: Values, problems: Problems) -> None:
    """Adds folders that do not exist, and flags that have no such value."""
    options = values[PrepareOptions]
    problems.attempt(_sources, values)
    problems.attempt(lambda: options.settings_size)
    problems.attempt(lambda: values[DatasetOptions].naming)
    problems.attempt(lambda: values[DatasetOptions].reading)
    problems.attempt(_labels_file, values)
    if options.output_dir is None:
        problems.add("--output_dir is missing; name the folder for the results.")


def run(values: Values) -> None:
    """Prepares each folder; what cannot be read is listed, and the rest is done."""
    options, dataset = values[PrepareOptions], values[DatasetOptions]
    folder = Path(options.output_dir or "")
    sources = _sources(values)
    file = _labels_file(values)
    # Before hours of work: it may be damaged.
    table = None if file is None else labels.read(file)
    usual = AREA if options.shorter_side is None else BILINEAR
    settings = PrepareSettings(
        options.settings_size,
        options.interpolation or usual,
        options.photo_format,
        options.jpeg_quality,
        dataset.reading,
    )
    start = time.perf_counter()
    outcomes = prepare(
        sources,
        folder,
        settings,
        dataset.naming,
        options.threads or os.cpu_count() or 1,
        overwrite=options.overwrite,
    )
    seconds = time.perf_counter() - start
    for source, outcome in zip(sources, outcomes, strict=True):
        _report(source, outcome, folder / source.name)
    written = sum(outcome.written for outcome in outcomes)
    print(f"{written} photos in {seconds:.1f} s ({written / seconds:.1f}/s), {settings.size}")
    if table is not None and file is not None:
        photos = [photo for outcome in outcomes for photo in outcome.photos]
        _write_labels(table, photos, file, values)


def _write_labels(table: LabelTable, photos: list[Path], file: Path, values: Values) -> None:
    """Writes the labels of the prepared photos, and their folds."""
    options, dataset = values[PrepareOptions], values[DatasetOptions]
    folder = Path(options.output_dir or "")
    target = folder / (options.labels_out or file.name)
    found = prepare_labels.of_photos(table, photos, file)
    labels.write(target, found.table)
    for sentence in found.sentences:
        print(f"{file.name}: {sentence}")
    count = sum(map(len, found.table.labels.values()))
    print(
        f"{len(found.table.labels)} photos with {count} labels of {len(table.classes)} classes "
        f"-> {target}"
    )
    if options.val_ratio:
        folds = prepare_labels.split(found.table.labels, options.val_ratio, options.seed)
        prepare_labels.write_split(folder / dataset.folds_source, folds)
        validating = sum(fold == prepare_labels.VALIDATION for fold in folds.values())
        print(
            f"fold 0: {validating} photos to validate on, fold 1: {len(folds) - validating} "
            f"-> {folder / dataset.folds_source}"
        )


def _labels_file(values: Values) -> Path | None:
    """The table that `--labels` names, inside `--dataset_dir` or anywhere; None without the flag.

    Raises:
        UserError: There is none; or its clean form would replace it.
    """
    options, dataset = values[PrepareOptions], values[DatasetOptions]
    if options.labels is None:
        return None
    places = [Path(dataset.dataset_dir) / options.labels, Path(options.labels)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UserError(
            f"--labels='{options.labels}' is neither in '{dataset.dataset_dir}' nor a file; "
            "correct its name."
        )
    target = Path(options.output_dir or "") / (options.labels_out or file.name)
    if target.exists() and target.samefile(file):
        raise UserError(f"--labels='{file}' would be replaced; choose another --output_dir.")
    return file


def _sources(values: Values) -> list[Source]:
    """The folders that are named.

    Raises:
        UserError: One does not exist, or there are more of masks than of photos.
    """
    options, dataset = values[PrepareOptions], values[DatasetOptions]
    if not options.photo_dirs:
        raise UserError("--photo_dirs is empty; name the folders of the photos.")
    if len(options.mask_dirs) > len(options.photo_dirs):
        raise UserError(
            f"--mask_dirs names {len(options.mask_dirs)} folders, --photo_dirs only "
            f"{len(options.photo_dirs)}; name the folder of the photos of each."
        )
    sources = []
    for i, name in enumerate(options.photo_dirs):
        photos = dataset.existing_folder(name, "photo_dirs")
        source = Source(photos, _result(name))
        if i < len(options.mask_dirs):
            masks = dataset.existing_folder(options.mask_dirs[i], "mask_dirs")
            source = dataclasses.replace(
                source, masks=masks, masks_name=_result(options.mask_dirs[i])
            )
        sources.append(source)
    return sources


def _result(name: str) -> str:
    """The folder inside --output_dir for one of a name inside --dataset_dir, or a path."""
    path = Path(os.path.normpath(name))
    return path.name if path.is_absolute() or ".." in path.parts else str(path)


def _report(source: Source, outcome: Outcome, folder: Path) -> None:
    already = len(outcome.photos) - outcome.written
    masks = f", {outcome.masks} with masks" if source.masks is not None else ""
    missing = f" ({outcome.without_mask} have none)" if outcome.without_mask else ""
    print(
        f"{len(outcome.photos)} photos{masks}{missing}, {already} of them already there -> {folder}"
    )
    for _, problem in outcome.bad:
        print(f"left out: {problem}", file=sys.stderr)
    if outcome.bad:
        print(
            f"warning: {len(outcome.bad)} photos are left out, see above and "
            f"'{folder / bad_files.NAME}'; replace their files and run the same command again.",
            file=sys.stderr,
        )


COMMAND = Command(__doc__, (PrepareOptions, DatasetOptions), run, validate)
