"""The studio: camera, wall, floor, turntable, light.

World coordinates are metres: X to the right, Y away from the camera, Z up; the middle of
the turntable is the origin.
"""

import dataclasses
import math

import cv2
import numpy as np

LETTERING = "ROTUNDA"
_TURNTABLE = 3.55
_SHADOW_SCALE = 4


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along +Y and slightly down.

    Attributes:
        width, height: Photo size in pixels.
        focal: Focal length in pixels.
        centre: Principal point (column, row).
        position: Where it stands, in metres.
        pitch: Angle below the horizontal in radians.
    """

    width: int
    height: int
    focal: float
    centre: tuple[float, float]
    position: tuple[float, float, float]
    pitch: float

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels `[..., 2]` (column, row) and depths `[...]` of world points `[..., 3]`."""
        offset = points - np.asarray(self.position, points.dtype)
        sine, cosine = math.sin(self.pitch), math.cos(self.pitch)
        depth = offset[..., 1] * cosine - offset[..., 2] * sine
        up = offset[..., 1] * sine + offset[..., 2] * cosine
        pixels = np.empty((*points.shape[:-1], 2), points.dtype)
        pixels[..., 0] = self.centre[0] + self.focal * offset[..., 0] / depth
        pixels[..., 1] = self.centre[1] - self.focal * up / depth
        return pixels, depth

    def floor_at(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """X and Y where the rays of pixels meet the floor; far away above the horizon."""
        right = (columns - self.centre[0]) / self.focal
        up = (self.centre[1] - rows) / self.focal
        sine, cosine = math.sin(self.pitch), math.cos(self.pitch)
        fall = np.maximum(sine - up * cosine, 1e-3)
        reach = self.position[2] / fall
        return self.position[0] + right * reach, self.position[1] + (cosine + up * sine) * reach


@dataclasses.dataclass(frozen=True)
class Studio:
    """One car's session in the studio: camera and light stay, the car turns.

    Attributes:
        camera: The camera.
        backdrop: `float32[H, W, 3]` RGB in 0..255, the empty studio.
        floor: `float32[H, W]` in 0..1, how much of a pixel is floor (shadows fall there).
        floor_light: Reflection of the floor and brightness of the wall, as reflections see them.
        lamp: Unit vector to the key light.
        mirror: Strength of the car's reflection in the floor.
    """

    camera: Camera
    backdrop: np.ndarray
    floor: np.ndarray
    floor_light: tuple[float, float]
    lamp: np.ndarray
    mirror: float


def draw_studio(rng: np.random.Generator, width: int, height: int, length: float) -> Studio:
    """Sets the camera up and lights the studio, a little differently for every car.

    Args:
        rng: What is drawn from.
        width: Photo width in pixels.
        height: Photo height in pixels.
        length: Of the car in metres; from the side a long one fills about 5/6 of the width.
    """
    position = (rng.uniform(-0.1, 0.1), -rng.uniform(7.0, 7.3), rng.uniform(1.85, 2.15))
    # A photo wider than 3:2 is limited by its height.
    frame = min(width, 1.5 * height)
    nearest = -position[1] - 0.95
    focal = frame * min(rng.uniform(0.80, 0.88) * nearest / length, rng.uniform(1.26, 1.36))
    centre = (width * rng.uniform(0.49, 0.51), height * 0.5)
    pitch = np.arctan2(position[2] - 0.78, -position[1]) - rng.uniform(-0.006, 0.006)
    camera = Camera(width, height, focal, centre, position, float(pitch))
    floor_grey = rng.uniform(132, 172)
    wall_grey = rng.uniform(222, 240)
    tint = np.array([1 + rng.uniform(-0.01, 0.02), 1.0, 1 + rng.uniform(-0.05, 0.02)])
    backdrop, floor = _empty_studio(rng, camera, floor_grey, wall_grey)
    lamp = np.array([rng.uniform(-0.5, 0.5), -0.55, 0.85])
    return Studio(
        camera,
        (backdrop[..., None] * tint).astype(np.float32),
        floor,
        (floor_grey / 255, wall_grey / 255),
        lamp / np.linalg.norm(lamp),
        rng.uniform(0.05, 0.22),
    )


def _empty_studio(
    rng: np.random.Generator, camera: Camera, floor_grey: float, wall_grey: float
) -> tuple[np.ndarray, np.ndarray]:
    """Brightness `float32[H, W]` of the studio without a car, and the floor's share of it."""
    width, height = camera.width, camera.height
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    across = (columns - width / 2) / width
    edge = height * (rng.uniform(0.345, 0.375) + rng.uniform(0.05, 0.10) * across**2)
    floor = np.clip((rows - edge) / (height * 0.006) + 0.5, 0, 1).astype(np.float32)

    lean = rng.uniform(-14, 14)
    wall = wall_grey + 16 * (1 - rows / edge) + lean * across - 22 * np.abs(across) ** 1.5
    lettering = _lettering(camera)
    wall = wall * (1 - lettering * rng.uniform(0.45, 0.68))
    x, y = camera.floor_at(columns, rows)
    radius = np.hypot(x, y)
    ground = floor_grey * (1.05 - 0.0014 * np.minimum(radius, 12) ** 2) + lean * across
    ground += 26 * np.exp(-((x - 2 * rng.uniform(-1, 1)) ** 2 + (y + 2.5) ** 2) / 5)
    # The gap around the turntable, and a slightly different grey on it.
    width_px = 0.013 + 0.004 * np.abs(y)
    ground *= 1 - 0.30 * np.exp(-(((radius - _TURNTABLE) / width_px) ** 2))
    ground *= np.where(radius < _TURNTABLE, 1.0, rng.uniform(0.96, 1.03))
    # Scuffs.
    scuffs = cv2.resize(rng.normal(0, 1, (36, 54)).astype(np.float32), (width, height))
    ground += 1.6 * scuffs
    return wall + (ground - wall) * floor, floor


def _lettering(camera: Camera) -> np.ndarray:
    """Letters on the wall behind the car, thin to thick from left to right, in 0..1."""
    width, height = camera.width, camera.height
    layer = np.zeros((height, width), np.uint8)
    scale = height * 0.0058
    at = 0.05 * width
    for index, letter in enumerate(LETTERING):
        stroke = max(1, round(height * (0.004 + 0.0035 * index)))
        cv2.putText(layer, letter, (round(at), round(0.325 * height)), cv2.FONT_HERSHEY_SIMPLEX,
                    scale, 255, stroke, cv2.LINE_AA)  # fmt: skip
        at += 0.135 * width
    return cv2.GaussianBlur(layer, (0, 0), max(0.4, height / 1280)).astype(np.float32) / 255


def turntable_seams(studio: Studio, angle: float) -> np.ndarray:
    """Seams between the turntable's plates as `uint8[H, W]`, turned with the car by `angle`."""
    layer = np.zeros(studio.floor.shape, np.uint8)
    for turn in angle + np.arange(4) * np.pi / 4:
        reach = np.array([0.35, 0.99]) * _TURNTABLE
        for sign in (1, -1):
            ends = np.zeros((2, 3))
            ends[:, 0], ends[:, 1] = sign * np.cos(turn) * reach, sign * np.sin(turn) * reach
            pixels, _ = studio.camera.project(ends)
            cv2.polylines(
                layer, [np.rint(pixels * 16).astype(np.int32)], False, 255, 1, cv2.LINE_AA, 4
            )
    return layer


def shadow(studio: Studio, body: np.ndarray, tyres: list[np.ndarray]) -> np.ndarray:
    """Light that reaches each pixel of the floor, `float32[H, W]` in 0..1.

    Args:
        studio: The studio.
        body: World points `[N, 3]` of the body; a hull of them stands for its outline.
        tyres: World points of each tyre's foot, for the dark line under it.
    """
    camera = studio.camera
    size = (camera.width // _SHADOW_SCALE, camera.height // _SHADOW_SCALE)
    unit = camera.width / 960 / _SHADOW_SCALE

    def fill(points: np.ndarray, value: int, blur: float) -> np.ndarray:
        layer = np.zeros(size[::-1], np.uint8)
        pixels, _ = camera.project(points * (1, 1, 0))
        hull = cv2.convexHull(np.rint(pixels / _SHADOW_SCALE * 16).astype(np.int32))
        cv2.fillConvexPoly(layer, hull, value, cv2.LINE_AA, 4)
        return cv2.GaussianBlur(layer.astype(np.float32), (0, 0), max(0.5, blur * unit))

    middle = body.mean(0)
    core = fill(middle + (body - middle) * 0.93, 255, 9)
    soft = fill(middle + (body - middle) * 1.10 + studio.lamp * (-0.35, -0.35, 0), 255, 34)
    light = (1 - 0.62 * core / 255) * (1 - 0.36 * soft / 255)
    for tyre in tyres:
        light *= 1 - 0.55 * fill(tyre, 255, 4) / 255
    return cv2.resize(light, (camera.width, camera.height))


def shade(studio: Studio, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Light on a surface.

    Args:
        studio: The studio.
        points: World points `float32[N, 3]`.
        normals: Unit normals `float32[N, 3]`.

    Returns:
        `float32[N, 2]`: the factor on the paint's own colour, and what clear coat mirrors
        (0..1 or a little more), already weighed with Schlick's approximation of Fresnel.
    """
    view = points - np.asarray(studio.camera.position, np.float32)
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    facing = (view * normals).sum(1)
    mirrored = view - 2 * facing[:, None] * normals
    up = mirrored[:, 2]
    floor, wall = studio.floor_light
    # From below: floor, a darker foot of the wall, the wall, a dim ceiling, a soft box.
    scene = floor * 0.9 + (wall - floor * 0.9) * _step(up, 0.05, 0.035)
    scene -= 0.30 * np.exp(-(((up - 0.015) / 0.05) ** 2))
    scene -= 0.22 * _step(up, 0.42, 0.05)
    side = np.arctan2(mirrored[:, 0], -mirrored[:, 1])
    box = _step(up, 0.62, 0.03) * (1 - _step(up, 0.985, 0.01))
    scene += box * (0.62 + 0.25 * np.cos(2 * side + 0.6))
    fresnel = 0.09 + 0.91 * (1 - np.clip(-facing, 0, 1)) ** 4.5

    key = np.clip(normals @ studio.lamp.astype(np.float32), 0, None)
    sky = 0.5 + 0.5 * normals[:, 2]
    near_floor = 0.62 + 0.38 * np.clip((points[:, 2] - 0.12) / 0.45, 0, 1)
    diffuse = (0.34 + 0.32 * sky + 0.32 * key) * near_floor
    gloss = scene * fresnel * (0.45 + 0.55 * near_floor)
    return np.stack([diffuse, gloss], 1).astype(np.float32)


def _step(values: np.ndarray, at: float, width: float) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh((values - at) / width)
