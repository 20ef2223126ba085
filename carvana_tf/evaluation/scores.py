"""Scores as tables: per photo, group, view, fold and threshold, with an honest interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.evaluation import boundary
from carvana_tf.evaluation.counts import THRESHOLDS, Counts, dice_from_counts

RATIOS = ("dice", "accuracy", "iou", "precision", "recall")
PIXELS = ("tp", "fp", "fn", "tn")
# Measured at the contour, so they need the pixels and have one threshold only.
CONTOUR = ("boundary_f", "band_dice")
LEVEL = 0.95

# Draws per step of the bootstrap: bounds its memory, does not change its result.
_DRAWS = 1 << 20


def per_photo(
    stems: Sequence[str],
    groups: Sequence[str],
    folds: Sequence[int | None],
    counts: Counts,
    threshold: int = DEFAULT_THRESHOLD,
    *,
    views: Sequence[str | None] | None = None,
    contours: np.ndarray | None = None,
) -> pd.DataFrame:
    """One row per photo: `id`, `group`, `view`, `fold`, scores and pixel counts.

    View and fold may be missing.

    Args:
        stems: The N photos.
        groups: The group of each.
        folds: The fold of each, None where it is not known.
        counts: Their counts, in the same order.
        threshold: 0..255; a greater grey value is object.
        views: The view of each, None where it has none; None for all of them.
        contours: `float64[N, 4]`, `boundary.COLUMNS` of each at this threshold; left out
            where it was not measured.
    """
    table = pd.DataFrame({"id": list(stems), "group": list(groups)})
    table["view"] = pd.array(list(views or [None] * len(table)), dtype="string")
    table["fold"] = pd.array(list(folds), dtype="Int64")
    for name in (*RATIOS, *PIXELS):
        table[name] = getattr(counts, name)[:, threshold]
    if contours is not None:
        table[list(boundary.COLUMNS)] = contours
    return table


def per_group(photos: pd.DataFrame) -> pd.DataFrame:
    """The worst group first.

    Returns:
        Columns `group`, `fold`, `photos`, `mean_dice`, `min_dice`, `mean_accuracy` and,
        where measured, the means of `CONTOUR`.
    """
    table = photos.groupby("group", as_index=False).agg(
        fold=("fold", "first"), photos=("id", "size"), **_means(photos)
    )
    return table.sort_values(["mean_dice", "group"], ignore_index=True)


def per_view(photos: pd.DataFrame) -> pd.DataFrame:
    """Columns `view`, `photos` and those of `per_group`, in the order of the views.

    Empty where no two groups share a view: then the number is just a photo's.
    """
    table = photos.groupby("view", as_index=False).agg(
        photos=("id", "size"), groups=("group", "nunique"), **_means(photos)
    )
    if not (table["groups"] > 1).any():
        table = table.iloc[:0]
    return table.drop(columns="groups")


def per_fold(photos: pd.DataFrame, seed: int = 80) -> pd.DataFrame:
    """Columns `fold`, `groups`, `photos`, `mean_dice`, `low`, `high` and those of `per_group`.

    Photos whose fold is missing are left out; without any fold the table is empty.
    """
    table = photos.groupby("fold", as_index=False).agg(
        groups=("group", "nunique"), photos=("id", "size"), **_means(photos)
    )
    members = [photos[photos["fold"] == fold] for fold in table["fold"]]
    bounds = [bootstrap_interval(rows["dice"], rows["group"], seed=seed) for rows in members]
    table.insert(4, "low", [low for low, _ in bounds])
    table.insert(5, "high", [high for _, high in bounds])
    return table


def _means(photos: pd.DataFrame) -> dict[str, Any]:
    contour = {f"mean_{name}": (name, "mean") for name in CONTOUR if name in photos}
    return {
        "mean_dice": ("dice", "mean"),
        "min_dice": ("dice", "min"),
        "mean_accuracy": ("accuracy", "mean"),
        **contour,
    }


def threshold_curve(counts: Counts) -> pd.DataFrame:
    """Columns `threshold` (0..255) and the means over photos of `RATIOS`."""
    means = {f"mean_{name}": getattr(counts, name).mean(0) for name in RATIOS}
    return pd.DataFrame({"threshold": THRESHOLDS, **means})


def best_threshold(curve: pd.DataFrame) -> int:
    """The threshold of the highest mean Dice, the one nearest to the default among equals.

    It is fitted on the very photos it is scored on, so its mean Dice is optimistic.
    """
    best = curve["threshold"][curve["mean_dice"] == curve["mean_dice"].max()]
    return int(best.iloc[(best - DEFAULT_THRESHOLD).abs().argmin()])


def useless(photos: pd.DataFrame) -> str | None:
    """A warning, where a mask that is the same everywhere would score as well.

    Args:
        photos: From `per_photo`.

    Returns:
        One sentence with the likely causes; None where the masks are better than that.
    """
    true = photos["tp"] + photos["fn"]
    pixels = true + photos["fp"] + photos["tn"]
    by_kind = {
        "all object": dice_from_counts(true, pixels + true),
        "all background": dice_from_counts(0 * true, true),
    }
    kind, best = max(((k, float(dice.mean())) for k, dice in by_kind.items()), key=lambda x: x[1])
    mean = float(photos["dice"].mean())
    if mean > best or mean == 1:
        return None
    return (
        f"mean Dice {mean:.5f} is no better than that of masks that are {kind} ({best:.5f}): the "
        "networks learned nothing, or ground truth and masks do not fit; look at the pictures, the "
        "training's log.csv, and what tools/check_data.py says of the masks"
    )


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


def interval(
    values: Sequence[float] | np.ndarray | pd.Series, groups: Sequence[str] | pd.Series, seed: int
) -> list[float] | None:
    """As `bootstrap_interval`, ready for JSON: None with a single group."""
    low, high = bootstrap_interval(pd.Series(values), groups, seed=seed)
    return None if np.isnan(low) else [low, high]


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
    best = best_threshold(curve)
    return {
        "photos": len(photos),
        "groups": int(photos["group"].nunique()),
        "threshold": threshold,
        **{
            f"mean_{name}": float(photos[name].mean())
            for name in (*RATIOS, *CONTOUR)
            if name in photos
        },
        "median_dice": float(photos["dice"].median()),
        "percentile_5_dice": float(photos["dice"].quantile(0.05)),
        "min_dice": float(photos["dice"].min()),
        "interval_level": LEVEL,
        "interval": interval(photos["dice"], photos["group"], seed),
        "interval_note": "bootstrap of whole groups, percentile",
        "best_threshold": best,
        "best_threshold_mean_dice": float(curve["mean_dice"][best]),
        "best_threshold_note": "fitted on the same photos, so optimistic",
    }
