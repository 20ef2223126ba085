"""What an image file says of itself, from its container alone: nothing is decoded here.

Formats: JPEG (ITU T.81), PNG (third edition, with APNG), GIF 89a, BMP, WebP (RFC 9649) and
TIFF 6.0 with BigTIFF. The size is known before any memory is taken for pixels, and
orientation has one meaning for every format.
"""

import dataclasses
import re
import struct
import zlib
from collections.abc import Callable, Iterator

Read = Callable[[int, int], bytes]
"""`read(offset, count)`: bytes of a file, fewer where it ends."""

# Only so much of text and metadata is looked at.
_MOST_METADATA = 1 << 20
_MOST_IFDS = 1000
_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


class Damaged(ValueError):
    """The container contradicts itself, or ends too early; the text says how."""


@dataclasses.dataclass(frozen=True)
class Header:
    """The facts of one image file.

    Attributes:
        format: "JPEG", "PNG", "GIF", "BMP", "WebP" or "TIFF".
        height: Stored rows, before orientation.
        width: Stored columns.
        bits: Bits of a sample, or of a palette index.
        samples: Samples of a pixel; 1 for a palette.
        sample_type: "uint", "int" or "float".
        colours: "grey", "palette", "rgb", "cmyk" or "other".
        orientation: As in EXIF, 1..8; 1 is upright.
        orientation_tag: Whether a TIFF tag says so, which decoders apply themselves.
        significant: Bits in use where a PNG declares fewer than it stores, else None: by its
            standard the upper ones, but many programs fill the lower ones.
        range_bits: Bits in use where a TIFF declares a greatest value of 2^n - 1, else None:
            the lower ones.
        lossy: Whether compression changes pixel values.
        progressive: Whether a JPEG is sent in several scans.
        images: Frames or full-size pages.
        inverted: Whether 0 is white.
        planes: Whether each sample of a TIFF is stored as a picture of its own.
        nodata: The value that stands for "no data" (GDAL), or None.
    """

    format: str
    height: int
    width: int
    bits: int = 8
    samples: int = 1
    sample_type: str = "uint"
    colours: str = "grey"
    orientation: int = 1
    orientation_tag: bool = False
    significant: int | None = None
    range_bits: int | None = None
    lossy: bool = False
    progressive: bool = False
    images: int = 1
    inverted: bool = False
    planes: bool = False
    nodata: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) of the upright image."""
        upright = (self.height, self.width)
        return upright[::-1] if self.orientation >= 5 else upright


def examine(read: Read) -> Header:
    """Reads the header of an image.

    Raises:
        Damaged: It is none of the formats, or its container is broken.
    """
    start = read(0, 16)
    for magic, parse in _FORMATS.items():
        if re.match(magic, start, re.DOTALL):
            try:
                header = parse(read)
            except (struct.error, IndexError) as error:
                raise Damaged("is truncated") from error
            if header.height < 1 or header.width < 1:
                raise Damaged(f"has a size of {header.width}x{header.height}")
            return header
    for magic, name in _OTHER_FORMATS.items():
        if re.match(magic, start, re.DOTALL):
            raise Damaged(f"is {name}, which is not read: convert it to PNG or JPEG")
    raise Damaged("is no JPEG, PNG, GIF, BMP, WebP or TIFF file")


def _jpeg(read: Read) -> Header:
    header = exif = xmp = None
    for marker, offset, length in jpeg_segments(read):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, samples = struct.unpack(">BHHB", read(offset, 6))
            colours = {1: "grey", 3: "rgb", 4: "cmyk"}.get(samples, "other")
            header = Header(
                "JPEG",
                height,
                width,
                bits,
                samples,
                colours=colours,
                lossy=True,
                progressive=marker % 4 == 2,
            )
        elif marker == 0xE1:
            data = read(offset, min(length, _MOST_METADATA))
            if exif is None and data.startswith(b"Exif\0\0"):
                exif = data[6:]
            elif xmp is None and data.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
                xmp = data
    if header is None:
        raise Damaged("has no frame header")
    return dataclasses.replace(header, orientation=_orientation(exif, xmp))


def jpeg_segments(read: Read) -> Iterator[tuple[int, int, int]]:
    """Marker, offset of the content and its length, of each segment up to the first scan."""
    offset = 2
    while True:
        lead, marker = struct.unpack("BB", read(offset, 2))
        if lead != 0xFF:
            raise Damaged("has no marker where one belongs")
        if marker == 0xFF:  # fill byte
            offset += 1
            continue
        if marker in (0xD9, 0x00):
            raise Damaged("ends before its first scan")
        (length,) = struct.unpack(">H", read(offset + 2, 2))
        if length < 2:
            raise Damaged("has a segment of impossible length")
        yield marker, offset + 4, length - 2
        if marker == 0xDA:
            return
        offset += 2 + length


def _png(read: Read) -> Header:
    width, height, bits, kind = struct.unpack(">IIBB", read(16, 10))
    colours = {0: "grey", 2: "rgb", 3: "palette", 4: "grey", 6: "rgb"}.get(kind, "other")
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind, 0)
    exif = xmp = significant = None
    images = 1
    for name, offset, length in png_chunks(read):
        if name == b"sBIT" and kind != 3:
            significant = max(read(offset, min(length, 3 if kind in (2, 6) else 1)), default=0)
        elif name == b"acTL":
            images = struct.unpack(">I", read(offset, 4))[0]
        elif name == b"eXIf":
            exif = read(offset, min(length, _MOST_METADATA)).removeprefix(b"Exif\0\0")
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            key, _, text = read(offset, min(length, _MOST_METADATA)).partition(b"\0")
            if key == b"XML:com.adobe.xmp":
                xmp = text
            elif key == b"Raw profile type exif" and exif is None:
                exif = _raw_profile(text, compressed=name == b"zTXt")
    if significant is not None and not 0 < significant < bits:
        significant = None
    orientation = _orientation(exif, xmp)
    return Header(
        "PNG",
        height,
        width,
        bits,
        samples,
        colours=colours,
        orientation=orientation,
        significant=significant,
        images=images,
    )


def png_chunks(read: Read) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset of the content and its length, of each chunk up to IEND."""
    offset = 8
    while head := read(offset, 8):
        length, name = struct.unpack(">I4s", head)
        yield name, offset + 8, length
        if name == b"IEND":
            return
        offset += 12 + length


