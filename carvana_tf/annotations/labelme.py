"""LabelMe: a JSON file next to each photo.

https://github.com/wkentaro/labelme. Also written by AnyLabeling and X-AnyLabeling.
"""

import base64
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from carvana_tf.annotations.bitmaps import read_bitmap
from carvana_tf.annotations.documents import json_text, label_of, records
from carvana_tf.annotations.drawn import Drawn, Style
from carvana_tf.annotations.model import Export, Photo, Shape
from carvana_tf.annotations.shapes import Geometry, Outline, Pixels, box, ellipse
from carvana_tf.annotations.values import BadAnnotation, points, size_of
from carvana_tf.data.images import encode_mask

_VERSION = "5.5.0"  # the first with shapes of pixels is 5.3
_KINDS = {
    "polygon": "polygon",
    "rectangle": "box",
    "oriented_rectangle": "box",
    "rotation": "box",
    "circle": "ellipse",
    "mask": "mask",
}


def recognises(document: Any) -> bool:
    """Whether a JSON document is of this format."""
    return isinstance(document, dict) and "shapes" in document and "imagePath" in document


def parse(document: Any, path: Path) -> Export:
    """What a document holds.

    Raises:
        UserError: It has no list of shapes.
    """
    export = Export()
    shapes = []
    for shape in records(document, "shapes", path):
        drawn = label_of(shape.get("shape_type") or "polygon", "unknown")
        if drawn not in _KINDS:
            export.left_out[drawn] += 1
            continue
        label = label_of(shape.get("label"), "unlabelled")
        shapes.append(Shape(label, _KINDS[drawn], functools.partial(_decode, drawn, shape)))
    named = document["imagePath"]
    # A photo that was renamed is found by the name of its JSON.
    named = [named] if isinstance(named, str) and named else []
    height, width = document.get("imageHeight"), document.get("imageWidth")
    size, problem = None, ""
    try:
        size = None if height is None and width is None else size_of(height, width)
    except BadAnnotation as error:
        problem = str(error)
    export.photos.append(Photo((*named, path.stem), path, size, shapes, problem))
    return export


def _decode(drawn: str, shape: dict, size: tuple[int, int]) -> Geometry:
    corners = points(shape.get("points"))
    if drawn == "mask":
        if not len(corners):
            raise BadAnnotation("a mask of it has no place")
        left, top = np.rint(corners[0]).astype(int).tolist()
        return Pixels(read_bitmap(shape.get("mask"), size), left, top)
    if drawn == "circle":
        if len(corners) != 2:
            raise BadAnnotation("a circle of it has other than 2 points")
        radius = math.dist(*corners)
        return Outline((ellipse(corners[0, 0], corners[0, 1], radius, radius),))
    if drawn == "rectangle" and len(corners) == 2:
        return Outline((box(*corners.min(axis=0), *corners.max(axis=0)),))
    return Outline((corners,))


def draw(drawn: Drawn, style: Style) -> str:
    """The text of the file of a photo."""
    shapes: list[dict[str, Any]] = []
    for number, part in enumerate(drawn.parts(style.split), start=1):
        if style.polygons:
            shapes += [
                _shape(style.label, "polygon", ring.tolist(), number)
                for ring in drawn.rings(part, style)
            ]
            continue
        height, width = part.mask.shape
        # The last corner is a pixel of the mask.
        ends = [[part.left, part.top], [part.left + width - 1, part.top + height - 1]]
        bitmap = base64.b64encode(encode_mask(np.ascontiguousarray(part.mask))).decode()
        shapes.append({**_shape(style.label, "mask", ends, number), "mask": bitmap})
    height, width = drawn.size
    return json_text(
        {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": style.photo_dir + drawn.name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
    )


def _shape(label: str, kind: str, corners: list, group: int) -> dict[str, Any]:
    return {
        "label": label,
        "points": corners,
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
    }


def file_of(stem: str) -> str:
    """The name of the file of a photo, which LabelMe looks for."""
    return f"{stem}.json"
