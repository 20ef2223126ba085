"""The only place that decodes or encodes an image file, and the only resize.

Photos are `uint8[H, W, 3]` RGB, masks `bool[H, W]`, probabilities `uint8[H, W]` that
hold `round(255 * p)`. OpenCV decodes JPEG bit for bit as libjpeg's accurate transform
does, in training and in prediction alike; its functions release the GIL, so threads
scale.
"""

import dataclasses
import io
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps

from carvana_tf.errors import UserError
from carvana_tf.files import write_bytes

_CHANNELS_AT_ONCE = 4  # more of them OpenCV does not resize by area

# Threads are ours (readers, writers); OpenCV's own pool on top of them only fights them.
cv2.setNumThreads(0)
# What is wrong with a file is told by our own exceptions, once.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# What Pillow raises for a bad file; a header of absurd size is the first of them.
_PILLOW_ERRORS = (PIL.Image.DecompressionBombError, OSError, SyntaxError, ValueError)


class UnreadableImage(UserError):
    """A file that is not a whole image; the message names it and the fix."""


@dataclasses.dataclass(frozen=True)
class Mask:
    """A decoded mask.

    Attributes:
        pixels: `bool[H, W]`, True on the object.
        kind: How the file says so: "0/255", "0/1", "two values", "empty", "full",
            "alpha" (the alpha channel of an RGBA file) or "soft" (more than two grey
            values, cut in the middle of the 0..255 range).
    """

    pixels: np.ndarray
    kind: str


def read_photo(path: Path) -> np.ndarray:
    """Decodes a photo.

    Args:
        path: JPEG, PNG, BMP, TIFF or WebP of any depth; an alpha channel is dropped,
            grey becomes three equal channels, an EXIF orientation is applied.

    Returns:
        `uint8[H, W, 3]` RGB.

    Raises:
        UnreadableImage: Missing, empty, truncated or no image.
    """
    return _decode(path, cv2.IMREAD_COLOR_RGB)


def read_grey(path: Path) -> np.ndarray:
    """Decodes an image as `uint8[H, W]`: a probability PNG or a stacked channel.

    Raises:
        UnreadableImage: Missing, empty, truncated or no image.
    """
    return _decode(path, cv2.IMREAD_GRAYSCALE)


def read_size(path: Path) -> tuple[int, int]:
    """The (height, width) of an image file from its header alone, orientation applied.

    Raises:
        UnreadableImage: Missing, empty or no image.
    """
    try:
        with PIL.Image.open(path) as image:
            width, height = image.size
            # Pillow turns the size of a TIFF by itself.
            turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) >= 5
    except _PILLOW_ERRORS as error:
        raise _unreadable(path, error) from error
    return (width, height) if turned else (height, width)


def read_mask(path: Path) -> np.ndarray:
    """The `bool[H, W]` pixels of a mask file; see `decode_mask` for what is understood.

    Raises:
        UnreadableImage: Missing, empty, truncated or no image.
    """
    return decode_mask(path).pixels


