"""Whether a grey mask has two values and soft edges, or areas and borders of other values.

The figures below are measured by benchmarks/trimaps.py.
"""

from collections.abc import Iterator

import cv2
import numpy as np

from carvana_tf.data.threshold import DEFAULT_THRESHOLD

NEAR = 12
"""Values so near to black or white count as these."""

# How far an edge lets compression or resizing ring, in pixels.
_RINGING = 8
_MOST_FLAT = 0.35
# Black and white pixels; small masks of many cells are mostly edges.
_LEAST_SURE = 1 / 3
_LEAST_EXPLAINED = 0.75
# A band of grey differs by less within 3 x 3 pixels, and is more of the middle greys than this.
_BAND_VARIES = 16
_MOST_BAND = 0.1
# Fewer pixels than this share of all on edges prove nothing: strong compression makes some.
_LEAST_ODD = 0.01
# The border of a trimap: greys that differ by less are one; more of the greys between are of it
# than this, and more of all ways from object to background cross it, in rows and in columns.
# Resized masks may have up to 0.88 of one grey, but cross it in 0.61 of the ways at most; borders
# of JPEG quality 60 have 0.6 and are crossed in 0.65 or more.
_BORDER_VARIES = 20
_MOST_OF_ONE_GREY = 0.58
_MOST_CROSSED = 0.65
# Lossless borders have one grey on all sides; the sides of a resized rectangle have one each.
_SIDES_VARY = 4
# A border that was resized is a step of the edge: its greys change less than those before and
# after it, by so much at least. Compression makes such steps in 0.06 of the soft edges at most.
_STEP = 24
_MOST_STEPPED = 0.15
_LONGEST_EDGE = 14


def doubt(grey: np.ndarray, *, lossy: bool) -> str | None:
    """Why a mask may have more than two values with soft edges between them.

    Values between black and white must be few, lie on a slope from one to the other or near
    an edge, and form no areas or borders: those are labels.

    Args:
        grey: `uint8[H, W]`.
        lossy: Whether compression may have changed the values.

    Returns:
        What was found, which may be empty; None where the mask surely has two values.
    """
    counts = histogram(grey)
    dark, bright = counts[: NEAR + 1].sum(), counts[255 - NEAR :].sum()
    # One or two values between may as well be labels, such as the border of a trimap.
    few = not lossy and np.count_nonzero(counts[1:255]) < 3
    if few or not dark or not bright or dark + bright < grey.size * _LEAST_SURE:
        return ""
    margin = NEAR if lossy else 0
    between = (grey > margin) & (grey < 255 - margin)
    total = int(np.count_nonzero(between))
    if not total:
        return None
    border = _border(grey, counts, lossy=lossy)
    if border is not None:
        return f"with a border of about {border} around the object"
    low, high = _neighbours(grey, 1)
    flat = np.count_nonzero(between & (low == high)) / total
    even = high - low < _BAND_VARIES
    slope = (low < grey) & (grey < high)
    on_edges = (low <= DEFAULT_THRESHOLD) & (high > DEFAULT_THRESHOLD)
    negligible = _LEAST_ODD * np.count_nonzero(on_edges)
    low, high = _neighbours(grey, _RINGING)
    edge = (low < 64) & (high > 191)
    explained = np.count_nonzero(between & (slope | edge)) / total
    # Ringing of strong compression hardly reaches so far.
    middle = between & (grey >= 64) & (grey < 192)
    odd, most = np.count_nonzero(middle & ~slope), np.count_nonzero(middle)
    # An area of one grey stays a band of it, however compression blurs it.
    band = np.count_nonzero(middle & even)
    banded = band > max(_MOST_BAND * most, negligible)
    unexplained = explained < _LEAST_EXPLAINED or odd > max(most / 2, negligible)
    if flat > _MOST_FLAT or banded or unexplained:
        return ""
    if _stepped(grey) > _MOST_STEPPED:
        return "with steps between them around the object, as of a border that was resized"
    return None


def histogram(values: np.ndarray) -> np.ndarray:
    """How many of `uint8[H, W]` have each value: `float32[256]`."""
    return cv2.calcHist([values], [0], None, [256], [0, 256]).ravel()


