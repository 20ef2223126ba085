"""Car bodies as lofted grids: the random parameters of a car, and its surface.

Car coordinates are metres: x forward, y to the left, z up from the floor, origin on the
floor below the car's middle.
"""

import dataclasses

import cv2
import numpy as np

STATIONS = 64
HALF_ROWS = 30
_BOTTOM, _SIDE = 4, 10
# How nose and tail close: depth in metres and power of the superellipse, and stations.
_NOSE, _TAIL, _CAP = (0.34, 2.8), (0.26, 3.2), 10

Curve = tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A class of cars.

    Attributes:
        length, width, height: Ranges in metres.
        axles: Front and rear axle as fractions of the length behind the nose.
        wheel: Range of the tyre's outer radius in metres.
        top: Centre line seen from the side: (fraction behind the nose, fraction of height).
        shoulder: Line where the side ends and glass or bonnet begins, likewise.
        screens: Fractions behind the nose: foot and head of the windscreen, head and foot
            of the rear screen.
        clearance: Height of the sill over the floor in metres.
        doors: Doors on one side.
    """

    length: tuple[float, float]
    width: tuple[float, float]
    height: tuple[float, float]
    axles: tuple[float, float]
    wheel: tuple[float, float]
    top: Curve
    shoulder: Curve
    screens: tuple[float, float, float, float]
    clearance: float
    doors: int


KINDS = {
    "sedan": Kind(
        (4.55, 4.95), (1.78, 1.86), (1.42, 1.49), (0.195, 0.775), (0.315, 0.335),
        ((0, 0.47), (0.03, 0.51), (0.15, 0.605), (0.275, 0.655), (0.43, 0.965), (0.52, 1.0),
         (0.63, 0.985), (0.70, 0.93), (0.855, 0.725), (0.97, 0.72), (1, 0.66)),
        ((0, 0.44), (0.05, 0.48), (0.27, 0.595), (0.5, 0.63), (0.86, 0.67), (1, 0.62)),
        (0.275, 0.435, 0.69, 0.85), 0.20, 2,
    ),
    "coupe": Kind(
        (4.35, 4.75), (1.80, 1.90), (1.33, 1.40), (0.19, 0.77), (0.325, 0.345),
        ((0, 0.48), (0.03, 0.53), (0.15, 0.635), (0.32, 0.69), (0.48, 0.97), (0.55, 1.0),
         (0.63, 0.98), (0.72, 0.90), (0.88, 0.75), (0.98, 0.76), (1, 0.70)),
        ((0, 0.45), (0.05, 0.50), (0.3, 0.63), (0.5, 0.655), (0.86, 0.71), (1, 0.66)),
        (0.32, 0.48, 0.66, 0.87), 0.17, 1,
    ),
    "hatchback": Kind(
        (3.9, 4.3), (1.70, 1.80), (1.47, 1.54), (0.19, 0.805), (0.30, 0.325),
        ((0, 0.47), (0.03, 0.52), (0.14, 0.61), (0.245, 0.665), (0.43, 0.97), (0.55, 1.0),
         (0.75, 0.98), (0.86, 0.94), (0.965, 0.69), (0.985, 0.64), (1, 0.60)),
        ((0, 0.44), (0.05, 0.48), (0.24, 0.59), (0.5, 0.625), (0.9, 0.66), (1, 0.58)),
        (0.245, 0.43, 0.87, 0.96), 0.19, 2,
    ),
    "suv": Kind(
        (4.45, 4.95), (1.83, 1.95), (1.64, 1.78), (0.19, 0.785), (0.35, 0.39),
        ((0, 0.53), (0.02, 0.58), (0.12, 0.645), (0.25, 0.68), (0.395, 0.965), (0.5, 1.0),
         (0.75, 0.985), (0.89, 0.955), (0.975, 0.67), (0.99, 0.62), (1, 0.58)),
        ((0, 0.50), (0.05, 0.55), (0.25, 0.62), (0.5, 0.645), (0.9, 0.67), (1, 0.58)),
        (0.25, 0.395, 0.895, 0.97), 0.25, 2,
    ),
    "wagon": Kind(
        (4.6, 4.9), (1.78, 1.86), (1.46, 1.54), (0.19, 0.77), (0.32, 0.345),
        ((0, 0.47), (0.03, 0.51), (0.15, 0.60), (0.265, 0.65), (0.42, 0.965), (0.52, 1.0),
         (0.78, 0.98), (0.89, 0.93), (0.975, 0.68), (0.99, 0.64), (1, 0.60)),
        ((0, 0.44), (0.05, 0.48), (0.27, 0.59), (0.5, 0.62), (0.9, 0.66), (1, 0.58)),
        (0.265, 0.42, 0.895, 0.97), 0.20, 2,
    ),
    "pickup": Kind(
        (5.25, 5.6), (1.88, 1.98), (1.77, 1.88), (0.18, 0.775), (0.38, 0.41),
        ((0, 0.56), (0.015, 0.61), (0.12, 0.655), (0.235, 0.675), (0.335, 0.965), (0.42, 1.0),
         (0.555, 0.99), (0.585, 0.95), (0.605, 0.66), (0.99, 0.66), (1, 0.64)),
        ((0, 0.53), (0.04, 0.58), (0.25, 0.62), (0.5, 0.635), (0.9, 0.65), (1, 0.63)),
        (0.235, 0.335, 0.585, 0.605), 0.30, 2,
    ),
}  # fmt: skip

VAN = Kind(
    (4.9, 5.3), (1.92, 2.0), (2.0, 2.2), (0.17, 0.79), (0.33, 0.35),
    ((0, 0.38), (0.02, 0.43), (0.08, 0.49), (0.13, 0.54), (0.27, 0.95), (0.36, 1.0),
     (0.95, 0.99), (0.985, 0.95), (0.993, 0.62), (1, 0.52)),
    ((0, 0.36), (0.05, 0.43), (0.2, 0.51), (0.5, 0.55), (0.9, 0.56), (1, 0.48)),
    (0.13, 0.27, 0.955, 0.99), 0.20, 2,
)  # fmt: skip
"""No class of studio cars, so that the walk through `KINDS` stays as it is."""

# Name, RGB; white twice and black twice, as on the road.
COLOURS = (
    ("white", (236, 237, 235)), ("pearl", (228, 226, 218)), ("silver", (172, 176, 180)),
    ("grey", (92, 95, 99)), ("black", (20, 20, 22)), ("graphite", (38, 39, 44)),
    ("blue", (28, 52, 112)), ("red", (140, 20, 26)), ("beige", (158, 146, 124)),
    ("sky", (86, 124, 164)), ("green", (32, 66, 52)), ("maroon", (74, 20, 28)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Design:
    """One random car.

    Attributes:
        kind: Its class, a key of `KINDS`, or "van".
        length, width, height: In metres.
        wheel: Outer radius of the tyres in metres.
        colour: RGB of the paint, 0..255.
        rim: RGB of the rims.
        spokes: Spokes of a wheel.
        open_wheels: Whether one looks through between the spokes where nothing is behind.
        rails: Roof rails.
        antenna: "none", "rod" or "fin".
        tint: Grey of the glass, 0..255.
        face: Four numbers in 0..1 that shape lamps, grille and bumpers.
        plate: RGB of the number plate.
    """

    kind: str
    length: float
    width: float
    height: float
    wheel: float
    colour: tuple[int, int, int]
    rim: tuple[int, int, int]
    spokes: int
    open_wheels: bool
    rails: bool
    antenna: str
    tint: int
    face: tuple[float, float, float, float]
    plate: tuple[int, int, int]

    @property
    def shape(self) -> Kind:
        """The proportions of its class."""
        return VAN if self.kind == "van" else KINDS[self.kind]

    @property
    def axles(self) -> tuple[float, float]:
        """x of the front and of the rear axle."""
        front, rear = self.shape.axles
        return self.x(front), self.x(rear)

    def x(self, fraction: float) -> float:
        """x of a fraction of the length behind the nose."""
        return (0.5 - fraction) * self.length


def draw_design(rng: np.random.Generator, index: int) -> Design:
    """Draws a car; `index` walks through classes and colours so that few cars differ much.

    Every class comes in other colours in the second dozen than in the first.
    """
    names = list(KINDS)
    kind = names[index % len(names)]
    shape = KINDS[kind]
    colour = COLOURS[(index * 5 + index // 12) % len(COLOURS)][1]
    shade = rng.integers(-6, 7)
    dark_rim = rng.random() < 0.25
    return Design(
        kind=kind,
        length=rng.uniform(*shape.length),
        width=rng.uniform(*shape.width),
        height=rng.uniform(*shape.height),
        wheel=rng.uniform(*shape.wheel),
        colour=tuple(int(np.clip(c + shade, 8, 244)) for c in colour),  # type: ignore[arg-type]
        rim=(46, 47, 50) if dark_rim else (188, 190, 193),
        spokes=int(rng.integers(5, 11)),
        open_wheels=bool(rng.random() < 0.6),
        rails=bool(rng.random() < (0.7 if kind in ("suv", "wagon") else 0.0)),
        antenna=str(rng.choice(["none", "rod", "fin"])),
        tint=int(rng.integers(26, 62)),
        face=tuple(rng.random(4)),  # type: ignore[arg-type]
        plate=((238, 240, 244), (226, 232, 240), (240, 232, 190))[int(rng.integers(3))],
    )


@dataclasses.dataclass(frozen=True)
class Part:
    """A surface as a grid of points: `float32[R, C, 3]` positions, outward normals likewise."""

    name: str
    points: np.ndarray
    normals: np.ndarray


def build_parts(design: Design) -> list[Part]:
    """Every surface of a car but its wheels: the body first, then what sits on it."""
    parts = [_part("body", _body(design))]
    for side in (1.0, -1.0):
        foot = design.x(design.shape.screens[0] + 0.075)
        z = height_at(design, design.shape.shoulder, design.shape.screens[0] + 0.07) + 0.10
        y = design.width / 2 + 0.075
        parts.append(_part("mirror", _ellipsoid((foot, side * y, z), (0.075, 0.125, 0.085))))
        stalk = [(foot + 0.02, side * (y - 0.22), z - 0.07), (foot, side * y, z - 0.04)]
        parts.append(_part("stalk", _tube(stalk, 0.03)))
        if design.rails:
            screens = design.shape.screens
            at = np.linspace(screens[1] + 0.02, screens[2] - 0.03, 10)
            lift = np.array([-0.03] + [0.035] * 8 + [-0.03])
            z_at = [height_at(design, design.shape.top, f) for f in at]
            rail = [
                (design.x(f), side * 0.315 * design.width, z * 0.975 + up)
                for f, z, up in zip(at, z_at, lift, strict=True)
            ]
            parts.append(_part("rail", _tube(rail, 0.022)))
    if design.antenna != "none":
        rear = design.shape.screens[2] - 0.04
        foot_z = height_at(design, design.shape.top, rear) - 0.02
        x = design.x(rear)
        if design.antenna == "fin":
            points = [
                (x + 0.10, 0.0, foot_z),
                (x, 0.0, foot_z + 0.05),
                (x - 0.08, 0.0, foot_z + 0.09),
            ]
            parts.append(_part("fin", _tube(points, 0.025)))
        else:
            points = [(x, 0.0, foot_z), (x - 0.14, 0.0, foot_z + 0.36)]
            parts.append(_part("rod", _tube(points, 0.007)))
    return parts


def height_at(design: Design, curve: Curve, fraction: float) -> float:
    """Height in metres of one of the class's curves at a fraction behind the nose."""
    xs, zs = zip(*curve, strict=True)
    return float(np.interp(fraction, xs, zs)) * design.height


