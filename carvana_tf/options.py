"""The groups of flags that commands share; library code takes these dataclasses.

What only one command needs stands in that command. Names are those of the 4th-place solution
where it had the flag.
"""

import dataclasses
from pathlib import Path

from carvana_tf.data import mask_values
from carvana_tf.data.dataset import DEFAULT_GROUP_PATTERN, Naming
from carvana_tf.data.decoding import DEFAULT_MAX_PIXELS, MOST_PIXELS
from carvana_tf.data.images import Reading
from carvana_tf.errors import UserError
from carvana_tf.filenames import DATASET, FOLDS
from carvana_tf.flags import option

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""The values of --dtype."""


def _max_pixels() -> int:
    return option(
        DEFAULT_MAX_PIXELS,
        "Refuse images of more pixels before they are decoded.",
        lower=1,
        upper=MOST_PIXELS,
        advanced=True,
        key="max_pixels",
    )


def photos_folder() -> str:
    """The flag of the folder of annotated photos, of commands that only read it."""
    return option("train", "Folder of the photos, inside --dataset_dir.", key="photos")


def masks_folder() -> str:
    """The flag of the folder of their masks."""
    return option(
        "train_masks",
        "Folder of the masks, inside --dataset_dir.",
        alias="train_mask_dir",
        key="masks",
    )


def ray_address(what: str) -> str:
    """The flag of the cluster that does whole commands.

    Args:
        what: What these do, as "Train the folds of --fold=all".
    """
    return option(
        "",
        f"{what} as tasks of a Ray cluster whose machines share all folders, each on a GPU, or on "
        "a machine where there is none: local (this machine alone), auto (the cluster that runs "
        "here) or its head's address, as 10.0.0.1:6379. See docs/scale.md.",
    )


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """Limits of image files."""

    max_pixels: int = _max_pixels()


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """The dataset, and how its files are named."""

    dataset_dir: str = option(
        "input",
        f"Folder that holds the photo and mask folders. What no flag says is taken from its "
        f"'{DATASET}', where there is one (docs/datasets.md).",
    )
    folds_source: str = option(
        FOLDS,
        "Folds file, looked for in --dataset_dir, then in the working folder.",
        key="folds_source",
    )
    mask_suffix: str = option(
        "_mask", "What a mask's name adds to its photo's, may be empty.", key="mask_suffix"
    )
    mask_extension: str = option(
        "", "Extension of the masks, as '.gif'; empty means any.", key="mask_extension"
    )
    group_pattern: str = option(
        DEFAULT_GROUP_PATTERN,
        "Regular expression whose first parenthesis takes the group (the car) out of a photo's "
        "name; a name without a match is its own group. With --task=labels each photo is "
        "its own by default.",
        key="group_pattern",
    )
    mask_values: str = option(
        mask_values.AUTO,
        f"Which values of the masks are the object: {mask_values.FORMS}; auto reads what is surely "
        "two-valued and refuses the rest. See docs/inputs.md.",
        key="mask_values",
    )
    photo_depth: int = option(
        0,
        "Bits in use of photos deeper than 8 bits, as 12 for values of 0..4095 in 16-bit files; "
        "0: as the file declares (prediction: as in training). 1 means 0..1, of floating point.",
        lower=0,
        upper=32,
        advanced=True,
        key="photo_depth",
    )
    max_pixels: int = _max_pixels()

    @property
    def reading(self) -> Reading:
        """How these flags say that photos and masks are to be understood."""
        return Reading(mask_values.parse(self.mask_values), self.photo_depth)

    @property
    def naming(self) -> Naming:
        """The naming rules these flags describe."""
        return Naming(self.mask_suffix, self.mask_extension, self.group_pattern)

    def folder(self, name: str) -> Path:
        """A folder of the dataset by name; an existing path is used as it is."""
        inside = Path(self.dataset_dir) / name
        return inside if inside.is_dir() or not Path(name).is_dir() else Path(name)

    def existing_folder(self, name: str, flag: str) -> Path:
        """As `folder`, of the name in a flag.

        Raises:
            UserError: There is no such folder; the message says which there are.
        """
        found, parent = self.folder(name), Path(self.dataset_dir)
        missing = not parent.is_dir()
        absolute = found.is_dir() and Path(name).is_absolute()
        if missing and self.dataset_dir != DatasetOptions.dataset_dir and not absolute:
            raise UserError(f"--dataset_dir='{parent}' does not exist; name the dataset's folder.")
        if found.is_dir():
            return found
        if missing:
            raise UserError(
                f"--dataset_dir='{parent}' does not exist, and no folder '{name}' here; name the "
                f"dataset's folder, or correct --{flag}."
            )
        others = sorted(path.name for path in parent.iterdir() if path.is_dir())
        holds = f"has the folders {', '.join(others)}" if others else "has no folders"
        raise UserError(
            f"the folder '{found}' does not exist; '{parent}' {holds}: name the right one with "
            f"--{flag} or --dataset_dir."
        )


@dataclasses.dataclass(frozen=True)
class InertOptions:
    """Flags of published command lines that have no effect.

    They are accepted so that old command lines run.
    """

    img_width: int | None = option(
        None, "Accepted and ignored: sizes are read from each photo.", advanced=True
    )
    img_height: int | None = option(
        None, "Accepted and ignored: sizes are read from each photo.", advanced=True
    )
    out_width: int | None = option(
        None, "Accepted and ignored: masks have their photo's size.", advanced=True
    )
    out_height: int | None = option(
        None, "Accepted and ignored: masks have their photo's size.", advanced=True
    )
    test_size_float: float | None = option(
        None, "Accepted and ignored: folds decide the split.", advanced=True
    )


def run_name(network: str, alias: str, fold: str, *, smoke: bool) -> str:
    """The name of a training run's folder, `<network>[-<alias>]-fold_<fold>[-smoke]`."""
    return f"{network}{alias and '-'}{alias}-fold_{fold}{'-smoke' if smoke else ''}"
