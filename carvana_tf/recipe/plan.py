"""From a recipe to its steps."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from carvana_tf.data import names
from carvana_tf.data.threshold import DEFAULT_THRESHOLD, HIGHEST_THRESHOLD
from carvana_tf.errors import UserError
from carvana_tf.filenames import FOLDS, LAST, MANIFEST, SUBMISSION
from carvana_tf.options import run_name
from carvana_tf.recipe.recipe import Folds, Member, Recipe, Stage
from carvana_tf.recipe.steps import (
    ABLATION,
    ENCODE,
    ENSEMBLE,
    POSTPROCESSED,
    Fitted,
    RunPaths,
    Step,
    scoring,
)

_USUAL = f"--threshold={DEFAULT_THRESHOLD}"


def member_steps(recipe: Recipe, paths: RunPaths) -> dict[str, list[Step]]:
    """The steps of each member, in an order in which all can be done.

    Returns:
        The steps by member; those of the folds stand under "".

    Raises:
        UserError: A member needs the test photos, and there are none; or the recipe fits what
            needs truth, and there is none.
    """
    _refuse_missing(recipe, paths)
    tables = _fold_tables(recipe, paths)
    fixed = _fixed_threshold(recipe)
    made = [(folds, table) for folds, table in tables.items() if folds.table is None]
    steps = {"": [_make_folds(*each, paths) for each in made if paths.has_truth]}
    training = [] if paths.predict_only else recipe.members
    labels = {stage.pseudo for member in training for stage in member.stages if stage.pseudo}
    labelling = {name for bases in labels for name in bases}
    for member in recipe.members:
        folds = member.folds or recipe.folds
        starts = recipe.named(member.start_from)
        own = _of_member(member, starts, folds.number, tables[folds], paths, fixed)
        if member.name in labelling:
            own += [_label(member, fold, paths) for fold in range(folds.number)]
        # The mean of several networks' masks is made by the last of them, once.
        for bases in sorted(labels):
            if len(bases) > 1 and member.name in bases and {*bases} <= {*steps, member.name}:
                own += [_merge_labels(bases, fold, recipe, paths) for fold in range(folds.number)]
        steps[member.name] = own
    return steps


def missing_models(recipe: Recipe, paths: RunPaths) -> list[Path]:
    """The model files that are not there, of those that no step makes."""
    return [
        model
        for member in recipe.members
        if member.models or paths.predict_only
        for fold in range((member.folds or recipe.folds).number)
        if not (model := _model(member, fold, paths)).is_file()
    ]


def _refuse_missing(recipe: Recipe, paths: RunPaths) -> None:
    labelled = [member.name for member in recipe.members if member.pseudo]
    if labelled and paths.test is None and not paths.predict_only:
        raise UserError(
            f"member '{labelled[0]}' of the recipe is trained on masks of the test photos "
            "('pseudo'), and there are none; see --test_data_dir."
        )
    if paths.has_truth:
        return
    if paths.test is None:
        raise UserError(
            "there are neither training photos with masks nor test photos; nothing to do."
        )
    if recipe.fit_weights:
        raise UserError(
            f"'fit_weights' of the recipe '{recipe.name}' needs training photos in "
            f"'{paths.photos}' with masks in '{paths.masks}'; see --dataset_dir, or drop it."
        )


def combined(recipe: Recipe, complete: Collection[str]) -> list[Member]:
    """The members of the ensemble, of those that are complete."""
    return [member for member in recipe.members if member.weight > 0 and member.name in complete]


def final_steps(recipe: Recipe, paths: RunPaths, complete: Collection[str]) -> list[Step]:
    """What is done with the masks of all members.

    Args:
        recipe: The whole recipe.
        paths: Where things are.
        complete: Names of the members whose steps were all done.

    Returns:
        Nothing where no complete member has a weight.
    """
    members = combined(recipe, complete)
    if not members:
        return []
    table = _fold_tables(recipe, paths)[recipe.folds]
    oof, test = (paths.mask_dir(ENSEMBLE, part) for part in ("oof", "test"))
    # Trained on masks of the test photos, a network knows them; others do not.
    mixed = ["--allow_in_fold"] if any(_knows_test(m, recipe) for m in members) else []
    weights = [f"{member.weight:g}" for member in members]
    given = [] if len(set(weights)) == 1 else [f"--weights={','.join(weights)}"]
    fitted = Fitted("weights", oof / MANIFEST, _weights)
    in_oof = ["--fit_weights"] if recipe.fit_weights else given
    fixed = _fixed_threshold(recipe)
    # What everything is cut at, from post-processing to the submission.
    found = Fitted("threshold", paths.scores(ENSEMBLE), _threshold)
    threshold: Sequence[str | Fitted] = fixed or ([found] if paths.has_truth else [_USUAL])
    rule = [flag for flag in recipe.ensemble if not flag.startswith("--postprocess=")]
    steps = []
    if paths.has_truth:
        steps += [
            _combine(paths, members, "oof", [*rule, *fixed, *paths.shared(table), *in_oof]),
            _evaluate(ENSEMBLE, oof, table, paths, fixed),
        ]
    if paths.has_truth and recipe.postprocess:
        steps += _postprocess(recipe.postprocess, threshold, table, paths)
    if paths.test is not None:
        on_test = [fitted] if recipe.fit_weights else given
        cut = threshold if recipe.postprocess else fixed
        steps += [
            _combine(paths, members, "test", [*rule, *mixed, *recipe.postprocess, *cut, *on_test]),
            _encode(recipe, test, threshold, paths),
        ]
    return steps


def _knows_test(member: Member, recipe: Recipe) -> bool:
    """Whether the member, or one behind it, was trained on masks of the test photos.

    Of existing models it is not known.
    """
    bases = recipe.named({*member.stack, *member.start_from})
    behind = any(_knows_test(base, recipe) for base in bases)
    return behind or bool(member.pseudo) or member.models is not None


def _fixed_threshold(recipe: Recipe) -> list[str]:
    return [] if recipe.threshold is None else [f"--threshold={recipe.threshold}"]


def _postprocess(
    flags: Sequence[str], threshold: Sequence[str | Fitted], table: Path, paths: RunPaths
) -> list[Step]:
    """What each step gains out of fold, the masks after all of them, and their scores."""
    oof, after = (paths.mask_dir(ENSEMBLE, part) for part in ("oof", "postprocessed"))
    inputs = (oof, *_sources(threshold))
    merge = (*flags, *threshold, f"--pred_mask_dirs={oof}", f"--pred_mask_dir={after}")
    return [
        _evaluate(ABLATION, oof, table, paths, [*threshold, *flags]),
        Step(POSTPROCESSED, "ensemble", merge, inputs, after, after),
        _evaluate(POSTPROCESSED, after, table, paths, threshold),
    ]


def _fold_tables(recipe: Recipe, paths: RunPaths) -> dict[Folds, Path]:
    """The file of each assignment to folds; members with the same share one."""
    tables = {recipe.folds: recipe.folds.table or paths.out / FOLDS}
    for member in recipe.members:
        own = member.folds
        if own is not None:
            tables.setdefault(own, own.table or paths.out / f"folds-{member.name}.csv")
    return tables


def _make_folds(folds: Folds, table: Path, paths: RunPaths) -> Step:
    measured = not any(flag.startswith("--areas_csv=") for flag in folds.flags)
    folders = (f"--train_data_dir_name={paths.photos}", f"--train_mask_dir_name={paths.masks}")
    arguments = (
        *paths.shared(),
        *(folders if measured else ()),
        *folds.flags,
        f"--folds_out={table}",
    )
    return Step(table.stem, "make_folds", arguments, (paths.photos, paths.masks), table, table)


def _of_member(
    member: Member,
    starts: Sequence[Member],
    folds: int,
    table: Path,
    paths: RunPaths,
    threshold: Sequence[str],
) -> list[Step]:
    """All steps of a member alone; `starts` has the one it starts from, if any."""
    steps: list[Step] = []
    parts: list[Path] = []
    for fold in range(folds) if paths.has_truth else ():
        if not (member.models or paths.predict_only):
            steps += _train_stages(member, starts, fold, table, paths)
        parts.append(paths.mask_dir(member.name, f"fold_{fold}"))
        photos = [
            *paths.shared(table),
            f"--val_data_dir_name={paths.photos}",
            "--predict_on_val",
            f"--fold={fold}",
        ]
        inputs = [table, paths.photos]
        steps.append(_predict(member, parts[-1], [fold], photos, inputs, "oof", paths))
    if parts:
        oof = paths.mask_dir(member.name, "oof")
        merge = (f"--pred_mask_dirs={names.join_list(parts)}", f"--pred_mask_dir={oof}")
        steps.append(Step(f"{member.name}-oof", "ensemble", merge, tuple(parts), oof, oof))
        steps.append(
            _evaluate(member.name, oof, table, paths, [*threshold, *_curves(member, folds, paths)])
        )
    if paths.test is not None:
        masks = paths.mask_dir(member.name, "test")
        photos = [*paths.shared(), f"--test_data_dir={paths.test}"]
        steps.append(_predict(member, masks, range(folds), photos, [paths.test], "test", paths))
    return steps


def _curves(member: Member, folds: int, paths: RunPaths) -> list[str]:
    """The flag that names a member's trainings to the report."""
    if member.models or paths.predict_only:
        return []
    runs = [_run_dir(member.stages[-1], member.name, fold, paths) for fold in range(folds)]
    return [f"--runs={names.join_list(runs)}"]


