"""COCO: one JSON file with images, categories and annotations.

https://cocodataset.org/#format-data. CVAT, Label Studio, Roboflow, Supervisely, VIA and most others
export it.
"""

import collections
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carvana_tf.annotations import runs
from carvana_tf.annotations.documents import json_text, key_of, label_of, records
from carvana_tf.annotations.drawn import Drawn, Style
from carvana_tf.annotations.model import Export, Photo, Shape
from carvana_tf.annotations.shapes import Geometry, Outline, Pixels
from carvana_tf.annotations.values import BadAnnotation, brief, points, size_of, whole

FILE = "annotations.json"
CROWD = "crowd"
"""The kind of an area that COCO marks as many objects together."""


def recognises(document: Any) -> bool:
    """Whether a JSON document is of this format."""
    return isinstance(document, dict) and "images" in document and "annotations" in document


def parse(document: Any, path: Path) -> Export:
    """What a document holds.

    Raises:
        UserError: It lacks a part without which nothing can be read.
    """
    export = Export()
    categories: dict[Any, str] = {}
    for index, category in enumerate(records(document, "categories", path, missing_ok=True)):
        categories[key_of(category.get("id"))] = label_of(category.get("name"), f"category {index}")
    export.classes = list(dict.fromkeys(categories.values()))

    of_image: dict[Any, list[dict]] = collections.defaultdict(list)
    for annotation in records(document, "annotations", path):
        of_image[key_of(annotation.get("image_id"))].append(annotation)
    for image in records(document, "images", path):
        annotations = of_image.pop(key_of(image.get("id")), [])
        export.photos.append(_photo(image, annotations, categories, path))
    for image_id, annotations in of_image.items():
        what = f"{len(annotations)} annotations of an image {brief(repr(image_id))}"
        problem = f"'{path}' has {what} that it does not list; export it again."
        export.bad.append((str(path), problem))
    return export


def _photo(image: dict, annotations: list[dict], categories: dict, path: Path) -> Photo:
    name = image.get("file_name")
    names = (name,) if isinstance(name, str) and name else (f"image {image.get('id')!r}",)
    try:
        size = None
        if image.get("height") is not None or image.get("width") is not None:
            size = size_of(image.get("height"), image.get("width"))
        shapes = [_shape(annotation, categories) for annotation in annotations]
    except BadAnnotation as error:
        return Photo(names, path, None, (), str(error))
    return Photo(names, path, size, shapes)


def _shape(annotation: dict, categories: dict) -> Shape:
    category = key_of(annotation.get("category_id"))
    if category not in categories:
        raise BadAnnotation(f"it has the category {brief(repr(category))}, which is not listed")
    segmentation = annotation.get("segmentation")
    kind = "polygon" if isinstance(segmentation, list) else "mask"
    if annotation.get("iscrowd"):
        kind = CROWD
    decode = functools.partial(_decode, segmentation)
    return Shape(categories[category], kind, decode)


def _decode(segmentation: Any, size: tuple[int, int]) -> Geometry:
    if isinstance(segmentation, list) and segmentation:
        # By COCO's definition the polygons of one object add up, holes are not known.
        nested = isinstance(segmentation[0], list)
        return Outline(tuple(points(one) for one in (segmentation if nested else [segmentation])))
    if not isinstance(segmentation, dict):
        raise BadAnnotation("an annotation has no segmentation, as of boxes alone")
    given = segmentation.get("size")
    if not isinstance(given, list) or len(given) != 2:
        raise BadAnnotation("its run lengths have no size [height, width]")
    height, width = (whole(side, "size") for side in given)
    if (height, width) != size:
        raise BadAnnotation(
            f"its run lengths are of {width}x{height} pixels, the photo has {size[1]}x{size[0]}"
        )
    counts = segmentation.get("counts")
    counts = runs.expand(counts) if isinstance(counts, str) else counts
    return Pixels(runs.columns(counts, height, width))


def draw(drawn: Drawn, style: Style) -> list[dict[str, Any]]:
    """The annotations of a photo without their ids."""
    found = []
    for part in drawn.parts(style.split):
        height, width = part.mask.shape
        if style.polygons:
            segmentation: Any = [ring.ravel().tolist() for ring in drawn.rings(part, style)]
        else:
            counts = runs.counts_of(drawn.whole(part).T.ravel())
            segmentation = {"size": list(drawn.size), "counts": runs.compress(counts)}
        found.append(
            {
                "category_id": 1,
                "segmentation": segmentation,
                "area": int(part.mask.sum()),
                "bbox": [part.left, part.top, width, height],
                "iscrowd": 0,
            }
        )
    return found


def write(drawn: Iterator[tuple[Drawn, list[dict[str, Any]]]], style: Style) -> Iterator[str]:
    """The pieces of the file."""
    images: list[dict[str, Any]] = []
    number = 0
    yield '{"annotations": ['
    for photo, annotations in drawn:
        height, width = photo.size
        images.append(
            {"id": len(images) + 1, "file_name": photo.name, "height": height, "width": width}
        )
        for annotation in annotations:
            number += 1
            separator = ",\n" if number > 1 else "\n"
            identified = {"id": number, "image_id": len(images), **annotation}
            yield separator + json_text(identified)
    yield '\n],\n"images": [\n'
    yield ",\n".join(map(json_text, images))
    yield '\n],\n"categories": [' + json_text({"id": 1, "name": style.label}) + "]}\n"
