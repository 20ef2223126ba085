"""Random transformations: drawn once, applied to photo, mask and stacked channels alike."""

import dataclasses

import cv2
import numpy as np

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What may be drawn; the default changes nothing.

    Attributes:
        hflip: Probability of a mirror image.
        zoom: Range of the zoom factor along each axis, drawn independently; above 1
            enlarges.
        shift: Largest shift, as a share of the side, each axis.
        rotation: Largest rotation in degrees, either way.
        shear: Largest shear in radians, either way.
        channel_shift: Largest amount added to each colour channel, on the 0..255 scale.
    """

    hflip: float = 0.0
    zoom: Range = (1.0, 1.0)
    shift: float = 0.0
    rotation: float = 0.0
    shear: float = 0.0
    channel_shift: float = 0.0


PRESETS = {
    "none": Augmentation(),
    # The 4th-place team's; their channel shift of 0.1 is on the 0..255 scale too, so
    # that it practically does nothing.
    "001": Augmentation(hflip=0.5, zoom=(0.95, 1.05), channel_shift=0.1),
    "default": Augmentation(
        hflip=0.5, zoom=(0.9, 1.1), shift=0.04, rotation=3.0, channel_shift=12.0
    ),
}


@dataclasses.dataclass(frozen=True)
class Transform:
    """One drawn transformation.

    Attributes:
        matrix: `float64[3, 3]`, from output to source coordinates, both centred and
            in units of pixels.
        channel_shift: `float32[3]`, added to red, green and blue.
    """

    matrix: np.ndarray
    channel_shift: np.ndarray


def draw(augmentation: Augmentation, random: np.random.Generator, size: Range) -> Transform:
    """Draws a transformation for an image of `size` (height, width).

    The same number of values is taken from `random` whatever the settings, so that
    switching one off does not change the others.
    """
    flip = random.random() < augmentation.hflip
    zoom_y, zoom_x = random.uniform(*augmentation.zoom, 2)
    shift_y, shift_x = random.uniform(-1, 1, 2) * augmentation.shift * np.array(size)
    angle = np.deg2rad(random.uniform(-1, 1) * augmentation.rotation)
    shear = random.uniform(-1, 1) * augmentation.shear
    colours = random.uniform(-1, 1, 3) * augmentation.channel_shift
    scale = np.diag([(-1 if flip else 1) / zoom_x, 1 / zoom_y, 1])
    sine, cosine = np.sin(angle), np.cos(angle)
    rotate = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    slant = np.array([[1, np.tan(shear), 0], [0, 1, 0], [0, 0, 1]])
    move = np.array([[1, 0, shift_x], [0, 1, shift_y], [0, 0, 1]])
    return Transform(move @ rotate @ slant @ scale, colours.astype(np.float32))


def warp(
    image: np.ndarray, transform: Transform, top: float, left: float, height: int, width: int
) -> np.ndarray:
    """Cuts the window at (top, left) out of the transformed image, in one step.

    Only the window's pixels are computed; what lies outside the image is reflected.

    Args:
        image: `uint8[H, W]` or `uint8[H, W, C]`.
        transform: Acts about the image's centre.
        top: First row of the window, in pixels of the transformed image.
        left: Its first column.
        height: Rows of the window.
        width: Its columns.

    Returns:
        `uint8[height, width(, C)]`.
    """
    centre_y, centre_x = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    to_centre = np.array([[1, 0, left - centre_x], [0, 1, top - centre_y], [0, 0, 1]])
    from_centre = np.array([[1, 0, centre_x], [0, 1, centre_y], [0, 0, 1]])
    matrix = (from_centre @ transform.matrix @ to_centre)[:2]
    return cv2.warpAffine(
        image,
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def recolour(photo: np.ndarray, transform: Transform) -> np.ndarray:
    """Applies the colour part to `uint8[H, W, 3+]`; channels beyond three stay."""
    if not transform.channel_shift.any():
        return photo
    shifted = photo[..., :3] + transform.channel_shift
    result = photo.copy()
    result[..., :3] = np.clip(np.rint(shifted), 0, 255).astype(np.uint8)
    return result
