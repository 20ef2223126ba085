"""A step of a recipe: which command, with which flags, from which files to which.

out_dir/
  folds.csv, folds-<member>.csv    who is in which fold
  models/<network>-<member>-fold_<n>/
  masks/<member>/fold_<n>/         out of fold, one fold
  masks/<member>/oof/              out of fold, all folds
  masks/<member>/test/             mean over the models of all folds
  masks/<member>/test_fold_<n>/    of the test photos by one fold's model, for `pseudo`
  masks/<a>+<b>/test_fold_<n>/     the mean of several of them
  masks/ensemble/oof/              combined, before post-processing
  masks/ensemble/postprocessed/    the same after it, where there is any
  masks/ensemble/test/             combined and post-processed
  scores/<member>/, scores/ensemble/, scores/ensemble-postprocessed/, scores/ensemble-gains/
  submission.csv.gz
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from carvana_tf.data import description
from carvana_tf.filenames import MANIFEST, SUMMARY
from carvana_tf.files import read_json
from carvana_tf.options import DatasetOptions

ENSEMBLE, ENCODE = "ensemble", "submission"
PRODUCTS = ("models", "masks", "labels", "scores", "prepared")  # folders of `out_dir`
POSTPROCESSED, ABLATION = "ensemble-postprocessed", "ensemble-gains"
_NAMING = (
    *("mask_suffix", "mask_extension", "group_pattern"),
    *("mask_values", "photo_depth", "max_pixels"),
)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A flag whose value an earlier step finds.

    Attributes:
        flag: Its name.
        file: The JSON file that holds the value.
        value: Takes it out of the file's content; "" where that is of another recipe.
    """

    flag: str
    file: Path
    value: Callable[[Any], str]

    @property
    def source(self) -> Path:
        """What the step that finds the value makes: of a manifest's folder the folder."""
        return self.file.parent if self.file.name == MANIFEST else self.file

    def __str__(self) -> str:
        found = self.value(read_json(self.file)) if self.file.is_file() else ""
        return f"--{self.flag}={found or f'<from {self.file}>'}"


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of one command.

    Attributes:
        name: Unique; part of file names.
        command: "train".
        flags: Its command line.
        inputs: Files and folders that decide, with the flags, what comes out.
        product: File or folder that is there afterwards.
        owns: What is removed before the step is done again.
        costly: Whether that takes an order (`--overwrite`).
    """

    name: str
    command: str
    flags: tuple[str | Fitted, ...]
    inputs: tuple[Path, ...]
    product: Path
    owns: Path
    costly: bool = False

    @property
    def line(self) -> list[str]:
        """The command and its flags as text."""
        return [self.command, *map(str, self.flags)]


@dataclasses.dataclass(frozen=True)
class RunPaths:
    """Where things are.

    Attributes:
        dataset: The dataset's folder and how its files are named.
        photos: Folder of the training photos.
        masks: Folder of their masks.
        test: Folder of the photos to predict, None for none.
        sample: Sample submission, None for none.
        out: Folder for all products.
        models: Folder of the trained networks; by default "models" in `out`.
        predict_only: Whether the networks are there, and none is trained.
        has_truth: Whether there are training photos with masks, on which to score and to fit.
    """

    dataset: DatasetOptions
    photos: Path
    masks: Path
    test: Path | None
    sample: Path | None
    out: Path
    models: Path | None = None
    predict_only: bool = False
    has_truth: bool = True

    @property
    def models_dir(self) -> Path:
        """The folder of the trained networks."""
        return self.models or self.out / "models"

    def shared(self, folds: Path | None = None) -> list[str]:
        """The flags that describe the dataset to a command.

        A value that is the default is a flag only where the dataset's description has another.
        """
        plain = DatasetOptions()
        remembered = description.read(Path(self.dataset.dataset_dir))
        named = {name: getattr(self.dataset, name) for name in _NAMING}
        return [
            f"--dataset_dir={self.dataset.dataset_dir}",
            *(
                f"--{name}={value}"
                for name, value in named.items()
                if {value} != {getattr(plain, name), remembered.get(name, value)}
            ),
            *([f"--folds_source={folds}"] if folds else []),
        ]

    def mask_dir(self, member: str, part: str) -> Path:
        """A folder of masks: `part` is "fold_<n>", "oof", "test" or "test_fold_<n>"."""
        return self.out / "masks" / member / part

    def scores(self, member: str) -> Path:
        """Where `evaluate.py` leaves its summary."""
        return self.out / "scores" / member / SUMMARY


def scoring(name: str) -> str:
    """The name of the step that scores a member or the ensemble."""
    return f"{name}-scores"
