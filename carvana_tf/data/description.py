"""What is remembered of a dataset: `dataset.yaml` in its folder says how it is laid out.

`tools/check_data.py --write` writes it after it has looked; every command with `--dataset_dir`
takes from it what no flag says. docs/datasets.md has the keys and who reads them.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from carvana_tf.data import mask_values
from carvana_tf.data.dataset import Naming
from carvana_tf.data.decoding import MOST_PIXELS
from carvana_tf.errors import UserError, unknown_name
from carvana_tf.filenames import DATASET
from carvana_tf.files import write_text
from carvana_tf.yaml_files import read_yaml

KEYS: dict[str, str] = {
    "photos": "Folder of the photos with masks or labels, inside this one.",
    "masks": "Folder of their masks.",
    "test_photos": "Folder of the photos that are to be predicted.",
    "sample_submission": "Table that names the rows of a submission.",
    "labels": "Table of the photos' labels, for --task=labels.",
    "mask_suffix": "What a mask's name adds to its photo's; may be empty.",
    "mask_extension": "Extension of the masks, as '.gif'; empty means any.",
    "group_pattern": (
        "Regular expression whose first parenthesis takes the group (what must not be split over "
        "folds) out of a photo's name; a name without a match is its own group."
    ),
    "mask_values": (
        "Which values of the masks are the object; auto reads what is surely two-valued and "
        "refuses the rest."
    ),
    "photo_depth": "Bits in use of photos deeper than 8 bits; 0: as the files declare.",
    "max_pixels": "Images of more pixels are refused before they are decoded.",
    "folds_source": "Table of the folds, written by make_folds.py.",
    "n_folds": "How many folds make_folds.py makes.",
}
"""What each key means."""

_PATHS = ("photos", "masks", "test_photos", "sample_submission", "labels", "folds_source")
_NUMBERS = {"photo_depth": (0, 32), "max_pixels": (1, MOST_PIXELS), "n_folds": (2, None)}
_WIDTH = 98


def read(folder: Path) -> dict[str, Any]:
    """What is remembered of the dataset in a folder; {} where there is no such file.

    Raises:
        UserError: The file is no YAML, or has an unknown key or a value that does not fit; the
            message names file and key.
    """
    path = Path(folder) / DATASET
    # A link to nothing is a mistake, not an absence.
    if not path.exists() and not path.is_symlink():
        return {}
    content = read_yaml(path, "the dataset's description")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"'{path}' must have keys and values, as 'photos: images'; correct it.")
    check(content, f"'{path}'")
    return dict(content)


def check(content: Mapping[str, Any], where: str) -> None:
    """Refuses an unknown key, a value of the wrong type, and a path outside the dataset.

    Args:
        content: Values by key.
        where: What holds them, for the message.

    Raises:
        UserError: Some are.
    """
    for key, value in content.items():
        if key not in KEYS:
            raise UserError(f"{where}: {unknown_name('key', str(key), KEYS)}")
        _check(f"{where}: {key}", key, value)
    _check_naming(where, content)


def write(folder: Path, values: Mapping[str, Any], found: Mapping[str, str]) -> Path:
    """Writes what was found, whole or not at all; returns the path.

    Args:
        folder: The dataset's.
        values: By key. Keys that are left out stand in the file as a comment.
        found: How each value was found, and why a key is left out.
    """
    lines = ["# How this dataset is laid out, for all commands with --dataset_dir; flags win."]
    lines += ["# Written by check_data --write. Edit it freely: values are kept by the next one."]
    for key, meaning in KEYS.items():
        how = found.get(key, "")
        text = f"{meaning} {how[:1].upper()}{how[1:]}." if how else meaning
        lines += ["", *textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")]
        lines.append(_line(key, values[key]) if key in values else f"# {key}:")
    path = Path(folder) / DATASET
    write_text(path, "\n".join(lines) + "\n")
    return path


def _line(key: str, value: Any) -> str:
    return yaml.safe_dump({key: value}, width=1 << 20).rstrip("\n")


def _check(where: str, key: str, value: Any) -> None:
    """Refuses a value of the wrong type, out of bounds, or outside the dataset's folder."""
    if key in _NUMBERS:
        lower, upper = _NUMBERS[key]
        within = type(value) is int and value >= lower and (upper is None or value <= upper)
        if not within:
            bounds = f"at least {lower}" if upper is None else f"{lower} to {upper}"
            raise UserError(f"{where} must be a whole number, {bounds}, received {value!r}.")
        return
    if not isinstance(value, str) or "\0" in value:
        raise UserError(f"{where} must be text, received {value!r}; put it in quotes.")
    if key in _PATHS:
        parts = PurePosixPath(value).parts
        if not value or value.startswith(("/", "~")) or ".." in parts:
            raise UserError(
                f"{where} must be a path inside the dataset's folder, received '{value}'; for "
                "another place give the flag."
            )


def _check_naming(where: str, content: Mapping[str, Any]) -> None:
    naming = ("mask_suffix", "mask_extension", "group_pattern")
    try:
        Naming(**{key: content[key] for key in naming if key in content})
        mask_values.parse(content.get("mask_values", mask_values.AUTO))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