def _label(member: Member, fold: int, paths: RunPaths) -> Step:
    """Masks of the test photos by the network of one fold, to be trained on."""
    photos = [*paths.shared(), f"--test_data_dir={paths.test}"]
    masks = _labels_dir([member.name], fold, paths)
    return _predict(member, masks, [fold], photos, _test(paths), "test", paths)


def _test(paths: RunPaths) -> list[Path]:
    return [] if paths.test is None else [paths.test]


def _labels_dir(bases: Sequence[str], fold: int, paths: RunPaths) -> Path:
    return paths.mask_dir("+".join(bases), f"test_fold_{fold}")


def _merge_labels(bases: Sequence[str], fold: int, recipe: Recipe, paths: RunPaths) -> Step:
    parts = [_labels_dir([name], fold, paths) for name in bases]
    masks = _labels_dir(bases, fold, paths)
    mixed = any(_knows_test(member, recipe) for member in recipe.named(bases))
    arguments = (
        *(["--allow_in_fold"] if mixed else []),
        f"--pred_mask_dirs={names.join_list(parts)}",
        f"--pred_mask_dir={masks}",
    )
    name = f"{masks.parent.name}-{masks.name}"
    return Step(name, "ensemble", arguments, tuple(parts), masks, masks)


def _run_dir(stage: Stage, alias: str, fold: int, paths: RunPaths) -> Path:
    return paths.models_dir / run_name(stage.network, alias, str(fold), smoke=stage.smoke)


