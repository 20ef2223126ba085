"""Turns the export of an annotation tool into mask files.

python tools/import_masks.py --annotations=export.json --photo_dir=input/train \\
    --out_dir=input/train_masks --classes=car,van

Reads COCO, LabelMe, CVAT, Label Studio, YOLO segmentation, Pascal VOC and Supervisely, recognised
by what the files hold. What cannot be used is listed, and the rest is done. See
docs/annotations.md.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from carvana_tf.annotations import importing, reading
from carvana_tf.annotations.importing import Rules
from carvana_tf.annotations.model import Export, Photo
from carvana_tf.annotations.values import brief
from carvana_tf.cli import Command
from carvana_tf.data import bad_files
from carvana_tf.data.dataset import find_photos, list_images
from carvana_tf.data.images import encode_gif_mask, encode_mask, read_size
from carvana_tf.data.names import MASK_SUFFIXES, printable
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.failures import SystemFailure, named
from carvana_tf.files import Group, held
from carvana_tf.flags import Values, option
from carvana_tf.interrupt import interruptible
from carvana_tf.options import ImageOptions
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

_ENCODERS = {".png": encode_mask, ".gif": encode_gif_mask}
_SHOWN = 20  # problems that are printed; the table has all


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """The export, the photos, and where the masks go."""

    annotations: str | None = option(None, "The file or folder that the annotation tool exported.")
    format: str = option(
        reading.AUTO,
        "Its format; auto: by what the files hold.",
        choices=(reading.AUTO, *reading.FORMATS),
    )
    photo_dir: str | None = option(None, "Folder of the photos that were annotated.")
    out_dir: str | None = option(None, "Folder for the masks, of 0 and 255.")
    classes: tuple[str, ...] = option(
        (), "The classes that are object, comma-separated; by default all of them."
    )
    cut_classes: tuple[str, ...] = option(
        (), "Classes that are cut out of the object, as holes that were annotated on top of it."
    )
    empty: str = option(
        importing.SKIP,
        "Photos without an area of these classes: skip writes no mask, listed writes an empty one "
        "for those in the export, background for all photos of the folder.",
        choices=importing.EMPTY,
    )
    crowd: bool = option(True, "Count areas that COCO marks as crowds as object.")
    scale: bool = option(
        False, "Scale annotations of photos that were annotated at another size of the same shape."
    )
    mask_suffix: str = option("_mask", "What a mask's name adds to its photo's, may be empty.")
    mask_extension: str = option(".png", "Extension of the masks.", choices=tuple(_ENCODERS))
    overwrite: bool = option(False, "Replace masks that --out_dir holds already.")
    threads: int = option(4, "Threads that decode and write.", lower=1)


def validate(values: Values, problems: Problems) -> None:
    """Adds what is missing, or would be overwritten."""
    options = values[ImportOptions]
    for flag, what in (
        ("annotations", "file or folder of the export"),
        ("photo_dir", "folder of the photos"),
        ("out_dir", "folder for the masks"),
    ):
        if getattr(options, flag) is None:
            problems.add(f"--{flag} is missing; name the {what}.")
    for flag in ("annotations", "photo_dir"):
        path = getattr(options, flag)
        if path is not None and not Path(path).exists():
            problems.add(f"--{flag}='{path}' {absent(path)}")
    if "/" in options.mask_suffix or "\0" in options.mask_suffix:
        problems.add(f"--mask_suffix='{options.mask_suffix}' is no part of a file name.")
    if options.photo_dir and options.out_dir and _is_same(options.photo_dir, options.out_dir):
        problems.add(
            f"--out_dir='{options.out_dir}' is the folder of the photos; masks there would be "
            "taken for photos: name another."
        )


def _is_same(a: str, b: str) -> bool:
    return Path(a).resolve() == Path(b).resolve()


def run(values: Values) -> int:
    """Reads the export and writes the masks."""
    options = values[ImportOptions]
    source, out = Path(options.annotations or ""), Path(options.out_dir or "")
    photos = {sample.stem: sample.photo for sample in find_photos(Path(options.photo_dir or ""))}
    name, export = reading.read(source, options.format, options.threads)
    counts = importing.count_classes(export)
    classes = importing.choose_classes(options.classes, options.cut_classes, counts)
    rules = Rules(classes, frozenset(options.cut_classes), options.crowd, options.scale)
    _show(name, source, export, counts, rules)

    found, bad = importing.pair(export, photos, f"'{source}'")
    bad = [*export.bad, *bad]
    jobs, skipped = [], 0
    for stem in photos:
        photo = found.get(stem)
        wanted = photo is not None and (photo.problem or importing.has_area(photo, rules))
        if wanted or _gets_empty(photo, options):
            jobs.append(stem)
        else:
            skipped += 1
    with held(out):
        targets = _targets(out, photos, options)
        kept = [] if options.overwrite else [stem for stem in jobs if targets[stem].exists()]
        jobs = [stem for stem in jobs if stem not in {*kept}]
        written = 0
        with Group() as group:
            work = functools.partial(_write, group, photos, found, targets, rules)
            results = interruptible(ordered_map(work, jobs, options.threads))
            for stem, problem in bar(results, total=len(jobs), unit="mask"):
                if problem:
                    bad.append((str(photos[stem]), problem))
                else:
                    written += 1
        _finish(out, options, written, len(kept), skipped, bad)
    return 0


def _gets_empty(photo: Photo | None, options: ImportOptions) -> bool:
    if options.empty == importing.LISTED:
        return photo is not None
    return options.empty == importing.BACKGROUND


def _targets(out: Path, photos: Mapping[str, Path], options: ImportOptions) -> dict[str, Path]:
    """The file of each photo's mask.

    Raises:
        UserError: The folder has a mask of a photo in another format.
    """
    present = list_images(out, MASK_SUFFIXES) if out.is_dir() else {}
    targets = {
        stem: out / f"{stem}{options.mask_suffix}{options.mask_extension}" for stem in photos
    }
    for stem, target in targets.items():
        other = present.get(f"{stem}{options.mask_suffix}", target)
        if other.name != target.name:
            raise UserError(
                f"'{other}' is a mask of '{stem}' already, and '{target.name}' would be a second "
                f"one; remove it, or use --mask_extension={other.suffix}."
            )
    return targets


def _write(
    group: Group,
    photos: Mapping[str, Path],
    found: Mapping[str, Photo],
    targets: Mapping[str, Path],
    rules: Rules,
    stem: str,
) -> tuple[str, str]:
    """Writes one mask; returns the stem, and why there is none."""
    try:
        photo = found.get(stem)
        if photo is None:
            mask = np.zeros(read_size(photos[stem]), np.bool_)
        else:
            with named("drawing the mask of", photos[stem]):
                mask = importing.draw(photo, photos[stem], rules)
    except SystemFailure:
        raise
    except UserError as error:
        return stem, str(error)
    target = targets[stem]
    with named("writing the mask of", photos[stem]):
        group.write_bytes(target, _ENCODERS[target.suffix](mask))
    return stem, ""


def _show(
    name: str, source: Path, export: Export, counts: Mapping[str, importing.Count], rules: Rules
) -> None:
    """Prints what was read."""
    print(f"'{source}' is {reading.TITLES[name]}, with annotations of {len(export.photos)} photos")
    for line in _table(counts, rules):
        print(printable(line))
    if export.left_out:
        listed = ", ".join(f"{count} {kind}" for kind, count in export.left_out.most_common())
        print(printable(f"left out, as they have no area: {listed}"))


def _table(counts: Mapping[str, importing.Count], rules: Rules) -> Iterator[str]:
    width = max(len(brief(label)) for label in (*counts, "class"))
    yield f"  {'class':<{width}}  {'photos':>7}  {'areas':>7}  used as"
    for label, count in counts.items():
        use = "cut out" if label in rules.cut else "object" if label in rules.classes else "-"
        kinds = ", ".join(f"{number} {kind}" for kind, number in count.areas.most_common())
        total = sum(count.areas.values())
        numbers = f"{count.photos:>7}  {total:>7}"
        yield f"  {brief(label):<{width}}  {numbers}  {use}{kinds and f' ({kinds})'}"


def _finish(
    out: Path,
    options: ImportOptions,
    written: int,
    kept: int,
    skipped: int,
    bad: list[tuple[str, str]],
) -> None:
    """Prints what was done.

    Raises:
        UserError: Something could not be.
    """
    parts = [f"{written} masks -> {out}"]
    if kept:
        parts.append(f"{kept} were there already (--overwrite replaces them)")
    if skipped:
        more = "" if options.empty == importing.BACKGROUND else " (see --empty)"
        parts.append(f"{skipped} photos without an area have none{more}")
    print("; ".join(parts))
    if out.is_dir() or bad:
        bad_files.record(out, bad)
    if not bad:
        return
    for _, problem in bad[:_SHOWN]:
        print(printable(problem), file=sys.stderr)
    hidden = f"the first {_SHOWN} are above, " if len(bad) > _SHOWN else ""
    raise UserError(
        f"{len(bad)} files or photos of '{options.annotations}' could not be used; {hidden}all are "
        f"listed in '{out / bad_files.NAME}'."
    )


COMMAND = Command(__doc__, (ImportOptions, ImageOptions), run, validate)
