"""Things that stand next to cars: posts, cones, round signs, boxes, balls, trees.

Each is drawn from the points of a simple solid, with edges that are supersampled.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from carvana_tf.data.synthetic.studio import Camera

_SUPER = 4
_SHIFT = 4
_MARGIN = 2

Colour = tuple[int, int, int]
Layer = tuple[tuple[slice, slice], np.ndarray, np.ndarray]
"""Where something is in the photo, its colour `float32[h, w, 3]`, its coverage `float32[h, w]`."""

GREY, ORANGE, PALE, BLUE = (92, 96, 102), (232, 96, 22), (232, 230, 224), (24, 70, 168)
TRUNK, LEAVES = (92, 68, 46), (44, 104, 44)


class Sheet:
    """A part of the photo that is drawn larger and then averaged."""

    def __init__(self, camera: Camera, pixels: np.ndarray) -> None:
        """Covers the pixels `[N, 2]` and a margin around them."""
        low = np.maximum(np.floor(pixels.min(0)).astype(int) - _MARGIN, 0)
        high = np.ceil(pixels.max(0)).astype(int) + _MARGIN + 1
        high = np.maximum(np.minimum(high, (camera.width, camera.height)), low + 1)
        self.area = np.s_[low[1] : high[1], low[0] : high[0]]
        self._camera, self._low = camera, low
        width, height = (high - low) * _SUPER
        self._colour = np.zeros((height, width, 3), np.float32)
        self._alpha = np.zeros((height, width), np.uint8)

    def fill(self, pixels: np.ndarray, colour: Sequence[float], light: np.ndarray | float = 1.0):
        """Fills a polygon.

        Args:
            pixels: `[N, 2]` of the photo.
            colour: RGB, 0..255.
            light: Factor on it, or one from left to right as `[M]`.
        """
        at = ((pixels - self._low + 0.5) * _SUPER - 0.5) * (1 << _SHIFT)
        part = np.zeros_like(self._alpha)
        polygon = np.rint(at).astype(np.int32)
        cv2.fillPoly(part, [polygon], 255, cv2.LINE_8, _SHIFT)
        rows, columns = np.nonzero(part)
        if not len(rows):
            return
        if isinstance(light, np.ndarray):
            first, last = columns.min(), columns.max()
            share = (columns - first) / max(last - first, 1)
            factor = np.interp(share, np.linspace(0, 1, len(light)), light)[:, None]
        else:
            factor = np.full((len(rows), 1), light)
        self._colour[rows, columns] = np.asarray(colour, np.float32) * factor
        self._alpha[rows, columns] = 255

    def paint(self, function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        """Replaces the colour of what is filled.

        Args:
            function: From the (column, row) in the photo, `[N]` each, to RGB `[N, 3]`.
        """
        rows, columns = np.nonzero(self._alpha)
        x, y = ((each + 0.5) / _SUPER - 0.5 for each in (columns, rows))
        self._colour[rows, columns] = function(x + self._low[0], y + self._low[1])

    def layer(self) -> Layer:
        """What was drawn, at the photo's resolution."""
        size = (self._alpha.shape[1] // _SUPER, self._alpha.shape[0] // _SUPER)
        alpha = cv2.resize(self._alpha, size, interpolation=cv2.INTER_AREA) / np.float32(255)
        # Empty pixels are black, so the mean is already weighed.
        colour = np.asarray(cv2.resize(self._colour, size, interpolation=cv2.INTER_AREA))
        return self.area, colour / np.maximum(alpha, 1e-3)[..., None], alpha.astype(np.float32)


_ROUND = np.array([0.55, 0.85, 1.08, 1.0, 0.72, 0.5])
"""Light across an upright cylinder, the lamp being ahead on the left."""


def _upright(
    camera: Camera, x: float, y: float, low: float, high: float, radii: tuple[float, float]
) -> np.ndarray:
    """The outline of a frustum around a vertical axis, `[N, 2]` pixels."""
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    rings = [
        np.stack([x + r * np.cos(turn), y + r * np.sin(turn), np.full_like(turn, z)], -1)
        for z, r in ((low, radii[0]), (high, radii[1]))
    ]
    pixels, _ = camera.project(np.concatenate(rings))
    return cv2.convexHull(pixels.astype(np.float32))[:, 0]


def post(camera: Camera, x: float, y: float, size: float) -> Layer:
    """A grey post as high as a person, with a bright band below its top."""
    height, radius = 1.75 * size, 0.17 * size
    whole = _upright(camera, x, y, 0, height, (radius, radius))
    sheet = Sheet(camera, whole)
    sheet.fill(whole, GREY, _ROUND)
    for low, high in ((0.74, 0.86), (0.52, 0.64)):
        band = _upright(camera, x, y, low * height, high * height, (radius, radius))
        sheet.fill(band, (236, 206, 60), _ROUND)
    return sheet.layer()


def cone(camera: Camera, x: float, y: float, size: float) -> Layer:
    """An orange cone with two pale bands, on a flat foot."""
    height, radius = 0.95 * size, 0.30 * size
    foot = _upright(camera, x, y, 0, 0.05, (radius * 1.5, radius * 1.5))
    whole = _upright(camera, x, y, 0.04, height, (radius, radius * 0.12))
    sheet = Sheet(camera, np.concatenate([foot, whole]))
    sheet.fill(foot, ORANGE, 0.6)
    sheet.fill(whole, ORANGE, _ROUND)

    def at(z: float) -> float:
        return radius * (1 - 0.88 * z)

    for low, high in ((0.30, 0.48), (0.64, 0.78)):
        band = _upright(camera, x, y, low * height, high * height, (at(low), at(high)))
        sheet.fill(band, PALE, _ROUND)
    return sheet.layer()


def sign(camera: Camera, x: float, y: float, size: float) -> Layer:
    """A round blue sign with a pale rim and bar, on a thin pole."""
    height, radius = 2.1 * size, 0.42 * size
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)

    def disc(share: float) -> np.ndarray:
        ring = np.stack([x + radius * share * np.cos(turn), np.full_like(turn, y - 0.06),
                         height + radius * share * np.sin(turn)], -1)  # fmt: skip
        return camera.project(ring)[0]

    pole = _upright(camera, x, y, 0, height, (0.045 * size, 0.045 * size))
    bar = camera.project(
        np.array([(x + a * radius, y - 0.07, height + b * radius)
                  for a, b in ((-0.55, -0.16), (0.55, -0.16), (0.55, 0.16), (-0.55, 0.16))])
    )[0]  # fmt: skip
    sheet = Sheet(camera, np.concatenate([disc(1.0), pole]))
    sheet.fill(pole, GREY, _ROUND)
    sheet.fill(disc(1.0), PALE)
    sheet.fill(disc(0.84), BLUE)
    sheet.fill(bar, PALE)
    return sheet.layer()


