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
    ENCODE,
    ENSEMBLE,
    GAINS,
    POSTPROCESSED,
    Fitted,
    Place,
    Step,
    scoring,
)

_USUAL = f"--threshold={DEFAULT_THRESHOLD}"


def member_steps(recipe: Recipe, place: Place) -> dict[str, list[Step]]:
    """The steps of each member, in an order in which all can be done.

    Returns:
        The steps by member; those of the folds stand under "".

    Raises:
        UserError: A member needs the test photos, and there are none; or the recipe fits what
            needs truth, and there is none.
    """
    _refuse_missing(recipe, place)
    tables = _fold_tables(recipe, place)
    fixed = _fixed_threshold(recipe)
    made = [(folds, table) for folds, table in tables.items() if folds.table is None]
    steps = {"": [_make_folds(*each, place) for each in made if place.truth]}
    training = [] if place.predict_only else recipe.members
    labels = {stage.pseudo for member in training for stage in member.stages if stage.pseudo}
    labelling = {name for bases in labels for name in bases}
    for member in recipe.members:
        folds = member.folds or recipe.folds
        table = tables[folds]
        own = _of_member(member, folds.number, table, place, fixed)
        if member.name in labelling:
            own += [_label(member, fold, place) for fold in range(folds.number)]
        # The mean of several networks' masks is made by the last of them, once.
        for bases in sorted(labels):
            if len(bases) > 1 and member.name in bases and {*bases} <= {*steps, member.name}:
                own += [_merge_labels(bases, fold, recipe, place) for fold in range(folds.number)]
        steps[member.name] = own
    return steps


def missing_models(recipe: Recipe, place: Place) -> list[Path]:
    """The model files that are not there, of those that no step makes."""
    return [
        model
        for member in recipe.members
        if member.models or place.predict_only
        for fold in range((member.folds or recipe.folds).number)
        if not (model := _model(member, fold, place)).is_file()
    ]


def _refuse_missing(recipe: Recipe, place: Place) -> None:
    labelled = [member.name for member in recipe.members if member.pseudo]
    if labelled and place.test is None and not place.predict_only:
        raise UserError(
            f"member '{labelled[0]}' of the recipe is trained on masks of the test photos "
            "('pseudo'), and there are none; see --test_data_dir."
        )
    if place.truth:
        return
    if place.test is None:
        raise UserError(
            "there are neither training photos with masks nor test photos; nothing to do."
        )
    if recipe.fit_weights:
        raise UserError(
            f"'fit_weights' of the recipe '{recipe.name}' needs training photos in "
            f"'{place.photos}' with masks in '{place.masks}'; see --dataset_dir, or drop it."
        )


def combined(recipe: Recipe, complete: Collection[str]) -> list[Member]:
    """The members of the ensemble, of those that are complete."""
    return [member for member in recipe.members if member.weight > 0 and member.name in complete]


def final_steps(recipe: Recipe, place: Place, complete: Collection[str]) -> list[Step]:
    """What is done with the masks of all members.

    Args:
        recipe: The whole recipe.
        place: Where things are.
        complete: Names of the members whose steps were all done.

    Returns:
        Nothing where no complete member has a weight.
    """
    members = combined(recipe, complete)
    if not members:
        return []
    table = _fold_tables(recipe, place)[recipe.folds]
    oof, test = (place.mask_dir(ENSEMBLE, part) for part in ("oof", "test"))
    # Trained on masks of the test photos, a network knows them; others do not.
    mixed = ["--allow_in_fold"] if any(_knows_test(m, recipe) for m in members) else []
    weights = [f"{member.weight:g}" for member in members]
    given = [] if len(set(weights)) == 1 else [f"--weights={','.join(weights)}"]
    fitted = Fitted("weights", oof / MANIFEST, _weights)
    in_oof = ["--fit_weights"] if recipe.fit_weights else given
    fixed = _fixed_threshold(recipe)
    # What everything is cut at, from post-processing to the submission.
    found = Fitted("threshold", place.scores(ENSEMBLE), _threshold)
    threshold: Sequence[str | Fitted] = fixed or ([found] if place.truth else [_USUAL])
    rule = [flag for flag in recipe.ensemble if not flag.startswith("--postprocess=")]
    steps = []
    if place.truth:
        steps += [
            _combine(place, members, "oof", [*rule, *fixed, *place.shared(table), *in_oof]),
            _evaluate(ENSEMBLE, oof, table, place, fixed),
        ]
    if place.truth and recipe.postprocess:
        steps += _postprocess(recipe.postprocess, threshold, table, place)
    if place.test is not None:
        on_test = [fitted] if recipe.fit_weights else given
        cut = threshold if recipe.postprocess else fixed
        steps += [
            _combine(place, members, "test", [*rule, *mixed, *recipe.postprocess, *cut, *on_test]),
            _encode(recipe, test, threshold, place),
        ]
    return steps