def _model(member: Member, fold: int, paths: RunPaths) -> Path:
    """The file of a member's network of one fold.

    It is the last one: the best one was chosen on the very photos that it is scored on.
    """
    if member.models is not None:
        return Path(member.models.replace("{fold}", str(fold)))
    return _run_dir(member.stages[-1], member.name, fold, paths) / LAST


def _train_stages(
    member: Member, starts: Sequence[Member], fold: int, table: Path, paths: RunPaths
) -> list[Step]:
    steps: list[Step] = []
    weights = [_model(base, fold, paths) for base in starts]
    known = [_stands_for(*pair, paths) for pair in zip(weights, starts, strict=True)]
    for number, stage in enumerate(member.stages, 1):
        final = number == len(member.stages)
        alias = member.name if final else f"{member.name}-stage{number}"
        run = _run_dir(stage, alias, fold, paths)
        arguments = (
            *stage.flags,
            *paths.shared(table),
            # A flag file may group otherwise, which all other steps would not know.
            f"--group_pattern={paths.dataset.group_pattern}",
            *(f"--{part}_data_dir_name={paths.photos}" for part in ("train", "val")),
            *(f"--{part}_mask_dir_name={paths.masks}" for part in ("train", "val")),
            f"--models_dir={paths.models_dir}",
            f"--net_alias={alias}",
            f"--fold={fold}",
            *(f"--weights={model}" for model in weights),
            *_stacked(member, "oof", paths),
            *_pseudo(stage.pseudo, fold, paths),
        )
        inputs = (
            *(table, paths.photos, paths.masks),
            *([_labels_dir(stage.pseudo, fold, paths), *_test(paths)] if stage.pseudo else []),
            *known,
            *_bases(member, "oof", paths),
        )
        product = _sidecar(run / LAST)
        name = f"{alias}-train-{fold}"
        steps.append(Step(name, "train", arguments, inputs, product, run, costly=True))
        weights, known = [run / LAST], [product]
    return steps


