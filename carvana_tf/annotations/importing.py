"""From what an export holds to the masks of photos."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from carvana_tf.annotations import coco, voc
from carvana_tf.annotations.model import Export, Photo
from carvana_tf.annotations.values import BadAnnotation, brief
from carvana_tf.data import names
from carvana_tf.data.decoding import DEFAULT_MAX_PIXELS
from carvana_tf.data.images import read_size
from carvana_tf.errors import UserError, unknown_name

SKIP, LISTED, BACKGROUND = EMPTY = ("skip", "listed", "background")
"""What becomes of photos without an area: none of them, those in the export, or all get a mask."""
# What Label Studio puts before the name of an uploaded file, in all that it exports.
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")
_SIDES = 1.01  # sides of photos may differ by this factor in their ratio and still be one photo


@dataclasses.dataclass(frozen=True)
class Rules:
    """What of the annotations is object.

    Attributes:
        classes: The classes that are.
        cut: Those that are cut out of it.
        crowd: Whether areas count that COCO marks as crowds.
        scale: Whether annotations of other sizes than the photo's are scaled.
    """

    classes: frozenset[str]
    cut: frozenset[str] = frozenset()
    crowd: bool = True
    scale: bool = False


@dataclasses.dataclass(frozen=True)
class Count:
    """How often a class occurs."""

    photos: int
    areas: collections.Counter  # by kind


def count_classes(export: Export) -> dict[str, Count]:
    """How often each class occurs, in the order of the export; those without area too."""
    counts: dict[str, Count] = {name: Count(0, collections.Counter()) for name in export.classes}
    for photo in export.photos:
        for label in dict.fromkeys(shape.label for shape in photo.shapes):
            before = counts.get(label, Count(0, collections.Counter()))
            own = collections.Counter(shape.kind for shape in photo.shapes if shape.label == label)
            counts[label] = Count(before.photos + 1, before.areas + own)
    return counts


def choose_classes(wanted: Sequence[str], cut: Sequence[str], known: Iterable[str]) -> frozenset:
    """The classes that are object; by default all but those that are cut out, and VOC's void.

    Raises:
        UserError: One is not in the export, or is both.
    """
    known = list(known)
    for flag, given in (("--classes", wanted), ("--cut_classes", cut)):
        for name in given:
            if name not in known:
                raise unknown_name(f"{flag}: the class", name, known or ["none"])
    if both := [name for name in wanted if name in cut]:
        raise UserError(f"the class '{both[0]}' is in --classes and --cut_classes; drop one.")
    return frozenset(wanted or (name for name in known if name not in (*cut, voc.VOID)))


def pair(
    export: Export, stems: Mapping[str, Path], where: str
) -> tuple[dict[str, Photo], list[tuple[str, str]]]:
    """The annotated photo of each photo that has one, and what is wrong with the others.

    Args:
        export: What was read.
        stems: The photos by stem.
        where: What holds the annotations, for messages.

    Raises:
        UserError: A name in the export may stand for two photos, or two of them for one; or
            none of the photos is in it.
    """
    bad = []
    by_name: dict[str, Photo] = {}
    for photo in export.photos:
        name = photo.names[0]
        if name in by_name:
            others = {str(by_name[name].source), str(photo.source)}
            listed = " and ".join(f"'{source}'" for source in sorted(others))
            bad.append((name, f"'{name}' is annotated twice, in {listed}; keep one."))
        by_name.setdefault(name, photo)
    twice = {name for name, _ in bad}
    waiting = [photo for name, photo in by_name.items() if name not in twice]
    found: dict[str, Photo] = {}
    for attempt in range(max((len(_names(photo)) for photo in waiting), default=0)):
        named = {
            names_[attempt]: photo for photo in waiting if attempt < len(names_ := _names(photo))
        }
        left = [stem for stem in stems if stem not in found]
        matched = names.match(named, left, where)
        found |= {stem: named[name] for name, stem in matched.items()}
        done = {id(photo) for photo in found.values()}
        waiting = [photo for photo in waiting if id(photo) not in done]
    if waiting and not found and not bad:
        raise UserError(
            f"none of the {len(waiting)} photos that {where} names is in the folder of the photos: "
            f"it names '{brief(waiting[0].names[0])}', the folder holds '{next(iter(stems))}'; "
            "name the photos that were annotated as --photo_dir."
        )
    bad += [
        (
            photo.names[0],
            f"'{brief(photo.names[0], 255)}' of '{photo.source}' is not among the photos; add it.",
        )
        for photo in waiting
    ]
    return {stem: found[stem] for stem in stems if stem in found}, bad


def _names(photo: Photo) -> list[str]:
    """What a photo may be called: as the export says, and as before it was uploaded."""
    given = [name.replace("\\", "/") for name in photo.names]
    bare = [_UPLOADED.sub("", name.rpartition("/")[2]) for name in given]
    return list(dict.fromkeys((*photo.names, *given, *bare)))


def has_area(photo: Photo, rules: Rules) -> bool:
    """Whether a photo has an area of the classes."""
    return any(
        _counts(shape.kind, rules) and shape.label in rules.classes for shape in photo.shapes
    )


def _counts(kind: str, rules: Rules) -> bool:
    return rules.crowd or kind != coco.CROWD


def draw(photo: Photo, path: Path, rules: Rules) -> np.ndarray:
    """The mask of a photo.

    Args:
        photo: Its annotation.
        path: The photo, for its size.
        rules: What is object.

    Returns:
        `bool[H, W]`.

    Raises:
        UserError: The annotation is of another size, or wrong; the message names the photo.
    """
    size = read_size(path)
    where = f"'{path.name}' in '{photo.source}'"
    if photo.problem:
        raise UserError(f"{where}: {photo.problem}.")
    annotated = photo.size or size
    if annotated != size:
        _check_size(path, photo, size, annotated, rules)
    try:
        mask = _union(photo, rules.classes, rules, size, annotated)
        if rules.cut & {shape.label for shape in photo.shapes}:
            mask &= ~_union(photo, rules.cut, rules, size, annotated)
    except BadAnnotation as error:
        raise UserError(f"{where}: {error}.") from error
    return mask


def _union(
    photo: Photo,
    labels: frozenset[str],
    rules: Rules,
    size: tuple[int, int],
    annotated: tuple[int, int],
) -> np.ndarray:
    canvas = np.zeros(size, np.bool_)
    for shape in photo.shapes:
        if shape.label in labels and _counts(shape.kind, rules):
            shape.decode(annotated).paint(canvas, annotated)
    return canvas


def _check_size(
    path: Path, photo: Photo, size: tuple[int, int], annotated: tuple[int, int], rules: Rules
) -> None:
    """Refuses an annotation of another size.

    Raises:
        UserError: Unless it is to be scaled and has the photo's shape.
    """
    (height, width), (own_height, own_width) = size, annotated
    found = (
        f"'{path.name}' has {width}x{height} pixels, but was annotated at "
        f"{own_width}x{own_height} in '{photo.source}'"
    )
    ratio = (width * own_height) / (height * own_width)
    same_shape = 1 / _SIDES <= ratio <= _SIDES
    if rules.scale and same_shape and own_height * own_width <= DEFAULT_MAX_PIXELS:
        return
    if size == annotated[::-1]:
        raise UserError(
            f"{found}: sides are swapped, as by a tool that does not turn a photo as its EXIF "
            "orientation says; turn the photo itself and annotate it again."
        )
    fix = "use the photo that was annotated"
    raise UserError(f"{found}; {fix}{', or --scale' if same_shape and not rules.scale else ''}.")
