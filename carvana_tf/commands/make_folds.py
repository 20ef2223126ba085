"""Assigns the photos of a dataset to folds: whole groups together, stratified by mask area.

python make_folds.py --dataset_dir=input --n_folds=5

As the published systems made theirs:
000 albu "fma":            --method=area_rank
000 albu "f04a", ternaus:  --method=area_rank --area_photos='_05$'
000 from scratch:          --method=random --n_folds=7
000 vgg11v1:               --method=area_bins --n_folds=7
002, fold 0:               --method=first_groups --first_groups=48
004, fold 0 (30 %):        --method=random_first --first_groups=1526 --group_pattern='(.+)'
"""

import collections
import dataclasses
from pathlib import Path
from typing import ClassVar

from carvana_tf.cli import Command
from carvana_tf.data import areas
from carvana_tf.data.dataset import EACH_ITS_OWN, Sample, find_samples
from carvana_tf.data.folds import METHODS, make_folds, write_folds
from carvana_tf.errors import Problems, UserError
from carvana_tf.flags import Needs, Values, option
from carvana_tf.options import DatasetOptions, masks_folder, photos_folder


@dataclasses.dataclass(frozen=True)
class FoldOptions:
    """How groups become folds."""

    train_data_dir_name: str = photos_folder()
    train_mask_dir_name: str = masks_folder()
    areas_csv: str | None = option(
        None, "Table with the columns id,area to assign from, instead of photos and masks."
    )
    area_photos: str | None = option(
        None,
        "Regular expression; only the photos whose name contains it count for a group's area.",
    )
    method: str = option(
        "area_blocks",
        "How groups are assigned: area_blocks: by area, each block of --n_folds neighbours in a "
        "random order; area_rank: by area, rank modulo --n_folds; area_bins: stratified by bins of "
        "area; random: at random; first_groups: the first --first_groups are fold 0; "
        "random_first: as many random ones are.",
        choices=tuple(METHODS),
    )
    n_folds: int = option(5, "How many folds.", lower=2, key="n_folds")
    first_groups: int = option(
        0,
        "Groups in fold 0 of --method=first_groups (by name or in the order of --areas_csv) and "
        "of random_first.",
        lower=0,
    )
    seed: int = option(80, "Seed of the shuffles.", lower=0)
    folds_out: str | None = option(
        None, "File to write; by default --folds_source inside --dataset_dir."
    )
    threads: int = option(4, "Threads that read masks.", lower=1)

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("train_data_dir_name", "train_mask_dir_name", "area_photos", "threads"),
            lambda o: o.areas_csv is None,
            "with --areas_csv, where no mask is read",
        ),
        Needs(
            ("seed",),
            lambda o: o.method not in ("area_rank", "first_groups"),
            "with a --method that draws nothing at random",
        ),
    )


def validate(values: Values, problems: Problems) -> None:
    """Adds folders that do not exist, and flags that have no such value."""
    dataset, options = values[DatasetOptions], values[FoldOptions]
    if options.areas_csv is not None:
        return
    for flag in ("train_data_dir_name", "train_mask_dir_name"):
        problems.attempt(dataset.existing_folder, getattr(options, flag), flag)
    problems.attempt(lambda: dataset.naming)
    problems.attempt(lambda: dataset.reading)
    problems.attempt(areas.matching, [], options.area_photos or "")


def run(values: Values) -> None:
    """Measures the masks, assigns the groups and writes the table."""
    dataset, options = values[DatasetOptions], values[FoldOptions]
    target = Path(options.folds_out or Path(dataset.dataset_dir) / dataset.folds_source)
    if options.areas_csv is not None:
        table = areas.read(Path(options.areas_csv))
    else:
        samples = _find_samples(dataset, options)
        table = areas.measure(samples, options.area_photos, options.threads, target.parent)
    folds = make_folds(table, options.n_folds, options.seed, options.method, options.first_groups)
    write_folds(target, folds)
    summary = folds.groupby("fold")["area"].agg(["size", "mean"])
    for fold, row in summary.iterrows():
        print(f"fold {fold}: {row['size']:.0f} groups, mean area {row['mean']:,.0f} pixels")
    print(f"{len(folds)} groups in {options.n_folds} folds by {options.method} -> {target}")


def _find_samples(dataset: DatasetOptions, options: FoldOptions) -> list[Sample]:
    """The photos with masks, of enough groups.

    Raises:
        UserError: The groups cannot fill the folds.
    """
    samples = find_samples(
        dataset.folder(options.train_data_dir_name),
        dataset.folder(options.train_mask_dir_name),
        dataset.naming,
        dataset.reading,
    )
    groups = collections.Counter(sample.group for sample in samples)
    if len(groups) >= options.n_folds:
        return samples
    if len(samples) < options.n_folds:
        raise UserError(
            f"{len(samples)} photos with masks cannot fill --n_folds={options.n_folds}; ask for "
            "fewer folds, or add masks."
        )
    (largest, count), *_ = groups.most_common(1)
    raise UserError(
        f"--group_pattern='{dataset.group_pattern}' puts {len(samples)} photos into "
        f"{len(groups)} groups, too few for --n_folds={options.n_folds} (the largest is "
        f"'{largest}' with {count} photos, as '{_of_group(samples, largest)}'); where these show "
        f"different things, --group_pattern='{EACH_ITS_OWN}' makes each photo its own group; "
        "give it to training and prediction too."
    )


def _of_group(samples: list[Sample], group: str) -> str:
    return next(sample.photo.name for sample in samples if sample.group == group)


COMMAND = Command(__doc__, (FoldOptions, DatasetOptions), run, validate)