def _raw_profile(text: bytes, *, compressed: bool) -> bytes | None:
    """EXIF as ImageMagick writes it into a text chunk: a name, a length and hex digits."""
    try:
        if compressed:
            text = zlib.decompressobj().decompress(text[1:], _MOST_METADATA)
        digits = b"".join(text.split()[2:])
        return bytes.fromhex(digits.decode("ascii")).removeprefix(b"Exif\0\0")
    except (ValueError, zlib.error):
        return None


def _gif(read: Read) -> Header:
    width, height, flags = struct.unpack("<HHB", read(6, 5))
    images = sum(1 for kind, _, _ in gif_blocks(read) if kind == 0x2C)
    bits = (flags & 7) + 1
    return Header("GIF", height, width, bits, colours="palette", images=images)


def gif_blocks(read: Read) -> Iterator[tuple[int, int, int]]:
    """Kind (0x21 extension, 0x2C image), offset and length of each block, up to the trailer."""
    flags = read(10, 1)[0]
    offset = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    while (lead := read(offset, 1)) and lead[0] != 0x3B:
        kind, begin = lead[0], offset
        if kind == 0x21:
            offset += 2
        elif kind == 0x2C:
            local = read(offset + 9, 1)[0]
            offset += 11 + (3 << ((local & 7) + 1) if local & 0x80 else 0)
        else:
            raise Damaged("has a block of an unknown kind")
        while count := read(offset, 1)[0]:
            offset += 1 + count
        offset += 1
        yield kind, begin, offset - begin


def _bmp(read: Read) -> Header:
    (header_size,) = struct.unpack("<I", read(14, 4))
    if header_size == 12:
        width, height, _, bits = struct.unpack("<HHHH", read(18, 8))
    else:
        width, height, _, bits = struct.unpack("<iiHH", read(18, 12))
    colours = "palette" if bits <= 8 else "rgb"
    samples = 1 if bits <= 8 else 4 if bits == 32 else 3
    return Header("BMP", abs(height), width, min(bits, 8), samples, colours=colours)


