"""Combines tables of predicted labels into one: the mean of their scores.

python ensemble.py --task=labels --pred_mask_dirs=labels/a,labels/b --pred_mask_dir=labels/mean
"""

import dataclasses
import sys
from pathlib import Path

from carvana_tf.cli import Command
from carvana_tf.errors import Problems
from carvana_tf.flags import Values, option
from carvana_tf.masks.ensembling import given_weights
from carvana_tf.tasks.labels import ensembling
from carvana_tf.tasks.labels.table import open_scores
from carvana_tf.tasks.options import TaskOptions


@dataclasses.dataclass(frozen=True)
class LabelEnsembleOptions:
    """The tables to combine."""

    pred_mask_dirs: tuple[str, ...] = option(
        (),
        "Folders to combine, comma-separated. Folders without common photos, of one network, are "
        "one member (folds).",
        alias="dirs_to_ensemble",
    )
    pred_mask_dir: str | None = option(
        None, "Folder for the combined table; a begun one is completed.", alias="ensembling_dir"
    )
    weights: tuple[str, ...] = option((), "One number per member, in any scale; equal by default.")
    allow_in_fold: bool = option(
        False,
        "Combine tables that are out of fold with some that are not; the manifest says that the "
        "result is not.",
        advanced=True,
    )
    force: bool = option(False, "Go on where folders do not fit; the manifest records it.")
    overwrite: bool = option(False, "Combine again what is there.")


def validate(values: Values, problems: Problems) -> None:
    """Adds folders that do not exist, or hold no table."""
    options = values[LabelEnsembleOptions]
    paths = [Path(name) for name in options.pred_mask_dirs]
    if not paths:
        problems.add("--pred_mask_dirs is missing; name the folders to combine.")
    if not options.pred_mask_dir:
        problems.add("--pred_mask_dir is missing; name the folder for the combined table.")
    for path in paths:
        problems.attempt(open_scores, path)
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(paths):
        problems.add("--pred_mask_dirs names one twice; --weights counts it more.")
    target = Path(options.pred_mask_dir or "")
    if options.pred_mask_dir and target.resolve() in resolved:
        problems.add(f"--pred_mask_dir='{target}' is one of --pred_mask_dirs; choose another.")


def run(values: Values) -> None:
    """Combines what is not combined yet."""
    options = values[LabelEnsembleOptions]
    members = ensembling.open_members(
        [Path(name) for name in options.pred_mask_dirs],
        allow_in_fold=options.allow_in_fold,
        force=options.force,
    )
    for warning in members.plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    weights = given_weights(members.plan, options.weights)
    folder = Path(options.pred_mask_dir or "")
    done = ensembling.combine(
        members, weights, folder, members.plan.problems, overwrite=options.overwrite
    )
    print(f"{len(members.plan.stems)} photos, {done} combined now -> {folder}")


COMMAND = Command(__doc__, (TaskOptions, LabelEnsembleOptions), run, validate)
