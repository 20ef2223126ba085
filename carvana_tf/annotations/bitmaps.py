"""Bitmaps inside annotation files: PNGs as base64 text, of which nothing can be trusted."""

import base64
import binascii
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from carvana_tf.annotations.values import BadAnnotation
from carvana_tf.data import containers
from carvana_tf.data.decoding import Picture, UnreadableImage, decode_bytes

# A PNG of a mask has fewer bytes than its pixels, but for its header and palette.
_BYTES_OF_PIXEL, _BYTES_ALWAYS = 5, 1 << 16


def read_bitmap(text: Any, size: tuple[int, int], *, packed: bool = False) -> np.ndarray:
    """The object of a bitmap: what is opaque in it, or else not black.

    Args:
        text: A PNG file as base64, of at most the photo's size.
        size: (height, width) of the photo.
        packed: Whether zlib may have packed the file (Supervisely).

    Returns:
        `bool[h, w]`.

    Raises:
        BadAnnotation: It is something else, damaged or larger than the photo.
    """
    most = _BYTES_OF_PIXEL * size[0] * size[1] + _BYTES_ALWAYS
    if not isinstance(text, str) or len(text) > 2 * most:
        raise BadAnnotation("its bitmap is no PNG as base64 text, or has more bytes than the photo")
    try:
        data = base64.b64decode(text, validate=True)
        if packed and not data.startswith(b"\x89PNG"):
            unpacked = zlib.decompressobj()
            data = unpacked.decompress(data, most)
            if unpacked.unconsumed_tail:
                raise BadAnnotation("its bitmap unpacks to more than the photo has; it is damaged")
    except (ValueError, binascii.Error, zlib.error) as error:
        raise BadAnnotation(f"its bitmap is damaged ({error})") from None
    try:
        header = containers.examine(lambda offset, count: data[offset : offset + count])
    except containers.Damaged as error:
        raise BadAnnotation(f"its bitmap {error}") from None
    if header.format != "PNG" or header.height > size[0] or header.width > size[1]:
        raise BadAnnotation(
            f"its bitmap is a {header.format} of {header.width}x{header.height} pixels, expected a "
            f"PNG of at most the photo's {size[1]}x{size[0]}"
        )
    try:
        return _opaque(decode_bytes(Path("bitmap"), data))
    except UnreadableImage:
        raise BadAnnotation("its bitmap is no whole PNG") from None


def _opaque(picture: Picture) -> np.ndarray:
    if picture.palette is not None:
        alpha = picture.palette[:, 3]
        if alpha.min() < 255:
            return alpha[picture.values] > 0
        return picture.palette[:, :3].max(axis=1)[picture.values] > 0
    if picture.alpha is not None:
        return picture.alpha > 0
    values = picture.values
    return (values if values.ndim == 2 else values.max(axis=2)) > 0
