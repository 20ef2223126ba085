"""One decoding of an image file: the values it holds, upright, and what they mean.

Photos and masks are decoded by the same code, so orientation, depth, the limit on pixels
and what counts as damaged are the same for both.
"""

import dataclasses
import errno
import functools
import io
import os
import re
import stat
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import simplejpeg

from carvana_tf.data import containers, digests, integrity
from carvana_tf.data.containers import Header
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory, SystemFailure, describe, is_out_of_memory

DEFAULT_MAX_PIXELS = 1 << 28
"""Of --max_pixels: photos of 15,000 x 12,000 pass."""
MOST_PIXELS = 1 << 30
"""OpenCV decodes no more."""

# Threads are ours (readers, writers); OpenCV's own pool on top of them only fights them.
cv2.setNumThreads(0)
# What is wrong with a file is reported by our own exceptions, once.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# Ours is checked instead, before anything is decoded.
PIL.Image.MAX_IMAGE_PIXELS = None

# Errors of the system that are about one path. All others would be reported of the next file too,
# as too many open files or a disk that is gone, and say nothing of the file.
_OF_ONE_FILE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV),
)
_PNG_END = bytes.fromhex("0000000049454e44ae426082")
_max_pixels = DEFAULT_MAX_PIXELS


class UnreadableImage(UserError):
    """A file that is not a whole image; the message names it and the fix."""


class TooManyPixels(UnreadableImage):
    """A file with more than --max_pixels, which may be whole."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded file.

    Attributes:
        values: `[H, W]` or `[H, W, 3]` RGB, as the file stores them: not scaled. With a
            palette they are its indices.
        bits: Values of an unsigned type go from 0 to `2 ** bits - 1`.
        palette: `uint8[N, 4]` RGBA of each index, or None.
        alpha: `[H, W]` of the type of `values`, or None.
        significant: As of `Header`.
        range_bits: As of `Header`.
        lossy: Whether compression changed the values.
        nodata: The value that stands for "no data", or None.
    """

    values: np.ndarray
    bits: int = 8
    palette: np.ndarray | None = None
    alpha: np.ndarray | None = None
    significant: int | None = None
    range_bits: int | None = None
    lossy: bool = False
    nodata: float | None = None


def limit_pixels(most: int) -> None:
    """Sets the number of pixels above which this process decodes no file (--max_pixels)."""
    global _max_pixels
    _max_pixels = most


def decode(path: Path) -> Picture:
    """Decodes an image of any of the formats in `containers`.

    Raises:
        UnreadableImage: It is missing, no regular file, damaged, of a kind that is not
            read, holds several images, or has more than --max_pixels.
        OutOfMemory: Memory was not enough.
        SystemFailure: The system failed to read it, which may be no fault of the file.
    """
    path = Path(path)
    data = read_bytes(path)
    changed = digests.difference(path, data)
    if changed:
        raise UnreadableImage(
            f"'{path}' {changed}: restore it, or look at it and record the dataset again with "
            "tools/check_data.py --write."
        )
    return decode_bytes(path, data)


def decode_bytes(path: Path | str, data: bytes) -> Picture:
    """Decodes the content of an image file.

    Args:
        path: What messages call it.
        data: Its bytes.

    Raises:
        UnreadableImage: As of `decode`.
        OutOfMemory: Memory was not enough.
    """
    header = _examine(path, lambda offset, count: data[offset : offset + count])
    refuse_unreadable_kind(path, header)
    try:
        integrity.verify(data, header)
        return _decode(data, header)
    except containers.Damaged as error:
        raise UnreadableImage(f"'{path}' {error}; copy or download it again.") from error
    except Exception as error:  # decoders raise every kind
        if isinstance(error, OSError) and error.errno is not None:  # Pillow's own have none
            raise _not_read(path, error) from error
        if is_out_of_memory(error):
            size = f"{header.width}x{header.height}"
            raise OutOfMemory(f"out of memory while reading '{path}' ({size})") from error
        raise _unreadable(path, error) from error


