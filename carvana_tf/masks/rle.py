"""Run-length encoding of masks as Kaggle's Carvana competition defines it.

Pixels are counted from 1 along the rows, top to bottom. A run is its first pixel and
its length; the text is all runs in order, separated by spaces, and "" for an empty mask.

A mask's bits, as `numpy.packbits` has them, are an eighth of the memory to go through:
both directions work on them.
"""

import re

import numpy as np

from carvana_tf.errors import UserError

ROWS, COLUMNS = ORDERS = ("row-major", "column-major")
"""How pixels are counted: along the rows, as here, or down the columns, as elsewhere."""


def pack(grey: np.ndarray, threshold: int) -> np.ndarray:
    """The bits of a mask: `uint8[ceil(H * W / 8)]` of `uint8[H, W]`, 1 above the threshold."""
    # In one piece: between two calls other threads may take the interpreter.
    return np.packbits(grey.ravel() > threshold)


def encode_packed(bits: np.ndarray, pixels: int) -> np.ndarray:
    """The runs of a mask from its bits.

    Args:
        bits: `uint8[ceil(pixels / 8)]`, as of `pack`.
        pixels: H * W.

    Returns:
        `int64[N, 2]`: the first pixel (from 1) and the length of each run, in order.
    """
    last = np.concatenate([np.zeros(1, np.uint8), bits[:-1]])
    # Of the other bytes, all 0 or all 1 and as the one before, none holds an edge.
    at = np.flatnonzero((bits != last) | (bits + np.uint8(1) > 1))
    changed = bits[at] ^ (bits[at] >> 1 | last[at] << 7)  # pixels unlike the one before
    bit = np.flatnonzero(np.unpackbits(changed).view(bool))
    edges = 8 * at[bit >> 3] + (bit & 7)
    if len(edges) % 2:
        edges = np.append(edges, pixels)
    edges = edges.reshape(-1, 2)
    return np.stack([edges[:, 0] + 1, edges[:, 1] - edges[:, 0]], axis=1)


def encode(mask: np.ndarray) -> np.ndarray:
    """The runs of a mask.

    Args:
        mask: `bool[H, W]`.

    Returns:
        As `encode_packed`.

    Raises:
        ValueError: The mask is not boolean; grey values must be cut first.
    """
    if mask.dtype != np.bool_:
        raise ValueError(f"a mask must be bool to be encoded, received {mask.dtype}.")
    return encode_packed(np.packbits(mask.ravel()), mask.size)


def to_text(runs: np.ndarray) -> str:
    """Runs (`int64[N, 2]`) as text: "start length start length …"."""
    return repr(runs.ravel().tolist())[1:-1].replace(",", "")  # all in C, unlike a join


def encode_text(mask: np.ndarray) -> str:
    """The text of a mask (`bool[H, W]`)."""
    return to_text(encode(mask))


def verify(text: str, bits: np.ndarray, height: int, width: int) -> None:
    """Decodes a text and compares it with the bits (as of `pack`) it was made from.

    Raises:
        RuntimeError: They differ: a fault of this program.
    """
    if not np.array_equal(decode_packed(text, height, width), bits):
        raise RuntimeError("run lengths do not decode to their mask.")


def decode_packed(text: str, height: int, width: int) -> np.ndarray:
    """The bits of the mask a text stands for.

    Args:
        text: "start length …", starts from 1, runs in order, touching or not.
        height: Rows of the mask.
        width: Its columns.

    Returns:
        `uint8[ceil(height * width / 8)]`, as of `pack`.

    Raises:
        UserError: Not whole numbers, an odd count of them, an empty run, runs that
            overlap or are out of order, or a pixel outside the mask.
    """
    runs, pixels = parse(text), height * width
    if (runs[:, 1] < 1).any():
        raise UserError("a run-length text has a run of less than 1 pixel.")
    edges = np.stack([runs[:, 0] - 1, runs[:, 0] - 1 + runs[:, 1]], axis=1)
    # The runs themselves are bounded too: the sum of two huge numbers would wrap around.
    if (runs > pixels).any() or (edges < 0).any() or (edges > pixels).any():
        raise UserError(
            f"a run-length text has pixels outside 1..{pixels}, the {width}x{height} mask."
        )
    if (edges[1:, 0] < edges[:-1, 1]).any():
        raise UserError("a run-length text has runs that overlap or are out of order.")
    return _fill(edges.ravel(), -(-pixels // 8))


def decode(text: str, height: int, width: int, order: str = ROWS) -> np.ndarray:
    """The mask a text stands for, `bool[height, width]`; see `decode_packed`.

    Args:
        text: Run lengths.
        height: Rows of the mask.
        width: Its columns.
        order: One of `ORDERS`.
    """
    pixels = np.unpackbits(decode_packed(text, height, width), count=height * width).view(bool)
    if order == ROWS:
        return pixels.reshape(height, width)
    return np.ascontiguousarray(pixels.reshape(width, height).T)


def _fill(edges: np.ndarray, length: int) -> np.ndarray:
    """Bits that change at every edge, background first."""
    byte = edges >> 3
    # An edge turns all bytes after its own, and in its own the bits from it on.
    spans = np.diff(np.minimum(byte + 1, length), prepend=0, append=length)
    bits = np.repeat((np.arange(len(spans)) % 2 * 255).astype(np.uint8), spans)
    inside = byte < length
    np.bitwise_xor.at(bits, byte[inside], (255 >> (edges[inside] & 7)).astype(np.uint8))
    return bits


def parse(text: str) -> np.ndarray:
    """The runs that a text stands for, `int64[N, 2]`; whether they fit a mask is not looked at.

    Raises:
        UserError: It is no list of pairs of whole numbers.
    """
    unknown = re.search(r"[^0-9 \t\r\n]", text)
    if unknown:
        word = next(word for word in re.split(r"[ \t\r\n]", text) if unknown.group() in word)
        raise UserError(f"a run-length text has '{word[:20]}', which is no whole number.")
    # What does not fit becomes the largest int64, which is outside any mask.
    numbers = np.fromstring(text, np.int64, sep=" ")
    if len(numbers) % 2:
        raise UserError(f"a run-length text has {len(numbers)} numbers; it needs pairs.")
    return numbers.reshape(-1, 2)
