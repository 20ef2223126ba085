"""Which photos a run trains and validates on."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from carvana_tf.data import names
from carvana_tf.data.dataset import Sample, find_photos, with_stacked_channels
from carvana_tf.data.folds import find_folds_file, known, read_folds, split
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.masks.open_folder import open_complete
from carvana_tf.models.encoders import IMAGENET, RANDOM
from carvana_tf.options import DatasetOptions
from carvana_tf.tasks import MASKS, Task
from carvana_tf.training import pseudo, stacking
from carvana_tf.training.options import SplitOptions, TrainingOptions


@dataclasses.dataclass(frozen=True)
class Split:
    """The photos of one run.

    Attributes:
        fold: The fold's number, or None without folds.
        training: Samples with targets.
        validation: Samples with targets; without folds those of a folder of their own, if any.
        pseudo: Samples with predicted masks to train on too.
        leaks: Whether these may know the targets of the validation, used with `--force`.
    """

    fold: int | None
    training: Sequence[Sample]
    validation: Sequence[Sample]
    pseudo: Sequence[Sample] = ()
    leaks: bool = False

    @property
    def name(self) -> str:
        """The fold as file names and metadata write it."""
        return "none" if self.fold is None else str(self.fold)

    def shortened(self, count: int) -> "Split":
        """The first `count` photos of each kind."""
        kinds = ("training", "validation", "pseudo")
        return dataclasses.replace(self, **{kind: getattr(self, kind)[:count] for kind in kinds})


def find_splits(options: TrainingOptions, task: Task = MASKS) -> list[Split]:
    """The runs that `--fold` asks for, without pseudo-labels: one, or one for each fold.

    Raises:
        UserError: Folders, masks or the folds file are missing, or do not fit `--fold`.
    """
    dataset, wanted = options.dataset, options.split
    samples, others = _samples(options, "train", task), []
    same = _same_sources(options, task)
    if wanted.fold == "none":
        if not wanted.validates_nothing:
            others = _samples(options, "val", task)
        _refuse_shared(samples, others)
        training = _matching(samples, wanted, "train_pattern")
        validation = _matching(others, wanted, "val_pattern") if others else []
        return [_with_channels(Split(None, training, validation), options)]
    others = samples if same else _samples(options, "val", task)
    folds = _read_wanted_folds(dataset, wanted)
    numbers = sorted(set(folds["fold"]))
    unknown = [] if same else sorted(_groups(others) - _groups(known(others, folds)))
    if unknown:
        raise UserError(
            f"{len(unknown)} groups of --val_data_dir_name={wanted.val_data_dir_name} are in no "
            f"fold, the first is '{unknown[0]}'; validate on all photos of that folder with "
            "--fold=none, or make folds of all groups with make_folds.py --areas_csv."
        )
    splits = []
    for fold in numbers if wanted.fold == "all" else [int(wanted.fold)]:
        training, validation = split(samples, others, folds, fold)
        training = _matching(training, wanted, "train_pattern")
        validation = _matching(validation, wanted, "val_pattern")
        splits.append(_with_channels(Split(fold, training, validation), options))
    return splits


def check_paths(options: TrainingOptions, task: Task, problems: Problems) -> None:
    """Adds the mistakes in folders, targets, folds and weights that show without Keras."""
    dataset, wanted, pseudo_labels = options.dataset, options.split, options.pseudo
    naming = problems.attempt(lambda: dataset.naming)
    reading = problems.attempt(lambda: dataset.reading)
    named = naming is not None and reading is not None
    training = _existing_samples(options, "train", task, problems) if named else None
    validation = training
    if not _same_sources(options, task):
        validates = named and not wanted.validates_nothing
        validation = _existing_samples(options, "val", task, problems) if validates else []
    if wanted.fold != "none":
        folds = problems.attempt(_read_wanted_folds, dataset, wanted)
        if folds is not None and wanted.fold != "all" and training and validation is training:
            problems.attempt(split, training, training, folds, int(wanted.fold))
    if pseudo_labels.pseudo_mask_dir:
        _check_folder(pseudo_labels.pseudo_mask_dir, "pseudo_mask_dir", problems)
        photos = problems.attempt(
            dataset.existing_folder, pseudo_labels.pseudo_data_dir, "pseudo_data_dir"
        )
        if photos is not None and naming is not None:
            problems.attempt(find_photos, photos, naming)
    channels = options.model.stacked_channels
    if channels and not wanted.stacked_channels_dir:
        problems.add(
            f"--stacked_channels={channels} needs --stacked_channels_dir: the "
            "folder with their masks in 0/, 1/, ..., or that many mask folders."
        )
    stacked = wanted.stacked_channels_dir if channels else None
    for name in names.split_list(stacked or ""):
        if name:
            _check_folder(name, "stacked_channels_dir", problems)
    weights = options.start.weights or ""
    if weights not in ("", RANDOM, IMAGENET) and "{fold}" not in weights:
        problems.add(f"--weights '{weights}' {absent(weights)}", not Path(weights).is_file())


def _matching(samples: list[Sample], options: SplitOptions, flag: str) -> list[Sample]:
    """The samples whose stem matches the regular expression of a flag; all without one.

    Raises:
        UserError: It is no regular expression, or matches no stem.
    """
    pattern = getattr(options, flag)
    if pattern is None:
        return samples
    try:
        found = [sample for sample in samples if re.search(pattern, sample.stem)]
    except re.error as error:
        raise UserError(f"--{flag}='{pattern}' is no regular expression: {error}.") from error
    if not found:
        raise UserError(
            f"--{flag}='{pattern}' matches the name of no photo; the first of {len(samples)} is "
            f"'{samples[0].stem}'."
        )
    return found


def with_pseudo(options: TrainingOptions, split: Split) -> Split:
    """The split with the predicted masks that `--pseudo_mask_dir` names.

    Args:
        options: Those of the split's fold.
        split: What `find_splits` found.

    Raises:
        UserError: They may know the validation fold's masks, or there are none.
    """
    labels, dataset, force = options.pseudo, options.dataset, options.run.force
    if not labels.pseudo_mask_dir:
        return split
    masks = Path(labels.pseudo_mask_dir)
    folder = open_complete(masks, force=force)
    samples = pseudo.find_samples(
        dataset.folder(labels.pseudo_data_dir), folder, dataset.naming, dataset.reading
    )
    samples = _matching(samples, options.split, "train_pattern")
    leaks = bool(folder.forced)  # nobody knows what other models made the rest
    if split.validation:
        # A short trial has seen a few groups only: they are not all that its manifest names.
        groups = None if options.run.smoke else _groups(split.training)
        try:
            pseudo.refuse_leak(masks, "none" if split.fold is None else split.fold, groups)
            pseudo.refuse_groups(samples, _groups(split.validation))
        except UserError:
            if not force:
                raise
            leaks = True
    samples = pseudo.confident(samples, labels.pseudo_confidence, options.run.threads)
    return dataclasses.replace(split, pseudo=_stacked(samples, options), leaks=leaks)


def _refuse_shared(training: Sequence[Sample], validation: Sequence[Sample]) -> None:
    """Ensures that without folds no group is both trained and validated on."""
    shared = sorted(_groups(training) & _groups(validation))
    if shared:
        raise UserError(
            f"the photos of --train_data_dir_name and --val_data_dir_name share {len(shared)} "
            f"groups, the first is '{shared[0]}'; with --fold=none they must be others: choose "
            "folders without common groups, or a --fold."
        )


def _groups(samples: Sequence[Sample]) -> set[str]:
    return {sample.group for sample in samples}


def _samples(options: TrainingOptions, kind: str, task: Task) -> list[Sample]:
    """The photos with targets of "train" or "val".

    Raises:
        UserError: Some of it does not exist, or does not fit.
    """
    problems = Problems()
    samples = _existing_samples(options, kind, task, problems)
    problems.raise_any()
    return samples or []


def _existing_samples(
    options: TrainingOptions, kind: str, task: Task, problems: Problems
) -> list[Sample] | None:
    """The photos with targets of "train" or "val"; None where something is wrong."""
    dataset = options.dataset
    (photo_flag, photo_name), (flag, name) = _sources(options, kind, task).items()
    photos = problems.attempt(dataset.existing_folder, photo_name, photo_flag)
    targets = problems.attempt(task.existing_targets, dataset, name, flag)
    if photos is None or targets is None:
        return None
    return problems.attempt(task.find_samples, photos, targets, dataset)


def _sources(options: TrainingOptions, kind: str, task: Task) -> dict[str, str]:
    """Where photos and targets of "train" or "val" are, by the flag that says so."""
    values = options.flat()
    return {flag: values[flag] for flag in (f"{kind}_data_dir_name", f"{kind}_{task.targets}")}


def _same_sources(options: TrainingOptions, task: Task) -> bool:
    """Whether training and validation take photos and targets from the same places."""
    training, validation = (
        list(_sources(options, kind, task).values()) for kind in ("train", "val")
    )
    return training == validation


def _read_wanted_folds(dataset: DatasetOptions, options: SplitOptions) -> pd.DataFrame:
    """The folds file, where it has as many folds as flags say.

    Raises:
        UserError: It is missing or has not, or `--fold` is no fold's number.
    """
    folds = read_folds(find_folds_file(dataset.folds_source, Path(dataset.dataset_dir)))
    count = len(set(folds["fold"]))
    if options.n_folds is not None and options.n_folds != count:
        raise UserError(
            f"--n_folds={options.n_folds} but the folds file has {count}; "
            "make it again with make_folds.py or drop the flag."
        )
    if options.fold != "all" and not options.fold.isdecimal():
        raise UserError(f"--fold='{options.fold}' must be a number from 0, 'all' or 'none'.")
    return folds


def _check_folder(name: str, flag: str, problems: Problems) -> None:
    """Refuses a folder that is missing; one of each fold is looked for when it is used."""
    missing = "{fold}" not in name and not Path(name).is_dir()
    problems.add(f"--{flag}: the folder '{name}' {absent(name)}", missing)


def _with_channels(split: Split, options: TrainingOptions) -> Split:
    options = options.of_fold(split.name)
    split = dataclasses.replace(
        split,
        training=_stacked(split.training, options),
        validation=_stacked(split.validation, options),
    )
    folder, channels = _stacked_dir(options), options.model.stacked_channels
    stacking.refuse_misfits(folder, channels, force=options.run.force)
    if not options.run.force:
        stacking.refuse_leak(folder, channels)
    return split


def _stacked(samples: Sequence[Sample], options: TrainingOptions) -> list[Sample]:
    return with_stacked_channels(samples, _stacked_dir(options), options.model.stacked_channels)


def _stacked_dir(options: TrainingOptions) -> Path | None:
    name = options.split.stacked_channels_dir
    return Path(name) if name else None
