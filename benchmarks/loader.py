"""Training samples per second and core, next to bare JPEG decoding and albumentations.

python benchmarks/loader.py --photos=64
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

OURS, CACHED, DECODE = "ours", "ours from memory", "OpenCV JPEG decode"
THEIRS, CROP_FIRST = "albumentations", "albumentations crop first"


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """What only this benchmark needs."""

    photos: int = option(64, "Photos, and samples of a round.", lower=1)
    crop: int = option(1024, "Height and width of the random windows.", lower=32)
    augmentation: str = option(
        "000-aug1",
        "The preset; this one has geometry, brightness, contrast, saturation and grey photos.",
        choices=("default", "000-aug0", "000-aug1", "000-aug2"),
    )
    threads: int = option(
        os.cpu_count() or 1, "Threads of ours and of OpenCV, processes of theirs.", lower=1
    )


def run(values: Values) -> None:
    """Measures rounds of one sample per photo; all use the same number of cores."""
    place, rounds, options = values[PlaceOptions], values[RoundOptions], values[LoaderOptions]
    work = Path(place.work_dir).resolve()
    chosen, kind = inputs.samples(place.data_dir, work, options.photos)
    photos = inputs.photo_folder(chosen, work / "loader" / inputs.short(kind, options.photos))
    pairs = tuple((str(sample.photo), str(sample.mask)) for sample in chosen)
    arguments = (pairs, options.crop, options.augmentation, options.threads)
    ours, theirs, count = "ours.loading:load", "peers.albumentations_loader:load", options.photos
    contenders = [
        Contender(OURS, ours, (*arguments, "none"), count),
        Contender(CACHED, ours, (*arguments, "memory"), count),
        Contender(DECODE, "peers.opencv:decode_photos", ((str(photos),), options.threads), count),
        Contender(THEIRS, theirs, (*arguments, False), count),
        Contender(CROP_FIRST, theirs, (*arguments, True), count),
    ]
    comparisons = [
        Comparison(OURS, DECODE, 0.45),
        Comparison(CACHED, DECODE, 0.45),
        Comparison(OURS, THEIRS, 1.0),
        Comparison(OURS, CROP_FIRST, 1.0),
    ]
    setting = (
        f"{count} {kind}, {options.crop}x{options.crop} crops, {options.augmentation}, "
        f"{options.threads} threads"
    )
    publish("loader", setting, measure(contenders, rounds), comparisons, Path(place.out_dir))


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, RoundOptions, LoaderOptions), run)))
