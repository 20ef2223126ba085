"""Label Studio: the exports JSON and JSON-MIN, and tasks with predictions.

https://labelstud.io/guide/task_format, https://labelstud.io/guide/predictions. Polygons, boxes and
ellipses are in percent of the photo; brush strokes have a coding of their own, see `runs`.
"""

import functools
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from carvana_tf.annotations import runs
from carvana_tf.annotations.documents import json_text, key_of
from carvana_tf.annotations.drawn import Drawn, Style
from carvana_tf.annotations.model import Export, Photo, Shape
from carvana_tf.annotations.shapes import Geometry, Outline, Pixels, box, ellipse, turn
from carvana_tf.annotations.values import BadAnnotation, number, points, size_of
from carvana_tf.data import names

FILE = "tasks.json"
CONFIG = "labeling_config.xml"
_CONTROL, _OBJECT = "label", "image"
_IMAGE_KEYS = ("image", "img", "photo", "picture")
_KINDS = {"brush": "mask", "polygon": "polygon", "rectangle": "box", "ellipse": "ellipse"}
_WITHOUT_AREA = ("keypoint", "keypointlabels", "vector", "vectorlabels")
_LABELS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "labels")


def recognises(document: Any) -> bool:
    """Whether a JSON document is of this format."""
    if isinstance(document, dict):
        return "result" in document and isinstance(document.get("task"), dict)
    first = document[0] if isinstance(document, list) and document else None
    return isinstance(first, dict) and (
        isinstance(first.get("data"), dict)
        or any(isinstance(first.get(key), str) for key in _IMAGE_KEYS)
    )


def parse(document: Any, path: Path) -> Export:
    """What a document holds."""
    export = Export()
    for index, task in enumerate([document] if isinstance(document, dict) else document):
        if not isinstance(task, dict):
            export.bad.append((str(path), f"task {index} is no object"))
        else:
            export.photos.append(_photo(task, path, export))
    return export


def _photo(task: dict, path: Path, export: Export) -> Photo:
    outer = task["task"] if isinstance(task.get("task"), dict) else task
    data = outer["data"] if isinstance(outer.get("data"), dict) else outer
    found = _names(data)
    if not found:
        found = (f"task {task.get('id')!r}",)
    size, shapes = None, []
    try:
        for result, kind, labels in _areas(task):
            if kind is None:
                export.left_out[labels[0]] += 1
                continue
            sides = size_of(result.get("original_height"), result.get("original_width"))
            if size not in (None, sides):
                raise BadAnnotation("its areas are of photos of different sizes")
            size = sides
            if number(result.get("image_rotation") or 0, "rotation") % 360:
                raise BadAnnotation("it was turned in Label Studio; turn it back there")
            decode = functools.partial(_decode, kind, _value(result))
            shapes += [Shape(label, _KINDS[kind], decode) for label in labels]
    except BadAnnotation as error:
        return Photo(found, path, None, (), str(error))
    return Photo(found, path, size, shapes)


def _names(data: dict) -> tuple[str, ...]:
    """What the photo of a task may be called, from its address."""
    texts = [data[key] for key in _IMAGE_KEYS if isinstance(data.get(key), str)]
    texts += [
        text for text in data.values() if isinstance(text, str) and names.extension(_path(text))
    ]
    if not texts or texts[0].startswith("data:"):
        return ()
    name = _path(texts[0]).replace("\\", "/").rpartition("/")[2]
    return (name,) if name else ()


def _path(address: str) -> str:
    """The path in an address; local files have it as `/data/local-files/?d=folder/a.jpg`."""
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError:
        return ""
    local = dict(urllib.parse.parse_qsl(parts.query)).get("d")
    return local or urllib.parse.unquote(parts.path)


def _areas(task: dict) -> Iterator[tuple[dict, str | None, list[str]]]:
    """The areas of a task: each result, what it was drawn with, and its classes.

    Of what has no area the second is None, and the third its kind.
    """
    results = _results(task)
    if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
        raise BadAnnotation("its results are no list of objects")
    labelled = {key_of(one.get("id")) for one in results if _labels(one) is not None} - {None}
    for one in results:
        kind, labels = _kind(one), _labels(one)
        if kind is None:
            drawn = str(one.get("type", "")).lower()
            if drawn in _WITHOUT_AREA:
                yield one, None, [drawn.removesuffix("labels")]
        # With the tags Labels and Brush an area comes twice, the second time with its label.
        elif labels is not None or key_of(one.get("id")) not in labelled:
            yield one, kind, labels or ["unlabelled"]


