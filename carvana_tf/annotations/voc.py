"""Pascal VOC segmentation: a PNG for each photo whose colours are classes.

http://host.robots.ox.ac.uk/pascal/VOC/. `SegmentationClass` has classes, `SegmentationObject`
single objects; 255 is "void", a border around objects and what is too hard. CVAT's "Segmentation
mask" names its colours in `labelmap.txt`, labelme2voc its indices in `class_names.txt`.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from carvana_tf.annotations.model import Export, Photo, Shape
from carvana_tf.annotations.shapes import Geometry, Pixels
from carvana_tf.annotations.values import BadAnnotation
from carvana_tf.data.decoding import Picture, UnreadableImage, decode, read_header
from carvana_tf.errors import UserError
from carvana_tf.files import read_text
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"
VOID = "void"
"""The class of 255; it is object only where it is named."""
_BACKGROUND = ("background", "_background_")
_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
_VOID_INDEX, _VOID_COLOUR = 255, 0xE0E0C0
_MOST_TEXT = 1 << 20
_MOST_CLASSES = 256


def colour_of(index: int) -> int:
    """The colour of a class in VOC's palette, 0xRRGGBB: the bits of the index, spread."""
    red = green = blue = 0
    for bit in range(8):
        red |= (index >> 0 & 1) << 7 - bit
        green |= (index >> 1 & 1) << 7 - bit
        blue |= (index >> 2 & 1) << 7 - bit
        index >>= 3
    return red << 16 | green << 8 | blue


class _Legend:
    """Which class a colour or an index is."""

    def __init__(self, root: Path, objects: bool) -> None:
        self.objects = objects
        self.by_colour = {colour_of(i): name for i, name in enumerate(_NAMES)}
        self.by_index: dict[int, str] | None = dict(enumerate(_NAMES))
        if (path := root / "labelmap.txt").is_file():
            self.by_colour, self.by_index = _labelmap(path), None
        elif (path := root / "class_names.txt").is_file():
            lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
            lines = [line for line in lines if line != "__ignore__"]
            self.by_index = dict(enumerate(lines))
            self.by_colour = {colour_of(i): name for i, name in self.by_index.items()}
        self.by_colour.setdefault(_VOID_COLOUR, VOID)

    def names(self) -> list[str]:
        """The classes it knows, but background and void."""
        return [] if self.objects else [n for n in self.by_colour.values() if _is_class(n)]

    def codes(self, picture: Picture) -> np.ndarray:
        """`[H, W]` of whole numbers, each of one class."""
        values = picture.values
        if values.dtype != np.uint8 or picture.alpha is not None:
            raise BadAnnotation("its mask is no PNG of 8 bits without alpha")
        if values.ndim == 3:
            return values.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        return values

    def name(self, code: int, picture: Picture) -> str:
        """The class of one of the codes of a picture."""
        indexed = picture.values.ndim == 2
        if indexed and code == _VOID_INDEX:
            return VOID
        if self.objects:
            return _BACKGROUND[0] if code == 0 else VOID if code == _VOID_COLOUR else "object"
        if indexed and self.by_index is not None:
            return self.by_index.get(code, f"class {code}")
        colour = code
        if indexed and picture.palette is not None:
            red, green, blue = picture.palette[code, :3].tolist()
            colour = red << 16 | green << 8 | blue
        elif indexed:
            colour = code * 0x010101
        if colour not in self.by_colour:
            raise BadAnnotation(f"its mask has the colour #{colour:06x}, which is no class")
        return self.by_colour[colour]


def _is_class(name: str) -> bool:
    return name not in (*_BACKGROUND, VOID)


def _labelmap(path: Path) -> dict[int, str]:
    """Classes by colour; lines are `name:r,g,b:parts:actions`, without a colour in VOC's palette.

    Raises:
        UserError: A line is something else.
    """
    found: dict[int, str] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.partition(":")
        if not rest.partition(":")[0].strip():
            found[colour_of(len(found))] = name.strip()
            continue
        try:
            red, green, blue = (int(part) for part in rest.partition(":")[0].split(","))
            if not all(0 <= part <= 255 for part in (red, green, blue)):
                raise ValueError
        except ValueError:
            raise UserError(
                f"line {number} of '{path}' is '{line[:60]}', expected name:red,green,blue::"
            ) from None
        found[red << 16 | green << 8 | blue] = name.strip()
    return found


def _text(path: Path) -> str:
    try:
        return read_text(path, _MOST_TEXT)
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is no text in UTF-8; save it so.") from None


def looks_like(path: Path) -> bool:
    """Whether a PNG has a palette."""
    try:
        return read_header(path).colours == "palette"
    except UserError:
        return False


def read(files: Sequence[Path], root: Path, threads: int) -> Export:
    """What the PNGs of a folder hold; each is decoded to see its classes, and again to draw it.

    Args:
        files: The PNGs.
        root: The folder, which may be one of the two.
        threads: Threads that decode.

    Raises:
        UserError: `labelmap.txt` or `class_names.txt` cannot be read.
    """
    inside = {path.parent.name for path in files}
    which = CLASSES if CLASSES in inside else OBJECTS if OBJECTS in inside else None
    chosen = [path for path in files if which is None or path.parent.name == which]
    # Those of a folder of masks lie next to it.
    legend_root = root.parent if root.name in (CLASSES, OBJECTS) else root
    legend = _Legend(legend_root, which == OBJECTS)
    export = Export(classes=legend.names())

    def one(path: Path) -> Photo | tuple[str, str]:
        try:
            return _photo(path, legend)
        except BadAnnotation as error:
            return Photo((path.name,), path, None, (), str(error))
        except UnreadableImage as error:
            return str(path), str(error)

    read_ones = ordered_map(one, chosen, threads)
    for found in bar(read_ones, total=len(chosen), desc="reading", unit="file"):
        if isinstance(found, Photo):
            export.photos.append(found)
        else:
            export.bad.append(found)
    used = {shape.label for photo in export.photos for shape in photo.shapes}
    if legend.by_index is not None and {*_NAMES} >= {*export.classes}:
        export.classes = [name for name in export.classes if name in used]  # VOC's, not declared
    return export


def _photo(path: Path, legend: _Legend) -> Photo:
    picture = decode(path)
    codes = np.unique(legend.codes(picture))
    if len(codes) > _MOST_CLASSES:
        raise BadAnnotation(f"its mask has {len(codes):,} colours; it is no mask of classes")
    members: dict[str, list[int]] = {}
    for code in codes.tolist():
        members.setdefault(legend.name(code, picture), []).append(code)
    shapes = [
        Shape(name, "mask", functools.partial(_decode, path, legend, tuple(group)))
        for name, group in members.items()
        if name not in _BACKGROUND
    ]
    height, width = picture.values.shape[:2]
    return Photo((path.name,), path, (height, width), shapes)


def _decode(path: Path, legend: _Legend, group: tuple[int, ...], size: tuple[int, int]) -> Geometry:
    return Pixels(np.isin(legend.codes(decode(path)), group))
