"""A mask on its way into an annotation tool."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from carvana_tf.annotations.shapes import Pixels, components, crop, outlines


@dataclasses.dataclass(frozen=True)
class Style:
    """How masks are written.

    Attributes:
        label: The class of all areas.
        polygons: Whether they become polygons instead of pixels.
        tolerance: Of polygons, see `shapes.outlines`.
        split: Whether each connected part becomes an object of its own.
        photo_url: What stands before the name of a photo where a tool needs its address.
        photo_dir: The same where a tool needs the path from the annotation to it, "" or "../x/".
    """

    label: str = "object"
    polygons: bool = False
    tolerance: float = 0.0
    split: bool = False
    photo_url: str = ""
    photo_dir: str = ""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A photo and its mask.

    Attributes:
        name: The file name of the photo.
        stem: Its stem.
        mask: `bool[H, W]`.
    """

    name: str
    stem: str
    mask: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.mask.shape
        return height, width

    def parts(self, split: bool) -> Sequence[Pixels]:
        """The objects: none in an empty mask, and one in any other unless it is split."""
        if not self.mask.any():
            return []
        return components(self.mask) if split else [crop(self.mask)]

    def whole(self, part: Pixels) -> np.ndarray:
        """An object as `bool[H, W]`."""
        canvas = np.zeros(self.size, np.bool_)
        part.paint(canvas, self.size)
        return canvas

    def rings(self, part: Pixels, style: Style) -> list[np.ndarray]:
        """The polygons of an object, each `float64[N, 2]`; holes are reached by a cut."""
        corner = np.array([part.left, part.top])
        return [one.ring() + corner for one in outlines(part.mask, style.tolerance)]
