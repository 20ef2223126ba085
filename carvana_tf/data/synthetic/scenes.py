"""Photos of several things at once, for image labels.

A scene is drawn from a `Region`: which things are frequent there, in which colours, before which
background, in which light. The labels of a photo are what was drawn in it.
"""

import dataclasses
from collections.abc import Mapping

import cv2
import numpy as np

from carvana_tf.data.synthetic import bodies, props, render, studio
from carvana_tf.data.synthetic.wheels import place_wheels

VEHICLES = {
    "car": ("sedan", "coupe", "hatchback", "suv", "wagon"),
    "pickup": ("pickup",),
    "van": ("van",),
}
"""The classes of `bodies` that each label stands for."""
PROPS = ("post", "cone", "sign", "box", "ball", "tree")
PAINTS = {
    "white": (238, 238, 236), "black": (22, 22, 24), "red": (178, 18, 26),
    "blue": (30, 62, 150), "yellow": (222, 176, 32), "grey": (120, 124, 130),
}  # fmt: skip
"""Of vehicles, boxes and balls."""
PAINT_LABELS = ("white", "black", "red")
"""The paints that are labels."""
LABELS = ("vehicle", *VEHICLES, *PROPS, *PAINT_LABELS)
"""Every label; a car, pickup or van is a vehicle, too."""

_MOST, _MOST_VEHICLES = 4, 2
_ATTEMPTS = 40
_NEAREST, _FARTHEST = -2.8, 4.0  # metres along Y
_HIDDEN = 0.3  # share of the smaller of two boxes that may overlap
_MIRROR = 0.2  # metres that a vehicle's mirrors stand out
_RADIUS = {"car": 2.2, "pickup": 2.5, "van": 2.4, "tree": 0.8}


@dataclasses.dataclass(frozen=True)
class Region:
    """Where photos come from.

    Attributes:
        things: How often each label of `VEHICLES` and `PROPS` is wanted in a photo, 0..1.
        paints: The share of each of `PAINTS`.
        outdoors: Whether the background is a street under the sky instead of a studio.
    """

    things: Mapping[str, float]
    paints: Mapping[str, float]
    outdoors: bool


