"""A run's figures for MLflow or Weights & Biases.

Where they are written, those packages' own environment variables say; without any it is this
machine. Nothing that fails there ends a training.
"""

import contextlib
import importlib
import importlib.util
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from carvana_tf.data.names import printable
from carvana_tf.errors import UserError
from carvana_tf.evaluation.learning import EPOCH
from carvana_tf.failures import describe
from carvana_tf.files import read_json, write_json

IDS = "tracker.json"
"""The runs' ids, in the folder of a training that may go on: {"mlflow": "<id>"}."""

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

_PROJECT = "carvana_tf"
_FINISHED, _FAILED, _KILLED = "FINISHED", "FAILED", "KILLED"
_LONGEST = 500  # characters of a setting, as older servers of MLflow allow
_MOST_PARAMETERS = 100  # settings that MLflow takes at once
# A server that does not answer costs seconds, not the minutes of the packages' defaults. MLflow
# from 3.7 on refuses a folder (MLFLOW_TRACKING_URI=file:...) otherwise.
_USUAL = {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "WANDB_INIT_TIMEOUT": "20",
}


class Service(Protocol):
    """A run of a tracker."""

    id: str

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """Adds the figures of an epoch."""

    def end(self, status: str) -> None:
        """Ends the run."""


@contextlib.contextmanager
def tracked(
    tracker: str, folder: Path, settings: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Sends the figures of a training, which is what the context encloses.

    Args:
        tracker: One of `options.TRACKERS`.
        folder: Of the training; its name is that of the run.
        settings: What decides the training's result.

    Yields:
        What takes an epoch's row of the log.

    Raises:
        UserError: The tracker's package is missing.
    """
    if tracker == "none":
        yield lambda row: None
        return
    run = _Run(tracker, folder, settings)
    status = _FAILED
    try:
        yield run.write
        status = _FINISHED
    except KeyboardInterrupt:
        status = _KILLED
        raise
    finally:
        run.end(status)


class _Run:
    """A run of a service, which ends with the first error of it."""

    def __init__(self, tracker: str, folder: Path, settings: Mapping[str, Any]) -> None:
        package, start = _package(tracker), _SERVICES[tracker]
        for name, value in _USUAL.items():
            os.environ.setdefault(name, value)
        self._tracker = tracker
        known = _ids(folder)
        self._service: Service | None = self._attempt(
            start, package, folder, _texts(settings), known.get(tracker)
        )
        if self._service is not None:
            write_json(folder / IDS, known | {tracker: self._service.id})

    def write(self, row: Mapping[str, float]) -> None:
        """Takes an epoch's row of the log."""
        figures = {name: value for name, value in row.items() if name != EPOCH}
        if self._service is not None:
            self._attempt(self._service.log, figures, int(row[EPOCH]))

    def end(self, status: str) -> None:
        """Ends the run."""
        if self._service is not None:
            self._attempt(self._service.end, status)

    def _attempt(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kw: Arguments.kwargs
    ) -> Result | None:
        try:
            return function(*args, **kw)
        except Exception as error:
            self._service = None
            line = f"warning: --tracker={self._tracker} is given up: {describe(error)}"
            print(printable(line), file=sys.stderr)
            return None


class _MLflow:
    """A run of MLflow, by the client alone: no run of the process is begun."""

    def __init__(
        self, mlflow: Any, folder: Path, settings: Mapping[str, str], known: str | None
    ) -> None:
        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient()
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            self.id = self._client.create_run(experiment, run_name=folder.name).info.run_id
            parameters = [mlflow.entities.Param(*each) for each in settings.items()]
            for first in range(0, len(parameters), _MOST_PARAMETERS):
                part = parameters[first : first + _MOST_PARAMETERS]
                self._client.log_batch(self.id, params=part)
        else:
            self.id = known
            self._client.update_run(known, status="RUNNING")
        print(f"tracker: MLflow, run {self.id} in {mlflow.get_tracking_uri()}")

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        now = int(1000 * time.time())
        metric = self._entities.Metric
        self._client.log_batch(
            self.id, metrics=[metric(name, value, now, epoch) for name, value in figures.items()]
        )

    def end(self, status: str) -> None:
        self._client.set_terminated(self.id, status)


class _Wandb:
    """A run of Weights & Biases; offline unless its own variable says otherwise."""

    def __init__(
        self, wandb: Any, folder: Path, settings: Mapping[str, str], known: str | None
    ) -> None:
        mode = os.environ.get("WANDB_MODE", "offline")
        self.id = known or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=self.id,
            # A run offline cannot look whether it is there; both parts have one id.
            resume="allow" if known and mode == "online" else None,
            name=folder.name,
            dir=os.environ.get("WANDB_DIR", str(folder)),
            mode=mode,
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        self._run.define_metric("*", step_metric=EPOCH)
        where = f"`wandb sync {Path(self._run.dir).parent}` sends it" if mode == "offline" else mode
        print(f"tracker: Weights & Biases, run {self.id}; {where}")

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        self._run.log({**figures, EPOCH: epoch})

    def end(self, status: str) -> None:
        self._run.finish(exit_code=int(status != _FINISHED))


_SERVICES: dict[str, Callable[..., Service]] = {"mlflow": _MLflow, "wandb": _Wandb}
"""The run of each tracker, by the name of its package."""


def check(tracker: str) -> None:
    """Refuses a tracker whose package is missing.

    Raises:
        UserError: It is.
    """
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise _missing(tracker, "no such module")


def _package(tracker: str) -> Any:
    try:
        return importlib.import_module(tracker)
    except ImportError as error:
        raise _missing(tracker, describe(error)) from error


def _missing(tracker: str, why: str) -> UserError:
    return UserError(
        f"--tracker={tracker} needs a package that is not installed ({why}): pip install {tracker}."
    )


def _ids(folder: Path) -> dict[str, str]:
    """The ids of earlier parts; none where they cannot be read."""
    try:
        known = read_json(folder / IDS)
    except UserError:
        return {}
    return known if isinstance(known, dict) else {}


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings that are short enough to read, as text."""
    texts = {name: str(value) for name, value in settings.items()}
    return {name: text for name, text in texts.items() if len(text) <= _LONGEST}