def _labels(result: dict) -> list[str] | None:
    """The classes of a result; None where it has no place for any."""
    value = _value(result)
    lists = [value[key] for key in _LABELS if isinstance(value.get(key), list)]
    if not lists:
        return None
    return list(dict.fromkeys(text for one in lists for text in one if isinstance(text, str)))


def _results(task: dict) -> Any:
    """The results of the one annotation of a task; of predictions where nobody annotated."""
    if "result" in task:
        return task["result"]
    if "data" not in task:  # JSON-MIN: a list of values for each tag of the configuration
        lists = [found for found in task.values() if isinstance(found, list)]
        return [
            {**one, "value": one, "id": None}
            for found in lists
            for one in found
            if isinstance(one, dict) and "original_width" in one
        ]
    given = task.get("annotations", task.get("completions", task.get("predictions", [])))
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise BadAnnotation("its annotations are no list of objects")
    valid = [one for one in given if not one.get("was_cancelled")]
    chosen = [one for one in valid if one.get("ground_truth")] or valid
    if len(chosen) > 1:
        raise BadAnnotation(
            f"it has {len(chosen)} annotations; mark one of them as ground truth, or delete the "
            "others"
        )
    return chosen[0].get("result", []) if chosen else []


def _value(result: dict) -> dict:
    value = result.get("value")
    return value if isinstance(value, dict) else {}


def _kind(result: dict) -> str | None:
    """What an area was drawn with, by what its value has; None for what has no area."""
    value = _value(result)
    if "rle" in value:
        return "brush"
    if "radiusX" in value:
        return "ellipse"
    if str(result.get("type", "")).lower() in _WITHOUT_AREA or "keypointlabels" in value:
        return None
    if "points" in value:
        return "polygon"
    return "rectangle" if {"x", "y", "width", "height"} <= value.keys() else None


def _decode(kind: str, value: dict, size: tuple[int, int]) -> Geometry:
    height, width = size
    if kind == "brush":
        return Pixels(runs.read_brush(value["rle"], height, width))
    percent = width / 100, height / 100
    if kind == "polygon":
        return Outline((points(value["points"], percent),))
    x, y = number(value.get("x"), "x") * percent[0], number(value.get("y"), "y") * percent[1]
    degrees = number(value.get("rotation") or 0, "rotation")
    if kind == "ellipse":
        radii = (number(value.get(name), name) for name in ("radiusX", "radiusY"))
        ring = ellipse(x, y, *(radius * part for radius, part in zip(radii, percent, strict=True)))
    else:
        across, along = (number(value.get(name), name) for name in ("width", "height"))
        ring = box(x, y, x + across * percent[0], y + along * percent[1])
    # An ellipse turns around its centre, a box around its first corner: both are x, y.
    return Outline((turn(ring, degrees, x, y),))


def draw(drawn: Drawn, style: Style) -> list[dict[str, Any]]:
    """The results of a photo's prediction."""
    height, width = drawn.size
    tag = "polygonlabels" if style.polygons else "brushlabels"
    values: list[dict[str, Any]] = []
    for part in drawn.parts(style.split):
        if style.polygons:
            values += [
                {"points": (ring * (100 / width, 100 / height)).tolist(), "closed": True}
                for ring in drawn.rings(part, style)
            ]
        else:
            values.append({"format": "rle", "rle": runs.write_brush(drawn.whole(part))})
    return [
        {
            "id": f"{index:04d}",
            "type": tag,
            "from_name": _CONTROL,
            "to_name": _OBJECT,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {**value, tag: [style.label]},
        }
        for index, value in enumerate(values)
    ]


def write(drawn: Iterator[tuple[Drawn, list[dict[str, Any]]]], style: Style) -> Iterator[str]:
    """The pieces of the file."""
    separator = "[\n"
    for photo, result in drawn:
        address = style.photo_url + urllib.parse.quote(photo.name, errors="surrogateescape")
        task = {
            "data": {_OBJECT: address},
            "predictions": [{"model_version": "carvana_tf", "result": result}],
        }
        yield separator + json_text(task)
        separator = ",\n"
    yield "\n]\n"


def extras(style: Style) -> dict[str, str]:
    """The labelling interface that the tasks fit, by the name of its file."""
    tag = "PolygonLabels" if style.polygons else "BrushLabels"
    text = (
        f'<View>\n  <Image name="{_OBJECT}" value="${_OBJECT}" zoom="true"/>\n'
        f'  <{tag} name="{_CONTROL}" toName="{_OBJECT}">\n'
        f"    <Label value={quoteattr(style.label)}/>\n  </{tag}>\n</View>\n"
    )
    return {CONFIG: text}