def box(
    camera: Camera, x: float, y: float, size: float, colour: Colour, turn: float = 0.5
) -> Layer:
    """A box with dark edges, turned by `turn` radians."""
    half = np.array([0.62, 0.5, 0.5]) * size
    signs = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], float)
    spin = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    corners = (signs * half) @ spin + (x, y, half[2])
    pixels, _ = camera.project(corners)
    sheet = Sheet(camera, pixels)
    eye = np.asarray(camera.position)
    middle = np.array([x, y, half[2]])
    for axis in range(3):
        for sense in (-1, 1):
            chosen = np.flatnonzero(signs[:, axis] == sense)
            normal = corners[chosen].mean(0) - middle
            if normal @ (eye - corners[chosen].mean(0)) <= 0:
                continue
            face = pixels[chosen][[0, 1, 3, 2]]
            light = 1.05 if axis == 2 else 0.78 + 0.16 * float(-normal[0] / np.linalg.norm(normal))
            sheet.fill(face, colour, light * 0.55)
            centre = face.mean(0)
            sheet.fill(centre + (face - centre) * 0.88, colour, light)
    return sheet.layer()


def ball(camera: Camera, x: float, y: float, size: float, colour: Colour) -> Layer:
    """A glossy ball."""
    radius = 0.45 * size
    (centre,), (depth,) = camera.project(np.array([[x, y, radius]]))
    seen = camera.focal * radius / depth
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    outline = centre + seen * np.stack([np.cos(turn), np.sin(turn)], -1)
    sheet = Sheet(camera, outline)
    sheet.fill(outline, colour)

    def shaded(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        right, down = (columns - centre[0]) / seen, (rows - centre[1]) / seen
        towards = np.sqrt(np.clip(1 - right**2 - down**2, 0, 1))
        facing = np.clip(-0.45 * right - 0.65 * down + 0.61 * towards, 0, 1)[:, None]
        gloss = 190 * np.clip((facing - 0.93) / 0.07, 0, 1)
        return np.asarray(colour) * (0.35 + 0.75 * facing) + gloss

    sheet.paint(shaded)
    return sheet.layer()


def tree(camera: Camera, x: float, y: float, size: float, random: np.random.Generator) -> Layer:
    """A tree with a crown of many tufts."""
    height = 2.9 * size
    trunk = _upright(camera, x, y, 0, 0.5 * height, (0.11 * size, 0.08 * size))
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    tufts = []
    for _ in range(26):
        radius = size * random.uniform(0.2, 0.34)
        angle, reach = random.uniform(0, 2 * np.pi), np.sqrt(random.random()) * 0.68 * size
        z = 0.67 * height + reach * np.sin(angle) * 1.15
        ring = np.stack([x + reach * np.cos(angle) + radius * np.cos(turn),
                         np.full_like(turn, y), z + radius * np.sin(turn)], -1)  # fmt: skip
        tufts.append((z, camera.project(ring)[0]))
    sheet = Sheet(camera, np.concatenate([trunk, *(pixels for _, pixels in tufts)]))
    sheet.fill(trunk, TRUNK, _ROUND)
    for z, pixels in tufts:
        light = 0.6 + 0.5 * (z / height - 0.4) / 0.6 + random.uniform(-0.12, 0.12)
        sheet.fill(pixels, LEAVES, light)
    return sheet.layer()
