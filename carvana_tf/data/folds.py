"""Folds: whole groups kept together, stratified by mask area by default."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from carvana_tf.data import names
from carvana_tf.data.dataset import Sample
from carvana_tf.data.tables import read_frame, write_frame
from carvana_tf.errors import UserError
from carvana_tf.filenames import FOLDS

COLUMNS = ("id", "fold", "area")
HISTOGRAM_BINS = 35
_MOST_FOLDS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Groups:
    """What a method of assigning groups to folds gets.

    Attributes:
        areas: `[G]`, the groups' areas in the order of the table.
        n_folds: How many folds.
        random: Where shuffles come from.
        first_groups: Size of fold 0, for the methods of `SIZED`.
    """

    areas: np.ndarray
    n_folds: int
    random: np.random.Generator
    first_groups: int

    def round_robin(self, order: np.ndarray) -> np.ndarray:
        """`int[G]` folds: the groups, in this order, assigned to the folds one by one."""
        folds = np.empty(len(order), int)
        folds[order] = np.arange(len(order)) % self.n_folds
        return folds


def area_blocks(groups: Groups) -> np.ndarray:
    """By area, each block of `n_folds` neighbours assigned in a random order of its own.

    `area_rank` with a shuffle, so that fold 0 does not always get the smallest of each
    block.
    """
    blocks = -(-len(groups.areas) // groups.n_folds)
    order = np.concatenate([groups.random.permutation(groups.n_folds) for _ in range(blocks)])
    folds = np.empty(len(groups.areas), int)
    folds[_by_area(groups.areas)] = order[: len(folds)]
    return folds


def area_rank(groups: Groups) -> np.ndarray:
    """By area, the rank modulo the number of folds; no shuffle.

    The 1st-place solution's "fma" folds, and "f04a" where the area is that of one view.
    """
    return groups.round_robin(_by_area(groups.areas))


def area_bins(groups: Groups) -> np.ndarray:
    """Stratified by bins of area, shuffled inside each; the 1st-place solution's seven folds.

    A histogram of 35 bins is merged, from the smallest areas up, until each bin has at
    least one group for each fold. The assignment goes on from bin to bin: sizes differ by at
    most 1, in each bin and in all.
    """
    by_area = _by_area(groups.areas)
    counts, _ = np.histogram(groups.areas, bins=HISTOGRAM_BINS)
    ends: list[int] = []
    for end in np.cumsum(counts):
        if end - (ends[-1] if ends else 0) >= groups.n_folds:
            ends.append(int(end))
    # The largest, too few for a bin of their own, join the one below.
    bins = np.split(by_area, ends[:-1])
    return groups.round_robin(np.concatenate([groups.random.permutation(one) for one in bins]))


def shuffled(groups: Groups) -> np.ndarray:
    """Random, whatever the area; the 1st-place solution's networks trained from scratch."""
    return groups.round_robin(groups.random.permutation(len(groups.areas)))


def first_in_table(groups: Groups) -> np.ndarray:
    """The first groups of the table are fold 0, the others are assigned in turn to the rest.

    sohyongsheng's solution validates on the first 48 cars; that is fold 0 here.

    Raises:
        UserError: `first_groups` is 0, or leaves a fold without a group.
    """
    most = len(groups.areas) - groups.n_folds + 1
    if not 1 <= groups.first_groups <= most:
        raise UserError(
            f"this --method needs --first_groups from 1 to {most} (of "
            f"{len(groups.areas)} groups, one for each other fold), received {groups.first_groups}."
        )
    others = np.arange(len(groups.areas)) - groups.first_groups
    return np.where(others < 0, 0, 1 + others % (groups.n_folds - 1))


def random_first(groups: Groups) -> np.ndarray:
    """As `first_in_table`, of the groups in random order.

    AlbertoSabater's solution validates on 30 % of the photos; that is fold 0 here, each photo
    being its own group.

    Raises:
        UserError: See `first_in_table`.
    """
    folds = np.empty(len(groups.areas), int)
    folds[groups.random.permutation(len(folds))] = first_in_table(groups)
    return folds


