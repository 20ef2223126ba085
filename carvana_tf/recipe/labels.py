"""A recipe of labels: photos prepared once, a network trained in stages, submissions.

task: labels
description: Pretrained on one set of photos, tuned on another.   # free text
prepare: {shorter_side: 256}      # flags of prepare_dataset
stages:                           # one after the other, each from the last.keras before
  - name: train                   # its place in all file names
    photos: train                 # folder inside the dataset
    labels: train_human_labels.csv
    val_ratio: 0.01               # share of these photos to validate on
    flagfile: train.flags         # flags of train, next to the recipe; and/or
    flags: {epochs: 5}            # flags that win over those of the file
predict: {pred_tta: ten_crop}     # flags of predict
answer: {max_labels: 5}           # flags of evaluate and encode; `threshold: fitted` takes the
                                  # one that is best on the validation photos of the last stage
submissions:
  - {photos: test, sample: sample_submission.csv}
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carvana_tf.data import names
from carvana_tf.errors import UserError
from carvana_tf.filenames import LAST, SUMMARY
from carvana_tf.masks.manifest import LABELS
from carvana_tf.options import run_name
from carvana_tf.recipe.recipe import Stage, as_flags, mapping, read_stage
from carvana_tf.recipe.steps import Fitted, Step
from carvana_tf.tasks.labels import table
from carvana_tf.yaml_files import read_yaml

FITTED = "fitted"
_KEYS = ("task", "description", "prepare", "stages", "predict", "answer", "submissions")
_STAGE_KEYS = ("name", "photos", "labels", "val_ratio", "flagfile", "flags")
_SUBMISSION_KEYS = ("photos", "sample")
_GROUPS = "--group_pattern=(.+)"
"""Each photo is its own group."""


@dataclasses.dataclass(frozen=True)
class LabelStage:
    """One training.

    Attributes:
        name: Part of file names.
        photos: Folder inside the dataset.
        labels: Table inside the dataset.
        val_ratio: Share of the photos that validate.
        training: Its network and flags.
    """

    name: str
    photos: str
    labels: str
    val_ratio: float
    training: Stage


@dataclasses.dataclass(frozen=True)
class LabelRecipe:
    """A whole recipe.

    Attributes:
        name: The file's, without its extension.
        description: Free text.
        prepare: Flags of `prepare_dataset`.
        stages: In order.
        predict: Flags of `predict`.
        answer: Flags of `evaluate` and `encode`, but for a fitted threshold.
        fits_threshold: Whether the threshold is found on the last stage's validation photos.
        submissions: The folder of photos and the sample of each.
    """

    name: str
    description: str
    prepare: tuple[str, ...]
    stages: tuple[LabelStage, ...]
    predict: tuple[str, ...]
    answer: tuple[str, ...]
    fits_threshold: bool
    submissions: tuple[tuple[str, str], ...]


def read(path: Path) -> LabelRecipe:
    """Reads a recipe and the flag files it names.

    Raises:
        UserError: It is no recipe of labels, or contradicts itself.
    """
    path = Path(path)
    content = read_yaml(path, "--recipe")
    if not isinstance(content, dict) or content.get("task") != LABELS:
        raise UserError(
            f"'{path}' is no recipe of labels, which says 'task: {LABELS}'; leave "
            f"--task={LABELS} out, or name another recipe."
        )
    top = mapping(content, str(path), _KEYS)
    stages = _list(top, "stages", path)
    submissions = _list(top, "submissions", path) if "submissions" in top else []
    answer = mapping(top.get("answer"), f"{path}: answer")
    fits = answer.get("threshold") == FITTED
    if fits:
        del answer["threshold"]
    found = tuple(_stage(stage, path) for stage in stages)
    repeated = len({stage.name for stage in found}) < len(found)
    if repeated:
        raise UserError(f"{path}: two stages have one name; rename one.")
    return LabelRecipe(
        name=path.stem,
        description=str(top.get("description", "")).strip(),
        prepare=as_flags(top.get("prepare"), f"{path}: prepare", "prepare"),
        stages=found,
        predict=as_flags(top.get("predict"), f"{path}: predict", "predict"),
        answer=as_flags(answer, f"{path}: answer", "answer"),
        fits_threshold=fits,
        submissions=tuple(_submission(each, path) for each in submissions),
    )


def _list(top: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    if not isinstance(top.get(key), list) or not top[key]:
        raise UserError(f"{path}: '{key}' must be a list of at least one.")
    return top[key]


def _stage(content: Any, path: Path) -> LabelStage:
    name = content.get("name") if isinstance(content, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(
            f"{path}: every stage needs a 'name' of letters, digits, _ - and ., received {name!r}."
        )
    where = f"{path}: stage '{name}'"
    values = mapping(content, where, _STAGE_KEYS)
    for key in ("photos", "labels"):
        if not isinstance(values.get(key), str):
            raise UserError(f"{where}: '{key}' is missing; name it as in the dataset.")
    ratio = values.get("val_ratio", 0.01)
    if not isinstance(ratio, float) or not 0 < ratio < 1:
        raise UserError(f"{where}: 'val_ratio' must be between 0 and 1, received {ratio!r}.")
    own = {key: values[key] for key in ("flagfile", "flags") if key in values}
    training = read_stage(own, where, path.parent)
    return LabelStage(name, values["photos"], values["labels"], ratio, training)


def _submission(content: Any, path: Path) -> tuple[str, str]:
    values = mapping(content, f"{path}: submissions", _SUBMISSION_KEYS)
    if not all(isinstance(values.get(key), str) for key in _SUBMISSION_KEYS):
        raise UserError(f"{path}: each of 'submissions' needs 'photos' and 'sample'.")
    return values["photos"], values["sample"]


@dataclasses.dataclass(frozen=True)
class LabelPaths:
    """Where things are.

    Attributes:
        dataset: The dataset's folder.
        out: Folder for all products.
    """

    dataset: Path
    out: Path

    @property
    def prepared(self) -> Path:
        """The folder of the prepared photos."""
        return self.out / "prepared"

    def scores(self, stage: LabelStage) -> Path:
        """Where `evaluate` leaves a stage's summary."""
        return self.out / "scores" / stage.name / SUMMARY

    def submission(self, photos: str) -> Path:
        """The submission of a folder of photos."""
        return self.out / f"submission_{photos.replace('/', '_')}.csv"


