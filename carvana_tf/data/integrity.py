"""Whether an image file is whole, as far as its format can say: nothing is decoded here.

Decoders skip most of it: checksums of PNG chunks, the chain of blocks of a GIF, sizes and
places of chunks, strips and tiles. JPEG has none; its decoder reports what does not fit.
"""

import re
import struct
import zlib

from carvana_tf.data.containers import (
    Damaged,
    Header,
    Read,
    first_value,
    gif_blocks,
    png_chunks,
    tiff_pages,
    webp_chunks,
)


def verify(data: bytes, header: Header) -> None:
    """Checks what a format says of the integrity of its content, without decoding it.

    Args:
        data: The whole file.
        header: From `examine`.

    Raises:
        Damaged: Something contradicts the file.
    """

    def read(offset: int, count: int) -> bytes:
        return data[offset : offset + count]

    try:
        if header.format in _VERIFY:
            _VERIFY[header.format](data, read)
    except (struct.error, IndexError) as error:
        raise Damaged("is truncated") from error


def _verify_png(data: bytes, read: Read) -> None:
    view = memoryview(data)
    for name, offset, length in png_chunks(read):
        end = offset + length
        if end + 4 > len(data):
            raise Damaged("is truncated")
        if zlib.crc32(view[offset - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise Damaged(f"is damaged: the checksum of its {_ascii(name)} chunk is wrong")


def _verify_gif(data: bytes, read: Read) -> None:
    end = 0
    for _, offset, length in gif_blocks(read):
        end = offset + length
    if end > len(data):
        raise Damaged("is truncated")


def _verify_bmp(data: bytes, read: Read) -> None:
    size, start, header_size = struct.unpack("<I4xII", read(2, 16))
    if header_size == 12:
        width, height, _, bits = struct.unpack("<HHHH", read(18, 8))
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack("<iiHHI", read(18, 16))
    needed = start
    if compression in (0, 3, 6):
        needed += (width * bits + 31) // 32 * 4 * abs(height)
    # Some programs write 0 for the size of the file.
    if max(needed, size) > len(data):
        raise Damaged("is truncated")


def _verify_webp(data: bytes, read: Read) -> None:
    if 8 + struct.unpack("<I", read(4, 4))[0] > len(data):
        raise Damaged("is truncated")
    for name, offset, length in webp_chunks(read):
        if offset + length > len(data) or not re.fullmatch(rb"[A-Z0-9 ]{4}", name):
            raise Damaged(f"is damaged: its {_ascii(name)} chunk does not fit the file")


def _verify_tiff(data: bytes, read: Read) -> None:
    tags = next(tiff_pages(read))
    places, counts = (273, 279) if 273 in tags else (324, 325)
    offsets, lengths = tags.get(places, ()), tags.get(counts, ())
    if not offsets or len(offsets) != len(lengths):
        raise Damaged("is damaged: the places and sizes of its strips differ in number")
    if any(a < 8 or a + b > len(data) for a, b in zip(offsets, lengths, strict=True)):
        raise Damaged("is truncated: a strip lies outside the file")
    if 0 in lengths:
        raise Damaged("is damaged: a strip is empty")
    if first_value(tags, 259, 1) == 1 and places == 273:
        row = (
            first_value(tags, 256, 0) * first_value(tags, 277, 1) * max(tags.get(258, (1,))) + 7
        ) // 8
        if sum(lengths) < row * first_value(tags, 257, 0):
            raise Damaged("is damaged: its strips are too short for its size")


def _ascii(name: bytes) -> str:
    return name.decode("ascii", "replace")


_VERIFY = {
    "PNG": _verify_png,
    "GIF": _verify_gif,
    "BMP": _verify_bmp,
    "WebP": _verify_webp,
    "TIFF": _verify_tiff,
}
