"""Scores as tables: per photo, group, fold and threshold, with an honest interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from carvana_tf.evaluation.counts import DEFAULT_THRESHOLD, THRESHOLDS, Counts

RATIOS = ("dice", "iou", "precision", "recall")
PIXELS = ("tp", "fp", "fn", "tn")
LEVEL = 0.95

# Draws per step of the bootstrap: bounds its memory, does not change its result.
_DRAWS = 1 << 20


def per_photo(
    stems: Sequence[str],
    groups: Sequence[str],
    folds: Sequence[int | None],
    counts: Counts,
    threshold: int = DEFAULT_THRESHOLD,
) -> pd.DataFrame:
    """One row per photo: `id`, `group`, `fold` (may be missing), scores and pixel counts.

    Args:
        stems: The N photos.
        groups: The group of each.
        folds: The fold of each, None where it is not known.
        counts: Their counts, in the same order.
        threshold: 0..255; a greater grey value is object.
    """
    table = pd.DataFrame({"id": list(stems), "group": list(groups)})
    table["fold"] = pd.array(list(folds), dtype="Int64")
    for name in (*RATIOS, *PIXELS):
        table[name] = getattr(counts, name)[:, threshold]
    return table


def per_group(photos: pd.DataFrame) -> pd.DataFrame:
    """Columns `group`, `fold`, `photos`, `mean_dice`, `min_dice`, the worst group first."""
    table = photos.groupby("group", as_index=False).agg(
        fold=("fold", "first"),
        photos=("id", "size"),
        mean_dice=("dice", "mean"),
        min_dice=("dice", "min"),
    )
    return table.sort_values(["mean_dice", "group"], ignore_index=True)


def per_fold(photos: pd.DataFrame, seed: int = 80) -> pd.DataFrame:
    """Columns `fold`, `groups`, `photos`, `mean_dice`, `low`, `high`, `min_dice`.

    Photos whose fold is missing are left out; without any fold the table is empty.
    """
    table = photos.groupby("fold", as_index=False).agg(
        groups=("group", "nunique"),
        photos=("id", "size"),
        mean_dice=("dice", "mean"),
        min_dice=("dice", "min"),
    )
    members = [photos[photos["fold"] == fold] for fold in table["fold"]]
    bounds = [bootstrap_interval(rows["dice"], rows["group"], seed=seed) for rows in members]
    table.insert(4, "low", [low for low, _ in bounds])
    table.insert(5, "high", [high for _, high in bounds])
    return table


def threshold_curve(counts: Counts) -> pd.DataFrame:
    """Columns `threshold` (0..255) and the means over photos of the four ratios."""
    means = {f"mean_{name}": getattr(counts, name).mean(0) for name in RATIOS}
    return pd.DataFrame({"threshold": THRESHOLDS, **means})


def best_threshold(curve: pd.DataFrame) -> int:
    """The threshold of the highest mean Dice, the one nearest to the default among equals.

    It is fitted on the very photos it is scored on, so its mean Dice is optimistic.
    """
    best = curve["threshold"][curve["mean_dice"] == curve["mean_dice"].max()]
    return int(best.iloc[(best - DEFAULT_THRESHOLD).abs().argmin()])


def bootstrap_interval(
    values: Sequence[float] | pd.Series,
    groups: Sequence[str] | pd.Series,
    *,
    level: float = LEVEL,
    resamples: int = 10_000,
    seed: int = 80,
) -> tuple[float, float]:
    """Percentile interval of the mean over photos, resampling whole groups.

    The views of one car succeed and fail together, so photos are no independent
    draws; groups are. (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993,
    percentile interval; cluster version after Field & Welsh, 2007.)

    Args:
        values: Score of each photo.
        groups: Group of each photo.
        level: Share of resampled means inside the interval.
        resamples: How many means to draw.
        seed: Of the draws.

    Returns:
        The lower and upper bound; two NaN when there is only one group.
    """
    parts = pd.Series(list(values), dtype=float).groupby(list(groups))
    sums, sizes = parts.sum().to_numpy(), parts.size().to_numpy()
    if len(sums) < 2:
        return float("nan"), float("nan")
    random = np.random.default_rng(seed)
    step = max(1, _DRAWS // len(sums))
    means = []
    for start in range(0, resamples, step):
        drawn = random.integers(len(sums), size=(min(step, resamples - start), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def summarise(
    photos: pd.DataFrame, curve: pd.DataFrame, threshold: int, seed: int = 80
) -> dict[str, Any]:
    """The headline numbers of a scored folder, ready for JSON.

    Args:
        photos: From `per_photo`.
        curve: From `threshold_curve` of the same photos.
        threshold: The threshold of `photos`.
        seed: Of the interval.

    Returns:
        Means over photos, the interval (None with a single group) and the best
        threshold with a note that it is optimistic.
    """
    low, high = bootstrap_interval(photos["dice"], photos["group"], seed=seed)
    best = best_threshold(curve)
    return {
        "photos": len(photos),
        "groups": int(photos["group"].nunique()),
        "threshold": threshold,
        **{f"mean_{name}": float(photos[name].mean()) for name in RATIOS},
        "median_dice": float(photos["dice"].median()),
        "min_dice": float(photos["dice"].min()),
        "interval_level": LEVEL,
        "interval": None if np.isnan(low) else [low, high],
        "interval_note": "bootstrap of whole groups, percentile",
        "best_threshold": best,
        "best_threshold_mean_dice": float(curve["mean_dice"][best]),
        "best_threshold_note": "fitted on the same photos, so optimistic",
    }
