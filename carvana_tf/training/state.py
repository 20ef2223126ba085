"""The whole state of an unfinished run in one file, so that it can go on exactly.

Two generations are kept, each with a digest of its content: where the newer one is damaged
the run goes on from the older one, and repeats the steps in between.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from carvana_tf.errors import UserError
from carvana_tf.filenames import LAST
from carvana_tf.files import atomic_path

STATE = "state.npz"
PREVIOUS = "state.previous.npz"
FORMAT = 2
"""Of the file. In format 1 there was no digest, and a finished run could not be lengthened."""


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: Optimizer steps done since the start of the run.
        rows: One dictionary per finished epoch, as in the CSV log.
        best: The best value of the monitored score so far, or None.
        best_epoch: The epoch it is of, from 1; 0 without one.
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
    best_epoch: int = 0
    counted: float | None = None
    stale: int = 0
    partial: dict[str, float] = dataclasses.field(default_factory=dict)
    losses: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    done: bool = False


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a state file holds.

    Attributes:
        progress: Where to go on. Of a run that has ended that is after the last step of its
            last epoch, before what only the end of a run brings: the update by gradients that
            waited, and a validation out of turn.
        values: Of all variables then.
        end: Where the run ended, or None where it has not.
        length: What it ended by, as `TrainingPlan.length` has it.
        version: Of the file's format.
    """

    progress: Progress
    values: Sequence[np.ndarray]
    end: Progress | None = None
    length: Mapping[str, int] | None = None
    version: int = FORMAT

    def has_ended(self, length: Mapping[str, int]) -> bool:
        """Whether a run of this length has."""
        return self.end is not None and self.length in (None, dict(length))


def snapshot(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Copies of the values of variables; the backend may hand out its own memory."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def restore(path: Path, values: Sequence[np.ndarray], variables: Sequence[keras.Variable]) -> None:
    """Assigns saved values.

    Raises:
        UserError: They are of another network; `path` is named.
    """
    shapes = [value.shape for value in values]
    if shapes != [tuple(variable.shape) for variable in variables]:
        raise UserError(
            f"'{path}' is the state of another network or optimizer; train from the beginning "
            "with --restart."
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def save(folder: Path, saved: Saved) -> None:
    """Writes a run's state; the one before stays as the older generation."""
    path = folder / STATE
    with atomic_path(path) as temporary:
        write(temporary, saved)
        if path.is_file():
            _keep(path, folder / PREVIOUS)


def write(path: Path, saved: Saved) -> None:
    """Writes a state as one file."""
    about = {
        "progress": dataclasses.asdict(saved.progress),
        "end": saved.end and dataclasses.asdict(saved.end),
        "length": saved.length and dict(saved.length),
    }
    text = json.dumps(about)
    arrays: dict[str, Any] = {f"v{i}": value for i, value in enumerate(saved.values)}
    with path.open("wb") as handle:
        np.savez(
            handle,
            format=np.array(FORMAT),
            about=np.array(text),
            digest=np.array(_digest(text, saved.values)),
            **arrays,
        )


def load(folder: Path) -> Saved | None:
    """The newest undamaged state of a run; None where there is none at all.

    Where the newer generation is damaged, the older takes its place, and a line says so.

    Raises:
        UserError: All are damaged, or of a later format.
    """
    newest, previous = folder / STATE, folder / PREVIOUS
    if not newest.is_file() and not previous.is_file():
        return None
    with contextlib.suppress(Damaged):
        return read(newest)
    try:
        saved = read(previous)
    except Damaged:
        raise UserError(
            f"'{newest}' is damaged, and so is the state before it; train from the beginning "
            "with --restart, or start another run from the last model with "
            f"--weights={folder / LAST} --net_alias=NAME."
        ) from None
    print(
        f"warning: '{newest}' is damaged or missing; going on from the state before it, after "
        f"{saved.progress.step} steps.",
        file=sys.stderr,
    )
    # The next `save` must not put the damaged one in the place of this one.
    os.replace(previous, newest)
    return saved


class Damaged(UserError):
    """A state file is missing, truncated or changed."""


def read(path: Path) -> Saved:
    """Reads one state file.

    Raises:
        Damaged: It is missing or not as it was written.
        UserError: It is of a later format.
    """
    try:
        # NumPy would leave a damaged file open that it opened itself.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            members = {name: archive[name] for name in archive.files}
        version = int(members.pop("format", 1))
        if version > FORMAT:
            raise UserError(
                f"'{path}' has format {version}, written by a later version of carvana_tf; this "
                f"one reads up to {FORMAT}: install the later one, or train again with --restart."
            )
        about = str(members.pop("about" if version > 1 else "progress"))
        digest = str(members.pop("digest", ""))
        values = [members[f"v{i}"] for i in range(len(members))]
        if version > 1 and digest != _digest(about, values):
            raise ValueError("the content is not that of its digest")
        return _parse(json.loads(about), values, version)
    except UserError:
        raise
    # Whatever NumPy, zipfile and zlib make of bytes that are none of theirs.
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise Damaged(f"'{path}' is damaged ({error}).") from error
    except (zlib.error, NotImplementedError, RuntimeError, MemoryError) as error:
        raise Damaged(f"'{path}' is damaged ({error}).") from error


def _parse(about: dict[str, Any], values: Sequence[np.ndarray], version: int) -> Saved:
    if version > 1:
        end = about["end"] and Progress(**about["end"])
        return Saved(Progress(**about["progress"]), values, end, about["length"], version)
    progress = Progress(**about)
    return Saved(progress, values, progress if progress.done else None, None, version)


def _keep(path: Path, previous: Path) -> None:
    """Makes the current state the older generation; it stays where it is if possible."""
    link = previous.with_name(f".{previous.name}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without links
        os.replace(path, previous)
    else:
        os.replace(link, previous)


def _digest(text: str, values: Sequence[np.ndarray]) -> str:
    """SHA-256 of a state's content, as 64 hexadecimal digits."""
    sha = hashlib.sha256(text.encode())
    for value in values:
        sha.update(f"{value.dtype} {value.shape}".encode())
        sha.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()
