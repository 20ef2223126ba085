"""Settings chosen on the other folds and scored on each: what a fitted setting is worth.

A threshold that is best on the photos it is scored on flatters itself. Here each fold
is scored with the setting that is best on all other folds, so no photo takes part in
the choice of its own setting.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.evaluation.ablation import COMPONENT_THRESHOLDS
from carvana_tf.evaluation.counts import THRESHOLDS
from carvana_tf.evaluation.measure import Measured
from carvana_tf.evaluation.scores import interval
from carvana_tf.masks.manifest import Manifest


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Settings that may be chosen, and what each photo scores with them.

    Attributes:
        name: What is chosen, as the tables call it.
        settings: For each of K candidates, its (threshold, minimum component size).
        scores: `float64[N, K]`, Dice of each photo with each candidate.
    """

    name: str
    settings: tuple[tuple[int, int], ...]
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        chosen: For each fold, the candidate that is best on all other folds.
        values: `float64[N]`, the score of each photo with its fold's candidate.
        naive: The candidate that is best on all photos, the scored ones among them.
    """

    chosen: dict[int, int]
    values: np.ndarray
    naive: int


def candidates_of(measured: Measured, sizes: Sequence[int]) -> list[Candidates]:
    """What can be chosen from: the thresholds, and minimum components where measured.

    Args:
        measured: N photos.
        sizes: The minimum component sizes they were measured with.
    """
    found = [of_thresholds(measured.counts.dice)]
    if measured.components is not None:
        found.append(of_components(measured.components, sizes))
    return found


def of_thresholds(dice: np.ndarray) -> Candidates:
    """All 256 thresholds, from `Counts.dice`."""
    return Candidates("threshold", tuple((int(t), 0) for t in THRESHOLDS), dice)


def of_components(dice: np.ndarray, sizes: Sequence[int]) -> Candidates:
    """Thresholds with minimum component sizes, from `ablation.component_dice` of N photos.

    Args:
        dice: `float64[N, T, S]`.
        sizes: The S minimum sizes.
    """
    settings = tuple((int(t), int(s)) for t in COMPONENT_THRESHOLDS for s in sizes)
    return Candidates("threshold, component size", settings, dice.reshape(len(dice), len(settings)))


def fit(candidates: Candidates, folds: np.ndarray) -> Choice:
    """Chooses by the mean over photos, for each fold on the others.

    Among equals the threshold nearest to the default wins, then the smallest size.

    Args:
        candidates: Of N photos.
        folds: `int[N]`, at least two different ones.

    Raises:
        ValueError: There is only one fold, so nothing to choose on.
    """
    numbers = [int(fold) for fold in np.unique(folds)]
    if len(numbers) < 2:
        raise ValueError("cross-fitting needs two folds.")
    # argmax takes the first of equals: the candidates in the order of preference.
    order = sorted(
        range(len(candidates.settings)),
        key=lambda i: (
            abs(candidates.settings[i][0] - DEFAULT_THRESHOLD),
            candidates.settings[i][1],
            candidates.settings[i][0],
        ),
    )
    scores = candidates.scores

    def best(photos: np.ndarray) -> int:
        return order[int(scores[photos].mean(0)[order].argmax())]

    chosen = {fold: best(folds != fold) for fold in numbers}
    columns = np.array([chosen[int(fold)] for fold in folds])
    values = scores[np.arange(len(scores)), columns]
    return Choice(chosen, values, best(np.ones(len(folds), bool)))


def per_fold(
    candidates: Candidates, fitted: Choice, folds: np.ndarray, used: np.ndarray
) -> pd.DataFrame:
    """One row per fold: what the other folds chose and what it gives.

    Returns:
        Columns `chosen`, `fold`, `photos`, `threshold`, `min_component`, `used_dice`
        (with the threshold as given) and `crossfitted_dice`.
    """
    rows = []
    for fold, choice in fitted.chosen.items():
        inside = folds == fold
        threshold, size = candidates.settings[choice]
        means = (float(used[inside].mean()), float(fitted.values[inside].mean()))
        rows.append((candidates.name, fold, int(inside.sum()), threshold, size, *means))
    columns = ["chosen", "fold", "photos", "threshold", "min_component"]
    return pd.DataFrame(rows, columns=[*columns, "used_dice", "crossfitted_dice"])


def summarise(
    candidates: Candidates,
    fitted: Choice,
    used: np.ndarray,
    groups: Sequence[str],
    seed: int = 80,
) -> dict[str, Any]:
    """The figures of one choice, ready for JSON.

    Args:
        candidates: Of N photos.
        fitted: What was chosen of them.
        used: `float64[N]`, Dice with the threshold as given.
        groups: The group of each photo.
        seed: Of the intervals.

    Returns:
        `mean_dice` is cross-fitted, with `interval`; `gain` is what it adds to `used`,
        with `gain_interval`; `naive_mean_dice` is fitted and scored on the same photos,
        and `optimism` is how much of it is not real. Intervals are None with one group.
    """
    settings = candidates.settings
    naive = float(candidates.scores[:, fitted.naive].mean())
    mean = float(fitted.values.mean())
    gains = fitted.values - used
    return {
        "chosen": candidates.name,
        "thresholds": sorted({settings[i][0] for i in fitted.chosen.values()}),
        "min_components": sorted({settings[i][1] for i in fitted.chosen.values()}),
        "photos": len(used),
        "used_mean_dice": float(used.mean()),
        "mean_dice": mean,
        "interval": interval(fitted.values, groups, seed),
        "gain": float(gains.mean()),
        "gain_interval": interval(gains, groups, seed),
        "naive_threshold": settings[fitted.naive][0],
        "naive_min_component": settings[fitted.naive][1],
        "naive_mean_dice": naive,
        "optimism": naive - mean,
    }


def run(
    all_candidates: Sequence[Candidates], photos: pd.DataFrame, seed: int = 80
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Fits each kind of setting on the photos whose fold is known.

    Args:
        all_candidates: Each of N photos.
        photos: From `scores.per_photo`, the same N photos with the threshold as given.
        seed: Of the intervals.

    Returns:
        The rows of `per_fold` and one `summarise` for each kind of setting.
    """
    known = photos["fold"].notna().to_numpy()
    rows = photos[known]
    folds, used = rows["fold"].to_numpy(int), rows["dice"].to_numpy(float)
    tables, summaries = [], []
    for candidates in all_candidates:
        inside = dataclasses.replace(candidates, scores=candidates.scores[known])
        fitted = fit(inside, folds)
        tables.append(per_fold(inside, fitted, folds, used))
        summaries.append(summarise(inside, fitted, used, list(rows["group"]), seed))
    return pd.concat(tables, ignore_index=True), summaries


def obstacle(photos: pd.DataFrame, manifest: Manifest | None) -> str | None:
    """Why nothing can be cross-fitted, or None.

    Args:
        photos: From `scores.per_photo`.
        manifest: Of the folder; None where it is not known what made the masks.
    """
    if manifest is not None and not manifest.out_of_fold:
        return "the masks are not out of fold"
    folds = photos["fold"].nunique()
    if folds < 2:
        return f"it needs photos of two folds, here are {folds}"
    return None


def describe(summary: Mapping[str, Any]) -> str:
    """One line about one choice, for the terminal."""
    return (
        f"{summary['chosen']} chosen on the other folds: mean Dice {summary['mean_dice']:.5f} "
        f"({summary['gain']:+.5f}; fitted on the same photos it would seem "
        f"{summary['naive_mean_dice']:.5f})"
    )