def _knows_test(member: Member, recipe: Recipe) -> bool:
    """Whether the member, or one behind its channels, was trained on masks of the test photos.

    Of existing models nobody knows.
    """
    by_name = {each.name: each for each in recipe.members}
    behind = any(_knows_test(by_name[name], recipe) for name in member.stack)
    return behind or bool(member.pseudo) or member.models is not None


def _fixed_threshold(recipe: Recipe) -> list[str]:
    return [] if recipe.threshold is None else [f"--threshold={recipe.threshold}"]


def _postprocess(
    flags: Sequence[str], threshold: Sequence[str | Fitted], table: Path, place: Place
) -> list[Step]:
    """What each step gains out of fold, the masks after all of them, and their scores."""
    oof, after = (place.mask_dir(ENSEMBLE, part) for part in ("oof", "postprocessed"))
    inputs = (oof, *_sources(threshold))
    merge = (*flags, *threshold, f"--pred_mask_dirs={oof}", f"--pred_mask_dir={after}")
    return [
        _evaluate(GAINS, oof, table, place, [*threshold, *flags]),
        Step(POSTPROCESSED, "ensemble", merge, inputs, after, after),
        _evaluate(POSTPROCESSED, after, table, place, threshold),
    ]


def _fold_tables(recipe: Recipe, place: Place) -> dict[Folds, Path]:
    """The file of each way of dealing; members that deal alike share one."""
    tables = {recipe.folds: recipe.folds.table or place.out / FOLDS}
    for member in recipe.members:
        own = member.folds
        if own is not None:
            tables.setdefault(own, own.table or place.out / f"folds-{member.name}.csv")
    return tables


def _make_folds(folds: Folds, table: Path, place: Place) -> Step:
    measured = not any(flag.startswith("--areas_csv=") for flag in folds.flags)
    folders = (f"--train_data_dir_name={place.photos}", f"--train_mask_dir_name={place.masks}")
    arguments = (
        *place.shared(),
        *(folders if measured else ()),
        *folds.flags,
        f"--folds_out={table}",
    )
    return Step(table.stem, "make_folds", arguments, (place.photos, place.masks), table, table)


def _of_member(
    member: Member, folds: int, table: Path, place: Place, threshold: Sequence[str]
) -> list[Step]:
    steps: list[Step] = []
    parts: list[Path] = []
    for fold in range(folds) if place.truth else ():
        if not (member.models or place.predict_only):
            steps += _train_stages(member, fold, table, place)
        parts.append(place.mask_dir(member.name, f"fold_{fold}"))
        photos = [
            *place.shared(table),
            f"--val_data_dir_name={place.photos}",
            "--predict_on_val",
            f"--fold={fold}",
        ]
        inputs = [table, place.photos]
        steps.append(_predict(member, parts[-1], [fold], photos, inputs, "oof", place))
    if parts:
        oof = place.mask_dir(member.name, "oof")
        merge = (f"--pred_mask_dirs={names.join_list(parts)}", f"--pred_mask_dir={oof}")
        steps.append(Step(f"{member.name}-oof", "ensemble", merge, tuple(parts), oof, oof))
        steps.append(_evaluate(member.name, oof, table, place, threshold))
    if place.test is not None:
        masks = place.mask_dir(member.name, "test")
        photos = [*place.shared(), f"--test_data_dir={place.test}"]
        steps.append(_predict(member, masks, range(folds), photos, [place.test], "test", place))
    return steps


