"""Random transformations: drawn once, applied to photo, mask and stacked channels alike.

All geometry is one affine warp, so that a sample is interpolated once. All colour is
arithmetic on uint8 by OpenCV, which releases the GIL: reader threads scale.
"""

import dataclasses

import cv2
import numpy as np

from carvana_tf.data.images import equalise
from carvana_tf.data.presets import Amount, Augmentation, Chance, limits
from carvana_tf.data.threshold import DEFAULT_THRESHOLD

# Shares of red, green and blue in a pixel's grey (ITU-R BT.601, as cv2.COLOR_RGB2GRAY).
_LUMA = np.array([0.299, 0.587, 0.114])

_BORDERS = {
    "reflect": cv2.BORDER_REFLECT_101,
    "constant": cv2.BORDER_CONSTANT,
    "edge": cv2.BORDER_REPLICATE,
}


@dataclasses.dataclass(frozen=True)
class Transform:
    """One drawn transformation; the default changes nothing.

    Attributes:
        matrix: `float64[3, 3]`, where a point (x, y, 1) of the source goes, both counted
            in pixels from the image's centre.
        border: What stands outside the source, as in `Augmentation`.
        brightness: Factor on all colours.
        contrast: Factor on the distance from the mean grey.
        saturation: Factor on the distance from each pixel's grey; 0 is a grey photo.
        hsv: Added to hue (units of two degrees), saturation and value.
        channel_shift: Added to red, green and blue.
        grey_car: Whether masked pixels turn grey.
        clahe: Whether the luma is equalised.
    """

    matrix: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(3))
    border: str = "reflect"
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hsv: tuple[float, ...] = (0.0, 0.0, 0.0)
    channel_shift: tuple[float, ...] = (0.0, 0.0, 0.0)
    grey_car: bool = False
    clahe: bool = False


def draw(
    augmentation: Augmentation, random: np.random.Generator, size: tuple[int, int]
) -> Transform:
    """Draws a transformation for an image of `size` (height, width).

    The same number of values is taken from `random` whatever the settings, so that
    switching one off does not change the others.
    """
    matrix = _draw_matrix(augmentation, random, size)
    brightness = _draw_amounts(augmentation.brightness, random)
    contrast = _draw_amounts(augmentation.contrast, random)
    saturation = _draw_amounts(augmentation.saturation, random)
    channel_shift = _draw_amounts(augmentation.channel_shift, random, 3)
    grey = random.random() < augmentation.grey
    clahe = random.random() < augmentation.clahe
    colour = random.random()
    grey_car = colour < augmentation.grey_car
    shifts_hsv = not grey_car and colour < augmentation.grey_car + augmentation.hsv
    amounts = (augmentation.hue, augmentation.hsv_saturation, augmentation.value)
    hsv = [_within(*pair) for pair in zip(amounts, random.uniform(-1, 1, 3), strict=True)]
    return Transform(
        matrix=matrix,
        border=augmentation.border,
        brightness=1 + brightness[0],
        contrast=1 + contrast[0],
        saturation=0.0 if grey else 1 + saturation[0],
        hsv=tuple(shift * shifts_hsv for shift in hsv),
        channel_shift=channel_shift,
        grey_car=grey_car,
        clahe=clahe,
    )


def join(photo: np.ndarray, plane: np.ndarray | None) -> np.ndarray:
    """A photo, its stacked channels and its plane as one `uint8[H, W, 3 + N (+ 1)]`.

    OpenCV warps four channels in a third of the time of three and one.

    Args:
        photo: `uint8[H, W, 3 + N]`.
        plane: `uint8[H, W]`, the last channel of the result; None without one.
    """
    if plane is None:
        return photo
    if photo.shape[2] > 3:
        return np.dstack([photo, plane])
    layers = cv2.cvtColor(photo, cv2.COLOR_RGB2RGBA)
    return cv2.insertChannel(plane, layers, 3)


