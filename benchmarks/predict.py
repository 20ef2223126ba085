"""Prediction from a folder of JPGs to a folder of PNGs, next to Keras by hand and PyTorch.

python benchmarks/predict.py --networks=mobilenet,resnet50 --photos=8
"""

import dataclasses
import sys
from pathlib import Path

import inputs
from carvana_tf.cli import Command, main
from carvana_tf.errors import UserError
from carvana_tf.flags import Values, option
from harness import Contender, RoundOptions, in_own_process, measure
from results import Comparison, PlaceOptions, publish

ENGINES = (KERAS, BFLOAT16, INT8) = ("keras", "openvino", "openvino-int8")
PLAIN, SMP = "Keras by hand (float32)", "SMP Unet-resnet50 (bfloat16)"
TWIN, FROZEN = "PyTorch twin (bfloat16)", "PyTorch twin (bfloat16 frozen)"


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """What only this benchmark needs."""

    networks: tuple[str, ...] = option(("mobilenet", "resnet50"), "mobilenet, resnet50 or both.")
    weights: tuple[str, ...] = option(
        (), "A trained .keras file for each of --networks; random weights by default."
    )
    photos: int = option(8, "Photos of a round.", lower=1)


def run(values: Values) -> None:
    """Measures each network by itself, so that only its contenders are in memory."""
    place, rounds, options = values[PlaceOptions], values[RoundOptions], values[PredictOptions]
    if options.weights and len(options.weights) != len(options.networks):
        raise UserError(
            f"--weights has {len(options.weights)} files for {len(options.networks)} --networks; "
            "give one for each."
        )
    work = Path(place.work_dir).resolve() / "predict"
    chosen, kind = inputs.samples(place.data_dir, work.parent, options.photos)
    photos = inputs.photo_folder(chosen, work / inputs.short(kind, options.photos))
    for number, network in enumerate(options.networks):
        weights = options.weights[number] if options.weights else None
        model = str(work / f"{network}.keras")
        in_own_process("inputs:make_model", model, network, weights)
        origin = "trained" if weights else "random"
        setting = f"{network}, {origin} weights, {options.photos} {kind}"
        timings = measure(
            contenders(network, model, str(photos), work / network, options.photos), rounds
        )
        publish("predict", setting, timings, comparisons(), Path(place.out_dir))


def contenders(network: str, model: str, photos: str, out: Path, items: int) -> list[Contender]:
    """All ways to predict the folder, ours first."""
    found = [
        Contender(
            f"{engine}: {task}",
            "ours.prediction:predict",
            (engine, model, photos, str(out / engine)),
            items,
            task,
        )
        for engine in ENGINES
        for task in ("folder", "bare")
    ]
    twin, smp = "peers.torch_predict:predict_twin", "peers.torch_predict:predict_smp"
    others: list[tuple[str, str, tuple]] = [
        (PLAIN, "peers.plain_keras:predict", (model, photos, str(out / "by_hand"))),
        (TWIN, twin, (network, model, photos, str(out / "twin"), False)),
        (FROZEN, twin, (network, model, photos, str(out / "twin_frozen"), True)),
    ]
    if network == "resnet50":
        others.append((SMP, smp, (photos, str(out / "smp"))))
    return [*found, *(Contender(*other, items) for other in others)]


def comparisons() -> list[Comparison]:
    """The ratios shown, with the least they shall be."""
    return [
        *(Comparison(f"{engine}: folder", f"{engine}: bare", 0.95) for engine in ENGINES),
        Comparison(f"{KERAS}: folder", PLAIN),
        Comparison(f"{BFLOAT16}: folder", PLAIN, 6.0),
        Comparison(f"{INT8}: folder", PLAIN, 10.0),
        Comparison(f"{BFLOAT16}: folder", TWIN, 1.7),
        Comparison(f"{INT8}: folder", TWIN),
        Comparison(f"{BFLOAT16}: folder", FROZEN),
        Comparison(f"{BFLOAT16}: folder", SMP),
        Comparison(f"{INT8}: bare", f"{BFLOAT16}: bare", 1.5),
    ]


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, RoundOptions, PredictOptions), run)))
