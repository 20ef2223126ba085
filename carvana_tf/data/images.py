"""Photos, masks and probabilities from image files and to them, and the only resize.

Photos are `uint8[H, W, 3]` RGB, masks `bool[H, W]`, probabilities `uint8[H, W]` that hold
`round(255 * p)`. `decoding` decodes, `mask_values` says what a mask means.
"""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

from carvana_tf.data import mask_values
from carvana_tf.data.decoding import (
    Picture,
    UnreadableImage,
    decode,
    decode_bytes,
    read_header,
)
from carvana_tf.data.mask_values import FLOAT_OVERSHOOT, Mask, MaskValues
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError
from carvana_tf.failures import named
from carvana_tf.files import write_bytes

_LEAST_DEPTH = 16  # no camera's values end below it
_CHANNELS_AT_ONCE = 4  # more of them OpenCV does not resize by area


@dataclasses.dataclass(frozen=True)
class Reading:
    """How files are understood that do not say by themselves what they mean.

    Attributes:
        mask_values: Which values of a mask are the object (--mask_values).
        photo_depth: Bits in use of photos deeper than 8 bits: their values go from 0 to
            `2 ** photo_depth - 1`; 0 takes what the file declares (--photo_depth).
    """

    mask_values: MaskValues = mask_values.AUTOMATIC
    photo_depth: int = 0


AS_DECLARED = Reading()


class AmbiguousMask(UnreadableImage):
    """A mask that may mean several things; the message names the flag that settles it."""


class AmbiguousDepth(UnreadableImage):
    """A photo whose scale is not known.

    Attributes:
        most: Its greatest value.
    """

    def __init__(self, message: str, most: float) -> None:
        super().__init__(message)
        self.most = most


def read_photo(path: Path, reading: Reading = AS_DECLARED) -> np.ndarray:
    """Decodes a photo.

    Args:
        path: JPEG, PNG, BMP, TIFF or WebP of any depth; an alpha channel is dropped, grey
            becomes three equal channels, an orientation is applied.
        reading: The dataset's.

    Returns:
        `uint8[H, W, 3]` RGB.

    Raises:
        UnreadableImage: Missing, damaged or no image.
        AmbiguousDepth: The file does not say how many of its bits are in use.
    """
    with named("reading", path):
        return _to_photo(path, decode(path), reading)


def decode_photo(source: str, data: bytes, reading: Reading = AS_DECLARED) -> np.ndarray:
    """As `read_photo`, of the content of a file.

    Args:
        source: What messages call it.
        data: Its bytes.
        reading: The dataset's.
    """
    with named("reading", source):
        return _to_photo(source, decode_bytes(source, data), reading)


def read_grey(path: Path) -> np.ndarray:
    """Reads `uint8[H, W]`: a probability PNG or a stacked channel.

    Raises:
        UnreadableImage: Missing, damaged or no image, or anything but 8-bit grey: a label
            image or a mask would be taken for probabilities.
    """
    with named("reading", path):
        picture = decode(path)
    if (
        picture.palette is not None
        or picture.alpha is not None
        or picture.values.dtype != np.uint8
        or picture.values.ndim != 2
        or picture.bits != 8
    ):
        raise UnreadableImage(
            f"'{path}' is {describe(picture)}, expected 8-bit grey (round(255 * probability)); "
            "predict it with predict_multithreaded.py, or save it so."
        )
    return picture.values


def describe(picture: Picture) -> str:
    """What a file holds, in a few words for a message."""
    if picture.palette is not None:
        return "a palette image"
    kind = "colour" if picture.values.ndim == 3 else "grey"
    alpha = " with alpha" if picture.alpha is not None else ""
    number = "-bit floating-point" if picture.values.dtype.kind == "f" else "-bit"
    bits = picture.values.dtype.itemsize * 8 if number != "-bit" else picture.bits
    return f"{bits}{number} {kind}{alpha}"


def read_size(path: Path) -> tuple[int, int]:
    """The (height, width) of an image file from its header alone, orientation applied.

    Raises:
        UnreadableImage: Missing, empty or no image.
    """
    return read_header(path).size


def read_mask(path: Path, reading: Reading = AS_DECLARED) -> np.ndarray:
    """The `bool[H, W]` pixels of a mask file; see `decode_mask`."""
    return decode_mask(path, reading).pixels


def decode_mask(path: Path, reading: Reading = AS_DECLARED) -> Mask:
    """Decodes a hand-made mask, however its tool chose to write two values.

    Raises:
        UnreadableImage: Missing, damaged or no image.
        AmbiguousMask: It may mean several things, see `mask_values`.
    """
    with named("reading", path):
        picture = decode(path)
        try:
            return mask_values.interpret(picture, reading.mask_values)
        except mask_values.Ambiguous as error:
            rule = reading.mask_values
            auto = rule.kind == mask_values.AUTO
            fix = "name the object with" if auto else f"'{rule.text}' does not suit it, see"
            raise AmbiguousMask(
                f"'{path}' is no clear mask: it has {error}; {fix} --mask_values "
                f"({mask_values.FORMS})."
            ) from error


