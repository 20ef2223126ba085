"""Mask folders as members of an ensemble: where their masks come from, and combining them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from carvana_tf.data import names
from carvana_tf.data.images import encode_mask, encode_probability, read_grey, resize
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.filenames import MANIFEST
from carvana_tf.files import write_bytes
from carvana_tf.masks import combining
from carvana_tf.masks.folder import MaskFolder, incomplete, overrule


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
    members: list[list[MaskFolder]]
    problems: list[str]
    warnings: list[str]

    @property
    def folders(self) -> list[MaskFolder]:
        """The folders of all members."""
        return [folder for member in self.members for folder in member]

    @property
    def out_of_fold(self) -> bool:
        """Whether every folder is known to be out of fold."""
        return all(folder.out_of_fold for folder in self.folders)

    def files(self, stem: str) -> list[tuple[int, Path]]:
        """Each member's number and PNG of a photo."""
        return [
            (i, folder.masks[stem])
            for i, member in enumerate(self.members)
            for folder in member
            if stem in folder.masks
        ]


def plan(
    folders: Sequence[MaskFolder], *, allow_in_fold: bool = False, force: bool = False
) -> Plan:
    """Merges folders without common photos into members and checks where masks come from.

    Folders merge where network and TTA agree. Every member must have every photo.

    Args:
        folders: To be combined.
        allow_in_fold: Whether some may be out of fold and some not.
        force: Go on whatever is wrong, with a warning.

    Raises:
        UserError: Photos are missing, a folder is unfinished, masks in and out of fold
            are mixed, or a model made two folders of the same photos; unless `force`.
    """
    named = _with_common_names(folders)
    members = _merge(named)
    stems = sorted(set().union(*(folder.masks for folder in named)))
    problems = [
        *_unfinished(folders),
        *([] if allow_in_fold else _mixed(folders)),
        *same_models(folders),
        *_missing(members, stems),
    ]
    for problem in problems:
        overrule(problem, force=force)
    unknown = [f"'{f.path}' has no {MANIFEST}" for f in folders if f.manifest is None]
    return Plan(stems, members, problems, unknown)


def combine_photo(
    plan: Plan,
    stem: str,
    folder: Path,
    strategy: str,
    weights: Sequence[float] | None = None,
    steps: Callable[[np.ndarray], np.ndarray] = lambda grey: grey,
    threshold: int = DEFAULT_THRESHOLD,
    save: Callable[[Path, bytes], object] = write_bytes,
) -> None:
    """Reads a photo's masks, combines them, and writes `<folder>/<stem>.png`.

    Args:
        plan: Its members.
        stem: The photo.
        folder: Where the PNG goes.
        strategy: One of `combining.STRATEGIES`.
        weights: One per member; None means equal ones, as of a photo that only members of
            weight 0 have.
        steps: What is done to the combined mask.
        threshold: Of a vote, 0..254.
        save: Writes a file.

    Raises:
        UnreadableImage: A PNG is damaged.
    """
    files = plan.files(stem)
    shares = None if weights is None else [weights[i] for i, _ in files]
    if shares is not None and not any(shares):  # the members that count lack it, by --force
        shares = None
    greys = [read_grey(path) for _, path in files]
    greys = [resize(grey, *greys[0].shape) for grey in greys]
    combined = steps(combining.combine(greys, strategy, shares, threshold))
    # The values of a vote are two, for which there is a faster filter.
    png = encode_mask(combined > 0) if strategy == "vote" else encode_probability(combined)
    save(folder / f"{stem}.png", png)


def _merge(folders: Sequence[MaskFolder]) -> list[list[MaskFolder]]:
    members: list[list[MaskFolder]] = []
    for folder in folders:
        for member in members:
            alike = _kind(member[0]) == _kind(folder)
            if alike and all(folder.masks.keys().isdisjoint(other.masks) for other in member):
                member.append(folder)
                break
        else:
            members.append([folder])
    return members


def _kind(folder: MaskFolder) -> tuple[list[str], str] | None:
    if folder.manifest is None:
        return None
    networks = {str(model.get("network")) for model in folder.manifest.models}
    return sorted(networks), folder.manifest.tta


def _unfinished(folders: Sequence[MaskFolder]) -> list[str]:
    return [problem for folder in folders for problem in incomplete(folder)]


def _mixed(folders: Sequence[MaskFolder]) -> list[str]:
    outside = [folder for folder in folders if folder.out_of_fold]
    inside = [folder for folder in folders if folder.out_of_fold is False]
    if not inside or not outside:
        return []
    return [
        f"'{outside[0].path}' is out of fold and '{inside[0].path}' is not; predict the second "
        "with models that were not trained on its photos, or leave it out."
    ]


def same_models(folders: Sequence[MaskFolder]) -> list[str]:
    """One sentence for each two folders in which one model predicted the same photos."""
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


def _digests(folder: MaskFolder) -> set[str]:
    models = folder.manifest.models if folder.manifest is not None else ()
    return {str(model["digest"]) for model in models if model.get("digest")}


def _with_common_names(folders: Sequence[MaskFolder]) -> list[MaskFolder]:
    """The folders, whose masks of one photo have one name, however a file system spells it."""
    seen: dict[str, None] = {}
    found = []
    for folder in folders:
        spelled = names.match(folder.masks, seen, f"'{folder.path}'")
        masks = {spelled.get(stem, stem): path for stem, path in folder.masks.items()}
        found.append(dataclasses.replace(folder, masks=masks))
        seen.update(dict.fromkeys(masks))
    return found


def _missing(members: Sequence[Sequence[MaskFolder]], stems: Sequence[str]) -> list[str]:
    problems = []
    for member in members:
        lacking = [stem for stem in stems if not any(stem in folder.masks for folder in member)]
        if lacking:
            listed = ", ".join(f"'{folder.path}'" for folder in member)
            problems.append(
                f"{listed} lacks {len(lacking)} of {len(stems)} photos, the first is "
                f"'{lacking[0]}'; predict them, or leave the folder out."
            )
    return problems
