"""`manifest.json`: what made the masks of a folder."""

import dataclasses
from pathlib import Path
from typing import Any

from carvana_tf.errors import UserError
from carvana_tf.files import read_json, write_json

NAME = "manifest.json"
ENCODING = "grey8 round(255p)"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """How a folder of probability PNGs came to be.

    Attributes:
        models: For each averaged model: `file` (name), `digest` (SHA-256), `network`,
            `fold` (int, "none" for a model trained on everything, or None if unknown)
            and `training_groups` (digest of the sorted ids it was trained on, or None).
        out_of_fold: Whether no model saw a photo of the folder, nor its group.
        tta: "none" or "hflip".
        engine: What ran the network ("keras").
        dtype: Compute type of the network.
        photos: How many photos the folder is for.
        photos_digest: Digest of their sorted stems.
        encoding: How a grey value means a probability.
        version: Of the toolkit.
    """

    models: tuple[dict[str, Any], ...]
    out_of_fold: bool
    tta: str
    engine: str
    dtype: str
    photos: int
    photos_digest: str
    encoding: str
    version: str


def write(folder: Path, manifest: Manifest) -> None:
    """Writes a folder's manifest, whole or not at all."""
    write_json(Path(folder) / NAME, dataclasses.asdict(manifest))


def read(folder: Path) -> Manifest | None:
    """A folder's manifest, or None where it has none (masks made by another program).

    Raises:
        UserError: There is one, but it is damaged.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        return None
    values = read_json(path)
    try:
        return Manifest(**{**values, "models": tuple(values["models"])})
    except (TypeError, KeyError) as error:
        raise UserError(
            f"'{path}' is no manifest of this toolkit ({error}); predict the folder anew."
        ) from error
