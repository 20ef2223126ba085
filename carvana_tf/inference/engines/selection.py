"""Which engine predicts: the one named, or by "auto" the fastest that agrees with Keras."""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence

import keras

from carvana_tf.data.dataset import Sample
from carvana_tf.errors import UserError
from carvana_tf.inference.engines.base import Engine
from carvana_tf.inference.engines.conversion import PACKAGES, Conversion
from carvana_tf.inference.engines.keras import load
from carvana_tf.inference.engines.openvino import STREAMS
from carvana_tf.inference.options import AUTO, INT8, KERAS, OPENVINO
from carvana_tf.models.checkpoint import Checkpoint

# The policy all engines are compared with.
_REFERENCE = "float32"

# Below this many photos, converting and checking takes longer than it saves.
FEW = 64


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is to be predicted, as far as the choice of an engine depends on it.

    Attributes:
        members: The networks.
        devices: Names for `keras.device`.
        policy: Keras dtype policy to compute in.
        samples: The photos, with stacked channels.
        policy_is_free: Whether float32 may take the policy's place.
        calibration: Finds the photos for 8 bits; called only where they are needed.
        begun_with: The engine that made a part of the masks already, or None.
        side: Of the largest input that fits into memory, where not all do, in pixels.
        report: Gets what the user should know, a line at a time.
    """

    members: Sequence[Checkpoint]
    devices: Sequence[str]
    policy: str
    samples: Sequence[Sample]
    policy_is_free: bool = False
    calibration: Callable[[], Sequence[Sample]] = tuple
    begun_with: str | None = None
    side: int | None = None
    report: Callable[[str], object] = print


def make_engines(name: str, work: Workload) -> list[list[Engine]]:
    """For each device the engines of all networks, all of one kind.

    Whatever is converted is compared with Keras in float32 once per machine. A named
    engine that differs is used nevertheless, with a warning. "auto" falls back to Keras; after
    a failed check in float32, if the policy is free: in another Keras differs as much.

    Args:
        name: One of `options.ENGINES`.
        work: What is to be predicted.

    Raises:
        UserError: A network cannot be loaded, or the engine named cannot be used.
    """
    if name == AUTO and work.begun_with in _usable(work):
        name = work.begun_with  # masks of two engines are not mixed
    if name == AUTO:
        return _automatic(work)
    if name == KERAS:
        return _with_keras(work)
    if not _on_processor(work):
        raise UserError(f"--engine={name} runs on the processor; use --gpu=, or --engine=keras.")
    conversions = _conversions(name, work)
    engines = [conversion.load() for conversion in conversions]
    for conversion, engine in zip(conversions, engines, strict=True):
        verdict = conversion.check(engine, work.samples, work.side)
        if not verdict.passed:
            work.report(f"warning: '{conversion.checkpoint.path}' by {name}: {verdict}")
    return [engines]


def _automatic(work: Workload) -> list[list[Engine]]:
    if OPENVINO not in _usable(work):
        return _with_keras(work)
    try:
        if engines := _checked(_conversions(OPENVINO, work), work):
            return [engines]
    except _Failed as error:
        work = _after_failed_check(str(error), work)
    except UserError as error:
        work.report(f"predicting with Keras: {error}")
    return _with_keras(work)


class _Failed(UserError):
    """An engine did not pass its check."""


def _checked(conversions: Sequence[Conversion], work: Workload) -> list[Engine]:
    """The engines, which pass; none where photos are too few to find out.

    Raises:
        _Failed: One does not pass.
        UserError: One cannot be made.
    """
    known = [conversion.known_verdict(len(work.samples)) for conversion in conversions]
    if None in known and len(work.samples) < FEW:
        return []
    engines = []
    for conversion in conversions:
        engine = conversion.load()
        verdict = conversion.check(engine, work.samples, work.side)
        if not verdict.passed:
            raise _Failed(f"'{conversion.checkpoint.path}' by OpenVINO: {verdict}")
        engines.append(engine)
    return engines


def _after_failed_check(reason: str, work: Workload) -> Workload:
    """The workload for Keras, in float32 if the policy is free."""
    if work.policy == _REFERENCE or not work.policy_is_free:
        work.report(f"predicting with Keras: {reason}")
        return work
    dtype = work.policy.removeprefix("mixed_")
    hint = f"--dtype={dtype} is faster and as far off"
    work.report(f"predicting with Keras in {_REFERENCE} ({hint}): {reason}")
    return dataclasses.replace(work, policy=_REFERENCE)


def _usable(work: Workload) -> tuple[str, ...]:
    """The engines that this machine and the workload allow."""
    if not _on_processor(work) or keras.backend.backend() != "tensorflow":
        return (KERAS,)
    if work.policy == "mixed_float16":
        return (KERAS,)
    installed = (
        name
        for name, packages in PACKAGES.items()
        if all(importlib.util.find_spec(package) for package in packages)
    )
    return (KERAS, *installed)


def _on_processor(work: Workload) -> bool:
    return list(work.devices) == ["cpu:0"]


def _with_keras(work: Workload) -> list[list[Engine]]:
    return [[load(member, name, work.policy) for member in work.members] for name in work.devices]


def _conversions(name: str, work: Workload) -> list[Conversion]:
    calibration = work.calibration() if name == INT8 else ()
    # One photo, or its tiles one after the other, gets all cores.
    streams = min(STREAMS, len(work.samples))
    return [
        Conversion(member, name, work.policy, calibration, work.report, streams)
        for member in work.members
    ]
