"""A folder of probability PNGs that is to be scored, and what may be believed of it."""

import dataclasses
from pathlib import Path

from carvana_tf.data.dataset import list_images
from carvana_tf.errors import UserError
from carvana_tf.evaluation import pairs
from carvana_tf.masks import manifest as manifests


@dataclasses.dataclass(frozen=True)
class MaskFolder:
    """Masks by stem and their manifest (None where another program made them)."""

    path: Path
    predictions: dict[str, Path]
    manifest: manifests.Manifest | None

    @property
    def leaks(self) -> bool:
        """Whether it is known that a model saw photos of the folder."""
        return self.manifest is not None and not self.manifest.out_of_fold

    @property
    def origin(self) -> str:
        """One sentence on whether the masks are out of fold, for the terminal."""
        if self.manifest is None:
            return (
                f"'{self.path}' has no manifest.json: whether its masks are out of fold is not "
                "known, and scores may be too good."
            )
        if self.leaks:
            return (
                f"the masks of '{self.path}' are NOT out of fold: a model may know these photos, "
                "and score too well; predict them with --predict_on_val."
            )
        return f"the masks of '{self.path}' are out of fold, its manifest.json says."

    def whole_folds(self) -> set[int]:
        """The folds an out-of-fold folder is made of, which must be complete."""
        if self.manifest is None or not self.manifest.out_of_fold:
            return set()
        return {m["fold"] for m in self.manifest.models if isinstance(m.get("fold"), int)}


def open_folder(path: Path) -> MaskFolder:
    """Lists a folder and checks it against its manifest.

    Raises:
        UserError: It is missing, holds no mask, or is not what its manifest says.
    """
    predictions = list_images(path, (".png",))
    if not predictions:
        raise UserError(f"the folder '{path}' holds no mask (looked for .png).")
    manifest = manifests.read(path)
    if manifest is not None:
        pairs.check_manifest(manifest, path, predictions)
    return MaskFolder(Path(path), predictions, manifest)
