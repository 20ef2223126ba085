"""Turns masks into files that annotation tools read, to correct them there.

python tools/export_masks.py --pred_mask_dir=predicted_masks --photo_dir=input/test \\
    --format=label_studio --label=car --out_dir=to_correct

Writes COCO, LabelMe, Label Studio predictions, CVAT for images and YOLO segmentation. What was
corrected comes back with tools/import_masks.py. See docs/annotations.md.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np

from carvana_tf.annotations import exporting
from carvana_tf.annotations.drawn import Style
from carvana_tf.cli import Command
from carvana_tf.data import bad_files, mask_values, names
from carvana_tf.data.dataset import Naming, list_masks, photos_of_masks
from carvana_tf.data.images import Reading, read_grey, read_mask, read_size
from carvana_tf.data.names import printable
from carvana_tf.data.tables import read_table
from carvana_tf.data.threshold import DEFAULT_THRESHOLD, HIGHEST_THRESHOLD
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.evaluation import suggestions
from carvana_tf.failures import first_few
from carvana_tf.filling import filling, state_of
from carvana_tf.flags import Needs, Values, option
from carvana_tf.interrupt import interruptible
from carvana_tf.masks.open_folder import choose_threshold, open_complete
from carvana_tf.options import ImageOptions
from carvana_tf.progress import bar

_MASK, _POLYGON = "mask", "polygon"
_SHOWN = 20  # problems that are printed; the table has all
# They do not change what the files hold.
_FREE = ("threads", "overwrite", "out_dir")


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """The masks, and where the annotations go."""

    pred_mask_dir: str | None = option(None, "Folder of probability PNGs, or of predicted masks.")
    threshold: int | None = option(
        None,
        "A grey value greater than this is object; by default the one that the masks were "
        f"post-processed at, else {DEFAULT_THRESHOLD}.",
        lower=0,
        upper=HIGHEST_THRESHOLD,
    )
    mask_dir: str | None = option(
        None, "Instead of --pred_mask_dir: folder of hand-made or imported masks."
    )
    mask_suffix: str = option("_mask", "What a mask's name in --mask_dir adds to its photo's.")
    mask_extension: str = option("", "Extension of the masks in --mask_dir; empty means any.")
    mask_values: str = option(
        mask_values.AUTO,
        f"Which values of the masks in --mask_dir are the object: {mask_values.FORMS}.",
    )
    photo_dir: str | None = option(
        None, "Folder of the photos, for their names; or give --image_extension."
    )
    image_extension: str | None = option(
        None, "The extension of all photos (.jpg), where nothing else has their names."
    )
    format: str = option("coco", "What to write.", choices=exporting.FORMATS)
    geometry: str | None = option(
        None,
        "mask keeps every pixel; polygon is easier to correct by hand, holes are reached by a cut. "
        "By default mask where the format has it (all but yolo).",
        choices=(_MASK, _POLYGON),
    )
    tolerance: float = option(
        0.3,
        "Pixels that the line of a polygon may pass away from its points; below 0.35 the same "
        "pixels come back.",
        lower=0,
    )
    split_parts: bool = option(False, "Make each connected part of a mask an object of its own.")
    label: str = option("object", "The class of the objects, as the tool knows it.")
    photo_list: str | None = option(
        None,
        f"Table whose column '{suggestions.PHOTO}' names the photos to export, as that of "
        "tools/suggest_photos.py; by default all.",
    )
    photo_url: str = option(
        "/data/local-files/?d=",
        "What stands before a photo's name where Label Studio loads it from: a URL, or the folder "
        "of its local storage.",
    )
    out_dir: str | None = option(None, "Folder for the annotations.")
    overwrite: bool = option(False, "Replace annotations that --out_dir holds already.")
    threads: int = option(4, "Threads that read masks.", lower=1)
    force: bool = option(False, "Go on where --pred_mask_dir is not what its manifest.json says.")

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("tolerance",),
            lambda o: o.geometry == _POLYGON or o.format in exporting.WITHOUT_PIXELS,
            "without --geometry=polygon",
        ),
        Needs(
            ("photo_url",), lambda o: o.format == "label_studio", "without --format=label_studio"
        ),
        Needs(
            ("mask_suffix", "mask_extension", "mask_values"),
            lambda o: o.mask_dir is not None,
            "without --mask_dir",
        ),
        Needs(("threshold", "force"), lambda o: o.mask_dir is None, "with --mask_dir"),
    )


def validate(values: Values, problems: Problems) -> None:
    """Adds what is missing or contradicts."""
    options = values[ExportOptions]
    if (options.pred_mask_dir is None) == (options.mask_dir is None):
        problems.add("give the masks as either --pred_mask_dir or --mask_dir.")
    if options.out_dir is None:
        problems.add("--out_dir is missing; name the folder for the annotations.")
    for flag in ("pred_mask_dir", "mask_dir", "photo_dir"):
        path = getattr(options, flag)
        if path is not None and not Path(path).is_dir():
            problems.add(f"--{flag}='{path}' {absent(path)}")
    if options.photo_dir is None and options.image_extension is None and options.mask_dir:
        problems.add(
            "the names of the photos are not known; give their folder as --photo_dir, or their "
            "extension as --image_extension=.jpg."
        )
    if options.format in exporting.WITHOUT_PIXELS and options.geometry == _MASK:
        problems.add(f"--format={options.format} has polygons alone; leave --geometry=mask out.")
    if not options.label.isprintable() or not options.label:
        problems.add(f"--label={options.label!r} is no name of a class.")
    problems.attempt(mask_values.parse, options.mask_values)
    problems.attempt(Naming, options.mask_suffix, options.mask_extension)


def run(values: Values) -> int:
    """Writes the annotations of all masks; those that cannot be read are listed."""
    options = values[ExportOptions]
    out = Path(options.out_dir or "")
    masks = _predicted(options) if options.pred_mask_dir else _hand_made(options)
    style = _style(options, out)
    targets = exporting.targets(options.format, out, [stem for _, stem, _ in masks])

    def present() -> list[Path]:
        return [path for path in targets if path.exists()]

    folder = Path(options.pred_mask_dir or options.mask_dir or "")
    settings = {
        **{key: value for key, value in dataclasses.asdict(options).items() if key not in _FREE},
        "masks": state_of([*folder.iterdir()]),
        "photos": [photo for photo, _, _ in masks] if options.photo_list else None,
    }
    with filling(out, settings, present, flag="out_dir", overwrite=options.overwrite):
        results = interruptible(exporting.write(options.format, out, masks, style, options.threads))
        bad = [(stem, why) for stem, why in bar(results, total=len(masks), unit="mask") if why]
        bad_files.record(out, bad)
    print(f"{len(masks) - len(bad)} masks as {options.format} -> {out}")
    for _, problem in bad[:_SHOWN]:
        print(printable(problem), file=sys.stderr)
    if bad:
        raise UserError(
            f"{len(bad)} masks could not be read; all are listed in '{out / bad_files.NAME}'."
        )
    return 0


def _style(options: ExportOptions, out: Path) -> Style:
    polygons = options.geometry == _POLYGON or options.format in exporting.WITHOUT_PIXELS
    folder = ""
    if options.photo_dir is not None:
        folder = Path(os.path.relpath(options.photo_dir, out)).as_posix() + "/"
    return Style(
        options.label,
        polygons,
        options.tolerance,
        options.split_parts,
        options.photo_url,
        "" if folder == "./" else folder,
    )


def _predicted(options: ExportOptions) -> list[tuple[str, str, Callable[[], np.ndarray]]]:
    """Of each predicted mask the photo's name, its stem, and what reads it."""
    folder = open_complete(Path(options.pred_mask_dir or ""), binary=True, force=options.force)
    folder = dataclasses.replace(folder, masks=_listed(folder.masks, folder.path, options))
    threshold, _ = choose_threshold(
        folder.path, folder.manifest, options.threshold, force=options.force
    )
    photo_dir = Path(options.photo_dir) if options.photo_dir else None
    photos = folder.photo_names(options.image_extension, photo_dir)

    def load(path: Path, photo: str) -> np.ndarray:
        mask = read_grey(path) > threshold
        _check_size(path, mask, None if photo_dir is None else photo_dir / photo)
        return mask

    return [
        (photo, stem, functools.partial(load, path, photo))
        for photo, (stem, path) in zip(photos, folder.masks.items(), strict=True)
    ]


