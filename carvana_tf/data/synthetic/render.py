"""A photo and its mask from one car, one studio and one angle.

Visible mesh cells are painted far to near into an image of cell numbers; each pixel then
finds its place in the car's texture by its cell's affine map. Edges are supersampled, and
photo and mask take them from the same coverage.
"""

import dataclasses
import functools

import cv2
import numpy as np

from carvana_tf.data.synthetic import bodies, paint, studio
from carvana_tf.data.synthetic.wheels import Wheel, paint_wheel, place_wheels

_SUPER = 3
_SHADE_UP = 2
_MARGIN = 6


@dataclasses.dataclass(frozen=True)
class Car:
    """A car ready to be turned.

    Attributes:
        design: What it is.
        parts: Its surfaces.
        texture: Its paint.
        wheel: The face of its wheels, `uint8[s, s, 4]` RGBA.
        points: `float32[N, 3]` of all surfaces' mesh points.
        cells: `int[M, 4]` mesh points of each cell, in order around it.
        outside: `float32[M]`, the sign of a cell's projected area when its outside is seen.
        places: `float32[N, 2]` column and row of each mesh point in the grid of all parts.
        fine: Points and normals `float32[R, C, 6]` where light is computed.
    """

    design: bodies.Design
    parts: list[bodies.Part]
    texture: paint.Texture
    wheel: np.ndarray
    points: np.ndarray
    cells: np.ndarray
    outside: np.ndarray
    places: np.ndarray
    fine: np.ndarray


def build_car(design: bodies.Design, detail: float) -> Car:
    """Builds a car's mesh and paint; `detail` is 1 for photos 960 wide, 2 for 1920."""
    parts = bodies.build_parts(design)
    points, places, cells, start, row = [], [], [], 0, 0
    fine = np.zeros((sum(len(part.points) for part in parts), bodies.STATIONS, 6), np.float32)
    for part in parts:
        rows, columns = part.points.shape[:2]
        index = np.arange(rows * columns).reshape(rows, columns) + start
        cells.append(
            np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]], -1).reshape(
                -1, 4
            )
        )
        down, right = np.mgrid[row : row + rows, 0:columns]
        places.append(np.stack([right, down], -1).reshape(-1, 2))
        points.append(part.points.reshape(-1, 3))
        fine[row : row + rows, :columns] = np.concatenate([part.points, part.normals], -1)
        start, row = start + rows * columns, row + rows
    size = (fine.shape[1] * _SHADE_UP, fine.shape[0] * _SHADE_UP)
    fine = np.concatenate(
        [cv2.resize(np.ascontiguousarray(fine[..., i : i + 3]), size) for i in (0, 3)], -1
    )
    fine[..., 3:] /= np.linalg.norm(fine[..., 3:], axis=-1, keepdims=True) + 1e-6
    return Car(
        design,
        parts,
        paint.paint(design, parts, detail),
        paint_wheel(design, round(128 * detail)),
        np.concatenate(points),
        np.concatenate(cells),
        np.concatenate([_outside(part) for part in parts]),
        np.concatenate(places).astype(np.float32),
        fine,
    )