def _predict(
    member: Member,
    masks: Path,
    folds: Sequence[int],
    photos: Sequence[str],
    inputs: Sequence[Path],
    part: str,
    paths: RunPaths,
) -> Step:
    models = [_model(member, fold, paths) for fold in folds]
    arguments = (
        # "auto" may choose another engine when a step is done again; a recipe may name one.
        "--engine=keras",
        *member.predict,
        *photos,
        f"--weights={names.join_list(models)}",
        f"--pred_mask_dir={masks}",
        *_stacked(member, part, paths)[1:],
    )
    known = [_stands_for(model, member, paths) for model in models]
    inputs = (*inputs, *known, *_bases(member, part, paths))
    name = f"{member.name}-predict-{masks.name}"
    return Step(name, "predict", arguments, inputs, masks, masks)


def _evaluate(
    name: str, masks: Path, table: Path, paths: RunPaths, further: Sequence[str | Fitted]
) -> Step:
    summary = paths.scores(name)
    arguments = (
        *paths.shared(table),
        f"--train_mask_dir_name={paths.masks}",
        f"--photo_dir={paths.photos}",
        f"--pred_mask_dir={masks}",
        f"--out_dir={summary.parent}",
        *further,
    )
    inputs = (table, masks, paths.masks, *_sources(further))
    return Step(scoring(name), "evaluate", arguments, inputs, summary, summary.parent)


def _combine(
    paths: RunPaths,
    members: Sequence[Member],
    part: str,
    flags: Sequence[str | Fitted],
) -> Step:
    parts = [paths.mask_dir(member.name, part) for member in members]
    masks = paths.mask_dir(ENSEMBLE, part)
    arguments: tuple[str | Fitted, ...] = (
        *flags,
        *([f"--train_mask_dir_name={paths.masks}"] if "--fit_weights" in flags else []),
        f"--pred_mask_dirs={names.join_list(parts)}",
        f"--pred_mask_dir={masks}",
    )
    inputs = (*parts, *_sources(flags), paths.masks)
    return Step(f"{ENSEMBLE}-{part}", "ensemble", arguments, inputs, masks, masks)


def _encode(
    recipe: Recipe, masks: Path, threshold: Sequence[str | Fitted], paths: RunPaths
) -> Step:
    product = paths.out / SUBMISSION
    arguments: tuple[str | Fitted, ...] = (
        *threshold,
        *recipe.submission,
        f"--pred_mask_dir={masks}",
        f"--pred_sample_csv={paths.sample or ''}",
        f"--submissions_dir={product.parent}",
        f"--submission_name={product.name}",
    )
    inputs = (masks, *_sources(threshold), *([paths.sample] if paths.sample else []))
    return Step(ENCODE, "encode", arguments, inputs, product, product)


def _sources(flags: Sequence[str | Fitted]) -> list[Path]:
    return [flag.source for flag in flags if isinstance(flag, Fitted)]


def _pseudo(bases: Sequence[str], fold: int, paths: RunPaths) -> list[str]:
    """The flags of predicted masks to train on."""
    if not bases:
        return []
    masks = _labels_dir(bases, fold, paths)
    return [f"--pseudo_mask_dir={masks}", f"--pseudo_data_dir={paths.test}"]


def _stacked(member: Member, part: str, paths: RunPaths) -> list[str]:
    """The flags of the further channels; prediction knows their number from the model."""
    bases = _bases(member, part, paths)
    if not bases:
        return []
    folders = names.join_list(bases)
    return [f"--stacked_channels={len(bases)}", f"--stacked_channels_dir={folders}"]


def _bases(member: Member, part: str, paths: RunPaths) -> list[Path]:
    return [paths.mask_dir(base, part) for base in member.stack]


def _sidecar(model: Path) -> Path:
    """What stands for a model: settings and scores, and far shorter."""
    return model.with_suffix(".json")


def _stands_for(model: Path, member: Member, paths: RunPaths) -> Path:
    """The same of a member's model, which may lie without it where others put it."""
    if member.models is None and not paths.predict_only:
        return _sidecar(model)
    return _sidecar(model) if member.models is None and _sidecar(model).is_file() else model


def _weights(made: Any) -> str:
    """Empty where an earlier recipe made the folder without fitting."""
    return ",".join(map(str, made["ensemble"]["weights"] or ()))


def _threshold(summary: Any) -> str:
    """The best threshold, if choosing one on other folds helped; else the usual one."""
    fits = [fit for fit in summary["crossfit"] if fit["gain"] > 0]
    return str(min(fits[0]["naive_threshold"], HIGHEST_THRESHOLD) if fits else DEFAULT_THRESHOLD)