def decode_mask(path: Path) -> Mask:
    """Decodes a hand-made mask, however its tool chose to write two values.

    Understood: GIF and PNG with a palette, grey 0/1 and 0/255, colour (any non-black
    colour of two is object), RGBA whose alpha channel varies (a cut-out: alpha is the
    mask), and soft grey (JPEG masks, anti-aliased edges), cut at 127.5.

    Raises:
        UnreadableImage: Missing, empty, truncated or no image.
    """
    # Pillow decodes palettes as they are and GIF three times faster than OpenCV.
    try:
        with PIL.Image.open(io.BytesIO(_read_bytes(path))) as image:
            # As OpenCV does with the photo; nothing is copied where there is nothing to turn.
            PIL.ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "P" and "transparency" not in image.info:
                table = np.frombuffer(bytes(image.getpalette("RGB") or b""), np.uint8)
                grey = np.zeros(256, np.uint8)
                levels = table.reshape(-1, 3).max(1)
                grey[: len(levels)] = levels
                return _two_valued(cv2.LUT(np.asarray(image), grey))
            if image.mode in ("P", "PA", "LA", "RGBA"):
                rgba = np.asarray(image.convert("RGBA"))
                alpha = rgba[..., 3]
                if alpha.min() != alpha.max():
                    return Mask(_two_valued(alpha).pixels, "alpha")
                return _two_valued(rgba[..., :3].max(-1))
            if image.mode.startswith(("I", "F")):
                wide = np.asarray(image).astype(np.float64)
                top = wide.max()
                if wide.min() == 0 and top > 255 and np.isin(wide, (0, top)).all():
                    return Mask(wide > 0, "0/255" if top == 65535 else "two values")
                scale = 1.0 if top <= 255 else 255.0 / 65535.0
                return _two_valued(np.rint(wide * scale).astype(np.uint8))
            if image.mode in ("1", "L"):
                return _two_valued(np.asarray(image.convert("L")))
            return _two_valued(np.asarray(image.convert("RGB")).max(-1))
    except UserError:
        raise
    except _PILLOW_ERRORS as error:
        raise _unreadable(path, error) from error


def encode_probability(values: np.ndarray) -> bytes:
    """The bytes of `uint8[H, W]` values as a grey PNG.

    The UP filter is the fastest and smallest for smooth maps; naming a compression
    level instead would make OpenCV try every filter.
    """
    return _encode_png(values, cv2.IMWRITE_PNG_FILTER_UP)


def write_probability(path: Path, values: np.ndarray) -> None:
    """Writes `uint8[H, W]` values as a grey PNG, whole or not at all."""
    write_bytes(path, encode_probability(values))


def encode_mask(mask: np.ndarray) -> bytes:
    """The bytes of `bool[H, W]` as a 0/255 grey PNG."""
    return _encode_png(mask.view(np.uint8) * np.uint8(255), cv2.IMWRITE_PNG_FILTER_NONE)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Writes `bool[H, W]` as a 0/255 grey PNG, whole or not at all."""
    write_bytes(path, encode_mask(mask))


def encode_cutout(photo: np.ndarray, alpha: np.ndarray) -> bytes:
    """The bytes of `uint8[H, W, 3]` RGB with `uint8[H, W]` opacity as a PNG.

    On photos the PAETH filter gives files a fifth smaller than UP for a tenth more time.
    """
    red, green, blue = cv2.split(photo)
    return _encode_png(cv2.merge([blue, green, red, alpha]), cv2.IMWRITE_PNG_FILTER_PAETH)


def write_gif_mask(path: Path, mask: np.ndarray) -> None:
    """Writes `bool[H, W]` as a GIF of the palette black, white, whole or not at all.

    Pixels hold 0 and 1, as in the hand-made masks of the Carvana competition.
    """
    image = PIL.Image.frombytes("P", mask.shape[::-1], mask.astype(np.uint8).tobytes())
    image.putpalette(bytes((0, 0, 0, 255, 255, 255)))
    data = io.BytesIO()
    # Optimising would reorder the palette of a mask of one value.
    image.save(data, "GIF", optimize=False)
    write_bytes(path, data.getvalue())


def write_photo(path: Path, photo: np.ndarray, quality: int = 95) -> None:
    """Writes `uint8[H, W, 3]` RGB as JPEG or PNG (by suffix), whole or not at all."""
    write_bytes(path, encode_photo(photo, Path(path).suffix, quality))


def encode_photo(photo: np.ndarray, suffix: str, quality: int = 95) -> bytes:
    """The bytes of `uint8[H, W, 3]` RGB as a ".jpg" or ".png" file."""
    suffix = suffix.lower()
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix in (".jpg", ".jpeg") else []
    if not cv2.haveImageWriter(f"photo{suffix}"):
        raise UserError(f"cannot encode a photo as '{suffix}'; use .jpg or .png.")
    _, data = cv2.imencode(suffix, cv2.cvtColor(photo, cv2.COLOR_RGB2BGR), flags)
    return data.tobytes()


def equalise(photo: np.ndarray) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of the luma: clip limit 2, 8 x 8 tiles.

    Args:
        photo: `uint8[H, W, 3 + N]`; the N further channels stay as they are.

    Returns:
        A new array of the same shape.
    """
    colours = cv2.cvtColor(np.ascontiguousarray(photo[..., :3]), cv2.COLOR_RGB2YCrCb)
    luma, *chroma = cv2.split(colours)
    # Made anew each time: one object must not serve two threads.
    luma = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(luma)
    colours = cv2.cvtColor(cv2.merge([luma, *chroma]), cv2.COLOR_YCrCb2RGB)
    return colours if photo.shape[2] == 3 else np.dstack([colours, photo[..., 3:]])