def render(
    car: Car, scene: studio.Studio, angle: float, rng: np.random.Generator, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Takes one photo.

    Args:
        car: The car.
        scene: The studio.
        angle: Turn of the table in radians; 0 shows the front, a quarter turn the left side.
        rng: Draws exposure and the place in the noise tile.
        noise: `float32[h, w, 3]`, larger than the photo by at least one pixel.

    Returns:
        The photo `uint8[H, W, 3]` RGB and the mask `bool[H, W]`.
    """
    camera = scene.camera
    turn = turned(angle)
    world = car.points @ turn
    wheels = place_wheels(car.design, turn, camera)
    light = _floor_light(car, scene, world, wheels, angle)
    frame = cv2.multiply(scene.backdrop, cv2.merge([light] * 3))
    _reflect(frame, car, scene, world)
    covered = paint_car(frame, car, scene, turn, wheels)
    exposure = rng.uniform(0.97, 1.03)
    top = int(rng.integers(noise.shape[0] - camera.height))
    left = int(rng.integers(noise.shape[1] - camera.width))
    grain = noise[top : top + camera.height, left : left + camera.width]
    # addWeighted rounds and saturates.
    photo = cv2.addWeighted(frame, exposure, grain, 1.0, 0.0, dtype=cv2.CV_8U)
    return np.asarray(photo), covered > 0.5


def paint_car(
    frame: np.ndarray, car: Car, scene: studio.Studio, turn: np.ndarray, wheels: list[Wheel]
) -> np.ndarray:
    """Paints a car over what a photo shows, without its shadow.

    Args:
        frame: `float32[H, W, 3]`, changed in place.
        car: The car.
        scene: The studio; the car stands at its origin.
        turn: As of `turned`.
        wheels: As of `place_wheels`.

    Returns:
        How much of each pixel is car, `float32[H, W]` in 0..1.
    """
    camera = scene.camera
    covered = np.zeros((camera.height, camera.width), np.float32)
    seen = np.ones_like(covered)
    pixels, depth = camera.project(car.points @ turn)
    window = _window(pixels, camera)
    colour, alpha, well = _surface(car, scene, turn, pixels, depth, window)
    for wheel in wheels:
        if not wheel.near:
            area, rubber, share = wheel.draw(car.wheel, camera)
            lay(frame[area], covered[area], rubber, share)
    lay(frame[window], covered[window], colour, alpha)
    seen[window] -= alpha * (1 - well)
    for wheel in wheels:
        if wheel.near:
            area, rubber, share = wheel.draw(car.wheel, camera)
            lay(frame[area], covered[area], rubber, share * seen[area])
    return covered


@functools.lru_cache(maxsize=1)
def noise_tile(height: int, width: int, seed: int) -> np.ndarray:
    """Sensor noise for photos of a size, `float32[height + 64, width + 64, 3]`."""
    rng = np.random.default_rng([seed, 77])
    grain = rng.standard_normal((height + 64, width + 64, 3), np.float32)
    return cv2.GaussianBlur(grain, (0, 0), 0.6) * 3.0


def turned(angle: float) -> np.ndarray:
    """Car to world, for row vectors: at angle 0 the nose points at the camera."""
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.array([[-sine, -cosine, 0], [cosine, -sine, 0], [0, 0, 1]], np.float32)


def _floor_light(
    car: Car, scene: studio.Studio, world: np.ndarray, wheels: list[Wheel], angle: float
) -> np.ndarray:
    count = car.parts[0].points.size // 3
    light = studio.shadow(scene, world[:count], [wheel.foot for wheel in wheels])
    light -= studio.turntable_seams(scene, angle) * np.float32(0.11 / 255)
    return 1 + (light - 1) * scene.floor


def _window(pixels: np.ndarray, camera: studio.Camera) -> tuple[slice, slice]:
    low = np.maximum(np.floor(pixels.min(0)).astype(int) - _MARGIN, 0)
    high = np.ceil(pixels.max(0)).astype(int) + _MARGIN
    return slice(low[1], min(high[1], camera.height)), slice(low[0], min(high[0], camera.width))


def _surface(
    car: Car,
    scene: studio.Studio,
    turn: np.ndarray,
    pixels: np.ndarray,
    depth: np.ndarray,
    window: tuple[slice, slice],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour `float32[h, w, 3]`, coverage and share of wheel well `float32[h, w]`."""
    corner = np.array([window[1].start, window[0].start], np.float32)
    height, width = window[0].stop - window[0].start, window[1].stop - window[1].start
    quads = pixels[car.cells] - corner
    first, second = quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1]
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    order = np.flatnonzero(car.outside * area > 0.02)
    order = order[np.argsort(-depth[car.cells[order]].mean(1), kind="stable")]

    # Super-sampled cell numbers; pixel centres are at half a super-sample.
    numbers = np.zeros((height * _SUPER, width * _SUPER), np.uint16)
    shifted = np.rint(((quads[order] + 0.5) * _SUPER - 0.5) * 16).astype(np.int32)
    for number, quad in enumerate(shifted, 1):
        cv2.fillConvexPoly(numbers, quad, number, cv2.LINE_8, 4)
    hit = (numbers > 0).astype(np.uint8) * np.uint8(255)
    alpha = cv2.resize(hit, (width, height), interpolation=cv2.INTER_AREA) / np.float32(255)
    # Of the cells that touch a pixel the nearest colours it.
    nearest = numbers[::_SUPER, ::_SUPER].copy()
    for i in range(_SUPER):
        for j in range(_SUPER):
            np.maximum(nearest, numbers[i::_SUPER, j::_SUPER], out=nearest)
    at = np.flatnonzero(nearest)
    rows, columns = (part.astype(np.float32) for part in np.divmod(at.astype(np.int32), width))
    chosen = nearest.ravel()[at].astype(np.int32) - 1
    maps = _affine(quads[order], car.places[car.cells[order]])[chosen]
    u = maps[:, 0] * columns + maps[:, 1] * rows + maps[:, 2]
    v = maps[:, 3] * columns + maps[:, 4] * rows + maps[:, 5]

    count = len(u)
    wide = 1024
    padded = np.zeros((2, -(-count // wide) * wide), np.float32)
    padded[:, :count] = u, v
    u_map, v_map = padded.reshape(2, -1, wide)
    fine = car.fine.reshape(-1, 6)
    light = studio.shade(scene, fine[:, :3] @ turn, fine[:, 3:] @ turn).reshape(
        *car.fine.shape[:2], 2
    )

    def sample(image: np.ndarray, cells: int) -> np.ndarray:
        values = cv2.remap(
            image,
            u_map * cells + (cells - 1) / 2,
            v_map * cells + (cells - 1) / 2,
            cv2.INTER_LINEAR,
        )
        return values.reshape(padded.shape[1], -1)[:count]

    lit = sample(light, _SHADE_UP)
    albedo = sample(car.texture.albedo, car.texture.cells).astype(np.float32)
    seen = albedo[:, :3] * lit[:, :1] + albedo[:, 3:] * lit[:, 1:] * 2.35
    colour = np.zeros((height, width, 3), np.float32)
    colour.reshape(-1, 3)[at] = seen
    well = np.zeros((height, width), np.float32)
    well.ravel()[at] = sample(car.texture.well, car.texture.cells)[:, 0] / np.float32(255)
    return colour, alpha, well


def _outside(part: bodies.Part) -> np.ndarray:
    """For each cell of a part the sign its projected area has when the outside is seen."""
    p = part.points
    normal = np.cross(p[1:, 1:] - p[:-1, :-1], p[1:, :-1] - p[:-1, 1:])
    agree = np.sign((normal * part.normals[:-1, :-1]).sum())
    return np.full(normal[..., 0].size, -agree, np.float32)


def _affine(quads: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`float32[M, 6]`: the least-squares affine map of each cell from pixels to grid."""
    middle, target = quads.mean(1, keepdims=True), places.mean(1, keepdims=True)
    offset, wanted = (quads - middle).astype(np.float64), places - target
    x, y = offset[..., 0], offset[..., 1]
    xx, yy, xy = (x * x).sum(1) + 1e-3, (y * y).sum(1) + 1e-3, (x * y).sum(1)
    scale = 1 / (xx * yy - xy * xy)
    columns = []
    for axis in range(2):
        xw, yw = (x * wanted[..., axis]).sum(1), (y * wanted[..., axis]).sum(1)
        right, down = (xw * yy - yw * xy) * scale, (yw * xx - xw * xy) * scale
        constant = target[:, 0, axis] - right * middle[:, 0, 0] - down * middle[:, 0, 1]
        columns += [right, down, constant]
    return np.stack(columns, -1).astype(np.float32)


def _reflect(frame: np.ndarray, car: Car, scene: studio.Studio, world: np.ndarray) -> None:
    """Lays the blurred mirror image of the body, which fades with height, on the floor."""
    step, camera = 4, scene.camera
    count = car.parts[0].points.size // 3
    pixels, _ = camera.project(world[:count] * np.array([1, 1, -0.5], np.float32))
    first = int(pixels[:, 1].min()) // step * step
    layer = np.zeros((-(-(camera.height - first) // step), -(-camera.width // step)), np.uint8)
    hull = cv2.convexHull(np.rint((pixels - (0, first)) / step * 16).astype(np.int32))
    cv2.fillConvexPoly(layer, hull, 255, cv2.LINE_AA, 4)
    strength = scene.mirror / 255
    soft = cv2.GaussianBlur(layer, (0, 0), 4.0 * camera.width / 960).astype(np.float32)
    part = np.asarray(cv2.resize(soft, (camera.width, camera.height - first)))
    part = part * scene.floor[first:] * strength
    colour = np.empty((*part.shape, 3), np.float32)
    colour[:] = np.array(car.design.colour, np.float32) * 0.75
    frame[first:] = cv2.blendLinear(frame[first:], colour, 1 - part, part)


def lay(patch: np.ndarray, cover: np.ndarray, colour: np.ndarray, share: np.ndarray) -> None:
    """Blends `colour` over a part of the photo and adds its share to the coverage."""
    patch[:] = cv2.blendLinear(patch, colour, 1 - share, share)
    cover += (1 - cover) * share
