"""Commands at the same time, each a process that has one device for itself."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue

from carvana_tf.child import Child
from carvana_tf.environment import CPU_DEVICES, ONLY_GPU
from carvana_tf.errors import UserError

NONE, FOLDS = "none", "folds"
CHOICES = (NONE, FOLDS)
"""Values of --parallel."""

TAKES_GPU = ("train", "predict")
"""Commands with the flag --gpu."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A device as the process that has it sees it.

    Attributes:
        gpu: Value of --gpu.
        environment: Variables, see `Child.run`.
    """

    gpu: str
    environment: dict[str, str | None]


def places(gpu: str) -> list[Place]:
    """A place for each device of `--gpu`.

    A GPU is the only one that its process sees, so that whatever the process does by default is
    done there. Where logical processors stand for GPUs, see `environment.CPU_DEVICES`, all share
    the processor, each with as many threads as alone: their number changes the last digits.

    Raises:
        UserError: These are not several.
    """
    numbers = [part.strip() for part in gpu.split(",") if part.strip()]
    if len(set(numbers)) < max(len(numbers), 2) or not all(n.isdecimal() for n in numbers):
        raise UserError(
            f"--parallel={FOLDS} puts one run on each device of --gpu, and --gpu='{gpu}' is no "
            "list of different ones, as --gpu=0,1; name them, or leave out --parallel."
        )
    if int(os.environ.get(CPU_DEVICES) or 0):
        return [Place("", {CPU_DEVICES: None})] * len(numbers)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = [part.strip() for part in visible.split(",")] if visible else None
    for number in map(int, numbers):
        if known is not None and number >= len(known):
            raise UserError(
                f"--gpu={gpu}: GPU {number} is not here, as CUDA_VISIBLE_DEVICES={visible} shows "
                f"{len(known)}, numbered from 0."
            )
    shown = [known[int(number)] if known else number for number in numbers]
    return [
        Place("0", {"CUDA_VISIBLE_DEVICES": device, ONLY_GPU: number})
        for device, number in zip(shown, numbers, strict=True)
    ]


class Parallel(Child):
    """A context that runs commands, as many at once as there are devices; threads call it."""

    def __init__(self, each: Sequence[Place], held: Sequence[int] = ()) -> None:
        """Installs nothing yet.

        Args:
            each: Of `places`.
            held: File descriptors the children shall hold.
        """
        super().__init__()
        self._held = held
        self._free: SimpleQueue[Place] = SimpleQueue()
        for place in each:
            self._free.put(place)

    def __call__(self, line: Sequence[str], log: Path, label: str = "") -> int:
        """Waits for a device and runs a command on it.

        Args:
            line: The command's name and its flags.
            log: What the command prints goes to its end, too.
            label: As of `Child.run`; by default the log's name.

        Returns:
            As `Child.run`.

        Raises:
            KeyboardInterrupt: As there.
        """
        place = self._free.get()
        try:
            given = [f"--gpu={place.gpu}"] if line[0] in TAKES_GPU else []
            with log.open("ab") as handle:
                return self.run(
                    [*line, *given], handle, self._held, place.environment, label or log.stem
                )
        finally:
            self._free.put(place)