def steps(recipe: LabelRecipe, paths: LabelPaths) -> list[Step]:
    """The steps of a recipe, in an order in which all can be done."""
    folders = [stage.photos for stage in recipe.stages] + [p for p, _ in recipe.submissions]
    found = [_prepare(recipe, paths, folder) for folder in dict.fromkeys(folders)]
    before: Path | None = None
    for stage in recipe.stages:
        found += [_table(recipe, paths, stage), _train(paths, stage, before)]
        before = _model(paths, stage)
        found += _validate(recipe, paths, stage)
    last = recipe.stages[-1]
    threshold = (
        (Fitted("threshold", paths.scores(last), lambda scored: str(scored["best_threshold"])),)
        if recipe.fits_threshold
        else ()
    )
    for photos, sample in recipe.submissions:
        found += _submit(recipe, paths, photos, paths.dataset / sample, threshold)
    return found


def _prepare(recipe: LabelRecipe, paths: LabelPaths, folder: str) -> Step:
    target = paths.prepared / folder
    arguments = _prepare_flags(recipe, paths, folder)
    return Step(
        f"prepare-{folder.replace('/', '_')}",
        *("prepare_dataset", arguments, (paths.dataset / folder,), target, target),
    )


def _prepare_flags(recipe: LabelRecipe, paths: LabelPaths, folder: str) -> tuple[str, ...]:
    return (
        f"--dataset_dir={paths.dataset}",
        f"--photo_dirs={names.join_list([folder])}",
        f"--output_dir={paths.prepared}",
        *recipe.prepare,
    )


def _labels(paths: LabelPaths, stage: LabelStage) -> Path:
    return paths.prepared / f"{stage.name}.csv"


def _folds(paths: LabelPaths, stage: LabelStage) -> Path:
    return paths.prepared / f"{stage.name}-folds.csv"


def _table(recipe: LabelRecipe, paths: LabelPaths, stage: LabelStage) -> Step:
    """The clean labels of a stage's photos, and their split."""
    labels = _labels(paths, stage)
    arguments = (
        *_prepare_flags(recipe, paths, stage.photos),
        f"--labels={stage.labels}",
        f"--labels_out={labels.name}",
        f"--folds_source={_folds(paths, stage).name}",
        f"--val_ratio={stage.val_ratio:g}",
    )
    inputs = (paths.dataset / stage.labels, paths.prepared / stage.photos)
    return Step(f"{stage.name}-labels", "prepare_dataset", arguments, inputs, labels, labels)