def _check_size(path: Path, mask: np.ndarray, photo: Path | None) -> None:
    """Refuses a mask that is of another size than its photo.

    Raises:
        UserError: It is, or the photo cannot be read.
    """
    if photo is not None and (size := read_size(photo)) != mask.shape:
        raise UserError(
            f"'{path}' has {mask.shape[1]}x{mask.shape[0]} pixels, its photo '{photo}' has "
            f"{size[1]}x{size[0]}; make the mask again."
        )


def _hand_made(options: ExportOptions) -> list[tuple[str, str, Callable[[], np.ndarray]]]:
    """As `_predicted`, of hand-made masks."""
    folder = Path(options.mask_dir or "")
    naming = Naming(options.mask_suffix, options.mask_extension)
    reading = Reading(mask_values.parse(options.mask_values))
    masks = list_masks(folder, naming)
    if not masks:
        raise UserError(
            f"'{folder}' holds no mask whose name ends in '{options.mask_suffix}'; correct "
            "--mask_suffix or --mask_dir."
        )
    masks = _listed(masks, folder, options)
    named = {stem: stem + (options.image_extension or "") for stem in masks}
    photo_dir = Path(options.photo_dir) if options.photo_dir else None
    if options.photo_dir:
        photos = photos_of_masks(Path(options.photo_dir), masks, folder)
        named = {stem: path.name for stem, path in photos.items()}

    def load(path: Path, photo: str) -> np.ndarray:
        mask = read_mask(path, reading)
        _check_size(path, mask, None if photo_dir is None else photo_dir / photo)
        return mask

    return [
        (named[stem], stem, functools.partial(load, path, named[stem]))
        for stem, path in masks.items()
    ]


def _listed(masks: dict[str, Path], folder: Path, options: ExportOptions) -> dict[str, Path]:
    """Those of the masks whose photo is in the list; all where there is none.

    Raises:
        UserError: The list cannot be read, or names a photo that has no mask.
    """
    if options.photo_list is None:
        return masks
    path, column = Path(options.photo_list), suggestions.PHOTO
    header, rows = read_table(path)
    if column not in header:
        raise UserError(
            f"--photo_list='{path}' has no column '{column}' (it has {', '.join(header)}); name "
            "the column so."
        )
    listed = list(dict.fromkeys(cells[header.index(column)] for _, cells in rows))
    found = names.match(listed, masks, f"'{path}'")
    missing = [name for name in listed if name not in found]
    if missing or not found:
        raise UserError(
            f"{len(missing)} of {len(listed)} photos in --photo_list='{path}' have no mask in "
            f"'{folder}'{first_few(missing) and f' ({first_few(missing)})'}; predict them, or "
            "correct the list."
        )
    kept = set(found.values())
    return {stem: mask for stem, mask in masks.items() if stem in kept}


COMMAND = Command(__doc__, (ExportOptions, ImageOptions), run, validate)