def read_header(path: Path) -> Header:
    """The header of an image file, without reading the whole file.

    Raises:
        UnreadableImage: As of `decode`, as far as the header shows it.
    """
    path = Path(path)
    with _open(path) as handle:

        def read(offset: int, count: int) -> bytes:
            return os.pread(handle.fileno(), count, offset)

        try:
            return _examine(path, read)
        except OSError as error:
            raise _not_read(path, error) from error


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        UnreadableImage: It is missing, empty, or no regular file: a pipe would block.
        SystemFailure: As of `decode`.
    """
    try:
        with _open(path) as handle:
            data = handle.read()
    except OSError as error:
        raise _not_read(path, error) from error
    if not data:
        raise UnreadableImage(f"'{path}' is empty (0 bytes); replace or remove it.")
    return data


def _open(path: Path) -> io.BufferedReader:
    try:
        # A device may act on being opened, a pipe may wait for a writer: look first, and
        # again at what was opened.
        _refuse_special(path, os.stat(path))
        handle = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise _not_read(path, error) from error
    try:
        _refuse_special(path, os.fstat(handle.fileno()))
    except UserError:
        handle.close()
        raise
    return handle


def _not_read(path: Path | str, error: OSError) -> UserError:
    """The error for a file that the system does not give."""
    if error.errno in _OF_ONE_FILE:
        return UnreadableImage(f"cannot read '{path}': {error.strerror}.")
    if is_out_of_memory(error):
        return OutOfMemory(f"out of memory while reading '{path}'")
    fix = "correct that"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        fix = "close other programs, lower --threads or raise the limit (ulimit -n)"
    return SystemFailure(
        f"cannot read '{path}': {describe(error)}, which is an error of the system and not of "
        f"the file; {fix} and run the command again."
    )


def _refuse_special(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise UnreadableImage(f"'{path}' is {kind}, not a regular file; remove or rename it.")


def _examine(path: Path | str, read: containers.Read) -> Header:
    if not read(0, 1):
        raise UnreadableImage(f"'{path}' is empty (0 bytes); replace or remove it.")
    try:
        header = containers.examine(read)
    except containers.Damaged as error:
        raise UnreadableImage(f"'{path}' {error}; replace or remove it.") from error
    if header.height * header.width > _max_pixels:
        raise TooManyPixels(
            f"'{path}' has {header.width}x{header.height} pixels, more than "
            f"--max_pixels={_max_pixels}; raise that, or resize the image."
        )
    return header


def refuse_unreadable_kind(path: Path | str, header: Header) -> None:
    """Refuses what no decoder here reads rightly.

    Raises:
        UnreadableImage: Several images in one file, or samples of a kind that is not read.
    """
    if header.images > 1:
        raise UnreadableImage(
            f"'{path}' holds {header.images} images, and which one is meant is not known; save "
            "one of them."
        )
    deep = header.bits > 8
    readable = header.sample_type in ("uint", "int", "float") and 1 <= header.samples <= 4
    if header.format == "TIFF" and (deep or header.sample_type != "uint"):
        readable &= header.samples != 2 and header.colours in ("grey", "rgb")
        readable &= not (header.sample_type == "float" and header.bits < 32)
        readable &= not header.planes  # OpenCV takes their rows for pixels
    if header.format == "JPEG":
        readable &= not deep
    if not readable:
        planes = " in planes of their own" if header.planes else ""
        raise UnreadableImage(
            f"'{path}' is a {header.format} file with {header.samples} {header.sample_type} "
            f"samples of {header.bits} bits{planes}, which is not read; save it as PNG or 8-bit "
            "TIFF."
        )


def _decode(data: bytes, header: Header) -> Picture:
    of_header = functools.partial(
        Picture,
        significant=header.significant,
        range_bits=header.range_bits,
        lossy=header.lossy,
        nodata=header.nodata,
    )
    deep_tiff = header.format == "TIFF" and (header.bits > 8 or header.sample_type != "uint")
    if header.format == "JPEG":
        return _upright(_jpeg(data, header, of_header), header.orientation)
    by_opencv = deep_tiff or header.format == "WebP"
    # Pillow keeps palettes as they are and decodes GIF three times faster.
    by_opencv |= header.format == "PNG" and header.colours != "palette"
    picture = (_by_opencv if by_opencv else _by_pillow)(data, header, of_header)
    # Of a TIFF both decoders apply the tag by themselves, and Pillow XMP too.
    applied = header.format == "TIFF" and (header.orientation_tag or not by_opencv)
    if picture.values.shape[:2] != (header.size if applied else (header.height, header.width)):
        raise ValueError("another size than the header has")
    return picture if applied else _upright(picture, header.orientation)


def _jpeg(data: bytes, header: Header, make: functools.partial) -> Picture:
    """Decodes by libjpeg-turbo, whose warnings OpenCV and Pillow drop: they mean wrong pixels."""
    if not header.progressive:
        # A file may lack its end marker although all pixels are there.
        data += b"\xff\xd9"
    colours = {1: "GRAY", 4: "CMYK"}.get(header.samples, "RGB")
    try:
        values = simplejpeg.decode_jpeg(data, colours, strict=True)
    except ValueError as error:
        if is_out_of_memory(error):
            raise
        if not _is_harmless(str(error), data):
            raise containers.Damaged(f"is truncated or damaged ({error})") from error
        values = simplejpeg.decode_jpeg(data, colours, strict=False)
    if header.samples == 4:
        mode = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        values = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    if values is None or values.shape[:2] != (header.height, header.width):
        raise ValueError("not decoded")
    return make(values[..., 0] if header.samples == 1 else values)


def _is_harmless(warning: str, data: bytes) -> bool:
    """Whether a warning of libjpeg is about something else than pixels."""
    if re.search(r"JFIF revision|Adobe color transform|SOS parameters", warning):
        return True
    padding = re.search(r"(\d+) extraneous bytes before marker 0xd9", warning)
    if padding is None:
        return False
    end = data.removesuffix(b"\xff\xd9").rfind(b"\xff\xd9")
    return not any(data[max(end - int(padding[1]), 0) : end])


def _by_opencv(data: bytes, header: Header, make: functools.partial) -> Picture:
    if header.format == "PNG":
        data += _PNG_END  # a file may lack it although all pixels are there
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("not decoded")
    alpha = None
    if values.ndim == 3:
        if values.shape[2] == 4:
            alpha = np.ascontiguousarray(values[..., 3])
        values = values[..., 2::-1]
        values = np.ascontiguousarray(values[..., 0] if header.colours == "grey" else values)
    bits = values.dtype.itemsize * 8
    if header.format == "PNG" and header.bits < 8:
        # Decoders spread 1, 2 and 4 bits over 0..255; labels are wanted as they are stored.
        bits = header.bits
        values //= 255 // (2**bits - 1)
    if header.format == "TIFF":
        _check_type(values, header)
        bits = min(bits, header.bits)
        if header.inverted and header.sample_type == "uint":
            values = (2**bits - 1) - values
    return make(values, bits=bits, alpha=alpha)


def _check_type(values: np.ndarray, header: Header) -> None:
    """Older OpenCV reads some kinds of samples as others."""
    kind = {"u": "uint", "i": "int", "f": "float"}.get(values.dtype.kind)
    channels = values.shape[2] if values.ndim == 3 else 1
    if kind != header.sample_type or channels != min(header.samples, 3):
        raise ValueError("another type than the header has")


def _by_pillow(data: bytes, header: Header, make: functools.partial) -> Picture:
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.load()
        if image.mode == "P":
            return make(np.array(image), palette=_palette(image))
        if image.mode == "1":
            return make(np.array(image.convert("L")) // np.uint8(255), bits=1)
        if image.mode == "L":
            return make(np.array(image))
        if image.mode in ("LA", "PA", "La"):
            both = np.asarray(image.convert("LA"))
            return make(
                np.ascontiguousarray(both[..., 0]), alpha=np.ascontiguousarray(both[..., 1])
            )
        if image.mode in ("RGBA", "RGBa"):
            rgba = np.asarray(image.convert("RGBA"))
            return make(
                np.ascontiguousarray(rgba[..., :3]), alpha=np.ascontiguousarray(rgba[..., 3])
            )
        return make(np.array(image.convert("RGB")))


def _palette(image: PIL.Image.Image) -> np.ndarray:
    colours = np.zeros((256, 4), np.uint8)
    colours[:, 3] = 255
    table = np.frombuffer(bytes(image.getpalette("RGB") or ()), np.uint8).reshape(-1, 3)
    colours[: len(table), :3] = table
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        colours[clear, 3] = 0
    elif clear is not None:
        colours[: len(clear), 3] = np.frombuffer(clear, np.uint8)
    return colours


def _upright(picture: Picture, orientation: int) -> Picture:
    if orientation == 1:
        return picture
    turn = _TURNS[orientation]
    values = np.ascontiguousarray(turn(picture.values))
    alpha = None if picture.alpha is None else np.ascontiguousarray(turn(picture.alpha))
    return dataclasses.replace(picture, values=values, alpha=alpha)


# From the stored image to the upright one (EXIF 2.32, tag 0x0112).
_TURNS = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


def _unreadable(path: Path | str, error: Exception) -> UnreadableImage:
    known = isinstance(error, (cv2.error, OSError, SyntaxError, ValueError, LookupError, TypeError))
    why = "" if known else f" ({describe(error)})"
    return UnreadableImage(f"cannot read '{path}': no whole image{why}; replace or remove it.")