def _smooth_curve(curve: Curve, at: np.ndarray, sigma: float) -> np.ndarray:
    """A polyline through `curve`, its corners rounded by a Gaussian of `sigma` fractions."""
    dense = np.linspace(-0.2, 1.2, 701)
    xs, zs = zip(*curve, strict=True)
    line = np.interp(dense, xs, zs).astype(np.float32).reshape(1, -1)
    line = cv2.GaussianBlur(line, (0, 0), sigma * 500, borderType=cv2.BORDER_REPLICATE)
    return np.interp(at, dense, line.ravel())


def _stations(design: Design) -> np.ndarray:
    """Where sections stand, as fractions behind the nose: even on the faces of both ends."""
    share = np.linspace(0, 1, _CAP, endpoint=False)
    nose = _NOSE[0] * (1 - (1 - share ** _NOSE[1]) ** (1 / _NOSE[1])) / design.length
    tail = _TAIL[0] * (1 - (1 - share ** _TAIL[1]) ** (1 / _TAIL[1])) / design.length
    fraction = np.linspace(nose[-1], 1 - tail[-1], STATIONS - 2 * _CAP + 2)[1:-1]
    if design.kind == "pickup":
        # The back of the cab is a step.
        fraction = fraction - 0.02 * np.sin(2 * np.pi * np.clip((fraction - 0.48) / 0.23, 0, 1))
    return np.concatenate([nose, fraction, 1 - tail[::-1]])


