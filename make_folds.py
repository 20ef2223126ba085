"""Deals the photos of a dataset into folds: whole groups together, stratified by mask area.

python make_folds.py --dataset_dir=input --n_folds=5
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from carvana_tf import cli, flags
from carvana_tf.data.dataset import find_samples
from carvana_tf.data.folds import make_folds, write_folds
from carvana_tf.data.images import read_mask
from carvana_tf.errors import UserError
from carvana_tf.flags import option
from carvana_tf.options import DatasetOptions
from carvana_tf.progress import bar


@dataclasses.dataclass(frozen=True)
class FoldOptions:
    """What only this script needs."""

    train_data_dir_name: str = option("train", "Folder of the photos, inside --dataset_dir.")
    train_mask_dir_name: str = option(
        "train_masks", "Folder of the masks, inside --dataset_dir.", alias="train_mask_dir"
    )
    areas_csv: str | None = option(
        None, "Table with the columns id,area to deal from, instead of photos and masks."
    )
    n_folds: int = option(5, "How many folds.", lower=2)
    seed: int = option(80, "Seed of the shuffle inside each deal.")
    folds_out: str | None = option(
        None, "File to write; by default --folds_source inside --dataset_dir."
    )
    threads: int = option(4, "Threads that read masks.", lower=1)


_DATASET = flags.define(DatasetOptions)
_FOLDS = flags.define(FoldOptions)


def main() -> None:
    """Measures the masks, deals the groups and writes the table."""
    dataset, options = _DATASET.read(), _FOLDS.read()
    if options.areas_csv is not None:
        areas = _read_areas(Path(options.areas_csv))
    else:
        areas = _measure_areas(dataset, options)
    folds = make_folds(areas, options.n_folds, options.seed)
    target = Path(options.folds_out or Path(dataset.dataset_dir) / dataset.folds_source)
    write_folds(target, folds)
    summary = folds.groupby("fold")["area"].agg(["size", "mean"])
    for fold, row in summary.iterrows():
        print(f"fold {fold}: {row['size']:.0f} groups, mean area {row['mean']:,.0f} pixels")
    print(f"{len(folds)} groups in {options.n_folds} folds -> {target}")


def _measure_areas(dataset: DatasetOptions, options: FoldOptions) -> pd.DataFrame:
    samples = find_samples(
        dataset.folder(options.train_data_dir_name),
        dataset.folder(options.train_mask_dir_name),
        dataset.naming,
    )
    with ThreadPoolExecutor(options.threads) as pool:
        pixels = pool.map(lambda sample: int(read_mask(sample.mask).sum()), samples)
        counts = list(bar(pixels, total=len(samples), desc="measuring masks", unit="mask"))
    table = pd.DataFrame({"id": [sample.group for sample in samples], "area": counts})
    return table.groupby("id", as_index=False)["area"].sum()


def _read_areas(path: Path) -> pd.DataFrame:
    try:
        areas = pd.read_csv(path, dtype={"id": str})
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read --areas_csv '{path}': {error}.") from error
    if not {"id", "area"} <= set(areas):
        raise UserError(f"--areas_csv '{path}' must have the columns id and area.")
    return areas[["id", "area"]]


if __name__ == "__main__":
    cli.run(main)
