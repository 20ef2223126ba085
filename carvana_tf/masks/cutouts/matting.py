"""From a mask to the opacity of each pixel, and to colours without the background's share.

A pixel of the edge shows `I = alpha F + (1 - alpha) B`: foreground and background mixed. A mask
says neither alpha nor F: its probabilities are soft over several pixels of the photo because the
network saw it smaller, and its edge is where the network believes it.

Everything is computed at the scale of the mask's own softness, so that it costs little on large
photos. Arrays of colours are `float32[h, w, 3]` in 0..1, opacities `float32[h, w]` in 0..1.
"""

import dataclasses
import math

import cv2
import numpy as np

from carvana_tf.data.threshold import DEFAULT_THRESHOLD

VEIL = 0.02
"""Opacities below it become 0, and those above 1 - VEIL become 1."""

# In pixels of the working scale, at which a mask's edge is about `_SOFT` wide. Chosen on rendered
# cars, see benchmarks/cutouts.csv.
_SOFT = 5.0
_REACH = 6  # radius within which colours are compared
_CORE = 2.0  # farther from the mask's edge a pixel is surely one of the two
_FAR = 1000.0  # pixels, farther than any edge
_TRUST = 0.75  # so far from its edge the mask's word is e times as good
_COLOUR_TRUST = 0.3  # neighbouring pixels are no independent witnesses
_MOST = 3.0  # log odds that colours may amount to
_LEAST_DEVIATION = 0.02  # of colours
_GUIDE = 2  # radius of the guided filter
_GUIDE_VARIANCE = 1e-4
_LEVELS = (0.15, 0.85)  # of the filter's result, become 0 and 1
_WIDE, _NARROW = 22, 2  # radii of the two passes of blur fusion
_LARGEST_SCALE = 16

_HARD = 2.5
"""A mask whose edge is not wider, in pixels, is as fine as the photo."""
_SLOPE = 3.0  # pixels over which the opacity of such a mask goes from 0 to 1


@dataclasses.dataclass(frozen=True)
class Matte:
    """The object of a part of a photo.

    Attributes:
        area: The rows and columns of the part; all else is background.
        alpha: `float32[h, w]`, the opacity in 0..1.
        colours: `uint8[h, w, 3]`, the object's own; those of the photo where alpha is 0 or 1.
    """

    area: tuple[slice, slice]
    alpha: np.ndarray
    colours: np.ndarray


def matte(photo: np.ndarray, grey: np.ndarray, *, follow_photo: bool = True) -> Matte | None:
    """Cuts the object out of a photo.

    Args:
        photo: `uint8[H, W, 3]` RGB.
        grey: `uint8[H, W]`, `round(255 p)`; the object is where it is above 127.
        follow_photo: Whether the edge may move to where the photo has one, by a few pixels of the
            mask's own size.

    Returns:
        The object, or None where there is none.
    """
    width = edge_width(grey)
    scale = min(max(round(width / _SOFT), 2), _LARGEST_SCALE)
    area = _surroundings(grey, scale * (_REACH + _WIDE))
    if area is None:
        return None
    photo, grey = np.ascontiguousarray(photo[area]), np.ascontiguousarray(grey[area])
    small = _shrunk(photo, scale).astype(np.float32) / np.float32(255)
    follows = follow_photo and width > _HARD
    alpha = _aligned(photo, small, grey) if follows else sharpened(grey)
    alpha[alpha < VEIL] = 0
    alpha[alpha > 1 - VEIL] = 1
    return Matte(area, alpha, unmixed(photo, small, alpha))


def centred(grey: np.ndarray, threshold: int) -> np.ndarray:
    """A mask that was decided at a threshold as one that is decided at 127.

    Args:
        grey: `uint8[H, W]`; the object is where it is above `threshold`.
        threshold: 0 to 254.
    """
    below, above = np.arange(threshold + 1), np.arange(threshold + 1, 256)
    lower = below * DEFAULT_THRESHOLD // max(threshold, 1)
    upper = 255 - (255 - above) * (254 - DEFAULT_THRESHOLD) // max(254 - threshold, 1)
    return cv2.LUT(grey, np.concatenate([lower, upper]).astype(np.uint8))