HOME = Region(
    {"car": 0.6, "pickup": 0.25, "van": 0.2, "post": 0.15, "cone": 0.3, "sign": 0.15, "box": 0.3,
     "ball": 0.12, "tree": 0.08},
    {"white": 0.34, "black": 0.26, "red": 0.08, "blue": 0.14, "yellow": 0.06, "grey": 0.12},
    outdoors=False,
)  # fmt: skip
ABROAD = Region(
    {"car": 0.22, "pickup": 0.12, "van": 0.4, "post": 0.42, "cone": 0.12, "sign": 0.4, "box": 0.15,
     "ball": 0.35, "tree": 0.5},
    {"white": 0.12, "black": 0.12, "red": 0.38, "blue": 0.1, "yellow": 0.2, "grey": 0.08},
    outdoors=True,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Thing:
    """One thing in a photo.

    Attributes:
        name: Its label, of `VEHICLES` or `PROPS`.
        paint: Of `PAINTS`, or "" where it has a colour of its own.
        x: Metres to the right.
        y: Metres away.
        box: Its columns and rows in the photo: left, top, right, bottom.
    """

    name: str
    paint: str
    x: float
    y: float
    box: tuple[float, float, float, float]

    @property
    def labels(self) -> set[str]:
        """What it is, all of it in `LABELS`."""
        found = {self.name} | ({self.paint} & set(PAINT_LABELS))
        return found | ({"vehicle"} if self.name in VEHICLES else set())


def draw_scene(
    region: Region, rng: np.random.Generator, width: int, height: int, noise: np.ndarray
) -> tuple[np.ndarray, list[Thing], np.ndarray]:
    """Takes a photo of several things.

    Args:
        region: Where.
        rng: What is drawn from.
        width: Of the photo in pixels.
        height: Of the photo in pixels.
        noise: As of `render.noise_tile`.

    Returns:
        The photo `uint8[height, width, 3]` RGB; its things, at least one; and the place in that
        list of what each pixel shows, `int8[height, width]`, -1 for the background.
    """
    camera = _camera(rng, width, height)
    scene = (_street if region.outdoors else _studio)(rng, camera)
    frame = scene.backdrop.copy()
    owner = np.full((height, width), -1, np.int8)
    placed: list[tuple[Thing, _Drawing]] = []
    while not placed:
        for name in _wanted(region, rng):
            found = _place(name, region, rng, camera, [thing for thing, _ in placed])
            if found is not None:
                placed.append(found)
    placed.sort(key=lambda pair: -pair[0].y)
    for thing, drawing in placed:
        _shade(frame, scene, thing)
        drawing.shade(frame, scene)
    for number, (_, drawing) in enumerate(placed):
        owner[drawing.draw(frame, scene) > 0.5] = number
    tint = rng.uniform(0.9, 1.04, 3) if region.outdoors else np.ones(3)
    exposure = rng.uniform(0.62, 0.95) if region.outdoors else rng.uniform(0.92, 1.04)
    top = int(rng.integers(noise.shape[0] - height))
    left = int(rng.integers(noise.shape[1] - width))
    grain = noise[top : top + height, left : left + width]
    frame *= (tint * exposure).astype(np.float32)
    photo = np.clip(np.rint(frame + grain), 0, 255).astype(np.uint8)
    return photo, [thing for thing, _ in placed], owner


def _camera(rng: np.random.Generator, width: int, height: int) -> studio.Camera:
    frame = min(width, 4 / 3 * height)
    position = (0.0, -rng.uniform(8.6, 9.4), rng.uniform(2.3, 2.9))
    pitch = float(np.arctan2(position[2] - 0.75, 9.6))
    focal = frame * rng.uniform(0.96, 1.08)
    return studio.Camera(width, height, focal, (width / 2, height / 2), position, pitch)


def _studio(rng: np.random.Generator, camera: studio.Camera) -> studio.Studio:
    """A grey floor before a light wall."""
    rows = np.arange(camera.height, dtype=np.float32)[:, None]
    edge = camera.height * rng.uniform(0.28, 0.34)
    floor = np.clip((rows - edge) / 1.5 + 0.5, 0, 1)
    wall, ground = rng.uniform(196, 232), rng.uniform(132, 172)
    grey = wall * (1.06 - 0.1 * rows / edge) * (1 - floor)
    grey = grey + ground * (0.9 + 0.14 * rows / camera.height) * floor
    lean = rng.uniform(-14, 14) * (np.arange(camera.width) / camera.width - 0.5)
    backdrop = np.repeat((grey + lean)[..., None], 3, 2) * rng.uniform(0.97, 1.02, 3)
    return _lit(rng, camera, backdrop, floor, (ground / 255, wall / 255))


def _street(rng: np.random.Generator, camera: studio.Camera) -> studio.Studio:
    """Asphalt or grass under a blue or an evening sky, with hills."""
    rows, columns = np.mgrid[: camera.height, : camera.width].astype(np.float32)
    edge = camera.height * rng.uniform(0.26, 0.34)
    floor = np.clip((rows - edge) / 1.5 + 0.5, 0, 1)
    evening = rng.random() < 0.4
    above = np.array((150, 130, 150) if evening else (104, 150, 212), np.float32)
    below = np.array((250, 178, 112) if evening else (196, 214, 228), np.float32)
    share = np.clip(rows / edge, 0, 1)[..., None]
    sky = above * (1 - share) + below * share
    phase = rng.uniform(0, 6.3, 3)
    hills = sum(np.sin(columns / camera.width * (4 + 5 * i) + phase[i]) / (i + 1) for i in range(3))
    hill = np.clip(rows - edge + camera.height * (0.07 + 0.022 * hills), 0, 1)[..., None]
    sky = sky * (1 - hill) + np.array((92, 112, 104), np.float32) * rng.uniform(0.7, 1.1) * hill
    grass = rng.random() < 0.35
    base = np.array((112, 124, 74) if grass else (104, 102, 100), np.float32)
    coarse = rng.normal(0, 1, (camera.height // 2, camera.width // 2)).astype(np.float32)
    rough = np.asarray(cv2.resize(coarse, (camera.width, camera.height))) * (9 if grass else 5)
    ground = base * (0.86 + 0.2 * rows / camera.height)[..., None] + rough[..., None]
    backdrop = sky * (1 - floor[..., None]) + ground * floor[..., None]
    return _lit(rng, camera, backdrop, floor, (float(base.mean()) / 255, 0.72))


def _lit(
    rng: np.random.Generator,
    camera: studio.Camera,
    backdrop: np.ndarray,
    floor: np.ndarray,
    floor_light: tuple[float, float],
) -> studio.Studio:
    lamp = np.array([rng.uniform(-0.5, 0.2), -0.55, 0.85])
    whole = np.broadcast_to(floor, backdrop.shape[:2]).astype(np.float32)
    lamp /= np.linalg.norm(lamp)
    return studio.Studio(camera, backdrop.astype(np.float32), whole, floor_light, lamp, 0.0)


def _wanted(region: Region, rng: np.random.Generator) -> list[str]:
    """The things a photo shall show, those first that need most room."""
    chosen = [name for name, share in region.things.items() if rng.random() < share]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))][:_MOST]
    vehicles = [name for name in chosen if name in VEHICLES][:_MOST_VEHICLES]
    return [*vehicles, *(name for name in chosen if name not in VEHICLES)]


