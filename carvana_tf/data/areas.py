"""How much of their photos the masks of each group cover, by which folds are made."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from carvana_tf.data import bad_files
from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import UnreadableImage, read_mask
from carvana_tf.data.mask_values import all_empty
from carvana_tf.data.tables import read_frame
from carvana_tf.errors import UserError
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map


def measure(
    samples: Sequence[Sample], pattern: str | None, threads: int, folder: Path
) -> pd.DataFrame:
    """The object pixels of each group's masks.

    Args:
        samples: Photos with masks.
        pattern: Regular expression (`--area_photos`); only the photos whose stem has a match
            count. None counts all.
        threads: That read masks.
        folder: Gets the list of masks that cannot be read.

    Returns:
        Columns `id` (the group) and `area`.

    Raises:
        UserError: Masks cannot be read, all are empty, or a group has no photo that counts.
    """
    groups = {sample.group for sample in samples}
    if pattern is not None:
        samples = matching(samples, pattern)

    def area(sample: Sample) -> int | UnreadableImage:
        try:
            return int(read_mask(sample.mask or Path(), sample.reading).sum())
        except UnreadableImage as error:
            return error

    found = ordered_map(area, samples, threads)
    counts = list(bar(found, total=len(samples), desc="measuring masks", unit="mask"))
    bad = [
        (str(sample.mask), str(count))
        for sample, count in zip(samples, counts, strict=True)
        if not isinstance(count, int)
    ]
    # A group whose area is not known has no place among the others.
    if bad:
        raise UserError(bad_files.describe(bad, folder, "groups are assigned to folds"))
    bad_files.record(folder, [])
    if counts and not any(counts):
        raise all_empty(len(counts), "masks")
    table = pd.DataFrame({"id": [sample.group for sample in samples], "area": counts})
    without = sorted(groups - set(table["id"]))
    if without:
        raise UserError(
            f"--area_photos='{pattern}' matches no photo of {len(without)} of "
            f"{len(groups)} groups, the first is '{without[0]}'; give a pattern that some photo of "
            "every group has."
        )
    return table.groupby("id")["area"].sum().reset_index()


def matching(samples: Sequence[Sample], pattern: str) -> list[Sample]:
    """The samples whose stem has a match of `--area_photos`.

    Raises:
        UserError: It is no regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--area_photos='{pattern}' is no regular expression: {error}.") from error
    return [sample for sample in samples if compiled.search(sample.stem)]


def read(path: Path) -> pd.DataFrame:
    """The columns `id` and `area` of a table (`--areas_csv`).

    Raises:
        UserError: They are missing, or an area is no number.
    """
    table = read_frame(path)
    if not {"id", "area"} <= set(table):
        raise UserError(
            f"--areas_csv '{path}' must have the columns id and area; it has "
            f"{', '.join(table.columns)}."
        )
    numbers = pd.to_numeric(table["area"], errors="coerce")
    if numbers.isna().any():
        first = table[numbers.isna()].iloc[0]
        raise UserError(
            f"--areas_csv '{path}' gives '{first['id']}' the area '{first['area']}', which is no "
            "number; correct the line."
        )
    return table[["id"]].assign(area=numbers)
