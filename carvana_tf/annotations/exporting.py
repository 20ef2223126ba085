"""From masks to files that annotation tools read."""

from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from carvana_tf.annotations import coco, cvat, label_studio, labelme, yolo
from carvana_tf.annotations.drawn import Drawn, Style
from carvana_tf.errors import UserError
from carvana_tf.failures import SystemFailure, named
from carvana_tf.files import atomic_path, write_text
from carvana_tf.threads import ordered_map

_MODULES: dict[str, Any] = {
    "coco": coco,
    "labelme": labelme,
    "label_studio": label_studio,
    "cvat": cvat,
    "yolo": yolo,
}
FORMATS = tuple(_MODULES)
WITHOUT_PIXELS = ("yolo",)
"""Formats that know polygons alone."""

Load = Callable[[], np.ndarray]


def targets(name: str, out: Path, stems: Iterable[str]) -> list[Path]:
    """The files that a format writes for the photos of some stems."""
    module = _MODULES[name]
    single = getattr(module, "FILE", None)
    own = [single] if single else [module.file_of(stem) for stem in stems]
    return [out / path for path in (*own, *_extras(module, Style()))]


def _extras(module: Any, style: Style) -> dict[str, str]:
    return module.extras(style) if hasattr(module, "extras") else {}


def write(
    name: str, out: Path, masks: Iterable[tuple[str, str, Load]], style: Style, threads: int
) -> Generator[tuple[str, str]]:
    """Writes masks in a format; one file is written whole or not at all.

    Args:
        name: One of `FORMATS`.
        out: The folder.
        masks: Of each photo its file name, its stem, and what reads its mask (`bool[H, W]`).
        style: How they are written.
        threads: Threads that read and encode.

    Yields:
        The stem of each photo, and why it was left out ("" where it was not).
    """
    module = _MODULES[name]

    def encode(given: tuple[str, str, Load]) -> tuple[Drawn, Any, str]:
        photo, stem, load = given
        try:
            drawn = Drawn(photo, stem, load())
            with named("writing the annotation of", Path(photo)):
                encoded = module.draw(drawn, style)
        except SystemFailure:
            raise
        except UserError as error:
            return Drawn(photo, stem, np.zeros((0, 0), np.bool_)), None, str(error)
        # The pixels are not needed any more, and several photos wait here.
        return Drawn(photo, stem, np.broadcast_to(np.False_, drawn.size)), encoded, ""

    encoded = ordered_map(encode, masks, threads)
    for path, text in _extras(module, style).items():
        write_text(out / path, text)
    if not hasattr(module, "FILE"):
        for drawn, text, problem in encoded:
            if not problem:
                write_text(out / module.file_of(drawn.stem), text)
            yield drawn.stem, problem
        return

    done: list[tuple[str, str]] = []

    def whole_ones() -> Iterator[tuple[Drawn, Any]]:
        for drawn, parts, problem in encoded:
            done.append((drawn.stem, problem))
            if not problem:
                yield drawn, parts

    with (
        atomic_path(out / module.FILE) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        for piece in module.write(whole_ones(), style):
            stream.write(piece)
            while done:
                yield done.pop(0)
