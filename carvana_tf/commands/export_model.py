"""Writes a model as a file that other programs run: ONNX, OpenVINO, TensorFlow or LiteRT.

python tools/export_model.py --weights=models/resnet50-fold_0/best.keras \\
    --format=onnx --output=car.onnx

Photos go in as bytes, probabilities come out. What the program must know besides, as the stride,
is in the file and, as JSON, next to it. See docs/export.md.
"""

import dataclasses
from pathlib import Path

from carvana_tf.cli import Command
from carvana_tf.errors import Problems, absent
from carvana_tf.flags import Values, option
from carvana_tf.inference.options import FORMATS
from carvana_tf.models.options import NetworkOptions


@dataclasses.dataclass(frozen=True)
class ExportModelOptions:
    """The model, and the file that is made of it."""

    weights: str | None = option(None, "Model file (.keras) or weights (.h5).")
    format: str | None = option(None, "Of the file.", choices=tuple(FORMATS))
    output: str | None = option(
        None,
        "The file: .onnx, .tflite, or .xml for OpenVINO, which has a .bin next to it; a folder for "
        "tf_saved_model.",
    )
    height: int | None = option(
        None, "With --width: the file takes photos of this one size; by default of any.", lower=1
    )
    width: int | None = option(None, "With --height: the columns of that size.", lower=1)
    overwrite: bool = option(False, "Replace an earlier export.")


def validate(values: Values, problems: Problems) -> None:
    """Adds what is missing or contradicts."""
    options = values[ExportModelOptions]
    if options.weights is None:
        problems.add("--weights is missing; name a .keras or .h5 file.")
    elif not Path(options.weights).is_file():
        problems.add(f"--weights '{options.weights}' {absent(options.weights)}")
    if options.format is None:
        problems.add(f"--format is missing; use one of {', '.join(FORMATS)}.")
    if options.output is None:
        problems.add("--output is missing; name the file to make.")
    elif options.format is not None and FORMATS[options.format]:
        suffix = FORMATS[options.format]
        problems.add(
            f"--output='{options.output}' must end in {suffix} with --format={options.format}.",
            Path(options.output).suffix != suffix,
        )
    if (options.height is None) != (options.width is None):
        problems.add("--height and --width belong together; give both, or neither for any size.")


def run(values: Values) -> None:
    """Writes the file, and says what it takes."""
    from carvana_tf import devices
    from carvana_tf.inference.engines.exporting import Export
    from carvana_tf.models import checkpoint

    options = values[ExportModelOptions]
    devices.select("")
    network = checkpoint.read(Path(options.weights or ""), values[NetworkOptions])
    size = (options.height, options.width) if options.height and options.width else None
    export = Export(network, options.format or "", Path(options.output or ""), size)
    facts = export.write(overwrite=options.overwrite)
    _, height, width, channels = facts["input"]["shape"]
    sides = f"{height} x {width} alone" if height else f"any size in multiples of {facts['stride']}"
    print(
        f"'{export.output}' takes uint8 photos of {channels} channels and of {sides}, and gives "
        f"{facts['output']['name']}; '{export.described}' has the rest."
    )


COMMAND = Command(
    __doc__,
    (ExportModelOptions, NetworkOptions),
    run,
    validate,
    loads=("carvana_tf.models.checkpoint", "carvana_tf.inference.engines.exporting"),
)
