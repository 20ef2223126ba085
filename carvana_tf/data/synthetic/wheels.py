"""Wheels: a painted face in perspective on a cylinder of rubber."""

import dataclasses

import cv2
import numpy as np

from carvana_tf.data.synthetic.bodies import Design
from carvana_tf.data.synthetic.studio import Camera

_TYRE_WIDTH = 0.23
_RIM = 0.70
_BRAKE = 0.44
_SUPER = 4
_AROUND = np.linspace(0, 2 * np.pi, 40, endpoint=False)


def paint_wheel(design: Design, size: int) -> np.ndarray:
    """The face of a wheel.

    Returns:
        `uint8[size, size, 4]` RGBA, straight alpha; alpha is 0 outside the tyre and, with
        open wheels, between spokes outside the brake.
    """
    big = size * 4
    image = np.zeros((big, big, 4), np.uint8)
    middle = (big // 2, big // 2)
    radius = big / 2 - 4

    def disc(share: float, colour: tuple[int, ...], alpha: int = 255) -> None:
        cv2.circle(image, middle, round(radius * share), (*colour, alpha), -1, cv2.LINE_AA)

    disc(1.0, (30, 30, 32))
    disc(0.93, (40, 40, 42))
    disc(0.80, (33, 33, 35))
    disc(_RIM + 0.025, (20, 20, 21))
    dark = tuple(int(c * 0.62) for c in design.rim)
    disc(_RIM, design.rim)
    disc(_RIM - 0.035, dark)
    disc(_RIM - 0.06, (12, 12, 13), 0 if design.open_wheels else 255)
    disc(_BRAKE, (70, 70, 74))
    disc(_BRAKE - 0.05, (88, 89, 92))
    disc(_BRAKE * 0.55, (30, 30, 32))
    for spoke in range(design.spokes):
        angle = 2 * np.pi * spoke / design.spokes + 0.3
        wide = 0.52 / design.spokes
        for grow, colour in ((1.35, dark), (1.0, design.rim)):
            reach = np.array([(0.10, -wide * 1.1), (_RIM - 0.03, -wide * 0.7),
                              (_RIM - 0.03, wide * 0.7), (0.10, wide * 1.1)])  # fmt: skip
            reach[:, 1] *= grow
            turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            polygon = np.rint((reach @ turn * radius + big / 2) * 16).astype(np.int32)
            cv2.fillConvexPoly(image, polygon, (*colour, 255), cv2.LINE_AA, 4)
    disc(0.15, design.rim)
    disc(0.09, dark)
    # Averaging needs premultiplied colour.
    values: np.ndarray = image.astype(np.float32)
    values[..., :3] *= values[..., 3:] / 255
    values = np.asarray(cv2.resize(values, (size, size), interpolation=cv2.INTER_AREA))
    values[..., :3] /= np.maximum(values[..., 3:], 1) / 255
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A wheel in the photo.

    Attributes:
        near: Whether its outer face is turned towards the camera.
        corners: `float32[4, 2]` pixels of the square around the outer face.
        outline: `float32[N, 2]` pixels of both rims of the tyre.
        inner: `float32[N, 2]` pixels of the opening at the inner end.
        foot: `float32[4, 3]` world points of the patch on the floor.
        light: Factor on its colours.
    """

    near: bool
    corners: np.ndarray
    outline: np.ndarray
    inner: np.ndarray
    foot: np.ndarray
    light: float

    def draw(
        self, face: np.ndarray, camera: Camera
    ) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """Where it is in the photo, its colour `float32[h, w, 3]` and coverage `float32[h, w]`."""
        low = np.maximum(np.floor(self.outline.min(0)).astype(int) - 2, 0)
        high = np.ceil(self.outline.max(0)).astype(int) + 3
        high = np.minimum(high, (camera.width, camera.height))
        width, height = int(high[0] - low[0]), int(high[1] - low[1])
        area = np.s_[low[1] : high[1], low[0] : high[0]]
        origin = low.astype(np.float32)

        rubber = _coverage(
            cv2.convexHull((self.outline - origin).astype(np.float32)), width, height
        )
        tone = np.broadcast_to(np.linspace(40, 18, height, dtype=np.float32)[:, None], rubber.shape)
        shown = np.repeat(tone[..., None], 3, 2)
        if self.near:
            side = face.shape[0]
            square = np.array([(0, 0), (side, 0), (side, side), (0, side)], np.float32) - 0.5
            to = cv2.getPerspectiveTransform(square, (self.corners - origin).astype(np.float32))
            layer = cv2.warpPerspective(face, to, (width, height), flags=cv2.INTER_AREA)
            layer = layer.astype(np.float32)
            disc = _coverage(
                (self.outline[: len(_AROUND)] - origin).astype(np.float32), width, height
            )
            solid = layer[..., 3] / 255
            through = np.clip(disc - solid, 0, 1)
            shown = shown * (1 - disc[..., None]) + layer[..., :3] * solid[..., None]
            shown += np.float32(9) * through[..., None]
            open_behind = _coverage((self.inner - origin).astype(np.float32), width, height)
            rubber = rubber * (1 - through * open_behind * (rubber > 0.99))
        return area, (shown * self.light).astype(np.float32), rubber.astype(np.float32)


def _coverage(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    big = np.zeros((height * _SUPER, width * _SUPER), np.uint8)
    points = np.rint(((polygon + 0.5) * _SUPER - 0.5) * 16).astype(np.int32)
    cv2.fillConvexPoly(big, points, 255, cv2.LINE_8, 4)
    return cv2.resize(big, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def place_wheels(design: Design, turn: np.ndarray, camera: Camera) -> list[Wheel]:
    """The four wheels of a car turned by `turn` (car to world), the farthest first."""
    wheels = []
    radius, half = design.wheel, design.width / 2 - 0.035
    for axle in design.axles:
        for side in (1.0, -1.0):
            centre = np.array([axle, side * half, radius])
            along, up = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])
            outward = np.array([0, side, 0])
            ring = np.cos(_AROUND)[:, None] * along + np.sin(_AROUND)[:, None] * up
            outer = centre + radius * ring
            inner = outer - outward * _TYRE_WIDTH
            opening = centre - outward * _TYRE_WIDTH + radius * (_RIM - 0.06) * ring
            square = centre + radius * np.array([-along + up, along + up, along - up, -along - up])
            foot = np.array([(axle + a * 0.6 * radius, side * (half - b), 0.0)
                             for a, b in ((1, 0), (1, 0.24), (-1, 0.24), (-1, 0))])  # fmt: skip
            world = centre @ turn
            near = float((outward @ turn) @ (np.array(camera.position) - world)) > 0
            distance = np.linalg.norm(world - camera.position)
            outline = camera.project(np.concatenate([outer, inner]) @ turn)[0]
            wheel = Wheel(
                near,
                camera.project(square @ turn)[0],
                outline,
                camera.project(opening @ turn)[0],
                foot @ turn,
                1.0 if near else 0.7,
            )
            wheels.append((distance, wheel))
    return [wheel for _, wheel in sorted(wheels, key=lambda pair: -pair[0])]
