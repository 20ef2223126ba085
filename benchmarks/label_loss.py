"""Value and gradient of the losses of labels, next to the ranking loss label by label.

python benchmarks/label_loss.py --classes=7178 --batch_size=32

The Inclusive Images Challenge has 7,178 classes; 100 ms for a batch of 32 photos were aimed at.
"""

import dataclasses
import sys
from pathlib import Path

from carvana_tf.cli import Command, main
from carvana_tf.flags import Values, option
from harness import Contender, RoundOptions, measure
from results import Comparison, PlaceOptions, publish

OURS, EACH = "ranking", "ranking label by label"


@dataclasses.dataclass(frozen=True)
class LabelOptions:
    """What only this benchmark needs."""

    classes: int = option(7178, "Classes of a photo.", lower=2)
    labels: int = option(8, "Labels of a photo at most; they have 1 and more, at random.", lower=1)
    batch_size: int = option(32, "Photos per batch.", lower=1)
    steps: int = option(400, "Batches of a round.", lower=1)


def run(values: Values) -> None:
    """Measures rounds of steps on one batch that lies in memory; an item is a batch."""
    place, rounds, options = values[PlaceOptions], values[RoundOptions], values[LabelOptions]
    sizes = (options.batch_size, options.classes, options.labels)
    contenders = [
        Contender(name, "ours.label_losses:differentiate", (name, *sizes, options.steps), count)
        for name, count in ((OURS, options.steps), ("bce", options.steps), ("focal", options.steps))
    ]
    fewer = max(1, options.steps // 100)
    contenders.append(
        Contender(EACH, "peers.label_losses:differentiate", (*sizes, fewer), fewer),
    )
    setting = f"batch {options.batch_size}, {options.classes} classes, 1 to {options.labels} labels"
    comparisons = [Comparison(OURS, EACH), Comparison(OURS, "bce")]
    publish("label_loss", setting, measure(contenders, rounds), comparisons, Path(place.out_dir))


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, RoundOptions, LabelOptions), run)))
