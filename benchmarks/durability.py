"""What it costs that masks survive a power cut: PNGs synced in groups, each, and not at all.

python benchmarks/durability.py --masks=200
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

GROUPS, EACH, NONE = "synced in groups", "each synced", "not synced"


@dataclasses.dataclass(frozen=True)
class DurabilityOptions:
    """What only this benchmark needs."""

    masks: int = option(200, "Masks of a round.", lower=1)
    photos: int = option(32, "Different masks among them.", lower=1)
    threads: int = option(os.cpu_count() or 1, "Threads that write.", lower=1)


def run(values: Values) -> None:
    """Makes soft masks of the ground truth and writes their bytes again and again."""
    place, rounds, options = values[PlaceOptions], values[RoundOptions], values[DurabilityOptions]
    work = Path(place.work_dir).resolve() / "durability"
    chosen, kind = inputs.samples(place.data_dir, work.parent, min(options.photos, options.masks))
    folder = str(
        inputs.mask_folder(chosen, work / inputs.short(kind, options.masks), options.masks)
    )
    contenders = [
        Contender(
            name,
            "ours.masks:write",
            (folder, how, options.threads, str(work / how)),
            options.masks,
        )
        for name, how in ((GROUPS, "groups"), (EACH, "each"), (NONE, "none"))
    ]
    comparisons = [Comparison(GROUPS, NONE), Comparison(EACH, NONE)]
    setting = f"PNGs of {options.masks} soft masks of {kind} in memory, {options.threads} threads"
    publish("durability", setting, measure(contenders, rounds), comparisons, Path(place.out_dir))


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, RoundOptions, DurabilityOptions), run)))
