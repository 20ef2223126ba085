"""Whether probabilities mean what they say: how often pixels of a probability are object.

The curve is that of DeGroot and Fienberg, "The comparison and evaluation of forecasters", 1983;
the calibration error that of Naeini et al., "Obtaining well calibrated probabilities using
Bayesian binning", AAAI 2015.
"""

import numpy as np
import pandas as pd

from carvana_tf.evaluation.counts import THRESHOLDS, Counts

BINS = 20
_FEWEST = 3  # bins with pixels: masks of two values have two


def reliability(counts: Counts, bins: int = BINS) -> pd.DataFrame:
    """The pixels of all photos in bins of equal width of their probability.

    Args:
        counts: Of N photos.
        bins: How many; each holds its upper edge, the first its lower one too.

    Returns:
        Columns `low`, `high` (the bin), `probability` (the mean of its pixels), `observed` (the
        share of them that is object) and `pixels`. Bins without pixels are left out; the table is
        empty for masks of two values, which are no probabilities.
    """
    objects, pixels = (
        part.sum(0) for part in (counts.foreground, counts.foreground + counts.background)
    )
    probabilities = THRESHOLDS[: len(pixels)] / 255
    edges = np.linspace(0, 1, bins + 1)
    of_bin = np.searchsorted(edges[1:-1], probabilities)
    total, positive, mass = (
        np.bincount(of_bin, weights, bins) for weights in (pixels, objects, pixels * probabilities)
    )
    used = total > 0
    table = pd.DataFrame(
        {
            "low": edges[:-1][used],
            "high": edges[1:][used],
            "probability": mass[used] / total[used],
            "observed": positive[used] / total[used],
            "pixels": total[used].astype(np.int64),
        }
    )
    return table if len(table) >= _FEWEST else table.iloc[:0]


def calibration_error(table: pd.DataFrame) -> float | None:
    """The mean distance of `observed` and `probability` over pixels; None of an empty table."""
    if table.empty:
        return None
    distance = (table["observed"] - table["probability"]).abs()
    return float(np.average(distance, weights=table["pixels"]))