def apply(
    layers: np.ndarray,
    transform: Transform,
    window: tuple[float, float, int, int],
    *,
    has_plane: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Transforms a photo with its stacked channels and its plane alike.

    Args:
        layers: `uint8[H, W, 3 + N (+ 1)]`, what `join` returned.
        transform: What `draw` returned.
        window: (top, left, height, width) of what is kept, see `warp`.
        has_plane: Whether the last channel is a plane.

    Returns:
        `uint8[height, width, 3 + N]` and the plane `uint8[height, width]`, or None.
    """
    layers = warp(layers, transform, *window)
    if not has_plane:
        return recolour(layers, None, transform), None
    plane = cv2.extractChannel(layers, layers.shape[2] - 1)
    if layers.shape[2] == 4:
        photo = cv2.cvtColor(layers, cv2.COLOR_RGBA2RGB)
    else:
        photo = np.ascontiguousarray(layers[..., :-1])
    return recolour(photo, plane, transform), plane


def warp(
    image: np.ndarray, transform: Transform, top: float, left: float, height: int, width: int
) -> np.ndarray:
    """Cuts the window at (top, left) out of the transformed image, in one step.

    Only the window's pixels are computed, by linear interpolation.

    Args:
        image: `uint8[H, W]` or `uint8[H, W, C]`.
        transform: Acts about the image's centre.
        top: First row of the window, in pixels of the transformed image.
        left: Its first column.
        height: Rows of the window.
        width: Its columns.

    Returns:
        `uint8[height, width(, C)]`; a view of `image` where nothing moves.
    """
    if image.ndim == 3 and image.shape[2] not in (3, 4):
        # OpenCV interpolates one, three and four channels exactly, any other number at
        # coordinates rounded to 1/32 pixel: stacked channels would not match the mask.
        parts = [warp(part, transform, top, left, height, width) for part in cv2.split(image)]
        return cv2.merge(parts)
    mirrored = _mirrored(image, transform.matrix, top, left, height, width)
    if mirrored is not None:
        return mirrored
    centre_y, centre_x = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    to_window = _translation(centre_x - left, centre_y - top)
    matrix = to_window @ transform.matrix @ _translation(-centre_x, -centre_y)
    return cv2.warpAffine(
        image,
        matrix[:2],
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=_BORDERS[transform.border],
    )


def recolour(photo: np.ndarray, mask: np.ndarray | None, transform: Transform) -> np.ndarray:
    """Applies the colour part of a transformation.

    Args:
        photo: `uint8[H, W, 3 + N]`; the N stacked channels stay as they are.
        mask: `uint8[H, W]`, 0..255; where it is above `DEFAULT_THRESHOLD` is the object;
            without one no object turns grey.
        transform: What was drawn.

    Returns:
        A new array, or `photo` itself where there is nothing to change.
    """
    colours = before = np.ascontiguousarray(photo[..., :3])
    if transform.clahe:
        colours = equalise(colours)
    if transform.brightness != 1:
        colours = cv2.LUT(colours, _table(np.arange(256) * transform.brightness))
    if transform.contrast != 1:
        mean = float(_LUMA @ cv2.mean(colours)[:3])
        colours = cv2.LUT(colours, _table(mean + (np.arange(256) - mean) * transform.contrast))
    if transform.saturation != 1:
        colours = _saturate(colours, transform.saturation)
    if any(transform.hsv):
        colours = _shift_hsv(colours, *transform.hsv)
    if any(transform.channel_shift):
        colours = _add(colours, np.rint(transform.channel_shift))
    if transform.grey_car and mask is not None:
        grey = _saturate(colours, 0.0)
        colours = cv2.copyTo(grey, (mask > DEFAULT_THRESHOLD).astype(np.uint8), colours.copy())
    if colours is before:
        return photo
    return colours if photo.shape[2] == 3 else np.dstack([colours, photo[..., 3:]])


def _draw_matrix(
    augmentation: Augmentation, random: np.random.Generator, size: tuple[int, int]
) -> np.ndarray:
    mirror_x = -1.0 if random.random() < augmentation.hflip else 1.0
    mirror_y = -1.0 if random.random() < augmentation.vflip else 1.0
    moves = random.random() < augmentation.geometry
    zoom = random.uniform(*augmentation.zoom)
    zoom_y = zoom * random.uniform(*augmentation.zoom_y)
    zoom_x = zoom * random.uniform(*augmentation.zoom_x)
    shift_y = _within(augmentation.shift_y, random.uniform(-1, 1)) * size[0]
    shift_x = _within(augmentation.shift_x, random.uniform(-1, 1)) * size[1]
    angle = np.deg2rad(_within(augmentation.rotation, random.uniform(-1, 1)))
    shear = _within(augmentation.shear, random.uniform(-1, 1))
    flip = np.diag([mirror_x, mirror_y, 1.0])
    if not moves:
        return flip
    sine, cosine = np.sin(angle), np.cos(angle)
    rotate = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    slant = np.array([[1, np.tan(shear), 0], [0, 1, 0], [0, 0, 1]])
    enlarge = np.diag([zoom_x, zoom_y, 1.0])
    return _translation(shift_x, shift_y) @ rotate @ slant @ enlarge @ flip


def _draw_amounts(chance: Chance, random: np.random.Generator, count: int = 1) -> tuple[float, ...]:
    happens = random.random() < chance.probability
    drawn = random.uniform(-1, 1, count)
    return tuple(_within(chance.limit, unit) * happens for unit in drawn)


def _within(amount: Amount, unit: float) -> float:
    """The value of an amount's range that `unit`, in -1..1, stands for."""
    low, high = limits(amount)
    return float((low + high) / 2 + unit * (high - low) / 2)


def _translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _table(levels: np.ndarray) -> np.ndarray:
    """The `uint8[256, 1, (C)]` look-up table of new levels, rounded and clipped."""
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)[:, None]