def edge_width(grey: np.ndarray) -> float:
    """Pixels over which a mask goes from 10 % to 90 %: the median over its edge; 1 without one."""
    near = np.flatnonzero(cv2.inRange(grey, 78, 178))
    if len(near) < 2:
        return 1.0
    values = np.zeros(0, np.float32)
    # Derivatives of the whole mask would take longer than all else; a few thousand places do.
    rows, columns = np.divmod(near[:: max(1, len(near) // 4096)], grey.shape[1])
    high, wide = grey.shape
    down = grey[np.minimum(rows + 1, high - 1), columns].astype(np.float32)
    down -= grey[np.maximum(rows - 1, 0), columns]
    right = grey[rows, np.minimum(columns + 1, wide - 1)].astype(np.float32)
    right -= grey[rows, np.maximum(columns - 1, 0)]
    values = np.hypot(down, right) / 2
    return float(0.8 * 255 / max(np.median(values), 1.0))


def sharpened(grey: np.ndarray) -> np.ndarray:
    """Opacity by the distance to the line where a mask is 0.5, whatever its softness.

    The distance is that of the mask's linear approximation, `(p - 0.5) / |grad p|`.
    """
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 1.0)
    right = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8)
    down = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
    slope = np.maximum(cv2.magnitude(right, down), 1.0)
    return np.clip(0.5 + (smooth - (DEFAULT_THRESHOLD + 0.5)) / (slope * _SLOPE), 0, 1)


def unmixed(photo: np.ndarray, small: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The object's own colours in the pixels that show the background, too.

    Blur fusion, twice, as in Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021:
    smooth foreground and background are means weighted by opacity, and what the photo differs
    from their mixture goes to the foreground. The means are computed at the smaller scale.

    Args:
        photo: `uint8[h, w, 3]`.
        small: The same at a smaller scale.
        alpha: Of each pixel.
    """
    size = alpha.shape[::-1]
    at = np.flatnonzero((alpha > 0) & (alpha < 1))
    result = photo.copy()
    if not len(at):
        return result
    opacity = cv2.resize(alpha, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    front, back = _means(small, small, opacity, _WIDE)
    front, back = _means(_fused(small, front, back, opacity), back, opacity, _NARROW)
    front, back = (cv2.resize(mean, size).reshape(-1, 3)[at] for mean in (front, back))
    seen = photo.reshape(-1, 3)[at].astype(np.float32) / np.float32(255)
    own = _fused(seen, front, back, alpha.ravel()[at])
    result.reshape(-1, 3)[at] = np.rint(own * np.float32(255))
    return result


def _means(
    front: np.ndarray, back: np.ndarray, alpha: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    weight = alpha[..., None]
    total = _box(alpha, radius)[..., None]
    fronts = _box(front * weight, radius) / (total + np.float32(1e-5))
    backs = _box(back * (1 - weight), radius) / (1 - total + np.float32(1e-5))
    return fronts, backs


def _fused(seen: np.ndarray, front: np.ndarray, back: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None]
    return np.clip(front + share * (seen - share * front - (1 - share) * back), 0, 1)


def _aligned(photo: np.ndarray, small: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Opacity whose edge follows the photo's.

    Near the mask's edge the log odds of a pixel are those of the mask plus those of its colour
    under two normal distributions, of the colours nearby that are surely object and surely
    background. A guided filter (He, Sun, Tang, "Guided Image Filtering", PAMI 2013; its fast form,
    arXiv 1505.00996) then makes the opacity of these a local linear function of the photo.
    """
    mask = cv2.resize(grey, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    inside = (mask > DEFAULT_THRESHOLD).view(np.uint8)
    distances = (cv2.distanceTransform(side, cv2.DIST_L2, 3) for side in (inside, 1 - inside))
    # Where one of the two has no pixel, the distance to it is the greatest float.
    depth = np.clip(np.subtract(*distances), -_FAR, _FAR)
    odds = depth / np.float32(_TRUST) + _colour_odds(small, depth)
    rough = 1 / (1 + np.exp(-np.clip(odds, -20, 20)))
    slope, offset = _guided(small, rough)
    # Elsewhere the opacity is 0 or 1 by far.
    near = cv2.dilate(cv2.inRange(rough, 0.02, 0.98), np.ones((4 * _GUIDE + 1,) * 2, np.uint8))
    size = grey.shape[::-1]
    at = np.flatnonzero(cv2.resize(near, size, interpolation=cv2.INTER_NEAREST))
    alpha = cv2.resize((rough > 0.5).astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    line = cv2.resize(cv2.merge([*cv2.split(slope), offset]), size).reshape(-1, 4)[at]
    seen = photo.reshape(-1, 3)[at].astype(np.float32) / np.float32(255)
    linear = np.einsum("nc,nc->n", seen, line[:, :3]) + line[:, 3]
    low, high = _LEVELS
    alpha.ravel()[at] = np.clip((linear - low) / (high - low), 0, 1)
    return alpha


def _colour_odds(small: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Log odds that a pixel's colour is the object's, 0 where one of the two is not near."""
    squares = small * small

    def surprise(sure: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight = sure.astype(np.float32)
        count = _box(weight, _REACH)
        share = 1 / (count + np.float32(1e-4))[..., None]
        mean = _box(small * weight[..., None], _REACH) * share
        variance = _box(squares * weight[..., None], _REACH) * share - mean * mean
        variance = np.maximum(variance, 0) + np.float32(_LEAST_DEVIATION**2)
        distance = (small - mean) ** 2 / variance + np.log(variance)
        return distance.sum(2), count

    front, fronts = surprise(depth > _CORE)
    back, backs = surprise(depth < -_CORE)
    known = np.minimum(1, np.minimum(fronts, backs) * np.float32(50))
    return np.clip(np.float32(_COLOUR_TRUST / 2) * (back - front), -_MOST, _MOST) * known


def _guided(guide: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slopes `[h, w, 3]` and offsets `[h, w]` of a colour guided filter's result."""
    mean = _box(guide, _GUIDE)
    value = _box(values, _GUIDE)
    shared = _box(guide * values[..., None], _GUIDE) - mean * value[..., None]
    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    # Two at once: OpenCV filters few channels fast.
    product = np.stack([guide[..., i] * guide[..., j] for i, j in pairs], -1)
    product = np.concatenate([_box(product[..., :3], _GUIDE), _box(product[..., 3:], _GUIDE)], -1)
    rr, rg, rb, gg, gb, bb = (
        product[..., n] - mean[..., i] * mean[..., j] for n, (i, j) in enumerate(pairs)
    )
    rr, gg, bb = (v + np.float32(_GUIDE_VARIANCE) for v in (rr, gg, bb))
    # The inverse of a symmetric matrix by its adjugate.
    a, b, c = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    d, e, f = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    red, green, blue = cv2.split(shared)
    slope = np.stack(
        [
            a * red + b * green + c * blue,
            b * red + d * green + e * blue,
            c * red + e * green + f * blue,
        ],
        -1,
    )
    slope /= (a * rr + b * rg + c * rb)[..., None]
    offset = value - np.einsum("hwc,hwc->hw", slope, mean)
    return _box(slope, _GUIDE), _box(offset, _GUIDE)


def _surroundings(grey: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """The rows and columns of the object and of a margin around it, as far as the photo goes."""
    left, top, width, height = cv2.boundingRect((grey > DEFAULT_THRESHOLD).view(np.uint8))
    if not width:
        return None
    rows = slice(max(top - margin, 0), min(top + height + margin, grey.shape[0]))
    return rows, slice(max(left - margin, 0), min(left + width + margin, grey.shape[1]))


def _shrunk(image: np.ndarray, scale: int) -> np.ndarray:
    height, width = (math.ceil(side / scale) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _box(values: np.ndarray, radius: int) -> np.ndarray:
    """Means over squares of `2 radius + 1` pixels; the border is mirrored."""
    return cv2.blur(values, (2 * radius + 1,) * 2, borderType=cv2.BORDER_REFLECT)
