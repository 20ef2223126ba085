"""What an annotation export holds, whatever tool wrote it."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from carvana_tf.annotations.shapes import Geometry


@dataclasses.dataclass(frozen=True)
class Shape:
    """One annotated area.

    Attributes:
        label: Its class.
        kind: What it was drawn as, for the summary ("polygon", "box", "ellipse", "mask").
        decode: Its geometry in pixels of a photo of a size (height, width); called by the thread
            that draws it. Raises `BadAnnotation`.
    """

    label: str
    kind: str
    decode: Callable[[tuple[int, int]], Geometry]


@dataclasses.dataclass(frozen=True)
class Photo:
    """An annotated photo.

    Attributes:
        names: What it may be called, the likeliest first.
        source: The file that says so.
        size: The (height, width) it was annotated at; None where the file does not say.
        shapes: Its areas.
        problem: What is wrong with all of it, or "".
    """

    names: tuple[str, ...]
    source: Path
    size: tuple[int, int] | None
    shapes: Sequence[Shape]
    problem: str = ""


@dataclasses.dataclass
class Export:
    """What was read of an export.

    Attributes:
        photos: In the order of its files.
        classes: That it declares, also those without an area.
        bad: Files that could not be read, and why.
        left_out: What has no area, as points and lines, by kind.
    """

    photos: list[Photo] = dataclasses.field(default_factory=list)
    classes: list[str] = dataclasses.field(default_factory=list)
    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    left_out: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "Export") -> None:
        """Adds what another file of the same export holds."""
        self.photos += other.photos
        self.classes += [name for name in other.classes if name not in self.classes]
        self.bad += other.bad
        self.left_out += other.left_out
