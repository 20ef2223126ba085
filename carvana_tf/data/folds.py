"""Folds: whole groups kept together, stratified by mask area."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from carvana_tf.data.dataset import Sample
from carvana_tf.errors import UserError
from carvana_tf.files import write_text

COLUMNS = ("id", "fold", "area")


def make_folds(areas: pd.DataFrame, n_folds: int, seed: int = 80) -> pd.DataFrame:
    """Deals groups into folds so that each fold has groups of every size.

    Groups are sorted by area and dealt round-robin: each run of `n_folds` neighbours
    goes to the `n_folds` folds in an order drawn anew for each deal. The recipe is that
    of the Carvana winners (sort by area, rank modulo the number of folds) with a
    shuffle, so that fold 0 does not always get the smallest of each deal.

    Args:
        areas: Columns `id` (unique) and `area` (mask pixels over all photos of the group).
        n_folds: How many folds, at least 2 and at most the number of groups.
        seed: The shuffles' seed.

    Returns:
        Columns `id`, `fold` (0..n_folds-1) and `area`, sorted by id.

    Raises:
        UserError: Fewer than 2 folds, fewer groups than folds, or an id twice.
    """
    if n_folds < 2:
        raise UserError(f"--n_folds must be at least 2, received {n_folds}.")
    if len(areas) < n_folds:
        raise UserError(f"{len(areas)} groups cannot fill --n_folds={n_folds}; ask for fewer.")
    repeated = areas["id"][areas["id"].duplicated()]
    if len(repeated):
        raise UserError(f"the id '{repeated.iloc[0]}' appears more than once.")
    ranked = areas.sort_values(["area", "id"], kind="stable").reset_index(drop=True)
    random = np.random.default_rng(seed)
    deals = -(-len(ranked) // n_folds)
    order = np.concatenate([random.permutation(n_folds) for _ in range(deals)])
    ranked["fold"] = order[: len(ranked)]
    return ranked.sort_values("id", ignore_index=True)[list(COLUMNS)]


def write_folds(path: Path, folds: pd.DataFrame) -> None:
    """Writes a folds table as CSV, whole or not at all."""
    write_text(path, folds.to_csv(index=False, lineterminator="\n"))


def read_folds(path: Path) -> pd.DataFrame:
    """Reads a folds table.

    Returns:
        At least the columns `id` (str, unique) and `fold` (int from 0).

    Raises:
        UserError: The file is missing, lacks a column, or has a bad or repeated value.
    """
    try:
        # An id may well be "NA" or "null"; only the numbers can be missing.
        blank = {"fold": [""], "area": [""]}
        folds = pd.read_csv(path, dtype={"id": str}, keep_default_na=False, na_values=blank)
    except OSError as error:
        raise UserError(f"cannot read the folds file '{path}': {error.strerror}.") from error
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"the folds file '{path}' is no CSV table: {error}.") from error
    for column in ("id", "fold"):
        if column not in folds:
            raise UserError(
                f"the folds file '{path}' has no column '{column}' (it has "
                f"{', '.join(map(str, folds.columns))}); make it with make_folds.py."
            )
    numbers = pd.to_numeric(folds["fold"], errors="coerce")
    if numbers.isna().any() or (numbers < 0).any() or (numbers % 1 != 0).any():
        raise UserError(f"the folds file '{path}' has a fold that is no whole number from 0.")
    folds["fold"] = numbers.astype(int)
    if folds["id"].duplicated().any():
        repeated = folds["id"][folds["id"].duplicated()].iloc[0]
        raise UserError(f"the folds file '{path}' has the id '{repeated}' more than once.")
    return folds


def find_folds_file(source: str, dataset_dir: Path) -> Path:
    """The folds file: looked for in the dataset folder, then in the working folder.

    Raises:
        UserError: It is in neither.
    """
    for candidate in (Path(dataset_dir) / source, Path(source)):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"no folds file '{source}' in '{dataset_dir}' nor in the working folder; make it with "
        f"`python make_folds.py --dataset_dir={dataset_dir}`."
    )


def fold_of_samples(samples: Sequence[Sample], folds: pd.DataFrame) -> list[int]:
    """The fold of each sample, by its group, or by its stem in an image-level table.

    Raises:
        UserError: A sample is in the table by neither name.
    """
    table = dict(zip(folds["id"], folds["fold"], strict=True))
    found = [table.get(sample.group, table.get(sample.stem)) for sample in samples]
    strangers = [s.group for s, fold in zip(samples, found, strict=True) if fold is None]
    if strangers:
        raise UserError(
            f"{len(set(strangers))} ids are not in the folds file, the first is "
            f"'{strangers[0]}'; make it anew with make_folds.py."
        )
    return [int(fold) for fold in found if fold is not None]


def split(
    samples: Sequence[Sample], folds: pd.DataFrame, fold: int
) -> tuple[list[Sample], list[Sample]]:
    """The (training, validation) samples of one fold.

    Raises:
        UserError: There is no such fold, or one side would be empty.
    """
    numbers = sorted(set(folds["fold"]))
    if fold not in numbers:
        raise UserError(
            f"--fold={fold} does not exist; the folds file has {', '.join(map(str, numbers))}."
        )
    of_sample = fold_of_samples(samples, folds)
    train = [s for s, f in zip(samples, of_sample, strict=True) if f != fold]
    validation = [s for s, f in zip(samples, of_sample, strict=True) if f == fold]
    if not train or not validation:
        side = "training" if not train else "validation"
        raise UserError(f"--fold={fold} leaves no {side} photo; make folds for this dataset.")
    return train, validation
