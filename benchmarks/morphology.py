"""Operations on whole masks by scikit-image, SciPy and OpenCV: why ours uses which.

python benchmarks/morphology.py --masks=16

All of an operation give the same mask, pixel for pixel, but the convex hulls: scikit-image's takes
a pixel as a square, and has up to a few dozen pixels more.
"""

import dataclasses
import sys
from pathlib import Path

import inputs
from carvana_tf.cli import Command, main
from carvana_tf.flags import Values, option
from harness import Contender, RoundOptions, measure
from peers.morphology import OPERATIONS
from results import Comparison, PlaceOptions, publish


@dataclasses.dataclass(frozen=True)
class MorphologyOptions:
    """What only this benchmark needs."""

    masks: int = option(16, "Masks of a round.", lower=1)


def run(values: Values) -> None:
    """Makes soft masks of the ground truth, and measures each operation by each library."""
    place, rounds = values[PlaceOptions], values[RoundOptions]
    options = values[MorphologyOptions]
    work = Path(place.work_dir).resolve() / "morphology"
    chosen, kind = inputs.samples(place.data_dir, work.parent, options.masks)
    folder = str(inputs.mask_folder(chosen, work / inputs.short(kind, options.masks), len(chosen)))
    contenders = [
        Contender(
            f"{operation}: {library}",
            "peers.morphology:run",
            (folder, operation, library),
            options.masks,
        )
        for operation, libraries in OPERATIONS.items()
        for library in libraries
    ]
    comparisons = [
        Comparison(f"{operation}: ours", f"{operation}: {library}")
        for operation, libraries in OPERATIONS.items()
        for library in libraries
        if library != "ours"
    ]
    setting = f"{options.masks} soft masks of {kind}, 1 thread"
    publish("morphology", setting, measure(contenders, rounds), comparisons, Path(place.out_dir))


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, RoundOptions, MorphologyOptions), run)))