# How groups may be assigned: name -> function from a `Groups` to `int[G]` folds.
METHODS: dict[str, Callable[[Groups], np.ndarray]] = {
    "area_blocks": area_blocks,
    "area_rank": area_rank,
    "area_bins": area_bins,
    "random": shuffled,
    "first_groups": first_in_table,
    "random_first": random_first,
}
SIZED = ("first_groups", "random_first")
"""The methods that `first_groups` is for."""


def make_folds(
    areas: pd.DataFrame,
    n_folds: int,
    seed: int = 80,
    method: str = "area_blocks",
    first_groups: int = 0,
) -> pd.DataFrame:
    """Assigns groups to folds.

    Args:
        areas: Columns `id` (unique) and `area` (mask pixels over all photos of the group).
        n_folds: How many folds, at least 2 and at most the number of groups.
        seed: The shuffles' seed.
        method: A name in `METHODS`.
        first_groups: Groups in fold 0, for the methods of `SIZED` and no other.

    Returns:
        Columns `id`, `fold` (0..n_folds-1) and `area`, sorted by id.

    Raises:
        UserError: Fewer than 2 folds, fewer groups than folds, an id twice, or
            `first_groups` that is out of range or contradicts the method.
    """
    if n_folds < 2:
        raise UserError(f"--n_folds must be at least 2, received {n_folds}.")
    if len(areas) < n_folds:
        fewer = f"ask for at most {len(areas)}, or make smaller groups by --group_pattern"
        if len(areas) < 2:
            fewer = "two folds need two groups, see --group_pattern"
        raise UserError(f"{len(areas)} groups cannot fill --n_folds={n_folds}; {fewer}.")
    repeated = areas["id"][areas["id"].duplicated()]
    if len(repeated):
        raise UserError(f"the id '{repeated.iloc[0]}' appears more than once; keep one row of it.")
    if first_groups and method not in SIZED:
        raise UserError(
            f"--first_groups={first_groups} has no meaning with --method={method}; drop it or "
            f"use {' or '.join(SIZED)}."
        )
    table = areas.reset_index(drop=True)
    if method != "first_groups":
        # Neither ties nor shuffles may depend on the order of the rows.
        table = table.sort_values("id", ignore_index=True)
    groups = Groups(table["area"].to_numpy(), n_folds, np.random.default_rng(seed), first_groups)
    table["fold"] = METHODS[method](groups)
    return table.sort_values("id", ignore_index=True)[list(COLUMNS)]


def write_folds(path: Path, folds: pd.DataFrame) -> None:
    """Writes a folds table as CSV, whole or not at all."""
    write_frame(path, folds)


def read_folds(path: Path) -> pd.DataFrame:
    """Reads a folds table.

    Returns:
        At least the columns `id` (str, unique) and `fold` (int from 0).

    Raises:
        UserError: The file is missing, lacks a column, or has a bad or repeated value.
    """
    folds = read_frame(path)
    for column in ("id", "fold"):
        if column not in folds:
            raise UserError(
                f"the folds file '{path}' has no column '{column}' (it has "
                f"{', '.join(map(str, folds.columns))}); make it with make_folds.py."
            )
    if not len(folds):
        raise UserError(f"the folds file '{path}' has no rows; make it with make_folds.py.")
    numbers = pd.to_numeric(folds["fold"], errors="coerce")
    right = (numbers >= 0) & (numbers < _MOST_FOLDS) & (numbers % 1 == 0)
    if not right.all():
        wrong = folds[~right].iloc[0]
        raise UserError(
            f"the folds file '{path}' gives '{wrong['id']}' the fold '{wrong['fold']}'; folds are "
            f"whole numbers from 0 to {_MOST_FOLDS - 1}, correct the line."
        )
    folds["fold"] = numbers.astype(int)
    if "area" in folds:
        folds["area"] = pd.to_numeric(folds["area"], errors="coerce")
    if folds["id"].duplicated().any():
        repeated = folds["id"][folds["id"].duplicated()].iloc[0]
        raise UserError(
            f"the folds file '{path}' has '{repeated}' more than once; keep one row of it."
        )
    return folds


