"""Prediction from a folder of JPGs to a folder of PNGs, beside Keras by hand and PyTorch.

python benchmarks/predict.py --networks=mobilenet,resnet50 --photos=8
"""

import dataclasses
from pathlib import Path

import inputs
from carvana_tf import cli, flags
from carvana_tf.errors import UserError
from carvana_tf.flags import option
from harness import Contender, RoundOptions, in_own_process, measure
from results import Comparison, PlaceOptions, publish

ENGINES = {"keras": "keras", "openvino": "OpenVINO", "openvino-int8": "OpenVINO 8 bit"}
PLAIN, TWIN, SMP = "Keras by hand, float32", "PyTorch twin, bfloat16", "SMP Unet-resnet50, bfloat16"
FROZEN = "PyTorch twin, bfloat16, frozen"


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """What only this benchmark needs."""

    networks: tuple[str, ...] = option(("mobilenet", "resnet50"), "mobilenet, resnet50 or both.")
    weights: tuple[str, ...] = option(
        (), "A trained .keras file for each of --networks; random weights by default."
    )
    photos: int = option(8, "Photos of a round.", lower=1)


_PLACE = flags.define(PlaceOptions)
_ROUNDS = flags.define(RoundOptions)
_PREDICT = flags.define(PredictOptions)


def main() -> None:
    """Measures each network by itself, so that only its contenders are in memory."""
    place, rounds, options = _PLACE.read(), _ROUNDS.read(), _PREDICT.read()
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
    found = []
    for engine, name in ENGINES.items():
        arguments = (engine, model, photos, str(out / engine))
        for task in ("folder", "bare"):
            found.append(
                Contender(f"{name}, {task}", "ours.prediction:predict", arguments, items, task)
            )
    others: list[tuple[str, str, tuple]] = [
        (PLAIN, "peers.plain_keras:predict", (model, photos, str(out / "plain"))),
        (TWIN, "peers.torch_predict:predict_twin", (network, model, photos, str(out / "t"), False)),
        (
            FROZEN,
            "peers.torch_predict:predict_twin",
            (network, model, photos, str(out / "f"), True),
        ),
    ]
    if network == "resnet50":
        others.append((SMP, "peers.torch_predict:predict_smp", (photos, str(out / "smp"))))
    return [*found, *(Contender(*other, items) for other in others)]


def comparisons() -> list[Comparison]:
    """The ratios shown, with the least they shall be."""
    bfloat16, int8 = ENGINES["openvino"], ENGINES["openvino-int8"]
    shown = [Comparison(f"{name}, folder", f"{name}, bare", 0.95) for name in ENGINES.values()]
    shown += [
        Comparison(f"{ENGINES['keras']}, folder", PLAIN),
        Comparison(f"{bfloat16}, folder", PLAIN, 6.0),
        Comparison(f"{int8}, folder", PLAIN, 10.0),
        Comparison(f"{bfloat16}, folder", TWIN, 1.7),
        Comparison(f"{int8}, folder", TWIN),
        Comparison(f"{bfloat16}, folder", FROZEN),
        Comparison(f"{bfloat16}, folder", SMP),
        Comparison(f"{int8}, bare", f"{bfloat16}, bare", 1.5),
    ]
    return shown


if __name__ == "__main__":
    cli.run(main)
