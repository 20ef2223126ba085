"""What came out: one table of all members and the ensemble, as HTML, CSV and JSON."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import carvana_tf
from carvana_tf.evaluation import learning, timings
from carvana_tf.evaluation.report import pages, plots, tables
from carvana_tf.failures import optional
from carvana_tf.filenames import LOG, REPORT, SUBMISSION, SUMMARY, TIMINGS
from carvana_tf.files import read_json, write_json, write_text
from carvana_tf.masks import manifest
from carvana_tf.options import run_name
from carvana_tf.recipe.plan import combined
from carvana_tf.recipe.recipe import Recipe
from carvana_tf.recipe.runner import COMMANDS
from carvana_tf.recipe.steps import (
    ABLATION,
    ENCODE,
    ENSEMBLE,
    POSTPROCESSED,
    RunPaths,
    scoring,
)

TABLE = "members.csv"
_TEMPLATE = "recipe.html"
_COLUMNS = (
    ("name", "name", tables.TEXT),
    ("photos", "photos", tables.COUNT),
    ("groups", "groups", tables.COUNT),
    ("cut_at", "grey >", tables.COUNT),
    ("dice", "mean Dice", tables.SCORE),
    ("low", "95 % from", tables.SCORE),
    ("high", "to", tables.SCORE),
    ("worst", "worst photo", tables.SCORE),
    ("percentile_5", "5th percentile", tables.SCORE),
    ("boundary_f", "boundary F", tables.SCORE),
    ("threshold", "best threshold", tables.COUNT),
    ("crossfitted_threshold_dice", "Dice, threshold of other folds", tables.SCORE),
    ("naive_threshold_dice", "Dice, threshold of the same photos", tables.SCORE),
)


def write(
    recipe: Recipe, paths: RunPaths, complete: Collection[str], failures: Mapping[str, str]
) -> dict[str, Any]:
    """Gathers the summaries that `evaluate.py` and `ensemble.py` left, and writes the three.

    Args:
        recipe: What was done.
        paths: Where.
        complete: Names of the members whose steps were all done.
        failures: Why steps were not done, by name.

    Returns:
        What the JSON file holds: `scores` (a row for each scored member, the ensemble
        last), `ensemble` (its weights, and what fitting them is worth) and `failures`
        among it.
    """
    together = [member.name for member in combined(recipe, complete)]
    scored = [m.name for m in recipe.members if m.name in complete] + [ENSEMBLE] * bool(together)
    if together and recipe.postprocess:
        scored.append(POSTPROCESSED)
    # A file of an earlier run is no score of this one.
    scored = [name for name in scored if paths.has_truth and scoring(name) not in failures]
    rows = [_row(name, paths) for name in scored]
    submission = paths.out / SUBMISSION
    encoded = together and submission.is_file() and ENCODE not in failures
    summary = {
        "recipe": recipe.name,
        "description": recipe.description,
        "dataset": paths.dataset.dataset_dir,
        "scores": rows,
        "ensemble": _ensemble(together, paths),
        "postprocess": _ablation(paths)
        if POSTPROCESSED in scored and scoring(ABLATION) not in failures
        else [],
        "submission": submission.name if encoded else None,
        "failures": dict(failures),
        "version": carvana_tf.__version__,
    }
    write_json(paths.out / SUMMARY, summary)
    table = pd.DataFrame(rows).drop(
        columns=["report", "warning", "chosen_on_its_fold"], errors="ignore"
    )
    write_text(
        paths.out / TABLE,
        table.to_csv(index=False, lineterminator="\n", float_format="%.6f"),
    )
    write_text(paths.out / REPORT, render(recipe, paths, summary))
    return summary


def render(recipe: Recipe, paths: RunPaths, summary: Mapping[str, Any]) -> str:
    """The page of a run.

    Args:
        recipe: What was done.
        paths: Where.
        summary: As of `write`.
    """
    scores = summary["scores"]
    table = tables.of_frame("scores", "Networks and ensemble", pd.DataFrame(scores), _COLUMNS)
    spent = timings.seconds(optional("times", timings.read, paths.out / TIMINGS))
    steps = pd.DataFrame([*spent.items()], columns=["step", "seconds"])
    times = tables.of_frame(
        "times",
        "Time of every step",
        steps,
        (("step", "step", tables.TEXT), ("seconds", "seconds", tables.SECONDS)),
    )
    shown = [each for each in (table, times) if len(each)]
    return pages.render(
        _TEMPLATE,
        Path(__file__).parent,
        title=recipe.name,
        **summary,
        data={"tables": {each.name: each.data for each in shown}},
        table=table,
        times=times,
        plots=[plots.intervals(scores)] if scores else [],
        curves=plots.learning(_runs(recipe, paths)),
        commands=COMMANDS,
        shares=[
            (name, f"{weight:.3f}")
            for name, weight in (summary["ensemble"] or {"weights": {}})["weights"].items()
        ],
        gains=[
            (
                *(gain["steps"], f"{gain['difference']:+.5f}"),
                "{:+.5f} .. {:+.5f}".format(*gain["interval"]) if gain["interval"] else "one group",
                *(f"{100 * gain['better']:.1f} %", f"{100 * gain['worse']:.1f} %"),
            )
            for gain in summary["postprocess"]
        ],
    )


def _runs(recipe: Recipe, paths: RunPaths) -> list[learning.Curve]:
    """The trainings of all members that are there, by the last stage of each."""
    logs = [
        paths.models_dir
        / run_name(member.stages[-1].network, member.name, str(fold), smoke=member.stages[-1].smoke)
        / LOG
        for member in recipe.members
        if member.stages
        for fold in range((member.folds or recipe.folds).number)
    ]
    found = [optional("curve", learning.read_run, log) for log in logs if log.is_file()]
    return [curve for curve in found if curve is not None]


def describe(row: Mapping[str, Any]) -> str:
    """One line about one row of `scores`, for the terminal."""
    interval = ""
    if row["low"] is not None:
        interval = f" (95 % interval {row['low']:.5f}..{row['high']:.5f})"
    return f"{row['name']}: out-of-fold Dice {row['dice']:.5f}{interval}"


def _row(name: str, paths: RunPaths) -> dict[str, Any]:
    """The figures of one evaluation; None where there is none."""
    file = paths.scores(name)
    scored = read_json(file)
    low, high = scored["interval"] or (None, None)
    fit = scored["crossfit"][0] if scored["crossfit"] else {}
    return {
        "name": name,
        "cut_at": scored.get("threshold"),
        "photos": scored["photos"],
        "groups": scored["groups"],
        "dice": scored["mean_dice"],
        "low": low,
        "high": high,
        "worst": scored["min_dice"],
        # Earlier versions did not write them.
        "percentile_5": scored.get("percentile_5_dice"),
        "boundary_f": scored.get("mean_boundary_f"),
        "threshold": fit.get("naive_threshold"),
        "crossfitted_threshold_dice": fit.get("mean_dice"),
        "naive_threshold_dice": fit.get("naive_mean_dice"),
        "chosen_on_its_fold": scored.get("chosen_on_its_fold"),
        "warning": scored.get("warning"),
        "report": str((file.parent / REPORT).relative_to(paths.out)),
    }


def _ablation(paths: RunPaths) -> list[dict[str, Any]]:
    """What each step of post-processing gains alone, and all of them in order."""
    file = paths.scores(ABLATION)
    return read_json(file)["postprocess"] if file.is_file() else []


def _ensemble(members: Sequence[str], paths: RunPaths) -> dict[str, Any] | None:
    """Each member's weight, and what fitting the weights is worth where they were fitted."""
    if not members:
        return None
    made = optional("weights", manifest.read, paths.mask_dir(ENSEMBLE, "oof"))
    if made is None or made.ensemble is None:
        return None
    weights = made.ensemble["weights"] or [1 / len(members)] * len(members)
    fitted = made.ensemble.get("fitted") or {}
    return {
        "weights": dict(zip(members, weights, strict=True)),
        **{f"{name}_dice": fitted.get(name) for name in ("equal", "cross_fitted", "naive")},
    }