def find_folds_file(source: str, dataset_dir: Path) -> Path:
    """The folds file: looked for in the dataset folder, then in the working folder.

    Raises:
        UserError: It is in neither.
    """
    if not Path(dataset_dir).is_dir():
        raise UserError(f"--dataset_dir='{dataset_dir}' does not exist; name the dataset's folder.")
    for candidate in (Path(dataset_dir) / source, Path(source)):
        if candidate.is_file():
            return candidate
    named = "" if source == FOLDS else f" --folds_source={source}"
    raise UserError(
        f"no folds file '{source}' in '{dataset_dir}' nor in the working folder; make it with "
        f"`python make_folds.py --dataset_dir={dataset_dir}{named}`, or, for labels, with "
        "tools/prepare_dataset.py, see its --labels."
    )


def known(samples: Sequence[Sample], folds: pd.DataFrame) -> list[Sample]:
    """The samples that the table names, by group or stem; photos without a mask may be others."""
    found = _of_samples(samples, folds)
    return [sample for sample in samples if sample.stem in found]


def by_id(folds: pd.DataFrame) -> dict[str, int]:
    """The fold of each id of a table."""
    return dict(zip(folds["id"], map(int, folds["fold"]), strict=True))


def find_folds(groups: Mapping[str, str], folds: Mapping[str, int]) -> dict[str, int]:
    """The fold of each photo that the table names, by stem.

    Args:
        groups: The group of each photo, by stem.
        folds: By id: groups or, in an image-level table, stems or file names.

    Raises:
        UserError: An id may stand for two of them, or two ids for one.
    """
    keys = dict.fromkeys(name for stem, group in groups.items() for name in (group, stem))
    table = names.rekey(folds, keys, "the folds file")
    ids = {stem: group if group in table else stem for stem, group in groups.items()}
    return {stem: table[name] for stem, name in ids.items() if name in table}


def fold_of_samples(samples: Sequence[Sample], folds: pd.DataFrame) -> list[int]:
    """The fold of each sample, by its group, or by its stem in an image-level table.

    Raises:
        UserError: A sample is in the table by neither name.
    """
    found = _of_samples(samples, folds)
    unknown = [sample.group for sample in samples if sample.stem not in found]
    if unknown:
        raise UserError(
            f"{len(set(unknown))} ids are not in the folds file, the first is '{unknown[0]}'; make "
            "it with make_folds.py and the same --group_pattern, or see --folds_source."
        )
    return [found[sample.stem] for sample in samples]


def split(
    training: Sequence[Sample], validation: Sequence[Sample], folds: pd.DataFrame, fold: int
) -> tuple[list[Sample], list[Sample]]:
    """The samples of one fold: those to train on, outside of it, and those to validate on.

    Args:
        training: To choose from; may be the same as `validation`.
        validation: To choose from.
        folds: Knows all of them.
        fold: Its number.

    Raises:
        UserError: There is no such fold, or one side would be empty.
    """
    numbers = sorted(set(folds["fold"]))
    if fold not in numbers:
        raise UserError(
            f"--fold={fold} does not exist; the folds file has {', '.join(map(str, numbers))}: "
            "choose one of them."
        )
    outside = [s for s, f in _with_folds(training, folds) if f != fold]
    inside = [s for s, f in _with_folds(validation, folds) if f == fold]
    for side, chosen, given in (
        ("training", outside, training),
        ("validation", inside, validation),
    ):
        if not chosen:
            raise UserError(
                f"--fold={fold} leaves no {side} photo in '{given[0].photo.parent}'; make folds "
                "for this dataset."
            )
    return outside, inside


def _of_samples(samples: Sequence[Sample], folds: pd.DataFrame) -> dict[str, int]:
    return find_folds({sample.stem: sample.group for sample in samples}, by_id(folds))


def _with_folds(samples: Sequence[Sample], folds: pd.DataFrame) -> Iterator[tuple[Sample, int]]:
    return zip(samples, fold_of_samples(samples, folds), strict=True)


def _by_area(areas: np.ndarray) -> np.ndarray:
    """The positions from the smallest area to the largest."""
    return np.argsort(areas, kind="stable")
