"""Run-length encoding of masks as Kaggle's Carvana competition defines it.

Pixels are counted from 1 along the rows, top to bottom. A run is its first pixel and
its length; the text is all runs in order, separated by spaces, and "" for an empty mask.
"""

import numpy as np

from carvana_tf.errors import UserError


def encode(mask: np.ndarray) -> np.ndarray:
    """The runs of a mask.

    Args:
        mask: `bool[H, W]`.

    Returns:
        `int64[N, 2]`: the first pixel (from 1) and the length of each run, in order.

    Raises:
        ValueError: The mask is not boolean; grey values must be cut first.
    """
    if mask.dtype != np.bool_:
        raise ValueError(f"a mask must be bool to be encoded, received {mask.dtype}.")
    flat = mask.ravel()
    if not flat.size:
        return np.zeros((0, 2), np.int64)
    # Comparing bools runs on bytes, and only the few changes are touched afterwards:
    # several times faster than padding and differencing the pixels.
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0] if flat[0] else []
    last = [flat.size] if flat[-1] else []
    edges = np.concatenate([first, changes, last]).astype(np.int64).reshape(-1, 2)
    return np.stack([edges[:, 0] + 1, edges[:, 1] - edges[:, 0]], axis=1)


def to_text(runs: np.ndarray) -> str:
    """Runs (`int64[N, 2]`) as text: "start length start length …"."""
    return " ".join(map(str, runs.ravel().tolist()))


def encode_text(mask: np.ndarray) -> str:
    """The text of a mask (`bool[H, W]`)."""
    return to_text(encode(mask))


def verify(text: str, mask: np.ndarray) -> None:
    """Decodes a text and compares it with the mask (`bool[H, W]`) it was made from.

    Raises:
        RuntimeError: They differ: a fault of this program.
    """
    if not np.array_equal(decode(text, *mask.shape), mask):
        raise RuntimeError("run lengths do not decode to their mask.")


def decode(text: str, height: int, width: int) -> np.ndarray:
    """The mask a text stands for.

    Args:
        text: "start length …", starts from 1, runs in order and apart or touching.
        height: Rows of the mask.
        width: Its columns.

    Returns:
        `bool[height, width]`.

    Raises:
        UserError: Not whole numbers, an odd count of them, an empty run, runs that
            overlap or are out of order, or a pixel outside the mask.
    """
    runs, pixels = _parse(text), height * width
    if (runs[:, 1] < 1).any():
        raise UserError("a run-length text has a run of less than 1 pixel.")
    edges = np.stack([runs[:, 0] - 1, runs[:, 0] - 1 + runs[:, 1]], axis=1)
    # The runs themselves are bounded too, lest the sum of two huge numbers wraps around.
    if (runs > pixels).any() or (edges < 0).any() or (edges > pixels).any():
        raise UserError(
            f"a run-length text has pixels outside 1..{pixels}, the {width}x{height} mask."
        )
    if (edges[1:, 0] < edges[:-1, 1]).any():
        raise UserError("a run-length text has runs that overlap or are out of order.")
    # Background and object alternate; the gaps between edges are their lengths.
    lengths = np.diff(edges.ravel(), prepend=0, append=pixels)
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(height, width)


def _parse(text: str) -> np.ndarray:
    words = text.split()
    strangers = [word for word in words if not (word.isascii() and word.isdigit())]
    if strangers:
        raise UserError(f"a run-length text has '{strangers[0][:20]}', which is no whole number.")
    if len(words) % 2:
        raise UserError(f"a run-length text has {len(words)} numbers; it needs pairs.")
    try:
        return np.array([int(word) for word in words], np.int64).reshape(-1, 2)
    except OverflowError as error:
        raise UserError("a run-length text has a number beyond any image.") from error
