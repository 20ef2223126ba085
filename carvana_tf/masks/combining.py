"""Combining the masks of one photo into one, with exact rounding."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError

STRATEGIES = ("mean", "vote", "median", "logit_mean")

Rule = Callable[[Sequence[np.ndarray]], np.ndarray]

_STRIP = 1 << 17  # pixels at once, so that what is in between stays in a core's cache
_SPARSE = 5  # where fewer than one pixel in this many differs, only those are computed
_SMALL, _FINE = 257, 1 << 15  # totals of whole-numbered weights, see `units`
_BITS = 8  # votes that fit a byte
_TIE = 1
_LOGIT = np.log((np.arange(256) + 0.5) / (255.5 - np.arange(256)))


def combine(
    greys: Sequence[np.ndarray],
    strategy: str,
    weights: Sequence[float] | None = None,
    threshold: int = DEFAULT_THRESHOLD,
) -> np.ndarray:
    """Combines K masks of one photo.

    mean: the weighted mean, rounded half up. vote: object (255) where more than half of
    the weight is greater than the threshold; a tie is object where the rounded mean is.
    median: of an even number, the mean of the middle two, rounded half up.
    logit_mean: the weighted mean of log odds, a grey value v being p = (v + 0.5) / 256.

    Args:
        greys: K times `uint8[H, W]`.
        strategy: One of `STRATEGIES`.
        weights: K numbers >= 0, in any scale; None means equal ones. Not for the median.
            Mean and vote compute with `units` of them.
        threshold: 0..254, of the vote alone: the others keep the grey values.

    Returns:
        `uint8[H, W]`.
    """
    greys = [np.ascontiguousarray(grey) for grey in greys]
    rule = _rule(strategy, weights, len(greys), threshold)
    result = np.empty_like(greys[0])
    rows = max(1, _STRIP // result.shape[1])
    for top in range(0, len(result), rows):
        result[top : top + rows] = rule([grey[top : top + rows] for grey in greys])
    return result


def normalise(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1.

    Raises:
        UserError: One is negative or no number, or all are 0.
    """
    total = sum(weights)
    if not np.isfinite(total) or min(weights) < 0 or total <= 0:
        raise UserError(f"--weights={','.join(map(str, weights))}: give numbers >= 0, not all 0.")
    return [weight / total for weight in weights]


def units(weights: Sequence[float] | None, count: int) -> list[int]:
    """The weights that mean and vote compute with, as whole numbers.

    Args:
        weights: `count` numbers >= 0, in any scale; None means equal ones.
        count: How many masks there are.

    Returns:
        Whole numbers in the ratio of the weights, of the smallest total up to 257 that
        allows it; else of the total 2^15, rounded.

    Raises:
        UserError: As `normalise`.
    """
    if weights is None or len(set(weights)) == 1:
        return [1] * count
    shares = np.array(normalise(weights))
    scaled = shares * np.arange(2, _SMALL + 1)[:, None]
    whole = np.rint(scaled)
    exact = np.flatnonzero(np.abs(whole - scaled).max(1) < 1e-6)
    if len(exact):
        return whole[exact[0]].astype(int).tolist()
    floors = np.floor(shares * _FINE).astype(int)
    short = _FINE - int(floors.sum())
    floors[np.argsort(floors - shares * _FINE, kind="stable")[:short]] += 1
    return floors.tolist()


def _rule(strategy: str, weights: Sequence[float] | None, count: int, threshold: int) -> Rule:
    if strategy == "vote":
        return _vote(units(weights, count), threshold)
    if strategy == "median":
        return _median
    if strategy == "logit_mean":
        return functools.partial(_where_different, _logit_mean(weights or [1.0] * count))
    return _mean(units(weights, count))


def _where_different(rule: Rule, greys: Sequence[np.ndarray]) -> np.ndarray:
    """What `rule` gives, which must be v where all masks have the value v."""
    low, high = functools.reduce(cv2.min, greys), functools.reduce(cv2.max, greys)
    at = np.flatnonzero(low != high)  # of bool it is ten times faster
    if _SPARSE * len(at) > low.size:
        return rule(greys)
    if len(at):
        low.ravel()[at] = rule([grey.ravel().take(at)[None] for grey in greys])[0]
    return low


