"""From the logits of a photo to the labels that are answered.

As the 4th-place solution of the Inclusive Images Challenge (azat-d/inclusive-images-challenge)
does it: the best classes get scores that can be compared between photos, and those above a
threshold are answered, within a least and a most number.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

TOP_K = 150
"""Classes of a photo that get a score, as published."""
THRESHOLD = 0.55
"""Of a score that is answered, as published."""
LEAST, MOST = 2, 5
"""Labels that are answered for a photo, as published."""


def ranking_scores(logits: np.ndarray, top_k: int = TOP_K) -> tuple[np.ndarray, np.ndarray]:
    """The best classes of each photo, each scored against the classes that are least likely.

    The score of class `c` is `exp(x_c) / (exp(x_c) + sum of exp(x_r) over the others)`, where the
    others are the classes of rank `top_k` (from 0) and beyond: as in the loss `ranking`, the best
    ones do not compete with one another. That takes far more classes than a photo has labels.
    Where there are no more than `top_k`, nothing would be beyond: all classes are scored then, and
    the others are those of rank `max(1, K // 2)` and beyond, for these classes, too, so that
    scores descend as logits do.

    Args:
        logits: `float32[..., K]`, finite, of at least one class.
        top_k: How many classes are scored, from 1.

    Returns:
        Class ids `int32[..., min(top_k, K)]`, best first and of equal logits the lower id, and
        their scores in 0..1, `float32` of the same shape. The score of an only class is 1.

    Raises:
        ValueError: A logit is not finite, there is no class, or `top_k` is less than 1.
    """
    classes = np.shape(logits)[-1]
    chosen, indices, best = _best(logits, min(top_k, classes))
    if classes == 1:
        return indices, np.ones(best.shape, np.float32)
    if classes <= top_k:
        chosen, _, _ = _best(logits, classes // 2)
    # Without the best: the first of the others leads, so no exponential overflows.
    others = np.where(chosen, -np.inf, np.asarray(logits, np.float32))
    highest = others.max(axis=-1, keepdims=True)
    total = np.exp(others - highest).sum(axis=-1, keepdims=True, dtype=np.float64)
    return indices, _sigmoid(best - (highest + np.log(total)))


def sigmoid_scores(logits: np.ndarray, top_k: int = TOP_K) -> tuple[np.ndarray, np.ndarray]:
    """The best classes of each photo, each scored by the sigmoid of its logit.

    For networks of the losses `bce` and `focal`. Arguments, results and errors are those of
    `ranking_scores`, but where there are fewer than `top_k` classes, all of them are scored.
    """
    _, indices, best = _best(logits, min(top_k, np.shape(logits)[-1]))
    return indices, _sigmoid(best)


def choose(
    indices: np.ndarray,
    scores: np.ndarray,
    threshold: float = THRESHOLD,
    least: int = LEAST,
    most: int = MOST,
) -> tuple[int, ...]:
    """The classes that are answered for one photo, the best last as in the published submissions.

    Args:
        indices: `[top_k]`, class ids, best first.
        scores: `float32[top_k]`, of each.
        threshold: Classes of higher scores are answered (compared in float32).
        least: Answered at least, as far as there are so many.
        most: Answered at most.

    Raises:
        ValueError: `least` is more than `most`, or either is negative.
    """
    if not 0 <= least <= most:
        raise ValueError(f"at least {least} and at most {most} labels")
    above = int(np.count_nonzero(np.asarray(scores, np.float32) > np.float32(threshold)))
    return tuple(int(index) for index in indices[: min(max(above, least), most)][::-1])


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which labels are answered, see `choose`.

    Attributes:
        threshold: Labels of higher scores are answered.
        least: At least so many.
        most: At most so many.
    """

    threshold: float = THRESHOLD
    least: int = LEAST
    most: int = MOST

    def answer(self, labels: Sequence[str], scores: np.ndarray) -> list[str]:
        """The labels that are answered for a photo, the best last; both are best first."""
        places = np.arange(len(labels))
        chosen = choose(places, scores, self.threshold, self.least, self.most)
        return [labels[place] for place in chosen]


def _best(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `top_k` best classes: `bool[..., K]`, their ids, and their logits, best first."""
    logits = np.asarray(logits, np.float32)
    classes = logits.shape[-1]
    if classes == 0 or top_k < 1:
        raise ValueError(f"the best {top_k} of {classes} classes")
    if not np.isfinite(logits).all():
        raise ValueError("a logit is not finite")
    rows = logits.reshape(-1, classes)
    last = np.partition(rows, classes - top_k, axis=-1)[:, classes - top_k, None]
    # As many of the classes that equal the last one as have room, those of low ids.
    better, equal = rows > last, rows == last
    room = top_k - np.count_nonzero(better, axis=-1)[:, None]
    chosen = better | (equal & (np.cumsum(equal, axis=-1) <= room))
    indices = np.nonzero(chosen)[1].reshape(len(rows), top_k)
    best = np.take_along_axis(rows, indices, axis=-1)
    order = np.argsort(-best, axis=-1, kind="stable")
    shape = (*logits.shape[:-1], top_k)
    return (
        chosen.reshape(logits.shape),
        np.take_along_axis(indices, order, axis=-1).astype(np.int32).reshape(shape),
        np.take_along_axis(best, order, axis=-1).reshape(shape),
    )


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """In float32, computed in float64 so that no exponential overflows: they stay under 1e300."""
    clipped = np.clip(logits.astype(np.float64), -600.0, 600.0)
    return (1.0 / (1.0 + np.exp(-clipped))).astype(np.float32)
