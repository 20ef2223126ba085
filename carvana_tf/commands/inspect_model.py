"""Prints what model files were trained with, without loading the networks.

python tools/inspect_model.py --model=models/resnet50-fold_0/best.keras
"""

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import h5py

from carvana_tf.cli import Command
from carvana_tf.errors import Problems, UserError
from carvana_tf.flags import Values, option
from carvana_tf.models import safety

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """The model files."""

    model: tuple[str, ...] = option((), "Model files (.keras), comma-separated.")


def validate(values: Values, problems: Problems) -> None:
    """Adds that no file is named."""
    missing = not values[InspectOptions].model
    problems.add("--model is required: one or several .keras files.", missing)


def run(values: Values) -> None:
    """Prints each file's description."""
    paths = [Path(name) for name in values[InspectOptions].model]
    for number, path in enumerate(paths):
        lines = describe(path)
        width = max(len(name) for name, _ in lines)
        print("\n" * bool(number) + str(path))
        for name, value in lines:
            print(f"  {name:<{width}}  {value}")


def describe(path: Path) -> list[tuple[str, str]]:
    """What a model file says of itself: counts first, then its metadata.

    Raises:
        UserError: The file is missing, broken or no Keras model.
    """
    contents = safety.read_keras(path)
    metadata = contents.metadata
    with (
        zipfile.ZipFile(path) as archive,
        archive.open(safety.WEIGHTS) as file,
        h5py.File(file, "r") as weights,
    ):
        total, moving = count_parameters(weights)
    layers = contents.config["config"].get("layers", [])
    frozen = sum(not layer["config"].get("trainable", True) for layer in layers)
    lines = [
        ("megabytes", f"{path.stat().st_size / 1e6:.1f}"),
        ("keras", contents.keras.get("keras_version", "unknown")),
        ("layers", f"{len(layers)}, {frozen} frozen"),
        ("parameters", f"{total:,}, {moving:,} of them moving statistics"),
        *_interface(path),
    ]
    if not metadata:
        return [*lines, ("metadata", "none: this file was not written by train.py")]
    scores = metadata.get("scores", {})
    lines += [(f"scores.{name}", _text(value)) for name, value in scores.items()]
    return lines + [(name, _text(value)) for name, value in metadata.items() if name != "scores"]


def _interface(path: Path) -> list[tuple[str, str]]:
    """What the network takes and gives, or why it predicts no masks."""
    from carvana_tf.models import interface

    try:
        found = interface.read(path)
    except UserError as error:
        return [("predicts", f"no masks: {error}")]
    size = "any size" if found.size is None else f"{found.size[0]} x {found.size[1]} alone"
    return [
        ("takes", f"{found.channels} channels, {size}, multiples of {found.stride}"),
        ("gives", f"{found.classes} channels by {found.activation}"),
    ]


def count_parameters(weights: h5py.File) -> tuple[int, int]:
    """The numbers a weights file holds, and how many of them are moving statistics.

    The state of dropout's random generators is not counted.
    """
    counts = {"total": 0, "moving": 0}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or "seed_generator" in name:
            return
        counts["total"] += item.size
        layer, _, number = name.rpartition("/")
        # Mean and variance are the last two variables of BatchNormalization.
        is_last_two = int(number) >= len(weights[layer]) - 2
        if layer.split("/")[-2].startswith("batch_normalization") and is_last_two:
            counts["moving"] += item.size

    weights.visititems(visit)
    return counts["total"], counts["moving"]


def _text(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(map(str, value[:_SHOWN]))
        return f"{len(value)}: {shown}, …" if len(value) > _SHOWN else shown
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


COMMAND = Command(__doc__, (InspectOptions,), run, validate, loads=("carvana_tf.models.interface",))