def _mean(shares: Sequence[int]) -> Rule:
    total = sum(shares)
    # Sums are exact: up to 2^16 in uint16, up to 2^24 in float32.
    kind: Any = np.uint16 if total <= _SMALL else np.float32
    # OpenCV rounds to nearest; a fraction of the finest step makes a half go up and moves
    # no other value. Only a total that is a power of two divides without an error.
    nudge = (0.5 if total == _FINE else 0.25) / total

    def rule(greys: Sequence[np.ndarray]) -> np.ndarray:
        sums = np.zeros(greys[0].shape, kind)
        for grey, unit in zip(greys, shares, strict=True):
            wide = grey.astype(kind)
            if unit != 1:
                wide *= kind(unit)
            cv2.add(sums, wide, sums)
        return cv2.convertScaleAbs(sums, alpha=1 / total, beta=nudge)

    return rule


def _vote(shares: Sequence[int], threshold: int) -> Rule:
    """Each mask's vote is a bit; a table knows what eight of them weigh."""
    total, mean = sum(shares), _mean(shares)
    tables = [_balances(shares[i : i + _BITS]) for i in range(0, len(shares), _BITS)]
    verdicts = _verdict(tables[0])

    def rule(greys: Sequence[np.ndarray]) -> np.ndarray:
        parts = [_bits(greys[i : i + _BITS], threshold) for i in range(0, len(greys), _BITS)]
        if len(parts) == 1:
            result = cv2.LUT(parts[0], verdicts)
        else:
            result = _verdict(functools.reduce(np.add, map(cv2.LUT, parts, tables)))
        if total % 2 == 0:
            tie = np.flatnonzero(result == _TIE)
            if len(tie):
                means = mean([grey.ravel().take(tie)[None] for grey in greys])
                result.ravel()[tie] = np.where(means[0] > threshold, 255, 0)
        return result

    return rule


def _bits(greys: Sequence[np.ndarray], threshold: int) -> np.ndarray:
    """`uint8` of the same shape: bit k is the vote of mask k, of at most eight."""
    votes = (
        cv2.threshold(grey, threshold, 1 << k, cv2.THRESH_BINARY)[1] for k, grey in enumerate(greys)
    )
    return functools.reduce(cv2.add, votes)


def _verdict(balance: np.ndarray) -> np.ndarray:
    return np.where(balance > 0, 255, np.where(balance == 0, _TIE, 0)).astype(np.uint8)


def _balances(shares: Sequence[int]) -> np.ndarray:
    """`int32[256]`: the weight of the bits set less that of the others, of every byte."""
    codes = np.arange(256)
    signs = np.stack([np.where(codes >> bit & 1, 1, -1) for bit in range(len(shares))])
    return (np.array(shares) @ signs).astype(np.int32)


def _median(greys: Sequence[np.ndarray]) -> np.ndarray:
    rows = list(greys)
    # A sorting network: each exchange is two vector instructions.
    for end in range(len(rows) - 1, 0, -1):
        for i in range(end):
            rows[i], rows[i + 1] = cv2.min(rows[i], rows[i + 1]), cv2.max(rows[i], rows[i + 1])
    middle = len(rows) // 2
    return rows[middle] if len(rows) % 2 else _mean([1, 1])(rows[middle - 1 : middle + 1])


def _logit_mean(weights: Sequence[float]) -> Rule:
    tables = [(-_LOGIT * weight).astype(np.float32) for weight in normalise(weights)]

    def rule(greys: Sequence[np.ndarray]) -> np.ndarray:
        # Opposite odds cancel but for rounding; they are 0.5, which shall be object.
        sums = np.full(greys[0].shape, -1e-5, np.float32)
        for grey, table in zip(greys, tables, strict=True):
            cv2.add(sums, cv2.LUT(grey, table), sums)
        cv2.exp(sums, sums)
        sums += 1
        return np.minimum(256 / sums, 255).astype(np.uint8)

    return rule