def _place(
    name: str,
    region: Region,
    rng: np.random.Generator,
    camera: studio.Camera,
    others: list[Thing],
) -> tuple[Thing, "_Drawing"] | None:
    """A place for a thing where it is whole, and hides no other; None where none was found."""
    paints = list(region.paints)
    paint = str(rng.choice(paints, p=list(region.paints.values())))
    painted = name in VEHICLES or name in ("box", "ball")
    drawing: _Drawing
    if name in VEHICLES:
        kind = str(rng.choice(VEHICLES[name]))
        drawing = _Vehicle(_design(kind, paint, rng), rng.uniform(0, 2 * np.pi))
    else:
        drawing = _Prop(name, PAINTS[paint], rng.uniform(0.85, 1.2), int(rng.integers(1 << 31)))
    for _ in range(_ATTEMPTS):
        y = rng.uniform(_NEAREST, _FARTHEST)
        reach = 0.5 * camera.width / camera.focal * (y - camera.position[1])
        x = rng.uniform(-reach, reach)
        drawing.x, drawing.y = x, y
        box = drawing.outline(camera)
        thing = Thing(name, paint if painted else "", x, y, box)
        inside = box[0] > 1 and box[1] > 1
        inside &= box[2] < camera.width - 2 and box[3] < camera.height - 2
        if inside and not any(_collides(thing, other) for other in others):
            return thing, drawing
    return None


def _design(kind: str, paint: str, rng: np.random.Generator) -> bodies.Design:
    design = bodies.draw_design(rng, int(rng.integers(len(bodies.KINDS))))
    shape = bodies.VAN if kind == "van" else bodies.KINDS[kind]
    shade = int(rng.integers(-8, 9))
    red, green, blue = (int(np.clip(c + shade, 8, 246)) for c in PAINTS[paint])
    return dataclasses.replace(
        design,
        kind=kind,
        length=rng.uniform(*shape.length),
        width=rng.uniform(*shape.width),
        height=rng.uniform(*shape.height),
        wheel=rng.uniform(*shape.wheel),
        colour=(red, green, blue),
        rails=False,
        antenna="none",
    )


def _collides(one: Thing, other: Thing) -> bool:
    """Whether two things stand in one another, or one hides much of the other."""
    reach = _RADIUS.get(one.name, 0.6) + _RADIUS.get(other.name, 0.6)
    if np.hypot(one.x - other.x, one.y - other.y) < reach:
        return True
    left, top = max(one.box[0], other.box[0]), max(one.box[1], other.box[1])
    right, bottom = min(one.box[2], other.box[2]), min(one.box[3], other.box[3])
    if right <= left or bottom <= top:
        return False
    least = min((b[2] - b[0]) * (b[3] - b[1]) for b in (one.box, other.box))
    return (right - left) * (bottom - top) > _HIDDEN * least