def _border(grey: np.ndarray, counts: np.ndarray, *, lossy: bool) -> int | None:
    """The grey that most ways from the object to the background cross, or None.

    Soft edges have all greys between black and white. Those resized by a simple factor may have
    few, but stay sharp in places.
    """
    near = np.convolve(counts, np.ones(2 * _BORDER_VARIES + 1), "same")
    first, last = 32 + _BORDER_VARIES, 223 - _BORDER_VARIES
    level = first + int(near[first : last + 1].argmax())
    if near[level] <= _MOST_OF_ONE_GREY * counts[32:224].sum():
        return None
    sides: list[float] = []
    for image in (grey, cv2.transpose(grey)):
        steps = (image >= level - _BORDER_VARIES).astype(np.uint8)
        steps += image > level + _BORDER_VARIES
        padded = np.pad(steps, ((0, 0), (0, 1)), constant_values=7)
        direct, before, _ = _ways(padded)
        if len(before) <= _MOST_CROSSED * (len(before) + direct):
            return None
        row, column = np.divmod(before, padded.shape[1])
        greys, rising = image[row, column + 1], steps[row, column] == 0
        sides += [float(np.median(side)) for side in (greys[rising], greys[~rising]) if side.size]
    return level if lossy or max(sides) - min(sides) <= _SIDES_VARY else None


def _stepped(grey: np.ndarray) -> float:
    """The share of ways from black to white whose greys change less in the middle than around it.

    Blurring and resizing spread an edge by a kernel with one peak, so that its differences first
    grow and then shrink. Two edges that are near to each other have two peaks. Each way is looked
    at along rows or columns, whichever is nearer to the direction in which the greys change.
    """
    stepped = count = 0
    for image in (grey, cv2.transpose(grey)):
        padded = cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        classes = (padded > NEAR).astype(np.uint8)
        classes += padded >= 255 - NEAR
        classes[[0, -1]] = classes[:, [0, -1]] = 7
        direct, before, after = _ways(classes)
        flat, width = padded.ravel(), padded.shape[1]
        middle = (before + after) // 2
        steepest = _slope(flat, middle, 1, width) >= _slope(flat, middle, width, 1)
        before, length = before[steepest], (after - before)[steepest]
        count += direct + len(before)
        for values in _of_each_length(flat, before, length):
            stepped += int(np.count_nonzero(_dip(values) >= _STEP))
    return stepped / max(count, 1)


def _ways(classes: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Ways from 0 to 2 or back along rows of `uint8[H, W]`, whose last column is 7.

    Returns:
        How many have nothing between; for those by way of 1 the flat indices of the last pixel
        before and of the first one after it.
    """
    flat = classes.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] + 1))
    runs = flat[starts]
    direct = int(np.count_nonzero((runs[:-1] ^ runs[1:]) == 2))
    between = np.flatnonzero(((runs[:-2] ^ runs[2:]) == 2) & (runs[1:-1] == 1)) + 1
    return direct, starts[between] - 1, starts[between + 1]


def _slope(flat: np.ndarray, at: np.ndarray, along: int, across: int) -> np.ndarray:
    """How much greys change at flat indices in one direction (Sobel), without its sign."""
    total = np.zeros(at.shape, np.int32)
    for shift, weight in ((-across, 1), (0, 2), (across, 1)):
        ahead, behind = flat[at + shift + along], flat[at + shift - along]
        total += weight * (ahead.astype(np.int32) - behind)
    return np.abs(total)


def _of_each_length(
    flat: np.ndarray, before: np.ndarray, length: np.ndarray
) -> Iterator[np.ndarray]:
    """The greys of ways of equal length, ends included: `int32[N, length + 1]`."""
    for steps in range(3, _LONGEST_EDGE + 1):
        first = before[length == steps]
        yield flat[first[:, np.newaxis] + np.arange(steps + 1)].astype(np.int32)


def _dip(values: np.ndarray) -> np.ndarray:
    """By how much some difference of each row is less than one before and one after it."""
    differences = np.diff(values, axis=1) * np.sign(values[:, -1:] - values[:, :1])
    before = np.maximum.accumulate(differences, axis=1)[:, :-2]
    after = np.maximum.accumulate(differences[:, ::-1], axis=1)[:, ::-1][:, 2:]
    return (np.minimum(before, after) - differences[:, 1:-1]).max(axis=1)


def _neighbours(grey: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value in the square around each pixel."""
    square = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return cv2.erode(grey, square), cv2.dilate(grey, square)
