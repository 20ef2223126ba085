"""Areas of annotations as pixels.

Coordinates are in pixels from the upper left corner of the photo, so that the first pixel spans
0..1 and its centre is at 0.5: what a person sees who draws on an enlarged photo, and what COCO
says. A pixel belongs to an area where its centre lies inside; one whose centre lies on the
outline belongs to the area on its right or below it, so areas that share an edge share no pixel.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from carvana_tf.annotations.values import BadAnnotation
from carvana_tf.data.images import resize

# Places where outlines and rows meet: worked on at once, and at most.
_CHUNK, _MOST = 1 << 20, 1 << 28
# Ellipses become polygons that are nowhere further from them than this many pixels.
_ELLIPSE_ERROR = 0.01
_ELLIPSE_SIDES = 16, 4096


@dataclasses.dataclass(frozen=True)
class Outline:
    """The area inside closed lines, without the areas inside others.

    Attributes:
        rings: Each `float64[N, 2]` of x, y; a part of the area each.
        holes: The same of what is cut out.
    """

    rings: tuple[np.ndarray, ...]
    holes: tuple[np.ndarray, ...] = ()

    def paint(self, canvas: np.ndarray, size: tuple[int, int]) -> None:
        """Sets its pixels in `bool[H, W]`; `size` is that of the photo it was drawn on."""
        scale = canvas.shape[1] / size[1], canvas.shape[0] / size[0]
        if self.holes:
            own = np.zeros_like(canvas)
            for ring in self.rings:
                fill_ring(own, ring * scale)
            cut = np.zeros_like(canvas)
            for ring in self.holes:
                fill_ring(cut, ring * scale)
            canvas |= own & ~cut
            return
        for ring in self.rings:
            fill_ring(canvas, ring * scale)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The area of a bitmap.

    Attributes:
        mask: `bool[h, w]`.
        left: The column of the photo that its first one is.
        top: The row.
    """

    mask: np.ndarray
    left: int = 0
    top: int = 0

    def paint(self, canvas: np.ndarray, size: tuple[int, int]) -> None:
        """As `Outline.paint`; what lies outside of the photo is left out."""
        if canvas.shape != size:
            own = np.zeros(size, np.bool_)
            self.paint(own, size)
            canvas |= resize(own.view(np.uint8) * np.uint8(255), *canvas.shape) > 127
            return
        height, width = self.mask.shape
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + height, size[0]), min(self.left + width, size[1])
        if top < bottom and left < right:
            inside = self.mask[top - self.top : bottom - self.top, left - self.left :]
            canvas[top:bottom, left:right] |= inside[:, : right - left]


Geometry = Outline | Pixels


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """The ring of a rectangle."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """The ring of an ellipse around x, y."""
    radius = max(abs(radius_x), abs(radius_y), _ELLIPSE_ERROR)
    # A side of a polygon of n is r (1 - cos(pi / n)) away from its circle.
    fewest, most = _ELLIPSE_SIDES
    sides = math.ceil(math.pi / math.sqrt(2 * _ELLIPSE_ERROR / radius))
    sides = min(max(sides, fewest), most)
    angles = np.arange(sides) * (2 * math.pi / sides)
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)


def turn(ring: np.ndarray, degrees: float, x: float, y: float) -> np.ndarray:
    """A ring turned around x, y, clockwise as one sees it (y points down)."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    return (ring - (x, y)) @ np.array([[cos, sin], [-sin, cos]]) + (x, y)