def _webp(read: Read) -> Header:
    header = exif = xmp = None
    alpha, lossy, images = False, False, 0
    for name, offset, length in webp_chunks(read):
        if name == b"VP8X":
            flags, width, height = read(offset, 1)[0], *_three(read, offset + 4)
            header, alpha = (height + 1, width + 1), bool(flags & 0x10)
        elif name == b"VP8 ":
            width, height = struct.unpack("<HH", read(offset + 6, 4))
            header = header or (height & 0x3FFF, width & 0x3FFF)
            lossy, images = True, images + 1
        elif name == b"VP8L":
            (bits,) = struct.unpack("<I", read(offset + 1, 4))
            header = header or ((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)
            alpha, images = alpha or bool(bits >> 28 & 1), images + 1
        elif name == b"ANMF":
            lossy, images = True, images + 1
        elif name == b"EXIF":
            exif = read(offset, min(length, _MOST_METADATA)).removeprefix(b"Exif\0\0")
        elif name == b"XMP ":
            xmp = read(offset, min(length, _MOST_METADATA))
    if header is None or not images:
        raise Damaged("has no image inside")
    orientation = _orientation(exif, xmp)
    samples = 4 if alpha else 3
    return Header(
        "WebP",
        *header,
        samples=samples,
        colours="rgb",
        orientation=orientation,
        lossy=lossy,
        images=images,
    )


def webp_chunks(read: Read) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset of the content and its length, of each chunk."""
    end = 8 + struct.unpack("<I", read(4, 4))[0]
    offset = 12
    while offset + 8 <= end:
        name, length = struct.unpack("<4sI", read(offset, 8))
        yield name, offset + 8, length
        offset += 8 + length + length % 2


def _three(read: Read, offset: int) -> tuple[int, int]:
    data = read(offset, 6)
    if len(data) < 6:
        raise Damaged("is truncated")
    return int.from_bytes(data[:3], "little"), int.from_bytes(data[3:], "little")


def _tiff(read: Read) -> Header:
    pages = tiff_pages(read)
    tags = next(pages)
    # Thumbnails and pyramids repeat the image.
    images = 1 + sum(not first_value(page, 254, 0) & 1 for page in pages)
    bits, samples = max(tags.get(258, (1,))), first_value(tags, 277, 1)
    colours = {0: "grey", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk", 6: "rgb"}
    photometric = first_value(tags, 262, 1)
    kind = {1: "uint", 2: "int", 3: "float"}.get(first_value(tags, 339, 1), "other")
    # Many programs write the image's own maximum here, which says nothing of the scale.
    most = max(tags.get(281, (0,)))
    declares = kind == "uint" and most > 0 and most & (most + 1) == 0
    range_bits = int(most).bit_length() if declares else None
    xmp = bytes(tags[700]) if 700 in tags else None
    orientation = first_value(tags, _ORIENTATION, 0)
    said = 1 <= orientation <= 8
    return Header(
        "TIFF",
        first_value(tags, 257, 0),
        first_value(tags, 256, 0),
        bits,
        samples,
        kind,
        colours.get(photometric, "other"),
        orientation if said else _orientation(None, xmp),
        said,
        range_bits=range_bits if range_bits and range_bits < bits else None,
        lossy=first_value(tags, 259, 1) in (6, 7, 34892, 50001),
        images=images,
        inverted=photometric == 0,
        planes=samples > 1 and first_value(tags, 284, 1) == 2,
        nodata=_number(bytes(tags.get(42113, b""))),
    )


def tiff_pages(read: Read) -> Iterator[dict[int, tuple]]:
    """The tags of each page; long values of no interest are left out.

    Raises:
        Damaged: A directory lies outside the file, or they form a circle.
    """
    order = "<" if read(0, 2) == b"II" else ">"
    big = struct.unpack(order + "H", read(2, 2))[0] == 43
    (offset,) = struct.unpack(order + ("Q" if big else "I"), read(8 if big else 4, 8 if big else 4))
    seen: set[int] = set()
    while offset:
        if offset in seen or len(seen) > _MOST_IFDS:
            raise Damaged("has directories in a circle")
        seen.add(offset)
        tags, offset = _directory(read, order, big, offset)
        yield tags
    if not seen:
        raise Damaged("has no directory")


def _directory(read: Read, order: str, big: bool, offset: int) -> tuple[dict[int, tuple], int]:
    head, entry, word = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    size = struct.calcsize(order + entry) + struct.calcsize(order + word)
    (count,) = struct.unpack(order + head, read(offset, struct.calcsize(order + head)))
    if count > 4096:
        raise Damaged("has a directory of impossible length")
    offset += struct.calcsize(order + head)
    data = read(offset, count * size)
    tags = {}
    for start in range(0, count * size, size):
        tag, kind, number = struct.unpack_from(order + entry, data, start)
        code = _TIFF_TYPES.get(kind)
        if code is None or number * struct.calcsize("<" + code) > 8 * _MOST_METADATA:
            continue
        length = number * struct.calcsize("<" + code)
        place = start + struct.calcsize(order + entry)
        if length <= struct.calcsize(order + word):
            values = data[place : place + length]
        else:
            values = read(struct.unpack_from(order + word, data, place)[0], length)
        tags[tag] = (
            tuple(values) if kind in (1, 2, 7) else struct.unpack(f"{order}{number}{code}", values)
        )
    offset += count * size
    (following,) = struct.unpack(order + word, read(offset, struct.calcsize(order + word)))
    return tags, following


# Rationals are not needed.
_TIFF_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 16: "Q", 17: "q"}


def first_value(tags: dict[int, tuple], tag: int, default: int) -> int:
    """The first number of a TIFF tag."""
    return int(tags[tag][0]) if tags.get(tag) else default


def _number(text: bytes) -> float | None:
    try:
        return float(text.rstrip(b"\0 ").decode("ascii")) if text else None
    except ValueError:
        return None


def _orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """From EXIF, else from XMP, else upright: what viewers honour, in their order."""
    if exif:
        try:
            tags = next(tiff_pages(lambda offset, count: exif[offset : offset + count]))
        except (Damaged, struct.error, IndexError):
            tags = {}
        if 1 <= (found := first_value(tags, _ORIENTATION, 0)) <= 8:
            return found
    match = _XMP_ORIENTATION.search(xmp or b"")
    return int(match.group(1)) if match else 1


_FORMATS = {
    rb"\xff\xd8\xff": _jpeg,
    rb"\x89PNG\r\n\x1a\n": _png,
    rb"GIF8[79]a": _gif,
    rb"BM": _bmp,
    rb"RIFF....WEBP": _webp,
    rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]": _tiff,
}
# Of pictures that no decoder here reads.
_OTHER_FORMATS = {
    rb"....ftypavi": "AVIF",
    rb"....ftyp(hei|hev|mif|msf)": "HEIC",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
    rb"\0\0\0\x0cJXL |\xff\x0a": "JPEG XL",
}
