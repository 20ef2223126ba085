"""Supervisely: `<dataset>/ann/<photo>.json` and `meta.json`.

https://docs.supervisely.com/data-organization/00_ann_format_navi. Its points are whole pixels, so
half a pixel is added: a polygon goes through the centres of the pixels that were clicked.
"""

import functools
from pathlib import Path
from typing import Any

from carvana_tf.annotations.bitmaps import read_bitmap
from carvana_tf.annotations.documents import label_of, records
from carvana_tf.annotations.model import Export, Photo, Shape
from carvana_tf.annotations.shapes import Geometry, Outline, Pixels, box
from carvana_tf.annotations.values import BadAnnotation, points, size_of, whole

META = "meta.json"
_KINDS = {"polygon": "polygon", "rectangle": "box", "bitmap": "mask", "alpha_mask": "mask"}


def recognises(document: Any) -> bool:
    """Whether a JSON document is of this format."""
    return isinstance(document, dict) and "objects" in document and "size" in document


def classes_of(document: Any) -> list[str]:
    """The classes in `meta.json`."""
    found = document.get("classes") if isinstance(document, dict) else None
    found = found if isinstance(found, list) else []
    titles = [one.get("title") for one in found if isinstance(one, dict)]
    return [title for title in titles if isinstance(title, str)]


def parse(document: Any, path: Path) -> Export:
    """What a document holds.

    Raises:
        UserError: It has no list of objects.
    """
    export = Export()
    shapes = []
    for found in records(document, "objects", path):
        kind = label_of(found.get("geometryType"), "unknown")
        if kind not in _KINDS:
            export.left_out[kind] += 1
            continue
        label = label_of(found.get("classTitle"), "unlabelled")
        shapes.append(Shape(label, _KINDS[kind], functools.partial(_decode, kind, found)))
    size, problem = None, ""
    try:
        sides = document["size"] if isinstance(document["size"], dict) else {}
        size = size_of(sides.get("height"), sides.get("width"))
    except BadAnnotation as error:
        problem = str(error)
    export.photos.append(Photo((path.stem,), path, size, shapes, problem))
    return export


def _decode(kind: str, found: dict, size: tuple[int, int]) -> Geometry:
    if _KINDS[kind] == "mask":
        bitmap = found.get("bitmap")
        bitmap = bitmap if isinstance(bitmap, dict) else {}
        origin = bitmap.get("origin")
        if not isinstance(origin, list) or len(origin) != 2:
            raise BadAnnotation("a bitmap of it has no origin")
        left, top = (whole(value, "origin") for value in origin)
        return Pixels(read_bitmap(bitmap.get("data"), size, packed=True), left, top)
    lines = found.get("points")
    if not isinstance(lines, dict):
        raise BadAnnotation(f"a {kind} of it has no points")
    outer = points(lines.get("exterior"))
    if kind == "rectangle":
        if len(outer) < 2:
            raise BadAnnotation("a rectangle of it has other than 2 corners")
        return Outline((box(*outer.min(axis=0), *(outer.max(axis=0) + 1)),))
    holes = lines.get("interior") or []
    if not isinstance(holes, list):
        raise BadAnnotation("the holes of a polygon of it are no list")
    return Outline((outer + 0.5,), tuple(points(hole) + 0.5 for hole in holes))
