"""A car's texture: blueprints carried over to the body by each texel's position and normal."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from carvana_tf.data.synthetic import blueprints
from carvana_tf.data.synthetic.bodies import HALF_ROWS, STATIONS, Design, Part

# Texels per mesh cell, and blueprint pixels per metre, at a photo width of 960.
_TEXELS, _SCALE = 16, 220


@dataclasses.dataclass(frozen=True)
class Texture:
    """The paint of a car.

    Attributes:
        albedo: `uint8[h, w, 4]`: RGB and gloss (100 is clear coat).
        well: `uint8[h, w]`, 255 inside the wheel arches.
        cells: Texels per mesh cell.
    """

    albedo: np.ndarray
    well: np.ndarray
    cells: int


def paint(design: Design, parts: Sequence[Part], detail: float) -> Texture:
    """Paints a car.

    Args:
        design: The car.
        parts: Its surfaces, the body first; they lie one below the other in the texture.
        detail: 1 for photos 960 wide, 2 for 1920.

    Returns:
        The texture; mesh point (row, column) is texel `(i + 0.5) * cells - 0.5`.
    """
    cells = max(4, round(_TEXELS * detail))
    half = parts[0].points[:HALF_ROWS]
    normal = parts[0].normals[:HALF_ROWS]
    size = (STATIONS * cells, HALF_ROWS * cells)
    x, y, z = (cv2.resize(np.ascontiguousarray(half[..., i]), size) for i in range(3))
    nx, ny, nz = (cv2.resize(np.ascontiguousarray(normal[..., i]), size) for i in range(3))
    scale = _SCALE * detail

    image, _ = blueprints.draw_plan(design, scale).sample(x, y)
    well = np.zeros(image.shape[:2], np.uint8)
    for drawing, chosen in (
        (blueprints.draw_front(design, scale), nx > 0.26),
        (blueprints.draw_rear(design, scale), nx < -0.20),
    ):
        seen, _ = drawing.sample(y, z)
        image[chosen] = seen[chosen]
    below = (nz < -0.45) & (z < 0.5 * design.height)
    image[below] = (14, 14, 15, 0)
    for axle in design.axles:
        well[below & (np.abs(x - axle) < design.wheel * 1.13)] = 255
    side, side_well = blueprints.draw_side(design, scale).sample(x, z)
    chosen = (np.abs(ny) >= 0.6) & (np.abs(ny) >= 1.2 * np.abs(nx))
    image[chosen], well[chosen] = side[chosen], side_well[chosen]

    extra = sum(len(part.points) for part in parts[1:]) * cells
    albedo = np.concatenate([image, image[::-1], np.zeros((extra, size[0], 4), np.uint8)])
    wells = np.concatenate([well, well[::-1], np.zeros((extra, size[0]), np.uint8)])
    row = 2 * HALF_ROWS * cells
    for part in parts[1:]:
        end = row + len(part.points) * cells
        albedo[row:end] = _part_paint(part.name, design)
        row = end
    return Texture(albedo, wells, cells)


def _part_paint(name: str, design: Design) -> tuple[int, ...]:
    if name == "rail":
        return (120, 122, 125, 120)
    if name in ("mirror", "fin"):
        return (*design.colour, blueprints.CLEAR_COAT)
    return (*blueprints.BLACK, blueprints.PLASTIC)
