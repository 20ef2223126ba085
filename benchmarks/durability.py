"""What it costs that masks survive a power cut: PNGs synced in groups, each, and not at all.

python benchmarks/durability.py --masks=200
"""

import dataclasses
import os
from pathlib import Path

import inputs
from carvana_tf import cli, flags
from carvana_tf.flags import option
from harness import Contender, RoundOptions, measure
from results import Comparison, PlaceOptions, publish

GROUPS, EACH, NONE = "synced in groups", "each synced", "not synced"


@dataclasses.dataclass(frozen=True)
class DurabilityOptions:
    """What only this benchmark needs."""

    masks: int = option(200, "Masks of a round.", lower=1)
    photos: int = option(32, "Different masks among them.", lower=1)
    threads: int = option(os.cpu_count() or 1, "Threads that write.", lower=1)


_PLACE = flags.define(PlaceOptions)
_ROUNDS = flags.define(RoundOptions)
_DURABILITY = flags.define(DurabilityOptions)


def main() -> None:
    """Makes soft masks of the truth and writes their bytes again and again."""
    place, rounds, options = _PLACE.read(), _ROUNDS.read(), _DURABILITY.read()
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
    cli.run(main)