def _closing(distance: np.ndarray, reach: float, power: float) -> np.ndarray:
    """Superellipse that rises from 0 at the end of the car to 1 at `reach` metres from it."""
    inside = np.clip(1 - distance / reach, 0, 1)
    return (1 - inside**power) ** (1 / power)


def _body(design: Design) -> np.ndarray:
    """The closed loft: a section at each station, from below over the left side to the top.

    Returns:
        `float32[2 * HALF_ROWS, STATIONS, 3]`; the second half mirrors the first.
    """
    shape, length = design.shape, design.length
    fraction = _stations(design)
    ahead, behind = fraction * length, (1 - fraction) * length
    sigma = 0.007 if design.kind == "pickup" else 0.016
    top = _smooth_curve(shape.top, fraction, sigma) * design.height
    shoulder = _smooth_curve(shape.shoulder, fraction, 0.03) * design.height
    top = np.maximum(top, shoulder + 0.02)
    bottom = shape.clearance + 0.10 * np.clip((ahead * -1 + 0.5) / 0.5, 0, 1) ** 2
    bottom = bottom + 0.14 * np.clip((0.8 - behind) / 0.8, 0, 1) ** 2
    taper = 1 - 0.09 * np.clip(1 - ahead / 1.1, 0, 1) ** 2 - 0.07 * np.clip(1 - behind, 0, 1) ** 2
    half = design.width / 2 * taper

    rows_y, rows_z = [], []
    for s in np.linspace(0, 1, _BOTTOM, endpoint=False):
        rows_y.append(half * 0.9 * s)
        rows_z.append(bottom)
    for s in np.linspace(0, 1, _SIDE):
        tuck = 1 - 0.09 * max(0, (0.4 - s) / 0.4) ** 2 - 0.045 * max(0, (s - 0.62) / 0.38) ** 1.5
        rows_y.append(half * tuck)
        rows_z.append(bottom + (shoulder - bottom) * s)
    rise = np.maximum(top - shoulder, 0)
    cabin = np.clip(rise / (0.3 * design.height), 0, 1)
    foot = half * (0.955 - 0.03 * cabin)
    lean = 0.20 if design.kind in ("suv", "pickup") else 0.235
    # The first angles are dense: a superellipse climbs fast from its foot.
    for angle in (np.linspace(0, 1, HALF_ROWS - _BOTTOM - _SIDE + 1)[1:] ** 1.35) * np.pi / 2:
        up = np.sin(angle) ** (2 / 3.2)
        out = max(np.cos(angle), 0) ** (2 / 3.2)
        rows_y.append(foot * out * (1 - lean * cabin * up))
        rows_z.append(shoulder + rise * up)
    y, z = np.stack(rows_y), np.stack(rows_z)

    # Arches bulge a little around the wheels.
    x = np.broadcast_to((0.5 - fraction) * length, y.shape)
    for axle in design.axles:
        away = np.hypot(x - axle, (z - design.wheel) * 1.1) / (design.wheel * 1.2)
        y = y + 0.022 * np.exp(-((away - 1) ** 2) * 8) * (y > 0.8 * half)
    # Nose and tail close like a superellipsoid around the bumper's height.
    middle = 0.5 * (bottom + shoulder)
    nose, tail = _closing(ahead, *_NOSE), _closing(behind, *_TAIL)
    z = middle + (z - middle) * nose * tail
    y = y * _closing(ahead, 0.34, 4.0) * _closing(behind, 0.24, 4.5)
    # Bumpers and screens bow in plan.
    x = x - 0.26 * (1 - 2 * fraction) * (y / (design.width / 2)) ** 2
    points = np.stack([x, y, z], -1)
    return np.concatenate([points, points[::-1] * (1, -1, 1)]).astype(np.float32)


