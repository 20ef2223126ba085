"""A run of a recipe: the steps of all members, those of the ensemble, and the report."""

import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from carvana_tf.filenames import REPORT
from carvana_tf.files import write_text
from carvana_tf.recipe import plan, report
from carvana_tf.recipe.recipe import Recipe
from carvana_tf.recipe.runner import COMMANDS, Runner, as_shell
from carvana_tf.recipe.steps import RunPaths, Step

USELESS = 3
"""The exit status where all is done and the masks show nothing."""


def all_steps(chosen: Recipe, paths: RunPaths) -> list[Step]:
    """The steps of all members, then those of the ensemble."""
    names = [member.name for member in chosen.members]
    by_member = plan.member_steps(chosen, paths).values()
    return [*chain(*by_member), *plan.final_steps(chosen, paths, names)]


def carry_out(chosen: Recipe, paths: RunPaths, work: Runner) -> int:
    """Does the members' steps, then those of the complete ones together, then reports.

    Returns:
        The exit status: 1 where anything failed, `USELESS` where the masks show nothing.
    """
    by_member = plan.member_steps(chosen, paths)
    work.run([*chain(*by_member.values())])
    complete = [
        name
        for name, steps in by_member.items()
        if name and not any(step.name in work.failures for step in steps)
    ]
    if len(complete) < len(chosen.members):
        print(f"\nonly these members are complete: {', '.join(complete) or 'none'}")
    final = plan.final_steps(chosen, paths, complete)
    work.run(final)
    steps = [*chain(*by_member.values()), *final]
    write_text(paths.out / COMMANDS, as_shell(steps))
    summary = report.write(chosen, paths, complete, work.failures)
    print()
    for row in summary["scores"]:
        print(report.describe(row))
        if row["warning"]:
            print(f"warning: {row['name']}: {row['warning']}.", file=sys.stderr)
    if summary["submission"]:
        print(f"submission -> {paths.out / summary['submission']}")
    print(f"report -> {paths.out / REPORT}")
    for name, why in work.failures.items():
        print(f"error: {name}: {why}", file=sys.stderr)
    if work.failures:
        return 1
    return _judge(chosen, summary["scores"])


def _judge(chosen: Recipe, scores: Sequence[Mapping[str, Any]]) -> int:
    """The exit status, by the score of what the recipe is for: the last one."""
    if not scores or not scores[-1]["warning"]:
        return 0
    last = scores[-1]
    if any(stage.smoke for member in chosen.members for stage in member.stages):
        return 0  # a trial learns nothing
    print(f"error: {last['name']} is useless: {last['warning']}.", file=sys.stderr)
    return USELESS
