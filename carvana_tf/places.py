"""Whether a training finds its folders and files, before Keras is imported, which takes seconds."""

from pathlib import Path

import pandas as pd

from carvana_tf.data.dataset import Naming, Sample, find_photos, find_samples
from carvana_tf.data.folds import find_folds_file, read_folds, split
from carvana_tf.errors import Problems, UserError
from carvana_tf.options import DatasetOptions, TrainingPlaces

_NAMES_OF_WEIGHTS = ("", "none", "imagenet")


def check_training(dataset: DatasetOptions, options: TrainingPlaces) -> None:
    """Refuses folders, masks, folds and weights in which a mistake shows without Keras.

    Raises:
        UserError: There are some; all of them are named.
    """
    problems = Problems()
    naming = problems.attempt(lambda: dataset.naming)
    problems.attempt(lambda: dataset.reading)
    training = _samples(dataset, options, "train", naming, problems)
    validation = training
    if (options.val_data_dir_name, options.val_mask_dir_name) != (
        options.train_data_dir_name,
        options.train_mask_dir_name,
    ):
        validates = not options.validates_nothing
        validation = _samples(dataset, options, "val", naming, problems) if validates else []
    if options.fold != "none":
        folds = problems.attempt(read_wanted_folds, dataset, options)
        if folds is not None and options.fold != "all" and training and validation is training:
            problems.attempt(split, training, training, folds, int(options.fold))
    if options.pseudo_mask_dir:
        _check_named(options.pseudo_mask_dir, "pseudo_mask_dir", problems)
        photos = problems.attempt(
            dataset.existing_folder, options.pseudo_data_dir, "pseudo_data_dir"
        )
        if photos is not None and naming is not None:
            problems.attempt(find_photos, photos, naming)
    if options.stacked_channels and not options.stacked_channels_dir:
        problems.add(
            f"--stacked_channels={options.stacked_channels} needs --stacked_channels_dir: the "
            "folder with their masks in 0/, 1/, ..., or that many mask folders."
        )
    for name in (options.stacked_channels_dir or "").split(",") if options.stacked_channels else ():
        if name:
            _check_named(name, "stacked_channels_dir", problems)
    weights = options.weights or ""
    if weights not in _NAMES_OF_WEIGHTS and "{fold}" not in weights:
        problems.add(
            f"--weights '{weights}' does not exist; correct its name.", not Path(weights).is_file()
        )
    problems.raise_any()


def _samples(
    dataset: DatasetOptions,
    options: TrainingPlaces,
    kind: str,
    naming: Naming | None,
    problems: Problems,
) -> list[Sample] | None:
    """The photos with masks of "train" or "val"; None where something is wrong."""
    flags = [f"{kind}_data_dir_name", f"{kind}_mask_dir_name"]
    folders = [problems.attempt(dataset.existing_folder, getattr(options, f), f) for f in flags]
    photos, masks = folders
    if photos is None or masks is None or naming is None:
        return None
    return problems.attempt(find_samples, photos, masks, naming)


def read_wanted_folds(dataset: DatasetOptions, options: TrainingPlaces) -> pd.DataFrame:
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


def _check_named(name: str, flag: str, problems: Problems) -> None:
    """Refuses a folder that is missing, unless its name is that of a fold's."""
    missing = "{fold}" not in name and not Path(name).is_dir()
    problems.add(f"--{flag}: the folder '{name}' does not exist; correct its name.", missing)
