"""Combining the mask folders of several models, with exact rounding and checked origin."""

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from carvana_tf.data.dataset import list_images
from carvana_tf.data.images import UnreadableImage, read_size
from carvana_tf.errors import UserError
from carvana_tf.evaluation.pairs import check_manifest
from carvana_tf.masks.manifest import Manifest, check_encoding, read

STRATEGIES = ("mean", "vote", "median", "logit_mean")

# Weights are multiples of 2^-20: twice 255 of them still fit int32.
_UNIT = 1 << 20
_MOST = 128  # equal weights are summed in uint16
_LOGIT = np.log((np.arange(256) + 0.5) / (255.5 - np.arange(256)))


@dataclasses.dataclass(frozen=True)
class Folder:
    """A mask folder: its path, PNGs by stem and manifest (None if made elsewhere)."""

    path: Path
    masks: dict[str, Path]
    manifest: Manifest | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is combined.

    Attributes:
        stems: All photos, sorted.
        members: Each one's folders; those of a member share no photo.
        problems: Refusals that `--force` passed over.
        warnings: What could not be checked.
    """

    stems: list[str]
    members: list[list[Folder]]
    problems: list[str]
    warnings: list[str]

    @property
    def folders(self) -> list[Folder]:
        """The folders of all members."""
        return [folder for member in self.members for folder in member]

    @property
    def out_of_fold(self) -> bool:
        """Whether every folder is known to be out of fold."""
        return all(f.manifest is not None and f.manifest.out_of_fold for f in self.folders)

    def files(self, stem: str) -> list[tuple[int, Path]]:
        """Each member's number and PNG of a photo."""
        return [
            (i, folder.masks[stem])
            for i, member in enumerate(self.members)
            for folder in member
            if stem in folder.masks
        ]


def open_folder(path: Path) -> Folder:
    """Lists a folder and reads its manifest.

    Raises:
        UserError: It is missing or empty, its manifest is damaged, or says that the PNGs
            hold no probabilities.
    """
    masks = list_images(path, (".png",))
    if not masks:
        raise UserError(f"the folder '{path}' holds no mask (looked for .png).")
    made = read(path)
    check_encoding(path, made)
    return Folder(Path(path), masks, made)


def plan(folders: Sequence[Folder], *, force: bool = False) -> Plan:
    """Merges folders without common photos into members and checks where masks come from.

    Folders merge where network and TTA agree. Every member must have every photo.

    Raises:
        UserError: Photos are missing, a folder is unfinished, masks in and out of fold
            are mixed, or a model made two folders of the same photos; unless `force`.
    """
    members = _merge(folders)
    stems = sorted(set().union(*(folder.masks for folder in folders)))
    problems = [
        *_unfinished(folders),
        *_mixed(folders),
        *_same_models(folders),
        *_missing(members, stems),
    ]
    if problems and not force:
        raise UserError(f"{problems[0]} (--force goes on and records it)")
    unknown = [f"'{f.path}' has no manifest.json" for f in folders if f.manifest is None]
    return Plan(stems, members, problems, unknown)


def combine(
    greys: Sequence[np.ndarray], strategy: str, weights: Sequence[float] | None = None
) -> np.ndarray:
    """Combines K masks of one photo.

    mean: the weighted mean, rounded half up. vote: object (255) where more than half of
    the weight is greater than 127; a tie is object where the rounded mean is greater
    than 127. median: of an even number, the mean of the middle two, rounded half up.
    logit_mean: the weighted mean of log odds, a grey value v being p = (v + 0.5) / 256.

    Args:
        greys: K times `uint8[H, W]`.
        strategy: One of `STRATEGIES`.
        weights: K numbers >= 0, in any scale; None means equal ones. Not for the median.

    Returns:
        `uint8[H, W]`.
    """
    if strategy == "median":
        return _median(greys)
    if strategy == "logit_mean":
        return _logit_mean(greys, normalise(weights or [1.0] * len(greys)))
    units = _units(weights, len(greys))
    if strategy == "mean":
        return _mean(greys, units)
    total = sum(units)
    votes = np.zeros(greys[0].shape, np.int32)
    for grey, unit in zip(greys, units, strict=True):
        table = np.where(np.arange(256) > 127, unit, 0).astype(np.int32)
        cv2.add(votes, cv2.LUT(grey, table), votes)
    tie = 2 * votes == total
    chosen = (2 * votes > total) | (tie & (_mean(greys, units) > 127))
    return chosen.astype(np.uint8) * np.uint8(255)


