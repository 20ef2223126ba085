"""The whole state of an unfinished run in one file, so that it can go on exactly."""

import contextlib
import dataclasses
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from carvana_tf.errors import UserError
from carvana_tf.files import atomic_path


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: Optimiser steps done since the start of the run.
        rows: One dictionary per finished epoch, as in the CSV log.
        best: The best value of the monitored score so far, or None.
        counted: The last of its values that was better by enough, or None.
        stale: Validations since then.
        partial: Sums of the unfinished epoch's training figures over its steps.
        losses: Of the batches since the last hard-example replay.
        seconds: Time spent so far in training and validation.
        done: Whether the run has ended.
    """

    step: int = 0
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best: float | None = None
    counted: float | None = None
    stale: int = 0
    partial: dict[str, float] = dataclasses.field(default_factory=dict)
    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    done: bool = False


def save(path: Path, variables: Sequence[keras.Variable], progress: Progress) -> None:
    """Writes variables (weights, optimiser, dropout's generators) and progress."""
    arrays = {f"v{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, progress=np.array(json.dumps(dataclasses.asdict(progress))), **arrays)


def load_progress(path: Path) -> Progress:
    """Reads where a run stands, without its variables.

    Raises:
        UserError: The file is damaged.
    """
    with _opened(path) as archive:
        return Progress(**json.loads(str(archive["progress"])))


def load_variables(path: Path, variables: Sequence[keras.Variable]) -> None:
    """Assigns the saved values.

    Raises:
        UserError: The file is damaged or of another network.
    """
    with _opened(path) as archive:
        if len(archive.files) - 1 != len(variables):
            raise _damaged(path)
        for i, variable in enumerate(variables):
            value: Any = archive[f"v{i}"]
            if tuple(value.shape) != tuple(variable.shape):
                raise _damaged(path)
            variable.assign(value)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The archive; whatever is wrong with it, when opened or when read, is one error."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"'{path}' does not fit this run; train anew with --overwrite.")
