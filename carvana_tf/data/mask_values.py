"""What a mask file means: one strict reading for every script.

A file that is surely two-valued is read; one whose meaning would be a guess is refused,
with the values found and the flag that settles it. docs/inputs.md has the table.
"""

import dataclasses
import re
from collections.abc import Sequence

import cv2
import numpy as np

from carvana_tf.data import soft_edges
from carvana_tf.data.decoding import Picture
from carvana_tf.data.soft_edges import NEAR
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError

AUTO = "auto"
FORMS = "object:1,3-7, background:0,255, nonzero, above:127, below:128, alpha or colour:ff0000"
"""What --mask_values takes, for messages."""

FLOAT_OVERSHOOT = 0.5 / 255
"""How far values of floating point may lie beyond 0..1: half a step of 8 bits. Filters and
rounding leave such."""

# An alpha channel that marks less of a photo than this may be an accident.
_LEAST_ALPHA = 0.01
# Channels of grey saved as colour differ by so much after lossy compression.
_GREY_SPREAD = 16
_COLOUR_TOLERANCE = 64


class Ambiguous(ValueError):
    """The file may mean several things; the text says what was found."""


@dataclasses.dataclass(frozen=True)
class Mask:
    """A mask as it was understood.

    Attributes:
        pixels: `bool[H, W]`, True on the object.
        kind: How the file says so: "0/255", "0/1", "two values", "empty", "full", "alpha",
            "soft" (cut in the middle of the range) or the rule of --mask_values.
        mark: What the object's pixels hold in the file, a number or a colour, where that is
            neither white nor 1: masks of one dataset should agree on it.
    """

    pixels: np.ndarray
    kind: str
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class MaskValues:
    """Which values are the object.

    Attributes:
        kind: "auto" or the word before the colon of --mask_values.
        ranges: Values from (first, last), both included.
        colours: RGB of 0..255.
        text: As it was written.
    """

    kind: str = AUTO
    ranges: tuple[tuple[float, float], ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    text: str = AUTO


AUTOMATIC = MaskValues()


def all_empty(count: int, what: str) -> UserError:
    """The error for masks none of which has an object: "no object" would be a perfect score."""
    return UserError(
        f"all {count} {what} are empty, so that a score would mean nothing; check that they are "
        "the right files and how they are read (--mask_values, tools/check_data.py)."
    )


def parse(text: str) -> MaskValues:
    """Parses --mask_values.

    Raises:
        UserError: It has none of the `FORMS`.
    """
    kind, colon, rest = text.strip().partition(":")
    parts = [part.strip() for part in rest.split(",")]
    if kind in (AUTO, "nonzero", "alpha") and not colon:
        return MaskValues(kind, text=kind)
    if kind in ("object", "background"):
        found = [re.fullmatch(r"(-?\d+)(?:-(\d+))?", part) for part in parts]
        if all(found):
            ranges = tuple((float(m[1]), float(m[2] or m[1])) for m in found if m)
            return MaskValues(kind, ranges, text=text)
    if kind in ("above", "below") and re.fullmatch(r"\d+(\.\d+)?", rest):
        return MaskValues(kind, ((float(rest), float(rest)),), text=text)
    if kind == "colour" and all(re.fullmatch(r"#?[0-9a-fA-F]{6}", part) for part in parts):
        numbers = [int(part.removeprefix("#"), 16) for part in parts]
        colours = tuple((n >> 16, n >> 8 & 255, n & 255) for n in numbers)
        return MaskValues(kind, colours=colours, text=text)
    raise UserError(f"--mask_values='{text}' must be {AUTO}, {FORMS}.")


def interpret(picture: Picture, rule: MaskValues) -> Mask:
    """The mask that a decoded file holds.

    Raises:
        Ambiguous: It has none, or more than one meaning, or `rule` does not suit it.
    """
    if rule.kind != AUTO:
        return Mask(_by_rule(picture, rule), rule.text)
    _refuse_nodata(picture)
    if picture.palette is not None:
        return _palette(picture, picture.palette)
    if picture.alpha is not None:
        return _with_alpha(picture, picture.alpha)
    return _colours(picture)


def _palette(picture: Picture, palette: np.ndarray) -> Mask:
    """By colours, which is what the person saw who drew the mask."""
    used = _levels(picture.values)
    if len(np.unique(palette[used, 3])) > 1:
        rgba = palette[picture.values]
        alpha = np.ascontiguousarray(rgba[..., 3])
        shown = dataclasses.replace(
            picture, values=np.ascontiguousarray(rgba[..., :3]), palette=None, alpha=alpha
        )
        return _with_alpha(shown, alpha)
    colours = palette[used, :3]
    found = f"palette entries {_list(used)}"
    if len(np.unique(colours, axis=0)) < len(used):
        raise Ambiguous(f"{found}, several of one colour")
    if len(used) > 2 and (colours != colours[:, :1]).any():
        raise Ambiguous(found)
    if len(used) == 2 and colours.any(axis=1).all():
        raise Ambiguous(f"{found}, none of them black")
    levels = palette[:, :3].max(1)
    try:
        if len(used) > 2:
            return _grey(cv2.LUT(picture.values, levels), 8)
        decided = _grey(levels[used][np.newaxis], 8)  # one pixel of each entry says all
        chosen = used[decided.pixels[0]]
        if not len(chosen):
            return Mask(np.zeros(picture.values.shape, bool), decided.kind)
        colour = palette[chosen[-1], :3]
        return Mask(picture.values == chosen[-1], decided.kind, _mark(colour) or decided.mark)
    except Ambiguous as error:
        raise Ambiguous(f"{found}: {error}") from error


def _with_alpha(picture: Picture, alpha: np.ndarray) -> Mask:
    opaque = dataclasses.replace(picture, alpha=None)
    low, high = int(alpha.min()), int(alpha.max())
    if low == high:
        mask = _colours(opaque)
        if high == 0 and mask.kind != "empty":
            raise Ambiguous("colours that an alpha channel of 0 hides everywhere")
        return mask
    try:
        cut = _grey(alpha, picture.bits)
    except Ambiguous as error:
        raise Ambiguous(f"an alpha channel that is no clear mask ({error})") from error
    if high <= 127 << (picture.bits - 8):
        raise Ambiguous(f"an alpha channel from {low} to {high}")
    mask = Mask(cut.pixels, "alpha")
    try:
        drawn = _colours(opaque)
    except Ambiguous:  # a photo, cut out
        if _is_constant(picture.values[cut.pixels]):
            return mask
        share = np.count_nonzero(cut.pixels) / cut.pixels.size
        hardly = min(share, 1 - share) < _LEAST_ALPHA
        if hardly and not _is_constant(picture.values[~cut.pixels]):
            raise Ambiguous(
                f"an alpha channel that marks {share:.2%} of the pixels, while colours vary"
            ) from None
        return mask
    if drawn.kind in ("empty", "full") or np.array_equal(drawn.pixels, cut.pixels):
        return mask
    raise Ambiguous("an alpha channel that marks other pixels than the colours do")


def _colours(picture: Picture) -> Mask:
    values = picture.values
    if values.ndim == 2:
        return _grey(values, picture.bits, lossy=picture.lossy)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise Ambiguous("values that are not numbers")
        raise Ambiguous("colours of floating-point numbers")
    brightest, darkest = np.max(values, -1), np.min(values, -1)
    spread = int((brightest - darkest).max())
    if spread <= (_GREY_SPREAD if picture.lossy else 0):
        return _grey(brightest, picture.bits, lossy=picture.lossy)
    if picture.lossy:
        raise Ambiguous("colours, blurred by lossy compression")
    # All pixels must be shades of one colour, on black.
    top = int(brightest.max())
    colour = values.reshape(-1, 3)[int(brightest.argmax())].astype(np.float32)
    shades = brightest[..., None] * (colour / top)
    if (np.abs(shades - values) > 2).any():
        raise Ambiguous(_describe_colours(values))
    full = 2**picture.bits - 1
    if top == full or len(np.unique(brightest)) == 2:
        return dataclasses.replace(_grey(brightest, picture.bits), mark=_mark(colour))
    raise Ambiguous(_describe_colours(values))


def _grey(values: np.ndarray, bits: int, *, lossy: bool = False) -> Mask:
    if values.dtype.kind == "f":
        values, bits = _whole_numbers(values)
    levels = _levels(values)
    low, high = int(levels[0]), int(levels[-1])
    found = f"the values {_list(levels)}"
    if low < 0:
        raise Ambiguous(found)
    whites = {1, 255, 65535, 2**bits - 1}
    doubtful = lossy and high <= 255 - NEAR
    if len(levels) == 1 and (high == 0 or (high in whites and not doubtful)):
        return Mask(values > 0, "full" if high else "empty")
    if len(levels) == 2 and low == 0 and not doubtful:
        white = high in whites and (high > 1 or bits == 1)
        kind = "0/255" if white else "0/1" if high == 1 else "two values"
        near_white = high == 1 or 0 < (1 << bits) - high <= NEAR << max(bits - 8, 0)
        return Mask(values > 0, kind, "" if white or near_white else str(high))
    if values.dtype == np.uint8 and bits == 8:
        return _soft(values, found, lossy=lossy)
    if values.dtype == np.uint16 and bits == 16:
        return _soft((values >> 8).astype(np.uint8), found, lossy=lossy)
    raise Ambiguous(found)


def _whole_numbers(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Floats as the integers they are, or 0..1 spread over 16 bits."""
    if not np.isfinite(values).all():
        raise Ambiguous("values that are not numbers")
    low, high = float(values.min()), float(values.max())
    if np.array_equal(values, np.rint(values)) and abs(low) < 2**53 and high < 2**53:
        return values.astype(np.int64), 8
    if low >= -FLOAT_OVERSHOOT and high <= 1 + FLOAT_OVERSHOOT:
        return np.rint(np.clip(values, 0, 1) * 65535).astype(np.uint16), 16
    raise Ambiguous(f"fractions from {low:g} to {high:g}")


def _soft(grey: np.ndarray, found: str, *, lossy: bool) -> Mask:
    """A mask of two values whose edge is soft, or that compression has blurred."""
    if lossy and bool((grey >= 255 - NEAR).all()):
        return Mask(grey > DEFAULT_THRESHOLD, "full")
    doubt = soft_edges.doubt(grey, lossy=lossy)
    if doubt is not None:
        raise Ambiguous(f"{found}, {doubt}" if doubt else found)
    return Mask(grey > DEFAULT_THRESHOLD, "soft")


def _by_rule(picture: Picture, rule: MaskValues) -> np.ndarray:
    values, palette, alpha = picture.values, picture.palette, picture.alpha
    if rule.kind == "alpha":
        if palette is not None:
            return palette[:, 3][values] > DEFAULT_THRESHOLD
        if alpha is None:
            raise Ambiguous("no alpha channel")
        return alpha > ((1 << picture.bits) - 1) // 2
    if rule.kind == "colour":
        return _of_colours(picture, rule.colours)
    if palette is not None and rule.kind in ("above", "below"):
        values = cv2.LUT(values, palette[:, :3].max(1))
    if values.ndim == 3:
        if rule.kind in ("object", "background") and (values != values[..., :1]).any():
            raise Ambiguous(_describe_colours(values))
        values = values.max(-1)
    if rule.kind == "nonzero":
        chosen = values != 0
    elif rule.kind == "above":
        chosen = values > rule.ranges[0][0]
    elif rule.kind == "below":
        chosen = values < rule.ranges[0][0]
    else:
        chosen = np.zeros(values.shape, bool)
        for first, last in rule.ranges:
            chosen |= (values >= first) & (values <= last)
        if rule.kind == "background":
            chosen = ~chosen
    if picture.nodata is not None and rule.kind != "object":
        chosen &= values != picture.nodata
    return chosen & np.isfinite(values) if values.dtype.kind == "f" else chosen


def _of_colours(picture: Picture, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    values = picture.values
    if picture.palette is not None:
        values = picture.palette[values][..., :3]
    if values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    if values.dtype != np.uint8:
        raise Ambiguous(f"values of the type {values.dtype}, which are no colours")
    if values.ndim == 2:
        values = np.dstack([values * np.uint8(255 // (2**picture.bits - 1))] * 3)
    tolerance = _COLOUR_TOLERANCE if picture.lossy else 0
    chosen = np.zeros(values.shape[:2], bool)
    for colour in colours:
        low = [max(c - tolerance, 0) for c in colour]
        high = [min(c + tolerance, 255) for c in colour]
        chosen |= cv2.inRange(np.ascontiguousarray(values), np.array(low), np.array(high)) > 0
    return chosen


def _refuse_nodata(picture: Picture) -> None:
    if picture.nodata is not None and (picture.values == picture.nodata).any():
        raise Ambiguous(f"pixels of the 'no data' value {picture.nodata:g}")


def _levels(values: np.ndarray) -> np.ndarray:
    """The different values, sorted."""
    if values.dtype != np.uint8:
        return np.unique(values)
    # Most masks have two, which is seen without counting all.
    ends = np.unique([values.min(), values.max()])
    if sum(cv2.countNonZero((values == end).view(np.uint8)) for end in ends) == values.size:
        return ends
    return np.flatnonzero(soft_edges.histogram(values))


def _is_constant(values: np.ndarray) -> bool:
    return not len(values) or bool((values == values[0]).all())


def _mark(colour: np.ndarray) -> str:
    """A colour of 8 or 16 bits in hexadecimal digits, "" for grey."""
    shift = 8 if colour.max() > 255 else 0
    red, green, blue = (int(level) >> shift for level in colour)
    return "" if red == green == blue else f"{red:02x}{green:02x}{blue:02x}"


def _describe_colours(values: np.ndarray) -> str:
    colours = np.unique(values.reshape(-1, 3), axis=0)
    shift = 8 if values.dtype == np.uint16 else 0
    shown = ", ".join("".join(f"{int(c) >> shift:02x}" for c in colour) for colour in colours[:4])
    more = f", … ({len(colours)} in all)" if len(colours) > 4 else ""
    return f"the colours {shown}{more}"


def _list(values: np.ndarray) -> str:
    if len(values) <= 6:
        return ", ".join(str(int(v)) for v in values)
    shown = ", ".join(str(int(v)) for v in values[:4])
    return f"{shown}, … {int(values[-1])} ({len(values)} in all)"
