"""YOLO segmentation: a text file for each photo, one line for each object.

https://docs.ultralytics.com/datasets/segment/: `<class> <x1> <y1> <x2> <y2> …` in parts of the
photo's width and height; a line of five numbers is a box. Classes are named in `data.yaml`, or
`classes.txt`.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from carvana_tf.annotations.documents import json_text
from carvana_tf.annotations.drawn import Drawn, Style
from carvana_tf.annotations.model import Export, Photo, Shape
from carvana_tf.annotations.shapes import Geometry, Outline, box
from carvana_tf.annotations.values import BadAnnotation
from carvana_tf.errors import UserError
from carvana_tf.files import read_text

CONFIG = "data.yaml"
_NAME_FILES = ("classes.txt", "obj.names")
_OTHER_FILES = ("train.txt", "val.txt", "test.txt", "autosplit_train.txt", "autosplit_val.txt")
_MOST_CONFIG, _MOST_LABELS = 1 << 20, 1 << 28
# Lines may leave the photo a little; coordinates in pixels are far outside.
_LOWEST, _HIGHEST = -1.0, 2.0


def config_of(texts: Sequence[Path]) -> Path | None:
    """The one of some YAML files that names classes."""
    for path in texts:
        try:
            if _names_in(path):
                return path
        except UserError:
            continue
    return None


def label_files(files: Sequence[Path], root: Path) -> list[Path]:
    """Those of some text files that hold labels: below a folder `labels` where there is one."""
    found = [path for path in files if path.name not in (*_NAME_FILES, *_OTHER_FILES)]
    below = [path for path in found if "labels" in path.relative_to(root).parts[:-1]]
    return below or found


def looks_like(path: Path) -> bool:
    """Whether a text file has lines of numbers alone, as labels; an empty one has none."""
    try:
        lines = read_text(path, _MOST_LABELS).split("\n", 1)[0].split()
        return len(lines) >= 5 and all(map(_is_number, lines))
    except (UserError, UnicodeDecodeError):
        return False


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def read(files: Sequence[Path], configs: Sequence[Path], root: Path) -> Export:
    """What a folder holds.

    Args:
        files: Its text files.
        configs: Its YAML files.
        root: The folder.
    """
    export = Export()
    config = config_of(configs)
    named = next((path for path in files if path.name in _NAME_FILES), None)
    classes: dict[int, str] = {}
    if config is not None:
        classes = _names_in(config)
    elif named is not None:
        lines = _text(named).splitlines()
        classes = {index: line.strip() for index, line in enumerate(lines) if line.strip()}
    export.classes = list(dict.fromkeys(classes.values()))
    for path in label_files(files, root):
        try:
            shapes, problem = _shapes(_text(path), classes), ""
        except BadAnnotation as error:
            shapes, problem = [], str(error)
        except UserError as error:
            export.bad.append((str(path), str(error)))
            continue
        export.photos.append(Photo((path.stem,), path, None, shapes, problem))
    return export


def _text(path: Path) -> str:
    try:
        return read_text(path, _MOST_LABELS)
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is no text in UTF-8; export it again.") from None


def _names_in(path: Path) -> dict[int, str]:
    """The classes of a `data.yaml` by number; {} where it names none.

    Raises:
        UserError: It is no YAML.
    """
    try:
        text = read_text(path, _MOST_CONFIG)
        # Nothing needs them here, and a few lines of them can stand for more than memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("aliases")
        document: Any = yaml.safe_load(text)
    except UserError:
        raise
    except Exception as error:  # its reader raises every kind
        raise UserError(f"'{path}' is no YAML ({type(error).__name__}); correct it.") from error
    found = document.get("names") if isinstance(document, dict) else None
    if isinstance(found, list):
        found = dict(enumerate(found))
    return {
        key: str(name)
        for key, name in (found.items() if isinstance(found, dict) else ())
        if isinstance(key, int) and isinstance(name, (str, int, float))
    }


def _shapes(text: str, classes: dict[int, str]) -> list[Shape]:
    shapes = []
    for index, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            values = np.array(words, np.float64)
            which = int(words[0])
        except (ValueError, OverflowError):
            raise BadAnnotation(f"line {index} has other than numbers, the class first") from None
        if which < 0 or (classes and which not in classes):
            raise BadAnnotation(f"line {index} has the class {which}, which {CONFIG} does not name")
        corners = values[1:]
        if len(corners) < 4 or len(corners) % 2:
            raise BadAnnotation(f"line {index} has {len(corners)} coordinates, expected pairs")
        if not ((corners >= _LOWEST) & (corners <= _HIGHEST)).all():
            raise BadAnnotation(
                f"line {index} has coordinates outside of 0..1, the parts of width and height"
            )
        kind = "box" if len(corners) == 4 else "polygon"
        decode = functools.partial(_decode, corners)
        shapes.append(Shape(classes.get(which, str(which)), kind, decode))
    return shapes


def _decode(corners: np.ndarray, size: tuple[int, int]) -> Geometry:
    pairs = corners.reshape(-1, 2) * (size[1], size[0])
    if len(pairs) == 2:
        centre, sides = pairs
        return Outline((box(*(centre - sides / 2), *(centre + sides / 2)),))
    return Outline((pairs,))


def draw(drawn: Drawn, style: Style) -> str:
    """The text of the file of a photo."""
    height, width = drawn.size
    lines = []
    for part in drawn.parts(style.split):
        for ring in drawn.rings(part, style):
            values = (ring / (width, height)).ravel().tolist()
            # A hundredth of a pixel in photos of up to 10,000.
            lines.append("0 " + " ".join(f"{value:.6f}" for value in values) + "\n")
    return "".join(lines)


def file_of(stem: str) -> str:
    """The name of the file of a photo."""
    return f"labels/{stem}.txt"


def extras(style: Style) -> dict[str, str]:
    """The names of the classes, by the name of their file."""
    return {CONFIG: f"train: images\nval: images\nnames:\n  0: {json_text(style.label)}\n"}
