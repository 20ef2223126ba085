"""A folder of predicted masks, and whether it can be trusted."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from carvana_tf.data import names
from carvana_tf.data.dataset import list_images
from carvana_tf.data.images import UnreadableImage, read_grey
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError
from carvana_tf.filenames import LAST, MANIFEST
from carvana_tf.files import digest_of_lines, write_json
from carvana_tf.masks import manifest as manifests
from carvana_tf.masks.rle_parquet import list_parts
from carvana_tf.shards import unfinished

# Files that are looked at for labels.
_LOOKED_AT = 8
# Grey values this near to each other or to black and white do not make an edge.
_NEAR = 3
# So many votes or models may have been averaged.
_MOST_VOTES = 16
_MOST_SHARP = 0.5
CHOICE_FLATTERS = "by 0.0009 in mean Dice on 24 real cars, see docs/training.md"
"""Measured in benchmarks/best_or_last.csv."""


@dataclasses.dataclass(frozen=True)
class MaskFolder:
    """A mask folder: its path, PNGs by stem and manifest (None if made elsewhere).

    `forced` has the refusals that `--force` turned into warnings.
    """

    path: Path
    masks: dict[str, Path]
    manifest: manifests.Manifest | None
    forced: tuple[str, ...] = ()

    @property
    def out_of_fold(self) -> bool | None:
        """Whether it is known that no model saw a photo, nor its group; None without manifest."""
        return None if self.manifest is None else self.manifest.out_of_fold

    @property
    def chosen_on_its_fold(self) -> str | None:
        """What a model's epoch was chosen by on the photos that it is scored on, or None."""
        if not self.out_of_fold or self.manifest is None:
            return None
        chosen = (model.get(manifests.CHOSEN_BY) for model in self.manifest.models)
        return next((monitor for monitor in chosen if monitor), None)

    @property
    def origin(self) -> str:
        """One sentence on whether the masks are out of fold, for the terminal."""
        if self.out_of_fold is None:
            return (
                f"'{self.path}' has no {MANIFEST}: whether its masks are out of fold is not "
                "known, and scores may be too good."
            )
        if self.out_of_fold:
            text = f"the masks of '{self.path}' are out of fold, its {MANIFEST} says."
            if self.chosen_on_its_fold:
                text += (
                    f" The epoch of a model was chosen by its {self.chosen_on_its_fold} on the "
                    f"same photos, which flatters the score ({CHOICE_FLATTERS}); {LAST} is free "
                    "of that."
                )
            return text
        return (
            f"the masks of '{self.path}' are NOT out of fold: a model may know these photos, and "
            "score too well; predict them with --predict_on_val."
        )

    @property
    def threshold(self) -> int | None:
        """The one threshold its masks were decided by; None where any may be chosen."""
        return None if self.manifest is None else self.manifest.threshold

    def photo_names(self, extension: str | None = None, photo_dir: Path | None = None) -> list[str]:
        """The file names of the photos, in the order of the masks.

        Args:
            extension: That of all photos (".jpg").
            photo_dir: Where the photos are; without either, the manifest has the names.

        Raises:
            UserError: The names are unknown.
        """
        if extension is not None:
            return [stem + extension for stem in self.masks]
        found: dict[str, str] = {}
        if photo_dir is not None:
            photos = names.rekey(list_images(photo_dir), self.masks, f"'{photo_dir}'")
            found = {stem: path.name for stem, path in photos.items()}
        elif self.manifest is not None:
            found = self.manifest.photo_names(self.masks)
        missing = [stem for stem in self.masks if stem not in found]
        if missing:
            where = f"'{photo_dir}'" if photo_dir else f"{MANIFEST} of '{self.path}'"
            raise UserError(
                f"the names of {len(missing)} of {len(self.masks)} photos are not known from "
                f"{where}, the first is that of '{missing[0]}'; give the folder of the photos as "
                "--test_data_dir, or their extension as --image_extension=.jpg."
            )
        return [found[stem] for stem in self.masks]

    def whole_folds(self, only: int | None = None) -> set[int]:
        """The folds that must be complete: `only`, or those an out-of-fold folder is made of."""
        if only is not None:
            return {only}
        if self.manifest is None or not self.manifest.out_of_fold:
            return set()
        return {m["fold"] for m in self.manifest.models if isinstance(m.get("fold"), int)}


def check_task(path: Path) -> manifests.Manifest | None:
    """The manifest of a folder, if it has one, which must not be of another task.

    Raises:
        UserError: It is, or it is damaged.
    """
    made = manifests.read(path)
    if made is not None and made.task != manifests.MASKS:
        raise UserError(
            f"'{Path(path) / MANIFEST}' says that it holds {made.task}; give "
            f"--task={made.task}, or name a folder of masks."
        )
    return made


def open_folder(path: Path, *, binary: bool = False) -> MaskFolder:
    """Lists a folder and reads its manifest.

    Args:
        path: The folder.
        binary: Whether masks of two values do as well as probabilities.

    Raises:
        UserError: It is missing or empty, its manifest is damaged, or says that the PNGs
            hold something else.
    """
    masks = list_images(path, (".png",))
    made = check_task(path)
    if not masks and list_parts(path):
        raise UserError(
            f"the folder '{path}' holds run lengths in Parquet files; make PNGs of them with "
            f"tools/decode_submission.py --submission={path}, or a submission with "
            "generate_encoded_submission.py."
        )
    if not masks:
        raise UserError(
            f"the folder '{path}' holds no mask (looked for .png); predict into it first, or "
            "correct its name."
        )
    manifests.check_encoding(path, made, binary=binary)
    return MaskFolder(Path(path), masks, made)


