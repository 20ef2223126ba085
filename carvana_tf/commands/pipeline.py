"""Carries out a recipe: from photos and masks to a submission and a report.

python train_and_predict.py --recipe=recipes/quick.yaml --dataset_dir=input --out_dir=runs/quick

Folds, every network on every fold, out-of-fold masks, their scores, the ensemble, masks of
the test photos and the submission, each by one of the other commands. The same command goes
on where it was stopped. The exit status is 1 where a step failed, and 3 where all is done but
the result is no better than masks that are the same everywhere: the networks learned nothing.
"""

import dataclasses
import sys
from pathlib import Path
from typing import ClassVar

from carvana_tf import commands, machines, parallel
from carvana_tf.cli import Command
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.filenames import SAMPLE_SUBMISSION
from carvana_tf.files import write_text
from carvana_tf.flags import Needs, Values, option
from carvana_tf.options import DatasetOptions, photos_folder, ray_address
from carvana_tf.recipe import check, plan, recipe, runner
from carvana_tf.recipe import run as recipe_run
from carvana_tf.recipe.steps import RunPaths
from carvana_tf.tasks.options import TaskOptions


@dataclasses.dataclass(frozen=True)
class PipelineOptions:
    """The recipe, and where its products go."""

    recipe: str | None = option(None, "What to train and to combine: a .yaml file of recipes/.")
    out_dir: str | None = option(None, "Folder for all products; a half filled one is completed.")
    train_data_dir_name: str = photos_folder()
    train_mask_dir_name: str = option(
        "train_masks",
        "Folder of their masks, inside --dataset_dir.",
        alias="train_mask_dir",
        key="masks",
    )
    test_data_dir: str | None = option(
        None,
        "Folder of the photos to predict; by default 'test' inside --dataset_dir, if any.",
        key="test_photos",
        inside=True,
    )
    pred_sample_csv: str | None = option(
        None,
        "Sample submission; by default sample_submission.csv inside --dataset_dir, if any.",
        key="sample_submission",
        inside=True,
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
        False, "Train again what was trained by another recipe, or on other data."
    )
    parallel: str = option(
        parallel.NONE,
        "Do steps at the same time, one on each device of --gpu, as the trainings of all folds and "
        "networks.",
        choices=parallel.CHOICES,
    )
    gpu: str = option("0", "Numbers of the GPUs for --parallel, as 0,1.")
    ray_address: str = ray_address("Do steps")

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("parallel",), lambda o: not o.ray_address, "with --ray_address, which places the steps"
        ),
        Needs(("gpu",), lambda o: o.parallel != parallel.NONE, "without --parallel"),
        Needs(("overwrite",), lambda o: not o.dry_run, "with --dry_run, which does nothing"),
    )


def run(values: Values) -> int:
    """Reads the recipe, checks all command lines, and does what is not done."""
    dataset, options = values[DatasetOptions], values[PipelineOptions]
    chosen = recipe.read(Path(options.recipe or ""))
    paths = _paths(dataset, options)
    planned = recipe_run.all_steps(chosen, paths)
    missing = _missing_models(chosen, paths)
    check.command_lines(planned, commands.find)
    if options.dry_run:
        print(runner.as_shell(planned), end="")
        if missing:
            print(f"warning: {missing}", file=sys.stderr)
        return 0
    if missing:
        raise UserError(missing)
    with runner.alone(paths.out) as held:
        write_text(paths.out / runner.COMMANDS, runner.as_shell(planned))
        try:
            gpu = options.gpu if options.parallel != parallel.NONE else None
            with runner.executing(paths.out, held, gpu, options.ray_address) as (execute, at_once):
                serial = isinstance(execute, runner.Processes)
                work = runner.Runner(
                    paths.out, planned, execute, options.overwrite, at_once, serial
                )
                return recipe_run.carry_out(chosen, paths, work)
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
    if options.parallel != parallel.NONE:
        problems.attempt(parallel.places, options.gpu)
    machines.refuse("the trainings of a recipe use one", problems)
    if options.models_dir and not options.predict_only:
        problems.add("--models_dir is for --predict_only; training writes into --out_dir.")
    for flag in () if options.predict_only else ("train_data_dir_name", "train_mask_dir_name"):
        problems.attempt(dataset.existing_folder, getattr(options, flag), flag)
    problems.attempt(lambda: dataset.naming)
    for flag, exists in (("test_data_dir", Path.is_dir), ("pred_sample_csv", Path.is_file)):
        path = getattr(options, flag)
        if path and not exists(Path(path)):
            problems.add(f"--{flag}='{path}' {absent(path)}")
    if options.recipe:
        problems.attempt(recipe.read, Path(options.recipe))


def _paths(dataset: DatasetOptions, options: PipelineOptions) -> RunPaths:
    """Where things are; folders that no flag names may be missing."""
    root = Path(dataset.dataset_dir)
    photos = dataset.folder(options.train_data_dir_name)
    masks = dataset.folder(options.train_mask_dir_name)
    test = Path(options.test_data_dir or root / "test")
    sample = Path(options.pred_sample_csv or root / SAMPLE_SUBMISSION)
    return RunPaths(
        # "input/" is "input": the command lines decide what is done again.
        dataset=dataclasses.replace(dataset, dataset_dir=str(root)),
        photos=photos,
        masks=masks,
        test=test if test.is_dir() else None,
        sample=sample if sample.is_file() else None,
        out=Path(options.out_dir or ""),
        models=Path(options.models_dir) if options.models_dir else None,
        predict_only=options.predict_only,
        has_truth=photos.is_dir() and masks.is_dir(),
    )


def _missing_models(chosen: recipe.Recipe, paths: RunPaths) -> str | None:
    """What to say of existing models that are not there; None where all are."""
    missing = plan.missing_models(chosen, paths)
    if not missing:
        return None
    return (
        f"{len(missing)} model files are missing, the first is '{missing[0]}'; train them, or say "
        "where they are: by 'models' of the recipe's member, or with --models_dir."
    )


COMMAND = Command(
    __doc__,
    (TaskOptions, PipelineOptions, DatasetOptions),
    run,
    validate,
    variants={"labels": "carvana_tf.commands.pipeline_labels"},
)