def _ellipsoid(centre: tuple[float, float, float], radii: tuple[float, ...]) -> np.ndarray:
    across = np.linspace(0, 2 * np.pi, 11)[:, None]
    along = np.linspace(0, np.pi, 9)[None]
    ball = np.stack(
        [
            np.sin(along) * np.cos(across),
            np.cos(along) * np.ones_like(across),
            np.sin(along) * np.sin(across),
        ],
        -1,
    )
    # Squarer than a ball: mirrors have flat glass.
    ball = np.sign(ball) * np.abs(ball) ** 0.75
    return (ball * radii + centre).astype(np.float32)


def _tube(line: list[tuple[float, float, float]], radius: float) -> np.ndarray:
    """A tube of six sides around a polyline."""
    spine = np.asarray(line)
    along = np.gradient(spine, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    first = np.cross(along, (0.3, 0.9, 0.31))
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    turn = np.linspace(0, 2 * np.pi, 7)[:, None, None]
    return (spine + radius * (np.cos(turn) * first + np.sin(turn) * second)).astype(np.float32)


def _part(name: str, points: np.ndarray) -> Part:
    """Adds the normals of a grid, turned away from the middle of their section."""
    down, right = np.gradient(points, axis=0), np.gradient(points, axis=1)
    if name == "body":
        # The loop closes below: its first and last rows are neighbours of a flat floor.
        down[0], down[-1] = down[1], down[-2]
    normals = np.cross(right, down)
    outward = points - points.mean(axis=0, keepdims=True)
    normals *= np.sign((normals * outward).sum(-1).mean() + 1e-9)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-9
    return Part(name, points, normals.astype(np.float32))
