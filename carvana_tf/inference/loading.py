"""What the Python API does before Keras is imported."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carvana_tf import environment, flags
from carvana_tf.errors import UserError, unknown_name
from carvana_tf.flags import option
from carvana_tf.inference.options import EngineOptions, OutputOptions
from carvana_tf.models.options import NetworkOptions

if TYPE_CHECKING:
    from carvana_tf.inference.in_memory import Model, Weights


@dataclasses.dataclass(frozen=True)
class PythonOptions:
    """What only Python says, and flags of the command that stand in none of its shared groups."""

    cutout: bool = option(False, "Make cut-outs too.")
    skip_unreadable: bool = option(False, "Leave out photos that cannot be read.")
    gpu: str = option("0", "Numbers of the GPUs, as 0,1; empty means the processor.")
    photo_depth: int = option(0, "Bits of deep photos; 0: as in training.", lower=0, upper=32)


GROUPS = (PythonOptions, OutputOptions, EngineOptions, NetworkOptions)
_OTHERWISE = {
    "output": "give cutout=True for cut-outs, and use Prediction.mask for masks",
    "threshold": "give it to Prediction.mask",
    "cutout_format": "cut-outs are arrays; write them in the format you want",
    "use_bounding_boxes": "its table is of files; predict with the command",
    "stacked_channels": "stacked channels are files; predict with the command",
}


def load_model(weights: "Weights", given: Mapping[str, Any]) -> "Model":
    """A model for values of flags by name; see `carvana_tf.load`."""
    values = parse(given)
    paths = [weights] if isinstance(weights, str | os.PathLike) else list(weights)
    if not paths:
        raise UserError("no weights are given; name one or several model files.")
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(f"the weights '{path}' do not exist; correct the name.")
    if "keras" not in sys.modules:
        environment.settle_keras(os.environ)
    from carvana_tf import devices  # starts the backend without its messages
    from carvana_tf.inference.in_memory import Model

    names, _ = devices.select(values[PythonOptions].gpu)
    return Model([Path(path) for path in paths], values, names)


def parse(given: Mapping[str, Any]) -> flags.Values:
    """Checks values of flags as those of a command line.

    Raises:
        UserError: A flag is unknown, has no such value, or has no effect with the others.
    """
    known = {name for group in GROUPS for name in flags.defaults(group)} - _OTHERWISE.keys()
    arguments = []
    for name, value in given.items():
        if name in _OTHERWISE:
            raise UserError(f"{name}={value!r} is not for Python: {_OTHERWISE[name]}.")
        if name not in known:
            raise unknown_name("the flag", name, sorted(known))
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            arguments.append(f"--{name}={text}")
    if str(given.get("cutout", False)).lower() in ("true", "1"):
        arguments.append("--output=cutout")
    return flags.parse(GROUPS, arguments)
