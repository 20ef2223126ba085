"""The logs of trainings: what was measured after each epoch."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from carvana_tf.errors import UserError
from carvana_tf.filenames import LOG

EPOCH = "epoch"


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        label: Its name in the legend.
        rows: One per epoch, as in the log; figures may be missing.
    """

    label: str
    rows: Sequence[Mapping[str, float]]

    def points(self, column: str) -> list[tuple[float, float]]:
        """(epoch, value) where the column has a value."""
        found = [(row[EPOCH], row[column]) for row in self.rows if column in row]
        return [(epoch, value) for epoch, value in found if not math.isnan(value)]


def read_run(path: Path) -> Curve:
    """The log of a run, by its folder or file; the label is the folder's name.

    Raises:
        UserError: There is no log, or the file is none.
    """
    log = path / LOG if path.is_dir() else path
    try:
        table = pd.read_csv(log)
    except FileNotFoundError as error:
        raise UserError(f"--runs: '{log}' does not exist; name a run's folder.") from error
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(
            f"--runs: '{log}' is no CSV file ({' '.join(str(error).split())})."
        ) from error
    numbers = table.apply(pd.to_numeric, errors="coerce")
    if EPOCH not in numbers or numbers[EPOCH].isna().any():
        raise UserError(
            f"--runs: '{log}' has no column '{EPOCH}' of numbers, so it is no log of a training; "
            f"its columns: {', '.join(map(str, table))}."
        )
    label = log.resolve().parent.name if log.name == LOG else log.stem
    return Curve(label, numbers.to_dict("records"))


def read_runs(names: Sequence[str]) -> list[Curve]:
    """The logs of several runs, as `read_run`.

    Runs are labelled as they were named where folders of the same name would be confused.
    """
    read = [read_run(Path(name)) for name in names]
    labels = [curve.label for curve in read]
    return [
        dataclasses.replace(curve, label=name) if labels.count(curve.label) > 1 else curve
        for curve, name in zip(read, names, strict=True)
    ]
