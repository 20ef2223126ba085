"""Carries out a recipe of labels: from photos and their labels to submissions.

python train_and_predict.py --task=labels --recipe=recipes/inclusive_images.yaml \\
    --dataset_dir=input --out_dir=runs/inclusive_images

Photos are prepared once, then a network is trained in stages, scored on the photos that each
stage validates on, and predicts the photos of every submission. The same command goes on where
it was stopped.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carvana_tf import commands
from carvana_tf.cli import Command
from carvana_tf.errors import Problems
from carvana_tf.filenames import SUMMARY
from carvana_tf.files import read_json, write_json, write_text
from carvana_tf.flags import Values, option
from carvana_tf.options import ray_address
from carvana_tf.recipe import check, labels, runner
from carvana_tf.recipe.labels import LabelPaths, LabelRecipe
from carvana_tf.tasks.options import TaskOptions


@dataclasses.dataclass(frozen=True)
class LabelPipelineOptions:
    """The recipe, and where its products go."""

    recipe: str | None = option(None, "What to train: a .yaml file of recipes/.")
    dataset_dir: str = option("input", "Folder that holds the photos and the tables of labels.")
    out_dir: str | None = option(None, "Folder for all products; a half filled one is completed.")
    dry_run: bool = option(False, "Check the recipe, print the command lines, and do nothing.")
    overwrite: bool = option(
        False, "Train again what was trained by another recipe, or on other data."
    )
    ray_address: str = ray_address("Do steps")


def validate(values: Values, problems: Problems) -> None:
    """Adds what is missing or wrong in flags, folders and the recipe."""
    options = values[LabelPipelineOptions]
    for flag, example in (("recipe", "recipes/inclusive_images.yaml"), ("out_dir", "runs/labels")):
        if getattr(options, flag) is None:
            problems.add(f"--{flag} is missing; give it as --{flag}={example}.")
    chosen = problems.attempt(labels.read, Path(options.recipe)) if options.recipe else None
    if chosen is None or options.dry_run:
        return
    dataset = Path(options.dataset_dir)
    wanted = [dataset / stage.photos for stage in chosen.stages]
    wanted += [dataset / photos for photos, _ in chosen.submissions]
    for folder in dict.fromkeys(wanted):
        problems.add(
            f"the folder '{folder}' of the recipe does not exist; see --dataset_dir.",
            not folder.is_dir(),
        )
    tables = [dataset / stage.labels for stage in chosen.stages]
    tables += [dataset / sample for _, sample in chosen.submissions]
    for table in tables:
        problems.add(
            f"the table '{table}' of the recipe does not exist; see --dataset_dir.",
            not table.is_file(),
        )


def run(values: Values) -> int:
    """Reads the recipe, checks all command lines, and does what is not done."""
    options = values[LabelPipelineOptions]
    chosen = labels.read(Path(options.recipe or ""))
    paths = LabelPaths(Path(options.dataset_dir), Path(options.out_dir or ""))
    steps = labels.steps(chosen, paths)
    check.command_lines(steps, commands.find)
    if options.dry_run:
        print(runner.as_shell(steps), end="")
        return 0
    with runner.alone(paths.out) as held:
        write_text(paths.out / runner.COMMANDS, runner.as_shell(steps))
        try:
            address = options.ray_address
            with runner.executing(paths.out, held, ray_address=address) as (execute, at_once):
                serial = isinstance(execute, runner.Processes)
                work = runner.Runner(paths.out, steps, execute, options.overwrite, at_once, serial)
                work.run(steps)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here.")
            raise
    write_text(paths.out / runner.COMMANDS, runner.as_shell(steps))
    return _report(chosen, paths, work.failures)


def _report(chosen: LabelRecipe, paths: LabelPaths, failures: Mapping[str, str]) -> int:
    """Writes and prints what came out; the exit status."""
    scores = {
        stage.name: _scores(read_json(paths.scores(stage)))
        for stage in chosen.stages
        if f"{stage.name}-scores" not in failures and paths.scores(stage).is_file()
    }
    written = [paths.submission(photos) for photos, _ in chosen.submissions]
    made = [path for path in written if path.is_file()]
    write_json(
        paths.out / SUMMARY,
        {
            "recipe": chosen.name,
            "description": chosen.description,
            "scores": scores,
            "submissions": [path.name for path in made],
            "failures": dict(failures),
        },
    )
    print()
    for name, row in scores.items():
        print(
            f"{name}: validation GAP {row['gap']:.5f}, mean F2 {row['mean_f2']:.5f}, at the best "
            f"threshold {row['best_threshold']:g} {row['best_threshold_mean_f2']:.5f}; the most "
            f"frequent labels {row['most_frequent_mean_f2']:.5f}"
        )
    for path in made:
        print(f"submission -> {path}")
    for name, why in failures.items():
        print(f"error: {name}: {why}", file=sys.stderr)
    return 1 if failures else 0


def _scores(summary: Mapping[str, Any]) -> dict[str, float]:
    names = ("photos", "gap", "mean_f2", "best_threshold", "best_threshold_mean_f2")
    frequent = summary["most_frequent"]["mean_f2"]
    return {name: summary[name] for name in names} | {"most_frequent_mean_f2": frequent}


COMMAND = Command(__doc__, (TaskOptions, LabelPipelineOptions), run, validate)
