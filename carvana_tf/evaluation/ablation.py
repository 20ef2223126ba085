"""Dice after variants of post-processing: named steps, and minimum sizes of components."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError
from carvana_tf.evaluation import compare, counts
from carvana_tf.masks import postprocess
from carvana_tf.masks.postprocess import Pipeline

# Every threshold needs its own labelling, so not all 256 are tried; the default is among them.
COMPONENT_THRESHOLDS = np.arange(DEFAULT_THRESHOLD - 64, 192, 16)


def variants(names: Sequence[str], threshold: int = DEFAULT_THRESHOLD) -> tuple[Pipeline, ...]:
    """Each step alone, and where there are several, all of them in order, for one threshold.

    Raises:
        UserError: As `postprocess.parse`.
    """
    alone = tuple(postprocess.parse([name], threshold) for name in names)
    return (*alone, postprocess.parse(names, threshold)) if len(names) > 1 else alone


def dice(grey: np.ndarray, truth: np.ndarray, steps: Sequence[Pipeline]) -> np.ndarray:
    """`float64[S]`: Dice of a `uint8[H, W]` mask after each of S pipelines."""
    return np.array([counts.dice(step(grey) > step.threshold, truth) for step in steps])


def per_photo(photos: pd.DataFrame, after: np.ndarray, steps: Sequence[Pipeline]) -> pd.DataFrame:
    """Columns `id`, `group`, `fold`, `dice` (before) and one of Dice after each pipeline.

    Args:
        photos: From `scores.per_photo`, N rows.
        after: `float64[N, S]` of `dice`.
        steps: The S pipelines.
    """
    table = photos[["id", "group", "fold", "dice"]].copy()
    for i, step in enumerate(steps):
        table[step.text] = after[:, i]
    return table


def summarise(
    photos: pd.DataFrame, after: np.ndarray, steps: Sequence[Pipeline], seed: int = 80
) -> list[dict[str, Any]]:
    """For each pipeline its `steps` and `compare.paired` of after and before, ready for JSON."""
    return [
        {"steps": step.text}
        | compare.paired(pd.Series(after[:, i]), photos["dice"], photos["group"], seed)
        for i, step in enumerate(steps)
    ]


def describe(gain: Mapping[str, Any], photos: int) -> str:
    """One line about one pipeline, for the terminal."""
    return f"with {gain['steps']}: {compare.in_words(gain, photos)}"


def parse_sizes(words: Sequence[str]) -> tuple[int, ...]:
    """Minimum sizes in pixels as a flag has them, ascending; 0 (drop nothing) is added.

    Raises:
        UserError: One is no whole number.
    """
    wrong = [word for word in words if not (word.isascii() and word.isdigit())]
    if wrong:
        raise UserError(
            f"--min_components has '{wrong[0]}'; give whole numbers of pixels, as 0,100,1000."
        )
    return tuple(sorted({0, *map(int, words)})) if words else ()


def component_dice(grey: np.ndarray, truth: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Dice of a photo without the components below each minimum size.

    One labelling per threshold gives the area of each component and its overlap with the truth,
    from which every minimum size follows.

    Args:
        grey: `uint8[H, W]`, `round(255p)`.
        truth: `bool[H, W]`.
        sizes: Minimum sizes in pixels; a component (8 neighbours) with fewer is dropped.

    Returns:
        `float64[T, S]`, for each of `COMPONENT_THRESHOLDS` and each of `sizes`.
    """
    minima = np.array(sizes)[:, None]
    objects = np.count_nonzero(truth)
    rows = []
    for threshold in COMPONENT_THRESHOLDS:
        labels = postprocess.label(grey > threshold)
        areas = np.bincount(labels.ravel())
        overlaps = np.bincount(labels[truth], minlength=len(areas))
        kept = areas[1:] >= minima  # label 0 is the background
        called, overlap = ((kept * each[1:]).sum(1) for each in (areas, overlaps))
        rows.append(counts.dice_from_counts(overlap, called + objects))
    return np.array(rows)
