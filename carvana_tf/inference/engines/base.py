"""What an engine is, and what all of them share."""

import dataclasses
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from carvana_tf.data.resizing import Resizer
from carvana_tf.environment import block_telemetry
from carvana_tf.failures import installed


@dataclasses.dataclass(frozen=True)
class Engine:
    """A network on one device.

    Attributes:
        resizer: How photos become its input and its output becomes theirs again.
        channels: Channels of its input: RGB, then stacked ones.
        predict: `uint8[B, H, W, channels]` -> `float32[B, …]`, with H and W as `resizer.whole`
            makes them: what the network gives, an image of one channel as `[B, H, W]`.
        predict_uint8: The same, rounded on the device to what `images.to_uint8` makes of it;
            raises `NotANumber` where the network gives NaN, which `uint8` cannot show. None
            where the engine cannot.
        name: What runs the network, for the manifest.
        dtype: What it computes in, for the manifest.
        streams: How many threads may, and for speed should, call it at the same time.
        conversion: Names a quantized network, since one model gives several; "" for others.
        path: The network's file, for messages.
        device: Name for `keras.device`, where it matters; "" elsewhere.
    """

    resizer: Resizer
    channels: int
    predict: Callable[[np.ndarray], np.ndarray]
    predict_uint8: Callable[[np.ndarray], np.ndarray] | None = None
    name: str = "keras"
    dtype: str = "float32"
    streams: int = 1
    conversion: str = ""
    path: str = ""
    device: str = ""


class NotANumber(Exception):
    """A network gave NaN for one of a batch's inputs."""


def refuse_nan(total: float) -> None:
    """Raises `NotANumber` where the sum of a batch's outputs is NaN."""
    if math.isnan(total):
        raise NotANumber


def without_channel(output: Any) -> Any:
    """`[B, H, W, 1]` as `[B, H, W]`; what is no image stays as it is."""
    return output[..., 0] if len(output.shape) == 4 else output


def extra(package: str, name: str, flag: str = "engine") -> ModuleType:
    """Imports a package that only some engines, or formats of an export, need.

    Args:
        package: The module's name.
        name: The engine or format, which is also what pip calls the extra that installs it.
        flag: Of the command, whose value it is.

    Raises:
        UserError: It is not installed, or broken.
    """
    block_telemetry()
    return installed(package, f"--{flag}={name}", name)
