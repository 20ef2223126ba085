"""Which photos a run trains and validates on."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from carvana_tf.data.dataset import Sample, find_samples, with_stacked_channels
from carvana_tf.data.folds import known, split
from carvana_tf.errors import UserError
from carvana_tf.masks.folder import open_complete
from carvana_tf.options import DatasetOptions
from carvana_tf.places import read_wanted_folds
from carvana_tf.training import pseudo, stacking
from carvana_tf.training.options import TrainingOptions


@dataclasses.dataclass(frozen=True)
class Split:
    """The photos of one run.

    Attributes:
        fold: The fold's number, or None without folds.
        training: Samples with masks.
        validation: Samples with masks; without folds those of a folder of their own, if any.
        pseudo: Samples with predicted masks to train on too.
        leaks: Whether these may know the masks of the validation, taken with `--force`.
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


def find_splits(dataset: DatasetOptions, options: TrainingOptions) -> list[Split]:
    """The runs that `--fold` asks for, without pseudo-labels: one, or one for each fold.

    Raises:
        UserError: Folders, masks or the folds file are missing, or do not fit `--fold`.
    """
    training_folders = (options.train_data_dir_name, options.train_mask_dir_name)
    validation_folders = (options.val_data_dir_name, options.val_mask_dir_name)
    samples = _samples(dataset, *training_folders)
    same = training_folders == validation_folders
    if options.fold == "none":
        others = [] if options.validates_nothing else _samples(dataset, *validation_folders)
        _refuse_shared(samples, others)
        training = _chosen(samples, options, "train_pattern")
        validation = _chosen(others, options, "val_pattern") if others else []
        return [_with_channels(Split(None, training, validation), options)]
    others = samples if same else _samples(dataset, *validation_folders)
    folds = read_wanted_folds(dataset, options)
    numbers = sorted(set(folds["fold"]))
    unknown = [] if same else sorted(_groups(others) - _groups(known(others, folds)))
    if unknown:
        raise UserError(
            f"{len(unknown)} groups of --val_data_dir_name={options.val_data_dir_name} are in no "
            f"fold, the first is '{unknown[0]}'; validate on all photos of that folder with "
            "--fold=none, or make folds of all groups with make_folds.py --areas_csv."
        )
    wanted = numbers if options.fold == "all" else [int(options.fold)]
    splits = []
    for fold in wanted:
        training, validation = split(samples, others, folds, fold)
        training = _chosen(training, options, "train_pattern")
        validation = _chosen(validation, options, "val_pattern")
        splits.append(_with_channels(Split(fold, training, validation), options))
    return splits


def _chosen(samples: list[Sample], options: TrainingOptions, flag: str) -> list[Sample]:
    """The samples in whose stem the regular expression of a flag is found; all without one.

    Raises:
        UserError: It is no regular expression, or is found in no stem.
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


def with_pseudo(dataset: DatasetOptions, options: TrainingOptions, split: Split) -> Split:
    """The split with the predicted masks that `--pseudo_mask_dir` names.

    Args:
        dataset: Where the photos are.
        options: Those of the split's fold.
        split: What `find_splits` found.

    Raises:
        UserError: They may know the validation fold's masks, or there are none.
    """
    if not options.pseudo_mask_dir:
        return split
    masks = Path(options.pseudo_mask_dir)
    folder = open_complete(masks, force=options.force)
    samples = pseudo.find_samples(
        dataset.folder(options.pseudo_data_dir), folder, dataset.naming, dataset.reading
    )
    samples = _chosen(samples, options, "train_pattern")
    leaks = bool(folder.forced)  # nobody knows what other models made the rest
    if split.validation:
        # A short trial has seen a few groups only: whatever it names is not all.
        groups = None if options.smoke else {sample.group for sample in split.training}
        try:
            pseudo.refuse_leak(masks, "none" if split.fold is None else split.fold, groups)
            pseudo.refuse_groups(samples, {sample.group for sample in split.validation})
        except UserError:
            if not options.force:
                raise
            leaks = True
    samples = pseudo.confident(samples, options.pseudo_confidence, options.threads)
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


def _samples(dataset: DatasetOptions, photos: str, masks: str) -> list[Sample]:
    return find_samples(
        dataset.folder(photos), dataset.folder(masks), dataset.naming, dataset.reading
    )


def _with_channels(split: Split, options: TrainingOptions) -> Split:
    options = options.of_fold(split.name)
    split = dataclasses.replace(
        split,
        training=_stacked(split.training, options),
        validation=_stacked(split.validation, options),
    )
    folder = Path(options.stacked_channels_dir) if options.stacked_channels_dir else None
    stacking.refuse_misfits(folder, options.stacked_channels, force=options.force)
    if not options.force:
        stacking.refuse_leak(folder, options.stacked_channels)
    return split


def _stacked(samples: Sequence[Sample], options: TrainingOptions) -> list[Sample]:
    folder = Path(options.stacked_channels_dir) if options.stacked_channels_dir else None
    return with_stacked_channels(samples, folder, options.stacked_channels)
