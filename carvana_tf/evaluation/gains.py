"""What named post-processing steps are worth, photo by photo."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.evaluation import compare
from carvana_tf.masks import postprocess
from carvana_tf.masks.postprocess import Pipeline


def variants(names: Sequence[str], threshold: int = DEFAULT_THRESHOLD) -> tuple[Pipeline, ...]:
    """Each step alone, and where there are several, all of them in order, for one threshold.

    Raises:
        UserError: As `postprocess.parse`.
    """
    alone = tuple(postprocess.parse([name], threshold) for name in names)
    return (*alone, postprocess.parse(names, threshold)) if len(names) > 1 else alone


def dice(grey: np.ndarray, truth: np.ndarray, steps: Sequence[Pipeline]) -> np.ndarray:
    """`float64[S]`: Dice of a `uint8[H, W]` photo after each of S pipelines.

    1 where nothing is called object and nothing is.
    """
    objects = np.count_nonzero(truth)
    scores = []
    for step in steps:
        called = step(grey) > step.threshold
        total = np.count_nonzero(called) + objects
        scores.append(2 * np.count_nonzero(called & truth) / total if total else 1.0)
    return np.array(scores)


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
