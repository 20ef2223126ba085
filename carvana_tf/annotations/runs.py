"""Run lengths as annotation tools write them: counts that begin with the background.

COCO counts down the columns, CVAT along the rows of a box. COCO's compressed text and Label
Studio's bits are further codings of such runs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from carvana_tf.annotations.values import BadAnnotation

# COCO's text: five bits a character, least first, from this character on.
_FIRST, _BITS, _MORE, _SIGN = 48, 5, 0x20, 0x10
# So many characters hold 30 bits and a sign: more than any image has pixels.
_LONGEST = 7

# Label Studio's header: number of values, bits of a value, bits of each size of a run's length.
_NUMBER, _WORD, _SIZE, _SIZES = 32, 5, 4, 4
_CHANNELS = 4  # red, green, blue, opacity
_WRITTEN_SIZES = (3, 4, 8, 16)
"""Those that Label Studio writes itself."""
_WRITTEN_WORD = 8


def counts_of(pixels: np.ndarray) -> np.ndarray:
    """The run lengths of `bool[N]`, background first: `int64[M]`; 0 where it begins with object."""
    edges = np.flatnonzero(np.diff(pixels)) + 1
    bounds = np.concatenate([[0], edges, [len(pixels)]])
    if len(pixels) and pixels[0]:
        bounds = np.concatenate([[0], bounds])
    return np.diff(bounds)


def fill(counts: Any, number: int) -> np.ndarray:
    """The pixels of run lengths, `bool[number]`.

    Args:
        counts: Whole numbers, background first.
        number: How many pixels they must be.

    Raises:
        BadAnnotation: They are something else, or of another number of pixels.
    """
    try:
        values = np.asarray(counts)
        if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise BadAnnotation("its run lengths are no list of whole numbers") from None
    # Bounded first, so that the sum cannot wrap around.
    if len(values) and (values.min() < 0 or values.max() > number):
        raise BadAnnotation(f"a run length is outside 0..{number:,}, the pixels of the mask")
    total = int(values.sum(dtype=np.int64))
    if total != number:
        raise BadAnnotation(f"its run lengths are {total:,} pixels, the mask has {number:,}")
    return np.repeat(np.arange(len(values)) % 2 == 1, values.astype(np.int64))


def columns(counts: Any, height: int, width: int) -> np.ndarray:
    """The mask of run lengths down the columns (COCO), `bool[height, width]`.

    Raises:
        BadAnnotation: As of `fill`.
    """
    return np.ascontiguousarray(fill(counts, height * width).reshape(width, height).T)


def compress(counts: np.ndarray) -> str:
    """The text of run lengths as pycocotools writes it.

    From the fourth on, each is the difference to the one before the one before. A number is cut
    into groups of five bits, least first; the sixth bit of a character says that more follow.
    """
    values = np.asarray(counts, np.int64).copy()
    values[3:] -= np.asarray(counts)[1:-2]
    groups = np.stack([values >> _BITS * i for i in range(_LONGEST)], axis=1)
    # What is left after a group and its sign: 0 or -1 where no more are needed.
    rest = groups >> (_BITS - 1)
    length = 1 + np.count_nonzero((rest != 0) & (rest != -1), axis=1)
    at = np.arange(_LONGEST)
    characters = (groups & (_MORE - 1)) | np.where(at < length[:, None] - 1, _MORE, 0)
    return (characters[at < length[:, None]] + _FIRST).astype(np.uint8).tobytes().decode()


def expand(text: str) -> np.ndarray:
    """The run lengths of a text of `compress`, `int64[M]`.

    Raises:
        BadAnnotation: It is no such text.
    """
    data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - _FIRST
    if not len(data):
        return data
    ends = np.flatnonzero(data & _MORE == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    broken = data.min() < 0 or data.max() >= 2 * _MORE or not len(ends) or ends[-1] != len(data) - 1
    if broken or (ends - starts).max() >= _LONGEST:
        raise BadAnnotation("its text of compressed run lengths is damaged")
    lengths = ends - starts + 1
    place = np.arange(len(data)) - np.repeat(starts, lengths)
    values = np.add.reduceat((data & (_MORE - 1)) << _BITS * place, starts)
    values -= np.where(data[ends] & _SIGN, 1 << _BITS * lengths, 0)
    # Sums of every other one: the first three stand for themselves.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def read_brush(numbers: Any, height: int, width: int) -> np.ndarray:
    """The mask of Label Studio's brush coding, `bool[height, width]`.

    The coding is that of thi.ng/rle-pack: a header of 32 bits (number of values), 5 (bits of a
    value, less 1) and four times 4 (bits of each size, less 1); then runs of 1 bit (one value
    that repeats, or different ones), 2 bits (which size), the length less 1 in that size, and
    the value or the values. Values are red, green, blue and opacity of the pixels along the rows;
    opacity above half of its greatest value is object.

    Args:
        numbers: The bytes.
        height: Of the photo that was annotated.
        width: Of it.

    Raises:
        BadAnnotation: They are no bytes, end too early, or are of another number of pixels.
    """
    try:
        data = bytes(numbers) if isinstance(numbers, list) else b""
    except (ValueError, TypeError):
        data = b""
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    text = (bits + np.uint8(ord("0"))).tobytes().decode()
    at = _NUMBER + _WORD + _SIZE * _SIZES
    if len(text) < at:
        raise BadAnnotation("its brush strokes are no bytes of a run-length coding")
    number = int(text[:_NUMBER], 2)
    word = int(text[_NUMBER : _NUMBER + _WORD], 2) + 1
    sizes = [int(text[i : i + _SIZE], 2) + 1 for i in range(_NUMBER + _WORD, at, _SIZE)]
    if number != _CHANNELS * height * width:
        raise BadAnnotation(
            f"its brush strokes are of {number / _CHANNELS:,g} pixels, the photo has "
            f"{height * width:,} ({width}x{height})"
        )
    if word != _WRITTEN_WORD:
        raise BadAnnotation(f"its brush strokes have values of {word} bits, expected 8")
    values = np.zeros(number, np.uint8)
    done = 0
    while done < number:
        size = sizes[int(text[at + 1 : at + 3] or "0", 2)]
        start = at + 3 + size
        if start + word > len(text):
            raise BadAnnotation("its brush strokes end too early")
        end = done + 1 + int(text[at + 3 : start], 2)
        if text[at] == "1":
            values[done:end] = int(text[start : start + word], 2)
            at = start + word
        else:
            stop = start + (end - done) * word
            if stop > len(bits) or end > number:
                raise BadAnnotation("its brush strokes end too early")
            values[done:end] = np.packbits(bits[start:stop])
            at = stop
        done = end
    opacity = values[_CHANNELS - 1 :: _CHANNELS].reshape(height, width)
    return opacity > opacity.max() // 2


def write_brush(mask: np.ndarray) -> list[int]:
    """The bytes of a mask (`bool[H, W]`) as `read_brush` takes them, each channel 0 or 255."""
    counts = _CHANNELS * counts_of(mask.ravel())
    header = format(_CHANNELS * mask.size, f"0{_NUMBER}b") + format(_WRITTEN_WORD - 1, f"0{_WORD}b")
    parts = [header, *(format(size - 1, f"0{_SIZE}b") for size in _WRITTEN_SIZES)]
    for index, count in enumerate(counts.tolist()):
        word = "1" * _WRITTEN_WORD if index % 2 else "0" * _WRITTEN_WORD
        for length in _split(count):
            which = next(i for i, size in enumerate(_WRITTEN_SIZES) if length <= 1 << size)
            size = _WRITTEN_SIZES[which]
            parts.append(f"1{which:02b}{length - 1:0{size}b}{word}")
    text = "".join(parts)
    bits = np.frombuffer(text.encode(), np.uint8) - np.uint8(ord("0"))
    return np.packbits(bits).tolist()


def _split(count: int) -> Sequence[int]:
    longest = 1 << max(_WRITTEN_SIZES)
    whole, rest = divmod(count, longest)
    return [longest] * whole + [rest] * (rest > 0)
