"""Whether PNGs without a manifest are probabilities at all.

The same care as with hand-made masks: a folder of 0/1 masks or of labels would be read as
probabilities without an error, and scored.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from carvana_tf.data.images import UnreadableImage, read_grey

# Files that are looked at for labels.
_LOOKED_AT = 8
_HALF = 127
# Grey values this near to each other or to black and white do not make an edge.
_NEAR = 3
# So many votes or models may have been averaged.
_MOST_VOTES = 16
_MOST_SHARP = 0.5


def suspicion(paths: Sequence[Path]) -> str | None:
    """What speaks against grey values being `round(255 * probability)`, or None.

    Unreadable files are left to those who read them next.

    Args:
        paths: The PNGs of one folder.
    """
    first = paths[:: max(1, len(paths) // _LOOKED_AT)]
    greatest = 0
    for path in (*first, *paths):
        try:
            grey = read_grey(path)
        except UnreadableImage:
            return None
        greatest = max(greatest, int(grey.max()))
        if path in first and _is_label_image(grey):
            values = ", ".join(map(str, np.unique(grey)[:6]))
            return f"'{path}' has areas of constant grey ({values}, …), as labels have"
        if greatest > _HALF and path not in first[:-1]:
            return None
    if greatest > _HALF or not greatest:  # no object at all may well be predicted
        return None
    return f"no grey value of {len(paths)} PNGs is above {greatest}, so nothing would be object"


def _is_label_image(grey: np.ndarray) -> bool:
    """Whether grey areas meet at sharp edges, which probabilities hardly do.

    A sharp edge lies between two pixels whose outer neighbours are equal to them.
    """
    levels = np.unique(grey)
    votes = (np.rint(np.arange(n + 1) * 255 / n) for n in range(1, _MOST_VOTES + 1))
    if grey.shape[1] < 4 or any(np.isin(levels, values).all() for values in votes):
        return False
    a, b, c, d = (grey[:, i : grey.shape[1] - 3 + i].astype(np.int16) for i in range(4))
    middle = (np.minimum(b, 255 - b) > _NEAR) | (np.minimum(c, 255 - c) > _NEAR)
    edges = (np.abs(b - c) > _NEAR) & middle
    sharp = edges & (a == b) & (c == d)
    return bool(np.count_nonzero(sharp) > _MOST_SHARP * np.count_nonzero(edges) > 0)