def _run(paths: LabelPaths, stage: LabelStage) -> Path:
    training = stage.training
    return paths.out / "models" / run_name(training.network, stage.name, "0", smoke=training.smoke)


def _model(paths: LabelPaths, stage: LabelStage) -> Path:
    return _run(paths, stage) / LAST


def _of_stage(paths: LabelPaths, stage: LabelStage) -> list[str]:
    """The flags that say where a stage's photos and folds are."""
    return [
        f"--dataset_dir={paths.prepared}",
        f"--folds_source={_folds(paths, stage)}",
        f"--val_data_dir_name={stage.photos}",
        _GROUPS,
    ]


def _train(paths: LabelPaths, stage: LabelStage, before: Path | None) -> Step:
    labels, run = _labels(paths, stage), _run(paths, stage)
    arguments = (
        f"--task={LABELS}",
        *stage.training.flags,
        *_of_stage(paths, stage),
        f"--train_data_dir_name={stage.photos}",
        *(f"--{kind}_labels={labels}" for kind in ("train", "val")),
        f"--models_dir={run.parent}",
        f"--net_alias={stage.name}",
        "--fold=0",
        *([f"--weights={before}"] if before else []),
    )
    inputs = (
        *(labels, _folds(paths, stage), paths.prepared / stage.photos),
        *([before.with_suffix(".json")] if before else []),
    )
    product = (run / LAST).with_suffix(".json")
    return Step(f"{stage.name}-train", "train", arguments, inputs, product, run, costly=True)


def _predict(recipe: LabelRecipe, model: Path, folder: Path, photos: Sequence[str]) -> list[str]:
    # "auto" may choose another engine when a step is done again; a recipe may name one.
    fixed = ("--engine=keras", f"--weights={model}", f"--pred_mask_dir={folder}")
    return [fixed[0], *recipe.predict, *photos, *fixed[1:]]


def _validate(recipe: LabelRecipe, paths: LabelPaths, stage: LabelStage) -> list[Step]:
    """The labels of the photos that a stage validates on, and their scores."""
    model, folder = _model(paths, stage), paths.out / "labels" / f"{stage.name}-validation"
    photos = [*_of_stage(paths, stage), "--predict_on_val", "--fold=0"]
    inputs = (_folds(paths, stage), paths.prepared / stage.photos, model.with_suffix(".json"))
    summary = paths.scores(stage)
    scored = (
        *(f"--task={LABELS}", f"--pred_mask_dir={folder}", f"--labels={_labels(paths, stage)}"),
        *(f"--folds_source={_folds(paths, stage)}", _GROUPS, f"--out_dir={summary.parent}"),
        *recipe.answer,
    )
    return [
        Step(
            f"{stage.name}-validation",
            *("predict", tuple(_predict(recipe, model, folder, photos)), inputs, folder, folder),
        ),
        Step(
            f"{stage.name}-scores",
            *("evaluate", scored, (folder, _labels(paths, stage)), summary, summary.parent),
        ),
    ]


def _submit(
    recipe: LabelRecipe, paths: LabelPaths, photos: str, sample: Path, threshold: Sequence[Fitted]
) -> list[Step]:
    """The labels of a folder's photos, and the submission."""
    folder, product = paths.out / "labels" / photos, paths.submission(photos)
    model, name = _model(paths, recipe.stages[-1]), photos.replace("/", "_")
    arguments = _predict(
        recipe, model, folder, [f"--test_data_dir={paths.prepared / photos}", _GROUPS]
    )
    inputs = (paths.prepared / photos, model.with_suffix(".json"))
    encoded: tuple[str | Fitted, ...] = (
        *(f"--task={LABELS}", f"--pred_mask_dir={folder}", f"--pred_sample_csv={sample}"),
        *(f"--submissions_dir={product.parent}", f"--submission_name={product.name}"),
        *recipe.answer,
        *threshold,
    )
    needed: tuple[Path, ...] = (folder / table.NAME, sample, *(each.source for each in threshold))
    return [
        Step(f"{name}-predict", "predict", tuple(arguments), inputs, folder, folder),
        Step(f"{name}-submission", "encode", encoded, needed, product, product),
    ]
