"""A training step of a U-Net, next to Keras by hand and PyTorch.

python benchmarks/train_step.py --steps=4
"""

import dataclasses
import sys
from pathlib import Path

from carvana_tf.cli import Command, main
from carvana_tf.flags import Values, option
from harness import Contender, RoundOptions, measure
from results import Comparison, PlaceOptions, publish

OURS, PLAIN = "ours", "Keras by hand (float32 fit)"
TWIN, COMPILED = "PyTorch twin (bfloat16 autocast)", "PyTorch twin (bfloat16 autocast compiled)"

_TWINS = ("mobilenet", "resnet50")
_OTHERS = ("efficientnet_lite0", "vgg11v1")


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What only this benchmark needs."""

    network: str = option("resnet50", "The network.", choices=(*_TWINS, *_OTHERS))
    size: int = option(512, "Height and width of the photos, a multiple of 32.", lower=32)
    batch_size: int = option(2, "Photos per batch.", lower=1)
    steps: int = option(4, "Steps of a round.", lower=1)


def run(values: Values) -> None:
    """Measures rounds of a few steps on batches that lie in memory."""
    place, rounds, options = values[PlaceOptions], values[RoundOptions], values[StepOptions]
    arguments = (options.network, options.size, options.batch_size, options.steps)
    contenders = [
        Contender(OURS, "ours.training:train_steps", arguments, options.steps),
        Contender(PLAIN, "peers.plain_keras:train", arguments, options.steps),
    ]
    if options.network in _TWINS:
        contenders += [
            Contender(TWIN, "peers.torch_train:train", (*arguments, False), options.steps),
            Contender(COMPILED, "peers.torch_train:train", (*arguments, True), options.steps),
        ]
    comparisons = [
        Comparison(OURS, PLAIN, 3.3),
        Comparison(OURS, TWIN, 1.2),
        Comparison(OURS, COMPILED),
    ]
    size = f"{options.size}x{options.size}"
    setting = f"{options.network}, {size}, batch {options.batch_size}, {options.steps} steps"
    publish("train_step", setting, measure(contenders, rounds), comparisons, Path(place.out_dir))


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, RoundOptions, StepOptions), run)))
