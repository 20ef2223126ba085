"""CVAT for images 1.1: one XML file.

https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/. Run lengths of masks go along the
rows of their box.
"""

import functools
import re
import xml.parsers.expat
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from carvana_tf import files
from carvana_tf.annotations import runs
from carvana_tf.annotations.documents import MOST_BYTES
from carvana_tf.annotations.drawn import Drawn, Style
from carvana_tf.annotations.model import Export, Photo, Shape
from carvana_tf.annotations.shapes import Geometry, Outline, Pixels, box, ellipse, turn
from carvana_tf.annotations.values import BadAnnotation, brief, number, points, size_of, whole
from carvana_tf.errors import UserError

FILE = "annotations.xml"
_KINDS = {"polygon": "polygon", "box": "box", "ellipse": "ellipse", "mask": "mask"}
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton")
_LABEL = ["labels", "label", "name"]
# XML 1.0 has no way to write these.
_UNWRITABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class _Reader:
    """Takes the elements of the file one after another, so that few are in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.export = Export()
        self._open: list[str] = []
        self._text: list[str] = []
        self._image: dict[str, str] | None = None
        self._shapes: list[Shape] = []
        self.tracks = 0

    def root(self) -> None:
        """Refuses another kind of file.

        Raises:
            UserError: It is one.
        """
        if self._open == ["annotations"]:
            return
        boxes = " (boxes of Pascal VOC)" if self._open == ["annotation"] else ""
        raise UserError(
            f"'{self.path}' begins with <{brief(self._open[0])}>{boxes}, expected <annotations>; "
            "export 'CVAT for images 1.1'."
        )

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._open.append(name)
        if len(self._open) == 1:
            self.root()
        self._text = []
        if name == "image":
            self._image, self._shapes = attributes, []
        elif name == "track":
            self.tracks += 1
        elif self._image is not None and name in _KINDS:
            label = attributes.get("label") or "unlabelled"
            self._shapes.append(
                Shape(label, _KINDS[name], functools.partial(_decode, name, attributes))
            )
        elif self._image is not None and name in _WITHOUT_AREA:
            self.export.left_out[name] += 1

    def characters(self, text: str) -> None:
        if self._open[-3:] == _LABEL:
            self._text.append(text)

    def end(self, name: str) -> None:
        if self._open[-3:] == _LABEL and (label := "".join(self._text).strip()):
            self.export.classes.append(label)
        self._open.pop()
        if name == "image" and self._image is not None:
            self._finish(self._image)
            self._image = None

    def _finish(self, image: dict[str, str]) -> None:
        names = (image.get("name") or f"image {image.get('id')}",)
        size, problem = None, ""
        try:
            size = size_of(image.get("height"), image.get("width"))
        except BadAnnotation as error:
            problem = str(error)
        self.export.photos.append(Photo(names, self.path, size, self._shapes, problem))


def parse_file(path: Path) -> Export:
    """What a file holds.

    Raises:
        UserError: It is no such file, damaged, or declares entities, which can fill memory.
    """
    reader = _Reader(path)
    parser = xml.parsers.expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise UserError(f"'{path}' has a DOCTYPE, which CVAT does not write; export it again.")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    files.check_regular(path)
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"'{path}' has more than {MOST_BYTES:,} bytes; export it in parts.")
    try:
        with path.open("rb") as handle:
            parser.ParseFile(handle)
    except (xml.parsers.expat.ExpatError, LookupError, ValueError) as error:
        raise UserError(f"'{path}' is not valid XML ({error}); export it again.") from error
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}.") from error
    if reader.tracks and not reader.export.photos:
        raise UserError(f"'{path}' has tracks of a video; export it as 'CVAT for images 1.1'.")
    return reader.export


def _decode(kind: str, given: dict[str, str], size: tuple[int, int]) -> Geometry:
    if kind == "mask":
        return _mask(given, size)
    if kind == "polygon":
        pairs = [pair.split(",") for pair in given.get("points", "").split(";") if pair.strip()]
        return Outline((points(pairs),))

    def side(name: str) -> float:
        return number(given.get(name), name)

    if kind == "box":
        left, top, right, bottom = map(side, ("xtl", "ytl", "xbr", "ybr"))
        ring, centre = box(left, top, right, bottom), ((left + right) / 2, (top + bottom) / 2)
    else:
        centre = side("cx"), side("cy")
        ring = ellipse(*centre, side("rx"), side("ry"))
    return Outline((turn(ring, number(given.get("rotation", 0), "rotation"), *centre),))


def _mask(given: dict[str, str], size: tuple[int, int]) -> Pixels:
    left, top, width, height = (
        whole(given.get(name), name) for name in ("left", "top", "width", "height")
    )
    if top + height > size[0] or left + width > size[1]:
        raise BadAnnotation(
            f"a mask of it spans {width}x{height} pixels from {left},{top} on, outside of the "
            f"photo's {size[1]}x{size[0]}"
        )
    try:
        counts = [int(word) for word in given.get("rle", "").split(",")]
    except ValueError:
        raise BadAnnotation("its run lengths are no list of whole numbers") from None
    return Pixels(runs.fill(counts, width * height).reshape(height, width), left, top)


def draw(drawn: Drawn, style: Style) -> str:
    """The elements of a photo's areas."""
    label = f'label={_attribute(style.label)} source="auto" occluded="0" z_order="0"'
    found = []
    for number_, part in enumerate(drawn.parts(style.split), start=1):
        if style.polygons:
            for ring in drawn.rings(part, style):
                # Two decimals, as CVAT itself writes.
                text = ";".join(f"{x:.2f},{y:.2f}" for x, y in ring.tolist())
                found.append(f'    <polygon {label} group_id="{number_}" points="{text}"/>\n')
            continue
        counts = ", ".join(map(str, runs.counts_of(part.mask.ravel()).tolist()))
        height, width = part.mask.shape
        place = f'left="{part.left}" top="{part.top}" width="{width}" height="{height}"'
        found.append(f'    <mask {label} rle="{counts}" {place}/>\n')
    return "".join(found)


def write(drawn: Iterator[tuple[Drawn, str]], style: Style) -> Iterator[str]:
    """The pieces of the file."""
    label = f"<label><name>{escape(style.label)}</name></label>"
    yield (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"  <meta><task><mode>annotation</mode><labels>{label}</labels></task></meta>\n"
    )
    for number_, (photo, elements) in enumerate(drawn):
        height, width = photo.size
        name = _attribute(photo.name)
        yield f'  <image id="{number_}" name={name} width="{width}" height="{height}">\n'
        yield elements
        yield "  </image>\n"
    yield "</annotations>\n"


def _attribute(text: str) -> str:
    if _UNWRITABLE.search(text):
        raise UserError(f"{text!r} has characters that XML cannot hold; rename it.")
    return quoteattr(text)
