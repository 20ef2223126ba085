"""Adds a run of train_and_predict.py to quality.csv: a row for each member and the ensemble.

    python train_and_predict.py --recipe=recipes/fast.yaml --dataset_dir="$CARVANA_DIR" \
        --out_dir=runs/fast
    python benchmarks/quality.py --recipe=recipes/fast.yaml --run_dir=runs/fast

Minutes are of the processor, for one fold, and include the networks that a member starts from.
Photos per second are from photos to masks out of fold, without the start.
"""

import dataclasses
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import machine
from carvana_tf.cli import Command, main
from carvana_tf.errors import UserError
from carvana_tf.evaluation import timings
from carvana_tf.filenames import SUMMARY, TIMINGS
from carvana_tf.files import read_json, write_text
from carvana_tf.flags import Values, find, option
from carvana_tf.options import DatasetOptions
from carvana_tf.recipe import plan, recipe, runner
from carvana_tf.recipe.recipe import Member, Recipe
from carvana_tf.recipe.steps import ENSEMBLE, RunPaths

_HERE = Path(__file__).parent
_SCORES = ("dice", "low", "high", "worst", "percentile_5", "boundary_f")


@dataclasses.dataclass(frozen=True)
class QualityOptions:
    """The run, and the table."""

    recipe: str | None = option(None, "The recipe of the run.")
    run_dir: str | None = option(None, "Its --out_dir.")
    note: str = option("", "What the rows shall say besides.")
    table: str = option(str(_HERE / "quality.csv"), "The table that rows are added to.")


def run(values: Values) -> None:
    """Adds the rows."""
    options = values[QualityOptions]
    if not options.recipe or not options.run_dir:
        raise UserError("--recipe and --run_dir name the run; give both.")
    path, table = Path(options.recipe), Path(options.table)
    chosen, folder = recipe.read(path), Path(options.run_dir)
    paths = _paths(folder)
    times = timings.read(folder / TIMINGS)
    summary = read_json(folder / SUMMARY)
    together = chosen.named((summary["ensemble"] or {"weights": ()})["weights"])
    rows = [
        # Names of members do not start with "ensemble".
        _row(
            score,
            together if score["name"].startswith(ENSEMBLE) else chosen.named([score["name"]]),
            *(chosen, paths, times),
        )
        for score in summary["scores"]
    ]
    made = pd.DataFrame(rows).assign(
        recipe=str(path),
        machine=machine.hardware(),
        date=f"{datetime.date.today()}",
        note=[", ".join(filter(None, [row["note"], options.note])) for row in rows],
    )
    known = pd.read_csv(table, dtype=str)
    whole = pd.concat([known, made.astype(object)])[list(known.columns)]
    whole = whole.astype(str).where(whole.notna()).drop_duplicates()
    write_text(table, whole.to_csv(index=False, lineterminator="\n"))
    print(made.to_string(index=False))


def _paths(folder: Path) -> RunPaths:
    """Where the run's products are; its photos are not looked at."""
    none = Path("none")
    return RunPaths(DatasetOptions(), none, none, test=none, sample=None, out=folder)


def _row(
    score: dict[str, Any],
    members: Sequence[Member],
    chosen: Recipe,
    paths: RunPaths,
    times: dict[str, Any],
) -> dict[str, Any]:
    own = members[0].folds if len(members) == 1 else None
    folds = (own or chosen.folds).number
    engines = [find(member.predict, "engine") or "keras" for member in members]
    stages = [stage for member in members for stage in _with_bases(member, chosen)]
    return {
        "network": " ".join(dict.fromkeys(stage.network for stage in stages)),
        "size": " then ".join(dict.fromkeys(_size(stage.flags) for stage in stages)),
        "train_photos": round(score["photos"] * (1 - 1 / folds)),
        "folds": " ".join(map(str, range(folds))),
        "processor_minutes": _minutes(members, chosen, folds, paths, times),
        **{name: None if score[name] is None else round(score[name], 5) for name in _SCORES},
        "engine": " ".join(dict.fromkeys(engines)),
        "photos_per_second": _rate(members, folds, paths),
        "note": f"{score['name']} of the recipe",
    }


def _with_bases(member: Member, chosen: Recipe) -> list[recipe.Stage]:
    """The trainings of a member after those that it starts from."""
    before = [s for base in chosen.named(member.start_from) for s in _with_bases(base, chosen)]
    return [*before, *member.stages]


def _size(flags: Sequence[str]) -> str:
    return "x".join(find(flags, name) or "?" for name in ("input_width", "input_height"))


def _minutes(
    members: Sequence[Member], chosen: Recipe, folds: int, paths: RunPaths, times: dict[str, Any]
) -> float | None:
    """Processor minutes of a fold's trainings, each counted once; None where some are not known."""
    needed = {member.name for member in members}
    while more := {n for m in chosen.named(needed) for n in m.needs} - needed:
        needed |= more
    by_member = plan.member_steps(chosen, paths)
    steps = [s.name for name in needed for s in by_member[name] if s.command == "train"]
    spent = timings.seconds(times.get(runner.PROCESSOR))
    if not steps or not spent.keys() >= {*steps}:
        return None
    return round(sum(spent[name] for name in steps) / folds / 60, 1)


def _rate(members: Sequence[Member], folds: int, paths: RunPaths) -> float | None:
    """Photos per second through all members, one after the other."""
    seconds = 0.0
    for member in members:
        found = [
            timings.read(paths.mask_dir(member.name, f"fold_{fold}") / TIMINGS)
            for fold in range(folds)
        ]
        photos = sum(each.get("photos", 0) for each in found)
        if not photos:
            return None
        seconds += sum(each["seconds"] for each in found) / photos
    return round(1 / seconds, 2)


COMMAND = Command(__doc__, (QualityOptions,), run)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
