"""One pass over the masks: everything that is scored, photo by photo, in threads."""

import dataclasses

import numpy as np
import pandas as pd

from carvana_tf.data.images import UnreadableImage
from carvana_tf.data.mask_values import all_empty
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError
from carvana_tf.evaluation import ablation, boundary, scores
from carvana_tf.evaluation.counts import Counts, histograms
from carvana_tf.evaluation.pairs import Pair, read_pair
from carvana_tf.masks.postprocess import Pipeline
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """What is measured.

    Attributes:
        threshold: A grey value greater than this is object.
        tolerance: Of the contour, see `boundary.boundary_scores`.
        component_sizes: Minimum component sizes to try in pixels; empty for none.
        steps: Post-processing to try.
    """

    threshold: int = DEFAULT_THRESHOLD
    tolerance: float = boundary.TOLERANCE
    component_sizes: tuple[int, ...] = ()
    steps: tuple[Pipeline, ...] = ()


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is known of N photos.

    Attributes:
        photos: From `scores.per_photo`, one row each.
        counts: Their grey histograms.
        components: `float64[N, T, S]` from `ablation.component_dice`, None where not asked for.
        after: `float64[N, len(steps)]` from `ablation.dice`.
    """

    photos: pd.DataFrame
    counts: Counts
    components: np.ndarray | None
    after: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Part:
    histograms: tuple[np.ndarray, np.ndarray]
    contour: tuple[float, ...]
    components: np.ndarray | None
    after: np.ndarray


def measure(pairs: list[Pair], settings: MeasureSettings, threads: int) -> Measured:
    """Reads every pair, in the order of `pairs`; few are in memory at once.

    Raises:
        UserError: Files are unreadable, or the two sizes of a pair differ; all are counted,
            the first few named.
    """

    def work(pair: Pair) -> _Part | UnreadableImage:
        try:
            grey, truth = read_pair(pair)
        except UnreadableImage as error:
            return error
        sizes = settings.component_sizes
        return _Part(
            histograms(grey, truth),
            boundary.scores(truth, grey > settings.threshold, settings.tolerance),
            ablation.component_dice(grey, truth, sizes) if sizes else None,
            ablation.dice(grey, truth, settings.steps),
        )

    read = ordered_map(work, pairs, threads)
    found = list(bar(read, total=len(pairs), desc="scoring masks", unit="mask"))
    parts = [part for part in found if isinstance(part, _Part)]
    bad = [str(error) for error in found if isinstance(error, UnreadableImage)]
    if bad:
        raise UserError(f"{len(bad)} of {len(pairs)} masks cannot be scored: {' '.join(bad[:3])}")
    counts = Counts(*(np.stack([p.histograms[i] for p in parts]) for i in (0, 1)))
    if not counts.foreground.any():
        raise all_empty(len(pairs), "ground-truth masks")
    photos = scores.per_photo(
        [pair.stem for pair in pairs],
        [pair.group for pair in pairs],
        [pair.fold for pair in pairs],
        counts,
        settings.threshold,
        views=[pair.view for pair in pairs],
        contours=np.array([part.contour for part in parts]),
    )
    tried = [part.components for part in parts if part.components is not None]
    after = np.array([part.after for part in parts])
    return Measured(photos, counts, np.stack(tried) if tried else None, after)