def _label(member: Member, fold: int, place: Place) -> Step:
    """Masks of the test photos by the network of one fold, to be trained on."""
    photos = [*place.shared(), f"--test_data_dir={place.test}"]
    masks = _labels_dir([member.name], fold, place)
    return _predict(member, masks, [fold], photos, _test(place), "test", place)


def _test(place: Place) -> list[Path]:
    return [] if place.test is None else [place.test]


def _labels_dir(bases: Sequence[str], fold: int, place: Place) -> Path:
    return place.mask_dir("+".join(bases), f"test_fold_{fold}")


def _merge_labels(bases: Sequence[str], fold: int, recipe: Recipe, place: Place) -> Step:
    parts = [_labels_dir([name], fold, place) for name in bases]
    masks = _labels_dir(bases, fold, place)
    mixed = any(_knows_test(m, recipe) for m in recipe.members if m.name in bases)
    arguments = (
        *(["--allow_in_fold"] if mixed else []),
        f"--pred_mask_dirs={names.join_list(parts)}",
        f"--pred_mask_dir={masks}",
    )
    name = f"{masks.parent.name}-{masks.name}"
    return Step(name, "ensemble", arguments, tuple(parts), masks, masks)


def _run_dir(stage: Stage, alias: str, fold: int, place: Place) -> Path:
    return place.models_dir / run_name(stage.network, alias, str(fold), smoke=stage.smoke)


def _model(member: Member, fold: int, place: Place) -> Path:
    """The file of a member's network of one fold.

    It is the last one: the best one was chosen on the very photos that it is scored on.
    """
    if member.models is not None:
        return Path(member.models.replace("{fold}", str(fold)))
    return _run_dir(member.stages[-1], member.name, fold, place) / LAST


def _train_stages(member: Member, fold: int, table: Path, place: Place) -> list[Step]:
    steps: list[Step] = []
    for number, stage in enumerate(member.stages, 1):
        final = number == len(member.stages)
        alias = member.name if final else f"{member.name}-stage{number}"
        run = _run_dir(stage, alias, fold, place)
        start = [steps[-1].owns / LAST] if steps else []
        arguments = (
            *stage.flags,
            *place.shared(table),
            # A flag file may group otherwise, which all other steps would not know.
            f"--group_pattern={place.dataset.group_pattern}",
            *(f"--{part}_data_dir_name={place.photos}" for part in ("train", "val")),
            *(f"--{part}_mask_dir_name={place.masks}" for part in ("train", "val")),
            f"--models_dir={place.models_dir}",
            f"--net_alias={alias}",
            f"--fold={fold}",
            *(f"--weights={model}" for model in start),
            *_stacked(member, "oof", place),
            *_pseudo(stage.pseudo, fold, place),
        )
        inputs = (
            *(table, place.photos, place.masks),
            *([_labels_dir(stage.pseudo, fold, place), *_test(place)] if stage.pseudo else []),
            *map(_sidecar, start),
            *_bases(member, "oof", place),
        )
        product = _sidecar(run / LAST)
        name = f"{alias}-train-{fold}"
        steps.append(Step(name, "train", arguments, inputs, product, run, costly=True))
    return steps


def _predict(
    member: Member,
    masks: Path,
    folds: Sequence[int],
    photos: Sequence[str],
    inputs: Sequence[Path],
    part: str,
    place: Place,
) -> Step:
    models = [_model(member, fold, place) for fold in folds]
    arguments = (
        # "auto" may choose another engine when a step is done again; a recipe may name one.
        "--engine=keras",
        *member.predict,
        *photos,
        f"--weights={names.join_list(models)}",
        f"--pred_mask_dir={masks}",
        *_stacked(member, part, place)[1:],
    )
    known = [_stands_for(model, member, place) for model in models]
    inputs = (*inputs, *known, *_bases(member, part, place))
    name = f"{member.name}-predict-{masks.name}"
    return Step(name, "predict", arguments, inputs, masks, masks)


