"""Tables of what was measured: printed, and committed as CSV."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import machine
from carvana_tf.files import write_text
from carvana_tf.flags import option
from harness import Timing


@dataclasses.dataclass(frozen=True)
class PlaceOptions:
    """Where a benchmark reads and writes."""

    data_dir: str | None = option(
        None,
        "Folder with train/ and train_masks/; by default the variable CARVANA_DIR, and rendered "
        "photos where that is not set.",
    )
    work_dir: str = option("runs/benchmarks", "Folder for what is made on the way.")
    out_dir: str = option(str(Path(__file__).parent), "Folder of the CSV files.")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A ratio that is shown.

    Attributes:
        contender: Whose rate is divided.
        baseline: By whose.
        target: The least it shall be, or None.
    """

    contender: str
    baseline: str
    target: float | None = None


def publish(
    name: str,
    setting: str,
    timings: Sequence[Timing],
    comparisons: Sequence[Comparison],
    folder: Path,
) -> None:
    """Prints timings and ratios and puts them into `<name>.csv` and `<name>_ratios.csv`.

    Rows of other settings and machines stay in the files; those of this one are replaced.
    """
    rows = {
        f"{name}.csv": [_timing_row(timing) for timing in timings],
        f"{name}_ratios.csv": ratio_rows(timings, comparisons),
    }
    for file_name, table in rows.items():
        if table:
            print(f"\n{name}, {setting}")
            print_table(table)
            replace_rows(Path(folder) / file_name, table, {"setting": setting})


def ratio_rows(
    timings: Sequence[Timing], comparisons: Sequence[Comparison]
) -> list[dict[str, Any]]:
    """One row for each comparison whose two sides were measured.

    `ratio` is that of the rates of the median rounds, `lowest` and `highest` are those of
    rounds of the same number.
    """
    by_name = {timing.name: timing for timing in timings}
    rows = []
    for comparison in comparisons:
        one, other = by_name.get(comparison.contender), by_name.get(comparison.baseline)
        if one is None or other is None:
            continue
        pairs = zip(one.rounds, other.rounds, strict=True)
        scale = one.items / other.items
        each = [scale * theirs.seconds / ours.seconds for ours, theirs in pairs]
        ratio = one.rate / other.rate
        reached = "" if comparison.target is None else "yes" if ratio >= comparison.target else "no"
        rows.append(
            {
                "rate_of": one.name,
                "divided_by_rate_of": other.name,
                "ratio": round(ratio, 3),
                "lowest": round(min(each), 3),
                "highest": round(max(each), 3),
                "target": comparison.target,
                "reached": reached,
            }
        )
    return rows


def replace_rows(path: Path, rows: Sequence[Mapping[str, Any]], key: Mapping[str, str]) -> None:
    """Writes a CSV again, whole or not at all: old rows of others, then `rows`.

    Others are those with another `key`, or from another machine. The key's columns come
    first; date, hardware, software and the toolkit's commit are added as the last ones.
    """
    origin = {
        "date": datetime.date.today().isoformat(),
        "hardware": machine.hardware(),
        "software": machine.software(),
        "commit": machine.commit(),
    }
    table = pd.DataFrame([{**key, **row, **origin} for row in rows])
    old = read_rows(path)
    own = {**key, "hardware": origin["hardware"]}
    if len(old) and set(own) <= set(old.columns):
        same = pd.concat([old[name] == value for name, value in own.items()], axis=1).all(axis=1)
        old = old[~same]
        table = pd.concat([old, table.astype(object)]).fillna("") if len(old) else table
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a CSV as they are written, without interpretation; empty where it is missing."""
    if not Path(path).is_file():
        return pd.DataFrame()
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows as aligned columns."""
    print(pd.DataFrame(rows).fillna("").to_string(index=False))


def _timing_row(timing: Timing) -> dict[str, Any]:
    return {
        "contender": timing.name,
        "items": timing.items,
        "median_seconds": round(timing.seconds, 4),
        "items_per_second": round(timing.rate, 3),
        "disturbed_rounds": timing.disturbed,
        "rounds_seconds": " ".join(f"{each.seconds:.4f}" for each in timing.rounds),
    }
