"""Ensembling folders of full-size masks, next to decoding their PNGs alone.

python benchmarks/ensemble.py --masks=100
"""

import dataclasses
import os
import sys
from pathlib import Path

import inputs
from carvana_tf.cli import Command, main
from carvana_tf.flags import Values, option
from harness import Contender, RoundOptions, measure
from results import Comparison, PlaceOptions, publish

STRATEGIES = ("mean", "weighted mean", "vote", "median", "logit_mean")
DECODE = "OpenCV PNG decode"
MOST = 1.6  # times the decoding


@dataclasses.dataclass(frozen=True)
class EnsembleOptions:
    """What only this benchmark needs."""

    masks: int = option(64, "Masks of each folder.", lower=1)
    photos: int = option(32, "Different masks among them.", lower=1)
    folders: int = option(4, "Folders.", lower=2)
    threads: int = option(os.cpu_count() or 1, "Threads of each contender.", lower=1)


def run(values: Values) -> None:
    """Makes the folders and combines them in every way."""
    place, rounds, options = values[PlaceOptions], values[RoundOptions], values[EnsembleOptions]
    work = Path(place.work_dir).resolve() / "ensemble"
    chosen, kind = inputs.samples(place.data_dir, work.parent, min(options.photos, options.masks))
    name = inputs.short(kind, options.masks)
    folders = tuple(
        str(inputs.mask_folder(chosen, work / f"{name}_{i}", options.masks, seed=i))
        for i in range(options.folders)
    )
    contenders = [
        Contender(DECODE, "peers.opencv:decode_masks", (folders, options.threads), options.masks)
    ] + [
        Contender(
            strategy,
            "ours.masks:ensemble",
            (folders, strategy, options.threads, str(work / f"out_{strategy.replace(' ', '_')}")),
            options.masks,
        )
        for strategy in STRATEGIES
    ]
    # The cost is the inverse of the ratio of rates: the decoding divided by the ensemble.
    comparisons = [Comparison(strategy, DECODE, round(1 / MOST, 3)) for strategy in STRATEGIES]
    setting = (
        f"{options.folders} folders of {options.masks} {kind}' masks, {options.threads} threads"
    )
    publish("ensemble", setting, measure(contenders, rounds), comparisons, Path(place.out_dir))


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, RoundOptions, EnsembleOptions), run)))