def quantise(probabilities: np.ndarray) -> np.ndarray:
    """`round(255 * p)`, halves to even, as uint8 of probabilities in 0..1, `[N, ...]`."""
    # One pass that rounds as np.rint does, without arrays in between.
    rows = probabilities.reshape(len(probabilities), -1)
    return cv2.convertScaleAbs(rows, alpha=255).reshape(probabilities.shape)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes `[H, W]` or `[H, W, C]` of uint8 or float32, the same way everywhere.

    Pixel areas are averaged where the image shrinks (no aliasing) and interpolated
    linearly where it grows.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    if image.ndim == 3 and image.shape[2] > _CHANNELS_AT_ONCE:
        slices = range(0, image.shape[2], _CHANNELS_AT_ONCE)
        parts = [image[..., i : i + _CHANNELS_AT_ONCE] for i in slices]
        return np.concatenate([resize(part, height, width) for part in parts], axis=-1)
    resized = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method)
    return resized.reshape(height, width, *image.shape[2:])  # OpenCV drops a single channel


def _two_valued(grey: np.ndarray) -> Mask:
    low, high = int(grey.min()), int(grey.max())
    if low == high:
        return Mask(grey > 0, "full" if high else "empty")
    if low == 0 and cv2.countNonZero(grey) == np.count_nonzero(grey == high):
        kind = {1: "0/1", 255: "0/255"}.get(high, "two values")
        return Mask(grey > 0, kind)
    return Mask(grey > 127, "soft")


def _encode_png(values: np.ndarray, png_filter: int) -> bytes:
    ok, data = cv2.imencode(".png", values, [cv2.IMWRITE_PNG_FILTER, png_filter])
    if not ok:
        raise UserError(f"cannot encode an array of shape {values.shape} as PNG.")
    return data.tobytes()


def _decode(path: Path, mode: int) -> np.ndarray:
    data = _read_bytes(path)
    if _is_truncated(data):
        raise UnreadableImage(f"'{path}' is truncated; copy or download it again.")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error as error:  # as for a header of more pixels than OpenCV allows
        raise _unreadable(path, error) from error
    if image is None:
        raise UnreadableImage(f"'{path}' is no readable image; replace or remove it.")
    return image


def _read_bytes(path: Path) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot read '{path}': {error.strerror}.") from error
    if not data:
        raise UnreadableImage(f"'{path}' is empty (0 bytes); replace or remove it.")
    return data


def _is_truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end; OpenCV fills what is missing with grey."""
    if data[:2] == b"\xff\xd8":
        # After the last start of scan there must be an end of image: entropy-coded data
        # cannot hold that marker, and an embedded thumbnail lies before the scan.
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if data[:4] == b"\x89PNG":
        return data.rfind(b"IEND") < 0  # from the end, where it should be
    return False


def _unreadable(path: Path, error: Exception) -> UnreadableImage:
    too_large = isinstance(error, PIL.Image.DecompressionBombError)
    reason = getattr(error, "strerror", None) or (
        "too many pixels" if too_large else "no whole image"
    )
    return UnreadableImage(f"cannot read '{path}': {reason}; replace or remove it.")