def _shade(frame: np.ndarray, scene: studio.Studio, thing: Thing) -> None:
    """Darkens the floor below a prop."""
    if thing.name in VEHICLES:
        return
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radius = 0.6 if thing.name in ("box", "tree") else 0.36
    ring = np.stack([thing.x + 0.12 + radius * np.cos(turn),
                     thing.y + radius * np.sin(turn), np.zeros_like(turn)], -1)  # fmt: skip
    layer = np.zeros(scene.floor.shape, np.uint8)
    pixels, _ = scene.camera.project(ring)
    cv2.fillPoly(layer, [np.rint(pixels * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(layer, (0, 0), max(frame.shape[1] / 120, 0.6))
    frame *= (1 - 0.5 * scene.floor * soft / 255)[..., None]


class _Drawing:
    """Something that can be drawn where it stands.

    Attributes:
        x: Metres to the right.
        y: Metres away.
    """

    x = y = 0.0

    def outline(self, camera: studio.Camera) -> tuple[float, float, float, float]:
        """Its left, top, right, bottom in pixels."""
        raise NotImplementedError

    def shade(self, frame: np.ndarray, scene: studio.Studio) -> None:
        """Darkens the floor around it."""

    def draw(self, frame: np.ndarray, scene: studio.Studio) -> np.ndarray:
        """Paints it, and returns its share of each pixel."""
        raise NotImplementedError


class _Prop(_Drawing):
    def __init__(self, name: str, colour: props.Colour, size: float, seed: int) -> None:
        self._name, self._colour, self._size, self._seed = name, colour, size, seed

    def _layer(self, camera: studio.Camera) -> props.Layer:
        at = (camera, self.x, self.y, self._size)
        match self._name:
            case "box":
                return props.box(*at, self._colour, self._seed % 1000 / 1000 * np.pi / 2)
            case "ball":
                return props.ball(*at, self._colour)
            case "tree":
                return props.tree(*at, np.random.default_rng(self._seed))
            case "post":
                return props.post(*at)
            case "cone":
                return props.cone(*at)
            case _:
                return props.sign(*at)

    def outline(self, camera: studio.Camera) -> tuple[float, float, float, float]:
        high = {"post": 1.75, "cone": 0.95, "sign": 2.55, "box": 1.0, "ball": 0.9, "tree": 3.3}
        half = {"post": 0.17, "cone": 0.45, "sign": 0.42, "box": 0.8, "ball": 0.45, "tree": 1.0}
        reach, top = half[self._name] * self._size, high[self._name] * self._size
        corners = _cuboid(2 * reach, 2 * reach, top) + np.array((self.x, self.y, 0))
        return _box(camera.project(corners)[0])

    def draw(self, frame: np.ndarray, scene: studio.Studio) -> np.ndarray:
        area, colour, share = self._layer(scene.camera)
        covered = np.zeros(frame.shape[:2], np.float32)
        render.lay(frame[area], covered[area], colour, share)
        return covered


class _Vehicle(_Drawing):
    def __init__(self, design: bodies.Design, angle: float) -> None:
        self._design = design
        self._turn = render.turned(angle)
        self._corners = _cuboid(design.length, design.width, design.height)

    def outline(self, camera: studio.Camera) -> tuple[float, float, float, float]:
        corners = self._corners + np.sign(self._corners) * (0, _MIRROR, 0)
        return _box(self._moved(camera).project(corners @ self._turn)[0])

    def _moved(self, camera: studio.Camera) -> studio.Camera:
        """A camera that sees the car at the origin as `camera` sees it at its place."""
        x, y, z = camera.position
        return dataclasses.replace(camera, position=(x - self.x, y - self.y, z))

    def _scene(self, scene: studio.Studio) -> studio.Studio:
        return dataclasses.replace(scene, camera=self._moved(scene.camera))

    def shade(self, frame: np.ndarray, scene: studio.Studio) -> None:
        moved = self._scene(scene)
        wheels = place_wheels(self._design, self._turn, moved.camera)
        floor = self._corners * (1, 1, 0) @ self._turn
        light = studio.shadow(moved, floor, [wheel.foot for wheel in wheels])
        frame *= (1 + (light - 1) * scene.floor)[..., None]

    def draw(self, frame: np.ndarray, scene: studio.Studio) -> np.ndarray:
        moved = self._scene(scene)
        car = render.build_car(self._design, frame.shape[1] / 960)
        wheels = place_wheels(self._design, self._turn, moved.camera)
        return render.paint_car(frame, car, moved, self._turn, wheels)


def _cuboid(length: float, width: float, height: float) -> np.ndarray:
    """The corners `[8, 3]` of a block that stands on the origin."""
    signs = [(a, b, z) for a in (-0.5, 0.5) for b in (-0.5, 0.5) for z in (0, 1)]
    return np.array(signs) * (length, width, height)


def _box(pixels: np.ndarray) -> tuple[float, float, float, float]:
    (left, top), (right, bottom) = pixels.min(0), pixels.max(0)
    return float(left), float(top), float(right), float(bottom)
