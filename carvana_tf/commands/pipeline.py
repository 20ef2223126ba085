"""Carries out a recipe: from photos and masks to a submission and a report.

python train_and_predict.py --recipe=recipes/quick.yaml --dataset_dir=input --out_dir=runs/quick

Folds, every network on every fold, out-of-fold masks, their scores, the ensemble, masks of
the test photos and the submission, each by one of the other scripts. The same command goes
on where it was stopped. The exit status is 1 where a step failed, and 3 where all is done but
the result is no better than masks that are the same everywhere: the networks learned nothing.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from carvana_tf import commands
from carvana_tf.cli import Command
from carvana_tf.errors import Problems, UserError
from carvana_tf.filenames import REPORT, SAMPLE_SUBMISSION
from carvana_tf.files import write_text
from carvana_tf.flags import Needs, Values, option
from carvana_tf.options import DatasetOptions
from carvana_tf.recipe import check, plan, recipe, report, runner
from carvana_tf.recipe.steps import Place, Step

USELESS = 3


@dataclasses.dataclass(frozen=True)
class PipelineOptions:
    """The recipe, and where its products go."""

    recipe: str | None = option(None, "What to train and to combine: a .yaml file of recipes/.")
    out_dir: str | None = option(None, "Folder for all products; a half filled one is completed.")
    train_data_dir_name: str = option("train", "Folder of the photos, inside --dataset_dir.")
    train_mask_dir_name: str = option(
        "train_masks", "Folder of their masks, inside --dataset_dir.", alias="train_mask_dir"
    )
    test_data_dir: str | None = option(
        None, "Folder of the photos to predict; by default 'test' inside --dataset_dir, if any."
    )
    pred_sample_csv: str | None = option(
        None,
        "Sample submission; by default sample_submission.csv inside --dataset_dir, if any.",
    )
    predict_only: bool = option(
        False,
        "Train nothing: predict, combine and encode with networks that were trained before. "
        "Without training photos and masks nothing is scored, and the recipe may fit nothing.",
    )
    models_dir: str | None = option(
        None,
        "Folder of the trained networks, for --predict_only; by default 'models' inside --out_dir.",
    )
    dry_run: bool = option(False, "Check the recipe, print the command lines, and do nothing.")
    overwrite: bool = option(
        False, "Train anew what was trained by another recipe, or on other data."
    )

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(("overwrite",), lambda o: not o.dry_run, "with --dry_run, which does nothing"),
    )


def run(values: Values) -> int:
    """Reads the recipe, checks all command lines, and does what is not done."""
    dataset, options = values[DatasetOptions], values[PipelineOptions]
    chosen = recipe.read(Path(options.recipe or ""))
    place = _place(dataset, options)
    planned = _all_steps(chosen, place)
    missing = _missing_models(chosen, place)
    check.command_lines(planned, commands.find)
    if options.dry_run:
        print(runner.as_shell(planned), end="")
        if missing:
            print(f"warning: {missing}", file=sys.stderr)
        return 0
    if missing:
        raise UserError(missing)
    with runner.alone(place.out) as held:
        write_text(place.out / runner.COMMANDS, runner.as_shell(planned))
        try:
            with runner.Processes(held) as execute:
                work = runner.Runner(place.out, planned, execute, options.overwrite)
                return carry_out(chosen, place, work)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here.")
            raise


def validate(values: Values, problems: Problems) -> None:
    """Adds what is missing or wrong in flags, folders and the recipe."""
    dataset, options = values[DatasetOptions], values[PipelineOptions]
    for flag, example in (("recipe", "recipes/quick.yaml"), ("out_dir", "runs/quick")):
        if getattr(options, flag) is None:
            problems.add(f"--{flag} is missing; give it as --{flag}={example}.")
    if values.is_set("folds_source"):
        problems.add(
            "--folds_source has no meaning here; the recipe's 'folds' make the folds, or name an "
            "existing table as {file: folds.csv}."
        )
    if options.models_dir and not options.predict_only:
        problems.add("--models_dir is for --predict_only; training writes into --out_dir.")
    for flag in () if options.predict_only else ("train_data_dir_name", "train_mask_dir_name"):
        problems.attempt(dataset.existing_folder, getattr(options, flag), flag)
    problems.attempt(lambda: dataset.naming)
    for flag, exists in (("test_data_dir", Path.is_dir), ("pred_sample_csv", Path.is_file)):
        path = getattr(options, flag)
        if path and not exists(Path(path)):
            problems.add(f"--{flag}='{path}' does not exist; correct its name.")
    if options.recipe:
        problems.attempt(recipe.read, Path(options.recipe))


def _place(dataset: DatasetOptions, options: PipelineOptions) -> Place:
    """Where things are; what nobody named may be missing."""
    root = Path(dataset.dataset_dir)
    photos = dataset.folder(options.train_data_dir_name)
    masks = dataset.folder(options.train_mask_dir_name)
    test = Path(options.test_data_dir or root / "test")
    sample = Path(options.pred_sample_csv or root / SAMPLE_SUBMISSION)
    return Place(
        # "input/" is "input": the command lines decide what is done anew.
        dataset=dataclasses.replace(dataset, dataset_dir=str(root)),
        photos=photos,
        masks=masks,
        test=test if test.is_dir() else None,
        sample=sample if sample.is_file() else None,
        out=Path(options.out_dir or ""),
        models=Path(options.models_dir) if options.models_dir else None,
        predict_only=options.predict_only,
        truth=photos.is_dir() and masks.is_dir(),
    )


def _missing_models(chosen: recipe.Recipe, place: Place) -> str | None:
    """What to say of existing models that are not there; None where all are."""
    missing = plan.missing_models(chosen, place)
    if not missing:
        return None
    return (
        f"{len(missing)} model files are missing, the first is '{missing[0]}'; train them, or say "
        "where they are: by 'models' of the recipe's member, or with --models_dir."
    )


def _all_steps(chosen: recipe.Recipe, place: Place) -> list[Step]:
    names = [member.name for member in chosen.members]
    by_member = plan.member_steps(chosen, place).values()
    return [*chain(*by_member), *plan.final_steps(chosen, place, names)]


def carry_out(chosen: recipe.Recipe, place: Place, work: runner.Runner) -> int:
    """Does the members' steps, then those of the complete ones together, then reports.

    Returns:
        The exit status: 1 where anything failed, `USELESS` where the masks show nothing.
    """
    by_member = plan.member_steps(chosen, place)
    complete = [name for name, steps in by_member.items() if work.run(steps) and name]
    if len(complete) < len(chosen.members):
        print(f"\nonly these members are complete: {', '.join(complete) or 'none'}")
    final = plan.final_steps(chosen, place, complete)
    work.run(final)
    steps = [*chain(*by_member.values()), *final]
    write_text(place.out / runner.COMMANDS, runner.as_shell(steps))
    summary = report.write(chosen, place, complete, work.failures)
    print()
    for row in summary["scores"]:
        print(report.describe(row))
        if row["warning"]:
            print(f"warning: {row['name']}: {row['warning']}.", file=sys.stderr)
    if summary["submission"]:
        print(f"submission -> {place.out / summary['submission']}")
    print(f"report -> {place.out / REPORT}")
    for name, why in work.failures.items():
        print(f"error: {name}: {why}", file=sys.stderr)
    if work.failures:
        return 1
    return _judge(chosen, summary["scores"])


def _judge(chosen: recipe.Recipe, scores: Sequence[Mapping[str, Any]]) -> int:
    """The exit status, by the score of what the recipe is for: the last one."""
    if not scores or not scores[-1]["warning"]:
        return 0
    last = scores[-1]
    if any(stage.smoke for member in chosen.members for stage in member.stages):
        return 0  # a trial learns nothing
    print(f"error: {last['name']} is useless: {last['warning']}.", file=sys.stderr)
    return USELESS


COMMAND = Command(__doc__, (PipelineOptions, DatasetOptions), run, validate)
