"""The submission encoder next to bare PNG decoding, and run lengths next to pycocotools.

python benchmarks/encode.py --masks=200
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

OURS, DECODE = "submission encoder", "OpenCV PNG decode"
OUR_RLE, THEIR_RLE = "run lengths as text", "pycocotools encode"

_TIMES = 50  # one mask's run lengths are found too fast to be timed by themselves


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """What only this benchmark needs."""

    masks: int = option(200, "Masks of a round.", lower=1)
    photos: int = option(32, "Different masks among them.", lower=1)
    threads: int = option(os.cpu_count() or 1, "Threads of encoder and decoder.", lower=1)


def run(values: Values) -> None:
    """Makes soft masks of the ground truth and encodes them."""
    place, rounds, options = values[PlaceOptions], values[RoundOptions], values[EncodeOptions]
    work = Path(place.work_dir).resolve() / "encode"
    chosen, kind = inputs.samples(place.data_dir, work.parent, min(options.photos, options.masks))
    folder = str(
        inputs.mask_folder(chosen, work / inputs.short(kind, options.masks), options.masks)
    )
    count, few = options.masks, len(chosen)
    contenders = [
        Contender(OURS, "ours.masks:encode", (folder, options.threads, str(work)), count),
        Contender(DECODE, "peers.opencv:decode_masks", ((folder,), options.threads), count),
        Contender(OUR_RLE, "ours.masks:run_lengths", (folder, few, _TIMES), few * _TIMES),
        Contender(THEIR_RLE, "peers.coco:run_lengths", (folder, few, _TIMES), few * _TIMES),
    ]
    comparisons = [Comparison(OURS, DECODE, 0.85), Comparison(OUR_RLE, THEIR_RLE)]
    setting = f"{count} soft masks of {kind}, {options.threads} threads (run lengths: 1)"
    publish("encode", setting, measure(contenders, rounds), comparisons, Path(place.out_dir))


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, RoundOptions, EncodeOptions), run)))