def _to_photo(path: Path | str, picture: Picture, reading: Reading) -> np.ndarray:
    values = picture.values
    if picture.palette is not None:
        values = picture.palette[:, :3][values]
    elif values.dtype != np.uint8 or picture.bits != 8:
        values = _to_eight_bits(path, picture, reading.photo_depth)
    return values if values.ndim == 3 else cv2.cvtColor(values, cv2.COLOR_GRAY2RGB)


def _to_eight_bits(path: Path | str, picture: Picture, depth: int) -> np.ndarray:
    """Scales by the depth in use, which must be the same for every photo of a dataset.

    So it is never taken from the greatest value, unless that needs the topmost bit.
    """
    values, bits = picture.values, picture.bits
    if bits < 8:
        return values * np.uint8(255 // (2**bits - 1))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UnreadableImage(f"'{path}' has values that are not numbers; replace it.")
    floating = values.dtype.kind == "f"
    overshoot = FLOAT_OVERSHOOT if floating else 0
    if values.min() < -overshoot:
        raise UnreadableImage(f"'{path}' has negative values; save it as 8 or 16 bits without.")
    missing = picture.nodata is not None and picture.nodata != 0
    if missing and (absent := values == picture.nodata).any():
        values = np.where(absent, values.dtype.type(0), values)
    most = values.max()
    depth = depth or _depth_in_use(picture, most)
    if not depth and floating and most < _LEAST_DEPTH:
        raise UnreadableImage(
            f"'{path}' has floating-point values up to {most:g}; save it with values in 0..1."
        )
    if not depth or most > (2.0**depth - 1) * (1 + overshoot):
        found = f"values up to {most:g} in a {describe(picture)} file"
        if depth:
            known = f"but --photo_depth={depth} ends at {2**depth - 1}; give the camera's own"
        else:
            known = f"so the bits in use are not known; say which with {guess_depth(most)}"
        raise AmbiguousDepth(f"'{path}' has {found}, {known}.", float(most))
    if floating:
        return np.rint(np.clip(values * (255 / (2.0**depth - 1)), 0, 255)).astype(np.uint8)
    shifted = values >> (depth - 8) if depth >= 8 else values * (255 // (2**depth - 1))
    return shifted.astype(np.uint8)


def guess_depth(most: float) -> str:
    """The flag that may suit photos with values up to `most`, and what it rests on.

    Cameras and microscopes have 10, 12, 14 or 16 bits; the photos show only how many are needed.
    """
    needed = int(most).bit_length()
    depth = next((n for n in (8, 10, 12, 14, 16) if n >= needed), needed)
    return (
        f"--photo_depth={depth}, a guess: values up to {most:g} need {needed} bits, and the "
        "camera may have more"
    )


def _depth_in_use(picture: Picture, most: float) -> int:
    """The bits in use as far as the file shows them, else 0."""
    values, bits = picture.values, picture.bits
    if values.dtype.kind == "f":
        return 1 if most <= 1 + FLOAT_OVERSHOOT else 0
    if values.dtype.kind == "i":
        bits -= 1
    if most == 0 or most >= 2 ** (bits - 1) or bits in (9, 10, 12, 14):
        return bits
    range_bits = picture.range_bits or 0
    if range_bits >= 8 and most < 2**range_bits:
        return range_bits
    declared = picture.significant
    if declared is not None and declared >= 8 and most < 2**declared:
        # By the PNG standard significant bits are the upper ones: then these are all zero.
        upper = not (values & ((1 << bits - declared) - 1)).any()
        return 0 if upper else declared
    return 0


def encode_probability(values: np.ndarray) -> bytes:
    """The bytes of `uint8[H, W]` values as a grey PNG.

    The UP filter is the fastest and smallest for smooth maps; naming a compression
    level instead would make OpenCV try every filter.
    """
    return _encode_png(values, cv2.IMWRITE_PNG_FILTER_UP)


def write_probability(path: Path, values: np.ndarray) -> None:
    """Writes `uint8[H, W]` values as a grey PNG, whole or not at all."""
    with named("writing", path):
        write_bytes(path, encode_probability(values))


def encode_mask(mask: np.ndarray) -> bytes:
    """The bytes of `bool[H, W]` as a 0/255 grey PNG."""
    return _encode_png(mask.view(np.uint8) * np.uint8(255), cv2.IMWRITE_PNG_FILTER_NONE)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Writes `bool[H, W]` as a 0/255 grey PNG, whole or not at all."""
    with named("writing", path):
        write_bytes(path, encode_mask(mask))


def encode_gif_mask(mask: np.ndarray) -> bytes:
    """The bytes of `bool[H, W]` as a GIF of the palette black, white.

    Pixels hold 0 and 1, as in the hand-made masks of the Carvana competition.
    """
    image = PIL.Image.frombytes("P", mask.shape[::-1], mask.astype(np.uint8).tobytes())
    image.putpalette(bytes((0, 0, 0, 255, 255, 255)))
    data = io.BytesIO()
    # Optimising would reorder the palette of a mask of one value.
    image.save(data, "GIF", optimize=False)
    return data.getvalue()


def write_gif_mask(path: Path, mask: np.ndarray) -> None:
    """Writes `encode_gif_mask`, whole or not at all."""
    with named("writing", path):
        write_bytes(path, encode_gif_mask(mask))


def write_photo(path: Path, photo: np.ndarray, quality: int = 95) -> None:
    """Writes `uint8[H, W, 3]` RGB as JPEG or PNG (by suffix), whole or not at all."""
    with named("writing", path):
        write_bytes(path, encode_photo(photo, Path(path).suffix, quality))


def encode_palette(indices: np.ndarray, colours: Sequence[tuple[int, ...]]) -> bytes:
    """The bytes of `uint8[H, W]` indices of at most 16 colours as a PNG with that palette.

    Args:
        indices: Each less than the number of colours.
        colours: RGB, or RGBA for all of them.
    """
    image = PIL.Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette([value for colour in colours for value in colour[:3]])
    alpha = {"transparency": bytes(colour[3] for colour in colours)} if len(colours[0]) > 3 else {}
    data = io.BytesIO()
    bits = next(bits for bits in (1, 2, 4) if len(colours) <= 2**bits)
    image.save(data, "PNG", bits=bits, **alpha)
    return data.getvalue()


def encode_photo(photo: np.ndarray, suffix: str, quality: int = 95) -> bytes:
    """The bytes of `uint8[H, W, 3]` RGB as a ".jpg" or ".png" file."""
    suffix = suffix.lower()
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix in (".jpg", ".jpeg") else []
    if not cv2.haveImageWriter(f"photo{suffix}"):
        raise UserError(f"cannot encode a photo as '{suffix}'; use .jpg or .png.")
    _, data = cv2.imencode(suffix, cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), flags)
    return data.tobytes()


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes `bool[H, W]`: a pixel is object where more than half of its area is.

    Its edges lie where those of a photo of `resize` do. OpenCV's nearest pixel is another: it
    moves edges by up to half a pixel of the result and loses thin parts.
    """
    return resize(mask.view(np.uint8) * np.uint8(255), height, width) > DEFAULT_THRESHOLD


def equalise(photo: np.ndarray) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of the luma: clip limit 2, 8 x 8 tiles.

    Args:
        photo: `uint8[H, W, 3 + N]`; the N further channels stay as they are.

    Returns:
        A new array of the same shape.
    """
    colours = cv2.cvtColor(np.ascontiguousarray(photo[..., :3]), cv2.COLOR_RGB2YCrCb)
    luma, *chroma = cv2.split(colours)
    # A new one each time: one object must not serve two threads.
    luma = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(luma)
    colours = cv2.cvtColor(cv2.merge([luma, *chroma]), cv2.COLOR_YCrCb2RGB)
    return colours if photo.shape[2] == 3 else np.dstack([colours, photo[..., 3:]])


def to_uint8(probabilities: np.ndarray) -> np.ndarray:
    """`round(255 * p)`, halves to even, as uint8 of probabilities in 0..1, `[N, ...]`."""
    # One pass that rounds as np.rint does, without arrays in between.
    rows = probabilities.reshape(len(probabilities), -1)
    return cv2.convertScaleAbs(rows, alpha=255).reshape(probabilities.shape)


def resize(image: np.ndarray, height: int, width: int, *, area: bool = True) -> np.ndarray:
    """Resizes `[H, W]` or `[H, W, C]` of uint8 or float32, the same way everywhere.

    Pixel areas are averaged where the image shrinks (no aliasing) and interpolated
    linearly where it grows; without `area` the latter always, as published preparations do.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if shrinks and area else cv2.INTER_LINEAR
    if image.ndim == 3 and image.shape[2] > _CHANNELS_AT_ONCE:
        slices = range(0, image.shape[2], _CHANNELS_AT_ONCE)
        parts = [image[..., i : i + _CHANNELS_AT_ONCE] for i in slices]
        return np.concatenate([resize(part, height, width) for part in parts], axis=-1)
    resized = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method)
    return resized.reshape(height, width, *image.shape[2:])  # OpenCV drops a single channel


def _encode_png(values: np.ndarray, png_filter: int) -> bytes:
    ok, data = cv2.imencode(".png", values, [cv2.IMWRITE_PNG_FILTER, png_filter])
    if not ok:
        raise UserError(f"cannot encode an array of shape {values.shape} as PNG.")
    return data.tobytes()