def _mirrored(
    image: np.ndarray, matrix: np.ndarray, top: float, left: float, height: int, width: int
) -> np.ndarray | None:
    """What `warp` returns where it has nothing to interpolate, else None.

    That is a window of whole pixels in an image that was flipped at most.
    """
    flips = np.diag(matrix)
    rows, columns = image.shape[:2]
    inside = 0 <= top <= rows - height and 0 <= left <= columns - width
    whole = float(top).is_integer() and float(left).is_integer()
    if not (inside and whole and (np.abs(flips) == 1).all() and (matrix == np.diag(flips)).all()):
        return None
    mirror_x, mirror_y = flips[0] < 0, flips[1] < 0
    top = int(rows - height - top if mirror_y else top)
    left = int(columns - width - left if mirror_x else left)
    window = image[top : top + height, left : left + width]
    if not (mirror_x or mirror_y):
        return window
    return cv2.flip(window, -1 if mirror_x and mirror_y else int(mirror_x))


def _add(photo: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Adds whole numbers to the channels and clips; four times faster than a table of each."""
    more, less = (np.append(np.maximum(n, 0), 0.0) for n in (amounts, -amounts))
    photo = cv2.add(photo, more) if more.any() else photo
    return cv2.subtract(photo, less) if less.any() else photo


def _saturate(photo: np.ndarray, factor: float) -> np.ndarray:
    return cv2.transform(photo, factor * np.eye(3) + (1 - factor) * _LUMA)


def _shift_hsv(photo: np.ndarray, hue: float, saturation: float, value: float) -> np.ndarray:
    levels = np.arange(256)
    shifts = (np.rint(levels + hue) % 180, levels + saturation, levels + value)
    hsv = cv2.cvtColor(photo, cv2.COLOR_RGB2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, _table(np.stack(shifts, -1))), cv2.COLOR_HSV2RGB)