def png_size(path: Path) -> tuple[int, int]:
    """The (height, width) of a mask, from the first bytes of its file.

    `read_size` also looks for an EXIF orientation, for which Pillow decodes all of a PNG.

    Raises:
        UnreadableImage: Missing, empty or no image.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(24)
    except OSError as error:
        raise UnreadableImage(f"cannot read '{path}': {error.strerror}.") from error
    if len(head) < 24 or head[:4] != b"\x89PNG":
        return read_size(path)
    width, height = struct.unpack(">II", head[16:])
    return height, width


def normalise(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1.

    Raises:
        UserError: One is negative or no number, or all are 0.
    """
    total = sum(weights)
    if not np.isfinite(total) or min(weights) < 0 or total <= 0:
        raise UserError(f"--weights={','.join(map(str, weights))}: give numbers >= 0, not all 0.")
    return [weight / total for weight in weights]


def _units(weights: Sequence[float] | None, count: int) -> list[int]:
    if weights is None or len(set(weights)) == 1:
        return [1] * count
    return [round(weight * _UNIT) for weight in normalise(weights)]


def _mean(greys: Sequence[np.ndarray], units: Sequence[int]) -> np.ndarray:
    total = sum(units)
    if set(units) == {1} and total <= _MOST:
        sums = greys[0].astype(np.uint16)
        for grey in greys[1:]:
            cv2.add(sums, grey, sums, dtype=cv2.CV_16U)
        # OpenCV rounds to nearest; a quarter of the finest step makes a half go up
        # and moves no other value.
        return cv2.convertScaleAbs(sums, alpha=1 / total, beta=0.25 / total)
    sums = np.full(greys[0].shape, total // 2, np.int32)
    for grey, unit in zip(greys, units, strict=True):
        cv2.add(sums, cv2.LUT(grey, (np.arange(256) * unit).astype(np.int32)), sums)
    return (sums // total).astype(np.uint8)


def _median(greys: Sequence[np.ndarray]) -> np.ndarray:
    rows = list(greys)
    # A sorting network: each exchange is two vector instructions.
    for end in range(len(rows) - 1, 0, -1):
        for i in range(end):
            rows[i], rows[i + 1] = cv2.min(rows[i], rows[i + 1]), cv2.max(rows[i], rows[i + 1])
    middle = len(rows) // 2
    return rows[middle] if len(rows) % 2 else _mean(rows[middle - 1 : middle + 1], [1, 1])


def _logit_mean(greys: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    sums = np.zeros(greys[0].shape, np.float32)
    for grey, weight in zip(greys, weights, strict=True):
        sums -= cv2.LUT(grey, (_LOGIT * weight).astype(np.float32))
    # Opposite odds cancel but for rounding; they are 0.5, which is object.
    sums[np.abs(sums) < 1e-5] = 0
    return np.minimum(256 / (1 + cv2.exp(sums)), 255).astype(np.uint8)


def _merge(folders: Sequence[Folder]) -> list[list[Folder]]:
    members: list[list[Folder]] = []
    for folder in folders:
        for member in members:
            alike = _kind(member[0]) == _kind(folder)
            if alike and all(folder.masks.keys().isdisjoint(other.masks) for other in member):
                member.append(folder)
                break
        else:
            members.append([folder])
    return members


def _kind(folder: Folder) -> tuple[list[str], str] | None:
    if folder.manifest is None:
        return None
    networks = {str(model.get("network")) for model in folder.manifest.models}
    return sorted(networks), folder.manifest.tta


def _unfinished(folders: Sequence[Folder]) -> list[str]:
    problems = []
    for folder in folders:
        if folder.manifest is not None:
            try:
                check_manifest(folder.manifest, folder.path, folder.masks)
            except UserError as error:
                problems.append(str(error))
    return problems


def _mixed(folders: Sequence[Folder]) -> list[str]:
    known = [folder for folder in folders if folder.manifest is not None]
    inside = [f for f in known if f.manifest is not None and not f.manifest.out_of_fold]
    if not inside or len(inside) == len(known):
        return []
    outside = next(f for f in known if f not in inside)
    return [
        f"'{outside.path}' is out of fold and '{inside[0].path}' is not; predict the second with "
        "models that were not trained on its photos, or leave it out."
    ]


def _same_models(folders: Sequence[Folder]) -> list[str]:
    problems = []
    for i, one in enumerate(folders):
        for other in folders[:i]:
            common = _digests(one) & _digests(other)
            if common and not one.masks.keys().isdisjoint(other.masks):
                problems.append(
                    f"'{other.path}' and '{one.path}' were made by the same model "
                    f"({min(common)[:8]}); leave one out."
                )
    return problems


def _digests(folder: Folder) -> set[str]:
    models = folder.manifest.models if folder.manifest is not None else ()
    return {str(model["digest"]) for model in models if model.get("digest")}


def _missing(members: Sequence[Sequence[Folder]], stems: Sequence[str]) -> list[str]:
    problems = []
    for member in members:
        lacking = [stem for stem in stems if not any(stem in folder.masks for folder in member)]
        if lacking:
            names = ", ".join(f"'{folder.path}'" for folder in member)
            problems.append(
                f"{names} lacks {len(lacking)} of {len(stems)} photos, the first is "
                f"'{lacking[0]}'; predict them, or leave the folder out."
            )
    return problems