def fill_ring(canvas: np.ndarray, ring: np.ndarray) -> None:
    """Sets the pixels of `bool[H, W]` whose centre is inside a ring, by the even-odd rule.

    Each row is crossed by lines of the ring at some columns; from one crossing to the next the
    pixels are inside, then outside.

    Raises:
        BadAnnotation: It has so many lines that drawing it would take minutes.
    """
    height, width = canvas.shape
    ends = np.roll(ring, -1, axis=0)
    down = (ring[:, 1] < ends[:, 1])[:, None]
    # One direction for all, so that a line that is gone there and back crosses at the same place.
    above, below = np.where(down, ring, ends), np.where(down, ends, ring)
    # Rows whose centre is at or below the upper end, and above the lower one.
    first = np.clip(np.ceil(above[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(below[:, 1] - 0.5), 0, height).astype(np.int64)
    used = first < last
    if not used.any():
        return
    above, below, first, last = above[used], below[used], first[used], last[used]
    left, right = np.clip([ring[:, 0].min(), np.ceil(ring[:, 0].max())], 0, width).astype(int)
    rows, columns = slice(first.min(), last.max()), slice(left, right)
    if left >= right:
        return
    if (last - first).sum() > _MOST:
        raise BadAnnotation(f"its outline crosses more than {_MOST:,} rows")
    slope = (below[:, 0] - above[:, 0]) / (below[:, 1] - above[:, 1])
    changes = np.zeros((rows.stop - rows.start, right - left + 1), np.uint8)
    for part in _parts(last - first):
        count = (last - first)[part]
        before = np.cumsum(count) - count
        row = np.arange(count.sum()) + np.repeat(first[part] - before, count)
        x0, y0, step = (np.repeat(v[part], count) for v in (above[:, 0], above[:, 1], slope))
        crossing = np.ceil(x0 + (row + 0.5 - y0) * step - 0.5)
        column = np.clip(crossing, left, right).astype(np.int64) - left
        np.bitwise_xor.at(changes, (row - rows.start, column), np.uint8(1))
    inside = np.bitwise_xor.accumulate(changes, axis=1)[:, :-1]
    canvas[rows, columns] |= inside.view(np.bool_)


def _parts(counts: np.ndarray) -> Iterator[slice]:
    """Slices with about `_CHUNK` in total each."""
    total = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, done + _CHUNK)))
        yield slice(start, stop)
        start = stop


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a mask: the ring around it, and those around its holes."""

    outer: np.ndarray
    holes: tuple[np.ndarray, ...]

    def ring(self) -> np.ndarray:
        """One ring with the same pixels, for formats without holes.

        Each hole is joined to the outer line by a cut of no width, gone there and back, between
        their nearest points.
        """
        from scipy.spatial import cKDTree

        if not self.holes:
            return self.outer
        tree = cKDTree(self.outer)
        joined: dict[int, list[np.ndarray]] = {}
        for hole in self.holes:
            distance, nearest = tree.query(hole)
            start = int(np.argmin(distance))
            turned = np.roll(hole, -start, axis=0)
            joined.setdefault(int(nearest[start]), []).append(np.concatenate([turned, turned[:1]]))
        pieces: list[np.ndarray] = []
        done = 0
        for at in sorted(joined):
            pieces.append(self.outer[done : at + 1])
            for hole in joined[at]:
                pieces += [hole, self.outer[at : at + 1]]
            done = at + 1
        return np.concatenate([*pieces, self.outer[done:]])


def outlines(mask: np.ndarray, tolerance: float) -> list[Part]:
    """The parts of a mask with their holes.

    Lines run halfway between the centres of pixels inside and outside (marching squares), then
    lose points as far as none of them was further than the tolerance from the new line
    (Douglas-Peucker). Lines pass the centres of pixels at √2/4 = 0.35 pixels, so with a smaller
    tolerance `fill_ring` gives the same pixels again.

    Args:
        mask: `bool[H, W]`; pixels that touch at a corner alone are different parts.
        tolerance: In pixels.
    """
    from skimage.measure import find_contours

    if not mask.any():
        return []
    inside = crop(mask)
    framed = np.pad(inside.mask, 1)
    number, labels = cv2.connectedComponents(framed.view(np.uint8), connectivity=4)
    outer: list[np.ndarray | None] = [None] * number
    holes: list[list[np.ndarray]] = [[] for _ in range(number)]
    lines = find_contours(framed, 0.5, fully_connected="low")
    corner = np.array([inside.left - 0.5, inside.top - 0.5])
    for line, kept in zip(lines, simplify(lines, tolerance), strict=True):
        # A point is halfway between two pixels, one of them inside.
        first, second = np.floor(line[0]).astype(int), np.ceil(line[0]).astype(int)
        label = int(max(labels[tuple(first)], labels[tuple(second)]))
        y, x = line[:-1].T
        ring = (kept if len(kept) > 3 else line)[:-1, ::-1] + corner
        # It goes around what is inside in one direction, around holes in the other.
        if np.dot(x, np.roll(y, -1)) > np.dot(y, np.roll(x, -1)):
            outer[label] = ring
        else:
            holes[label].append(ring)
    return [
        Part(ring, tuple(cut)) for ring, cut in zip(outer, holes, strict=True) if ring is not None
    ]


def simplify(lines: Sequence[np.ndarray], tolerance: float) -> list[np.ndarray]:
    """Lines with fewer points, none of those dropped being further away than the tolerance.

    Douglas and Peucker, "Algorithms for the reduction of the number of points required to
    represent a digitized line or its caricature", 1973: the point furthest from the line between
    the ends of a part is kept and splits it, until none is too far. All parts of all lines are
    split at once.

    Args:
        lines: Each `float64[N, 2]`; both ends are kept.
        tolerance: In the unit of the points.
    """
    points = np.concatenate(lines)
    sizes = np.array([len(line) for line in lines])
    stops = np.cumsum(sizes) - 1
    starts = stops + 1 - sizes
    kept = np.zeros(len(points), np.bool_)
    kept[starts] = kept[stops] = True
    bounds = stops[:-1] + 1
    while len(starts):
        inner = stops - starts - 1
        starts, stops, inner = (values[inner > 0] for values in (starts, stops, inner))
        if not len(starts):
            break
        first = np.cumsum(inner) - inner
        index = np.arange(inner.sum()) + np.repeat(starts + 1 - first, inner)
        begin = points[starts]
        along = np.repeat(points[stops] - begin, inner, axis=0)
        offset = points[index] - np.repeat(begin, inner, axis=0)
        squared = (along**2).sum(axis=1)
        share = (along * offset).sum(axis=1) / np.where(squared > 0, squared, 1)
        away = offset - np.clip(share, 0, 1)[:, None] * along
        distance = np.hypot(away[:, 0], away[:, 1])
        furthest = np.maximum.reduceat(distance, first)
        at = np.where(distance == np.repeat(furthest, inner), index, len(points))
        at = np.minimum.reduceat(at, first)
        far = furthest > tolerance
        kept[at[far]] = True
        starts, stops = (
            np.concatenate([starts[far], at[far]]),
            np.concatenate([at[far], stops[far]]),
        )
    return [line[one] for line, one in zip(lines, np.split(kept, bounds), strict=True)]


def crop(mask: np.ndarray) -> Pixels:
    """The smallest bitmap with all pixels of a mask that has some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return Pixels(mask[top : rows[-1] + 1, left : columns[-1] + 1], left, top)


def components(mask: np.ndarray) -> Sequence[Pixels]:
    """The parts of a mask, also those that touch at a corner alone counting as one."""
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    found = []
    for label, (left, top, width, height, _) in enumerate(boxes[1:].tolist(), start=1):
        window = labels[top : top + height, left : left + width]
        found.append(Pixels(window == label, left, top))
    return found