def _evaluate(
    name: str, masks: Path, table: Path, place: Place, further: Sequence[str | Fitted]
) -> Step:
    summary = place.scores(name)
    arguments = (
        *place.shared(table),
        f"--train_mask_dir_name={place.masks}",
        f"--photo_dir={place.photos}",
        f"--pred_mask_dir={masks}",
        f"--out_dir={summary.parent}",
        *further,
    )
    inputs = (table, masks, place.masks, *_sources(further))
    return Step(scoring(name), "evaluate", arguments, inputs, summary, summary.parent)


def _combine(
    place: Place,
    members: Sequence[Member],
    part: str,
    flags: Sequence[str | Fitted],
) -> Step:
    parts = [place.mask_dir(member.name, part) for member in members]
    masks = place.mask_dir(ENSEMBLE, part)
    arguments: tuple[str | Fitted, ...] = (
        *flags,
        *([f"--train_mask_dir_name={place.masks}"] if "--fit_weights" in flags else []),
        f"--pred_mask_dirs={names.join_list(parts)}",
        f"--pred_mask_dir={masks}",
    )
    inputs = (*parts, *_sources(flags), place.masks)
    return Step(f"{ENSEMBLE}-{part}", "ensemble", arguments, inputs, masks, masks)


def _encode(recipe: Recipe, masks: Path, threshold: Sequence[str | Fitted], place: Place) -> Step:
    product = place.out / SUBMISSION
    arguments: tuple[str | Fitted, ...] = (
        *threshold,
        *recipe.submission,
        f"--pred_mask_dir={masks}",
        f"--pred_sample_csv={place.sample or ''}",
        f"--submissions_dir={product.parent}",
        f"--submission_name={product.name}",
    )
    inputs = (masks, *_sources(threshold), *([place.sample] if place.sample else []))
    return Step(ENCODE, "encode", arguments, inputs, product, product)


def _sources(flags: Sequence[str | Fitted]) -> list[Path]:
    return [flag.source for flag in flags if isinstance(flag, Fitted)]


def _pseudo(bases: Sequence[str], fold: int, place: Place) -> list[str]:
    """The flags of predicted masks to train on."""
    if not bases:
        return []
    masks = _labels_dir(bases, fold, place)
    return [f"--pseudo_mask_dir={masks}", f"--pseudo_data_dir={place.test}"]


def _stacked(member: Member, part: str, place: Place) -> list[str]:
    """The flags of the further channels; prediction knows their number from the model."""
    bases = _bases(member, part, place)
    if not bases:
        return []
    folders = names.join_list(bases)
    return [f"--stacked_channels={len(bases)}", f"--stacked_channels_dir={folders}"]


def _bases(member: Member, part: str, place: Place) -> list[Path]:
    return [place.mask_dir(base, part) for base in member.stack]


def _sidecar(model: Path) -> Path:
    """What stands for a model: settings and scores, and far shorter."""
    return model.with_suffix(".json")


def _stands_for(model: Path, member: Member, place: Place) -> Path:
    """The same of a member's model, which may lie without it where others put it."""
    if member.models is None and not place.predict_only:
        return _sidecar(model)
    return _sidecar(model) if member.models is None and _sidecar(model).is_file() else model


def _weights(made: Any) -> str:
    """Empty where an earlier recipe made the folder without fitting."""
    return ",".join(map(str, made["ensemble"]["weights"] or ()))


def _threshold(summary: Any) -> str:
    """The best threshold, if choosing one on other folds helped; else the usual one."""
    fits = [fit for fit in summary["crossfit"] if fit["gain"] > 0]
    return str(min(fits[0]["naive_threshold"], HIGHEST_THRESHOLD) if fits else DEFAULT_THRESHOLD)