def incomplete(folder: MaskFolder) -> list[str]:
    """How a folder differs from what its manifest is for, one sentence; nothing if not.

    A folder without manifest is accepted, unless its PNGs do not look like probabilities.
    """
    made = folder.manifest
    if made is None:
        found = _suspicion(list(folder.masks.values()))
        unlike = f"'{folder.path}' has no {MANIFEST} and does not look like probabilities"
        return [f"{unlike}: {found}; predict it again, or save 0..255"] if found else []
    where = folder.path / MANIFEST
    if made.photos != len(folder.masks):
        missing = unfinished(folder.path)
        return [
            f"'{where}' lists {made.photos} photos, but '{folder.path}' holds {len(folder.masks)} "
            f"masks{missing and f' ({missing})'}; run the prediction again to complete the folder, "
            "or remove masks of other photos"
        ]
    if made.photos_digest != digest_of_lines(list(folder.masks)):
        return [
            f"'{where}' lists other photos than the {len(folder.masks)} masks in "
            f"'{folder.path}'; predict them again into an empty folder"
        ]
    return []


def warn_or_raise(problem: str, *, force: bool) -> str:
    """Refuses a problem, or with `force` prints it as a warning and returns it to be recorded.

    Raises:
        UserError: Without `force`.
    """
    if not force:
        raise UserError(f"{problem} (--force goes on and records it).")
    print(f"warning: {problem}", file=sys.stderr)
    return problem


def choose_threshold(
    path: Path,
    made: manifests.Manifest | None,
    given: int | None,
    default: int = DEFAULT_THRESHOLD,
    *,
    force: bool = False,
) -> tuple[int, list[str]]:
    """The threshold that the masks of a folder are cut at.

    Args:
        path: The folder.
        made: Its manifest.
        given: The flag `--threshold`, None if not given.
        default: Taken where neither flag nor manifest names one.
        force: Take the flag's although the masks were decided by another one.

    Returns:
        The threshold, and the refusal that became a warning, to be recorded.

    Raises:
        UserError: The masks were decided by another one than the flag says, without `force`.
    """
    decided = None if made is None else made.threshold
    if given is None:
        return default if decided is None else decided, []
    if decided in (None, given):
        return given, []
    problem = (
        f"--threshold={given} contradicts the masks of '{path}', which were decided at "
        f"grey > {decided} (post-processing, a vote or binary masks) and are other masks at any "
        "other threshold; leave the flag out, or make them again with it"
    )
    return given, [warn_or_raise(problem, force=force)]


def open_complete(path: Path, *, binary: bool = False, force: bool = False) -> MaskFolder:
    """Opens a folder that holds the photos its manifest is for, all of them and no other.

    Args:
        path: The folder.
        binary: As of `open_folder`.
        force: Take another one, too; a warning says why it was refused, and `forced` has it.

    Raises:
        UserError: As `open_folder` and, without `force`, where it is `incomplete`.
    """
    folder = open_folder(path, binary=binary)
    problems = [warn_or_raise(problem, force=force) for problem in incomplete(folder)]
    return dataclasses.replace(folder, forced=tuple(problems))


def record_forced(product: Path, problems: Sequence[str]) -> None:
    """Writes `<product>.forced.json` next to a file that cannot hold it itself; none if none."""
    path = product.with_name(f"{product.name}.forced.json")
    if problems:
        write_json(path, {"forced": list(problems)})
    else:
        path.unlink(missing_ok=True)


def _suspicion(paths: Sequence[Path]) -> str | None:
    """What speaks against PNGs without a manifest being `round(255 * probability)`, or None.

    A folder of 0/1 masks or of labels would be read as probabilities without an error, and scored.
    Unreadable files are left to those who read them next.

    Args:
        paths: The PNGs of one folder.
    """
    first = paths[:: max(1, len(paths) // _LOOKED_AT)]
    greatest = 0
    for path in (*first, *paths):
        try:
            grey = read_grey(path)
        except UnreadableImage:
            return None
        greatest = max(greatest, int(grey.max()))
        if path in first and _is_label_image(grey):
            values = ", ".join(map(str, np.unique(grey)[:6]))
            return f"'{path}' has areas of constant grey ({values}, …), as labels have"
        if greatest > DEFAULT_THRESHOLD and path not in first[:-1]:
            return None
    if greatest > DEFAULT_THRESHOLD or not greatest:  # no object at all may well be predicted
        return None
    return f"no grey value of {len(paths)} PNGs is above {greatest}, so nothing would be object"


def _is_label_image(grey: np.ndarray) -> bool:
    """Whether grey areas meet at sharp edges, which probabilities hardly do.

    A sharp edge lies between two pixels whose outer neighbours are equal to them.
    """
    levels = np.unique(grey)
    votes = (np.rint(np.arange(n + 1) * 255 / n) for n in range(1, _MOST_VOTES + 1))
    if grey.shape[1] < 4 or any(np.isin(levels, values).all() for values in votes):
        return False
    a, b, c, d = (grey[:, i : grey.shape[1] - 3 + i].astype(np.int16) for i in range(4))
    middle = (np.minimum(b, 255 - b) > _NEAR) | (np.minimum(c, 255 - c) > _NEAR)
    edges = (np.abs(b - c) > _NEAR) & middle
    sharp = edges & (a == b) & (c == d)
    return bool(np.count_nonzero(sharp) > _MOST_SHARP * np.count_nonzero(edges) > 0)
