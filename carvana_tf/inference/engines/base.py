"""What an engine is, and what all of them share."""

import dataclasses
import importlib
import math
from collections.abc import Callable
from types import ModuleType

import numpy as np

from carvana_tf.data.sizing import Sizing
from carvana_tf.environment import block_telemetry
from carvana_tf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Engine:
    """A network on one device.

    Attributes:
        sizing: How photos become its input and its output becomes theirs again.
        channels: Channels of its input: RGB, then stacked ones.
        predict: `uint8[B, H, W, channels]` -> `float32[B, H, W]` in 0..1, with H and W
            as `sizing.whole` makes them.
        quantised: The same, but `uint8[B, H, W]`, equal to `images.quantise` of what
            `predict` gives and computed on the device; raises `NotANumber` where the network
            gives NaN, which grey values cannot show. None where the engine cannot.
        name: What runs the network, for the manifest.
        dtype: What it computes in, for the manifest.
        streams: How many threads may, and for speed should, call it at the same time.
        conversion: What tells apart networks of one model in 8 bits; "" for other engines.
        path: The network's file, for messages.
    """

    sizing: Sizing
    channels: int
    predict: Callable[[np.ndarray], np.ndarray]
    quantised: Callable[[np.ndarray], np.ndarray] | None = None
    name: str = "keras"
    dtype: str = "float32"
    streams: int = 1
    conversion: str = ""
    path: str = ""


class NotANumber(Exception):
    """A network gave NaN for one of a batch's inputs."""


def refuse_nan(total: float) -> None:
    """Raises `NotANumber` where the sum of a batch's probabilities is NaN."""
    if math.isnan(total):
        raise NotANumber


def extra(package: str, name: str) -> ModuleType:
    """Imports a package that only some engines need.

    Args:
        package: The module's name.
        name: The engine, which is also what pip calls the extra that installs it.

    Raises:
        UserError: It is not installed, or broken.
    """
    block_telemetry()
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"--engine={name} needs '{package}' ({error}); pip install -e '.[{name}]'"
        ) from error
