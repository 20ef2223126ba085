"""Drawings of a car in metres: its glass, lamps, gaps between doors, plates, wheel wells."""

from collections.abc import Sequence

import cv2
import numpy as np

from carvana_tf.data.synthetic.bodies import Design, height_at

_SHIFT = 4

Point = tuple[float, float]

# Gloss of materials; 100 reflects like clear coat.
CLEAR_COAT, PLASTIC = 100, 25
_GLASS, _LAMP, _CHROME = 190, 150, 170
BLACK = (22, 22, 24)


class Blueprint:
    """A drawing in metres on the ground of the car's paint.

    Attributes:
        image: `uint8[h, w, 4]`, RGB and gloss.
        well: `uint8[h, w]`, 255 inside the wheel arches.
    """

    def __init__(self, design: Design, left: float, right: float, top: float, scale: float):
        self.left, self.top, self.scale = left, top, scale
        size = (round((top + 0.1) * scale), round((right - left) * scale))
        self.image = np.empty((*size, 4), np.uint8)
        self.image[:] = (*design.colour, CLEAR_COAT)
        self.well = np.zeros(size, np.uint8)

    def pixels(self, points: Sequence[Point] | np.ndarray) -> np.ndarray:
        """Fixed-point pixels of points in metres, as OpenCV's drawing functions take them."""
        at = np.asarray(points, np.float64)
        xy = np.stack([at[:, 0] - self.left, self.top - at[:, 1]], -1) * self.scale
        return np.rint(xy * (1 << _SHIFT)).astype(np.int32)

    def fill(self, points: Sequence[Point] | np.ndarray, colour: Sequence[int], gloss: int) -> None:
        """Fills a polygon."""
        polygon = self.pixels(points)
        cv2.fillPoly(self.image, [polygon], (*colour, gloss), cv2.LINE_AA, _SHIFT)

    def line(self, points: Sequence[Point], colour: Sequence[int], metres: float) -> None:
        """Draws a line of a width in metres."""
        width = max(1, round(metres * self.scale))
        pixels = self.pixels(points)
        cv2.polylines(self.image, [pixels], False, (*colour, 60), width, cv2.LINE_AA, _SHIFT)

    def gap(self, points: Sequence[Point], design: Design) -> None:
        """A panel gap: a dark line with a light edge next to it."""
        dark = [int(c * 0.35) for c in design.colour]
        self.line(points, dark, 0.009)

    def glass(self, points: Sequence[Point] | np.ndarray, design: Design) -> None:
        """A window: a black frame, then glass that is lighter towards its top."""
        outline = np.asarray(points, np.float64)
        self.fill(outline, BLACK, 60)
        middle = outline.mean(0)
        pane = middle + (outline - middle) * (1 - 0.035 / np.ptp(outline, 0).max() * 2)
        polygon = self.pixels(pane)
        mask = np.zeros(self.well.shape, np.uint8)
        cv2.fillPoly(mask, [polygon], 255, cv2.LINE_AA, _SHIFT)
        left, top, width, height = cv2.boundingRect(polygon >> _SHIFT)
        # One pixel more on each side for the soft edge.
        area = np.s_[max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1]
        part = mask[area][..., None] / np.float32(255)
        tint = design.tint * np.array([0.92, 1.0, 1.03, 0], np.float32)
        rows = np.linspace(1.3, 0.75, len(part), dtype=np.float32)[:, None, None]
        colour = tint * rows + np.array([0, 0, 0, _GLASS], np.float32)
        self.image[area] = self.image[area] * (1 - part) + colour * part

    def sample(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Paint `uint8[h, w, 4]` and well `uint8[h, w]` at points in metres."""
        u = ((first - self.left) * self.scale).astype(np.float32)
        v = ((self.top - second) * self.scale).astype(np.float32)
        border = cv2.BORDER_REPLICATE
        image = cv2.remap(self.image, u, v, cv2.INTER_LINEAR, borderMode=border)
        return image, cv2.remap(self.well, u, v, cv2.INTER_LINEAR, borderMode=border)


def _circle(centre: Point, radius: float, start: float = 0, end: float = 360) -> np.ndarray:
    angle = np.radians(np.linspace(start, end, 64))
    return np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], -1)


def draw_side(design: Design, scale: float) -> Blueprint:
    """One side, x to the right: windows, doors, crease, wheel arches."""
    shape, height, x = design.shape, design.height, design.x
    sheet = Blueprint(design, -design.length / 2 - 0.1, design.length / 2 + 0.1, height, scale)
    sill = shape.clearance
    front, rear = design.axles

    # Dark cladding along the sill; on tall cars around the arches too.
    rugged = design.kind in ("suv", "pickup") and design.face[3] > 0.4
    sheet.fill(
        [(front, sill - 0.1), (rear, sill - 0.1), (rear, sill + 0.055), (front, sill + 0.055)],
        BLACK, PLASTIC,
    )  # fmt: skip
    for axle in (front, rear):
        centre = (axle, design.wheel + 0.01)
        if rugged:
            sheet.fill(_circle(centre, design.wheel * 1.13 + 0.06), (36, 36, 38), PLASTIC)
        arch = _circle(centre, design.wheel * 1.13)
        sheet.fill(arch, (9, 9, 10), 0)
        cv2.fillPoly(sheet.well, [sheet.pixels(arch)], 255, cv2.LINE_AA, _SHIFT)

    _side_windows(sheet, design)
    # A crease below the windows and panel gaps.
    belt = height_at(design, shape.shoulder, 0.5)
    light = [min(255, int(c * 1.25) + 14) for c in design.colour]
    dark = [int(c * 0.72) for c in design.colour]
    crease = belt - 0.10
    sheet.line([(x(0.14), crease - 0.05), (x(0.5), crease), (x(0.93), crease + 0.03)], dark, 0.016)
    sheet.line(
        [(x(0.14), crease - 0.036), (x(0.5), crease + 0.014), (x(0.93), crease + 0.044)],
        light, 0.012,
    )  # fmt: skip
    low = sill + 0.16
    sheet.line([(x(0.30), low), (x(0.72), low + 0.03)], dark, 0.012)
    for gap in _door_gaps(design):
        sheet.gap([(x(gap), sill + 0.06), (x(gap) + 0.015, belt - 0.3), (x(gap), belt)], design)
    for gap in _door_gaps(design)[1:]:
        z = belt - 0.135
        handle = [(x(gap - 0.012), z), (x(gap - 0.052), z + 0.006)]
        sheet.line([(a, b - 0.018) for a, b in handle], dark, 0.02)
        sheet.line(handle, light, 0.024)
    # Lamps reach around the corners.
    lamp = _lamp_height(design)
    sheet.fill(
        [(x(0), lamp - 0.07), (x(0), lamp + 0.07), (x(0.09), lamp + 0.085),
         (x(0.055), lamp - 0.03)],
        (196, 202, 208), _LAMP,
    )  # fmt: skip
    tail = _tail_height(design)
    sheet.fill(
        [(x(1), tail - 0.09), (x(1), tail + 0.09), (x(0.935), tail + 0.08),
         (x(0.955), tail - 0.05)],
        (150, 14, 18), _LAMP,
    )  # fmt: skip
    sheet.line([(x(0.10), lamp - 0.22), (x(0.115), lamp - 0.22)], (220, 120, 30), 0.03)
    return sheet


def _door_gaps(design: Design) -> tuple[float, ...]:
    foot, _, _, last = design.shape.screens
    if design.shape.doors == 1:
        return (foot + 0.055, foot + 0.33)
    middle = 0.5 * (foot + min(last, 0.80)) + 0.02
    end = 0.575 if design.kind == "pickup" else 0.72
    if design.kind == "pickup":
        middle = 0.43
    return (foot + 0.055, middle, end)


def _side_windows(sheet: Blueprint, design: Design) -> None:
    shape, x = design.shape, design.x
    foot, rear_foot = shape.screens[0], shape.screens[3]
    roof_drop, belt_rise = 0.095, 0.045

    def roof(f: float) -> float:
        return height_at(design, shape.top, f) - roof_drop

    def belt(f: float) -> float:
        return height_at(design, shape.shoulder, f) + belt_rise

    start = foot + 0.085
    last = min(rear_foot - 0.03, 0.92) if rear_foot > 0.75 else rear_foot - 0.015
    along = np.linspace(start, last, 40)
    upper = np.array([max(roof(f), belt(f) + 0.015) for f in along])
    lower = np.array([belt(f) for f in along])
    outline = np.concatenate(
        [
            np.stack([[x(f) for f in along], upper], -1),
            np.stack([[x(f) for f in along], lower], -1)[::-1],
        ]
    )
    sheet.glass(outline, design)
    # Seats are guessed through the glass.
    for seat in (0.5 * (start + _door_gaps(design)[1]) + 0.03, _door_gaps(design)[1] + 0.10):
        if seat < last - 0.06:
            z = belt(seat) + 0.02
            rest = [(x(seat) + 0.03, z), (x(seat) + 0.00, z + 0.17), (x(seat) - 0.02, z + 0.21),
                    (x(seat) - 0.10, z + 0.20), (x(seat) - 0.16, z)]  # fmt: skip
            sheet.fill(rest, [int(design.tint * 1.15) + 6] * 3, _GLASS)
    # Pillars stand where doors meet, and before the last small window.
    for gap in _door_gaps(design)[1:]:
        if gap < last - 0.02:
            low, high = belt(gap) - 0.005, max(roof(gap), belt(gap)) + 0.005
            sheet.fill([(x(gap) - 0.035, low), (x(gap) + 0.035, low), (x(gap) + 0.005, high),
                        (x(gap) - 0.055, high)], BLACK, 60)  # fmt: skip
    if design.face[2] > 0.5:
        line = [(x(f), b - 0.012) for f, b in zip(along, lower, strict=True)]
        sheet.line(line, (190, 192, 195), 0.016)


def _lamp_height(design: Design) -> float:
    return height_at(design, design.shape.shoulder, 0.02) - 0.03


def _tail_height(design: Design) -> float:
    return height_at(design, design.shape.shoulder, 0.97) - 0.06


def _mirrored(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    return list(points), [(-y, z) for y, z in points]


def draw_front(design: Design, scale: float) -> Blueprint:
    """The front, y to the right: windscreen, grille, lamps, bumper, plate."""
    shape, half = design.shape, design.width / 2
    sheet = Blueprint(design, -half - 0.1, half + 0.1, design.height, scale)
    sill, lamp = shape.clearance, _lamp_height(design)
    face = design.face
    # Windscreen.
    foot = height_at(design, shape.top, shape.screens[0]) + 0.025
    head = height_at(design, shape.top, shape.screens[1]) - 0.025
    sheet.glass(
        [(-half * 0.86, foot), (-half * 0.45, foot - 0.03), (half * 0.45, foot - 0.03),
         (half * 0.86, foot), (half * 0.66, head), (0, head + 0.03), (-half * 0.66, head)],
        design,
    )  # fmt: skip
    for seat in (-0.38, 0.38):
        z = 0.4 * foot + 0.6 * head
        rest = [(seat - 0.2, z - 0.14), (seat - 0.17, z), (seat - 0.09, z + 0.07),
                (seat + 0.09, z + 0.07), (seat + 0.17, z), (seat + 0.2, z - 0.14)]  # fmt: skip
        sheet.fill(rest, [int(design.tint * 1.15) + 4] * 3, _GLASS)
    # Grille: a dark mouth with bars, framed in chrome or not.
    wide, tall = half * (0.34 + 0.18 * face[0]), 0.09 + 0.09 * face[1]
    middle = lamp - 0.09
    mouth = [(-wide, middle + tall), (wide, middle + tall), (wide * 0.78, middle - tall),
             (-wide * 0.78, middle - tall)]  # fmt: skip
    if face[2] > 0.5:
        sheet.fill(
            [(y * 1.06, middle + (z - middle) * 1.15) for y, z in mouth], (184, 186, 190), _CHROME
        )
    sheet.fill(mouth, (14, 14, 15), 20)
    for bar in np.linspace(-0.7, 0.7, 4 + int(3 * face[3])):
        reach = wide * (0.89 + 0.11 * bar)
        grey = (120, 122, 126) if face[2] > 0.5 else (48, 49, 52)
        sheet.line([(-reach, middle + bar * tall), (reach, middle + bar * tall)], grey, 0.014)
    sheet.fill(_circle((0, middle + 0.2 * tall), 0.055), (200, 202, 206), _CHROME)
    # Lower intake with fog lamps.
    low = sill + 0.20
    for pocket in _mirrored([(half * 0.54, low - 0.05), (half * 0.78, low),
                             (half * 0.76, low + 0.10),
                             (half * 0.57, low + 0.06)]):  # fmt: skip
        sheet.fill(pocket, (20, 20, 21), 15)
        at = np.mean(pocket, 0)
        sheet.fill(_circle((at[0], at[1]), 0.04), (190, 194, 198), _LAMP)
    sheet.fill([(-half * 0.48, low + 0.05), (half * 0.48, low + 0.05), (half * 0.44, low - 0.07),
                (-half * 0.44, low - 0.07)], (16, 16, 17), 15)  # fmt: skip
    sheet.fill([(-half, sill - 0.05), (half, sill - 0.05), (half, sill + 0.07),
                (-half, sill + 0.07)],
               BLACK, PLASTIC)  # fmt: skip
    # Lamps: clear glass, a dark bowl, a bright projector.
    inner = max(wide / half + 0.04, 0.5)
    outer_up = 0.07 + 0.03 * face[1]
    for lens in _mirrored([(half * inner, lamp - 0.055), (half * inner, lamp + 0.035),
                           (half * 0.99, lamp + outer_up),
                           (half * 0.99, lamp - 0.05)]):  # fmt: skip
        sheet.fill(lens, (176, 182, 188), _LAMP)
        at = np.mean(lens, 0)
        shrunk = [(at[0] + (y - at[0]) * 0.85, at[1] + (z - at[1]) * 0.72) for y, z in lens]
        sheet.fill(shrunk, (92, 96, 102), _LAMP)
        sheet.fill(_circle((at[0] * 1.05, at[1]), 0.048), (232, 236, 240), _LAMP)
        sheet.fill(_circle((at[0] * 0.9, at[1]), 0.038), (206, 210, 216), _LAMP)
    _plate(sheet, design, sill + 0.25)
    return sheet


def draw_rear(design: Design, scale: float) -> Blueprint:
    """The rear, y to the right: screen, lamps, lid, bumper, plate."""
    shape, half = design.shape, design.width / 2
    sheet = Blueprint(design, -half - 0.1, half + 0.1, design.height, scale)
    sill, tail = shape.clearance, _tail_height(design)
    head = height_at(design, shape.top, shape.screens[2]) - 0.05
    foot = height_at(design, shape.top, shape.screens[3]) + (
        0.03 if shape.screens[3] < 0.9 else 0.06
    )
    sheet.glass(
        [(-half * 0.80, foot), (0, foot - 0.02), (half * 0.80, foot), (half * 0.64, head),
         (0, head + 0.02), (-half * 0.64, head)],
        design,
    )  # fmt: skip
    gap = tail - 0.11
    sheet.gap([(-half * 0.62, tail + 0.1), (-half * 0.60, gap - 0.1), (half * 0.60, gap - 0.1),
               (half * 0.62, tail + 0.1)], design)  # fmt: skip
    wide = 0.36 + 0.2 * design.face[0]
    for lens in _mirrored([(half * (0.95 - wide), tail + 0.02), (half * 0.99, tail + 0.09),
                           (half * 0.99, tail - 0.10),
                           (half * (1.02 - wide), tail - 0.075)]):  # fmt: skip
        sheet.fill(lens, (142, 12, 16), _LAMP)
        at = np.mean(lens, 0)
        shrunk = [(at[0] + (y - at[0]) * 0.8, at[1] - 0.02 + (z - at[1]) * 0.3) for y, z in lens]
        sheet.fill(shrunk, (214, 196, 192), _LAMP)
    if design.face[2] > 0.5:
        sheet.line([(-half * 0.5, tail + 0.03), (half * 0.5, tail + 0.03)], (196, 198, 202), 0.03)
    bumper = sill + 0.16
    sheet.gap([(-half, bumper + 0.17), (half, bumper + 0.17)], design)
    sheet.fill([(-half * 0.8, bumper), (half * 0.8, bumper), (half * 0.72, sill - 0.1),
                (-half * 0.72, sill - 0.1)], BLACK, PLASTIC)  # fmt: skip
    for side in (-1, 1):
        sheet.fill(_circle((side * half * 0.55, sill + 0.09), 0.045), (150, 152, 156), _CHROME)
        sheet.line([(side * half * 0.66, bumper + 0.05), (side * half * 0.86, bumper + 0.06)],
                   (150, 16, 20), 0.045)  # fmt: skip
    _plate(sheet, design, min(tail - 0.12, foot - 0.2))
    return sheet


def _plate(sheet: Blueprint, design: Design, z: float) -> None:
    wide, tall = 0.21, 0.075
    frame = np.array([(-wide, z - tall), (wide, z - tall), (wide, z + tall), (-wide, z + tall)])
    sheet.fill(frame + (frame - (0, z)) * 0.06, (40, 40, 42), 20)
    sheet.fill(frame, design.plate, 30)
    sheet.fill(frame * (1, 0) + [(0, z + 0.05), (0, z + 0.05), (0, z + 0.07), (0, z + 0.07)],
               (60, 140, 205), 30)  # fmt: skip
    for stroke in np.linspace(-0.13, 0.13, 6):
        lean = 0.012 * np.sin(40 * stroke + design.face[0] * 9)
        sheet.line([(stroke - lean, z - 0.045), (stroke + lean, z + 0.03)], (50, 70, 120), 0.02)


def draw_plan(design: Design, scale: float) -> Blueprint:
    """The top, x to the right: bonnet, cowl, sunroof or bed."""
    shape, half, x = design.shape, design.width / 2, design.x
    edge = design.length / 2 + 0.1
    sheet = Blueprint(design, -edge, edge, half + 0.05, scale)
    # Only y >= 0 is sampled; the other half mirrors it.
    cowl = shape.screens[0]
    sheet.gap([(x(0.05), half * 0.70), (x(cowl - 0.02), half * 0.80)], design)
    light = [min(255, int(c * 1.12) + 8) for c in design.colour]
    sheet.line([(x(0.06), half * 0.30), (x(cowl - 0.02), half * 0.46)], light, 0.02)
    sheet.fill([(x(cowl - 0.012), -0.2), (x(cowl - 0.012), half * 0.74),
                (x(cowl + 0.03), half * 0.76),
                (x(cowl + 0.03), -0.2)], BLACK, PLASTIC)  # fmt: skip
    if design.kind == "pickup":
        sheet.fill([(x(0.612), -0.2), (x(0.612), half * 0.80), (x(0.978), half * 0.80),
                    (x(0.978), -0.2)],
                   (30, 30, 32), 12)  # fmt: skip
        for rib in np.linspace(0.0, half * 0.7, 6):
            sheet.line([(x(0.62), rib), (x(0.97), rib)], (20, 20, 21), 0.02)
    elif design.face[1] > 0.6:
        start, end = shape.screens[1] + 0.04, shape.screens[1] + 0.15
        sheet.fill([(x(start), -0.2), (x(start), half * 0.44), (x(end), half * 0.46),
                    (x(end), -0.2)],
                   (18, 19, 21), _GLASS)  # fmt: skip
    return sheet
