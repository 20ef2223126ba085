"""Mask folders as members of an ensemble: where their masks come from, and combining them."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from carvana_tf import __version__, shards
from carvana_tf.data import bad_files, names
from carvana_tf.data.images import (
    UnreadableImage,
    encode_mask,
    encode_probability,
    read_grey,
    read_size,
    resize,
)
from carvana_tf.errors import UserError
from carvana_tf.filenames import MANIFEST
from carvana_tf.files import Group, digest_of_lines, write_bytes
from carvana_tf.interrupt import Interrupt, interruptible
from carvana_tf.masks import combining
from carvana_tf.masks import manifest as manifests
from carvana_tf.masks.open_folder import MaskFolder, choose_threshold, incomplete, warn_or_raise
from carvana_tf.masks.postprocess import Pipeline
from carvana_tf.progress import bar
from carvana_tf.shards import Shard
from carvana_tf.threads import ordered_map


@dataclasses.dataclass(frozen=True)
class EnsemblePlan:
    """What is combined.

    Attributes:
        stems: All photos, sorted.
        members: Each one's folders; those of a member share no photo.
        problems: Refusals that `--force` turned into warnings.
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

    @property
    def names(self) -> list[list[str]]:
        """The names of each member's folders."""
        return [[folder.path.name for folder in member] for member in self.members]

    def files(self, stem: str) -> list[tuple[int, Path]]:
        """Each member's number and PNG of a photo."""
        return [
            (i, folder.masks[stem])
            for i, member in enumerate(self.members)
            for folder in member
            if stem in folder.masks
        ]


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weight of each member.

    Attributes:
        default: Of all photos but those in `by_photo`; None means equal ones.
        by_photo: Other weights, by stem.
        fit: How they were fitted, for the manifest.
    """

    default: list[float] | None = None
    by_photo: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)
    fit: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the masks of a photo become one.

    Attributes:
        strategy: One of `combining.STRATEGIES`.
        weights: Of the members.
        steps: What is done to the combined mask; a vote is cut at its threshold.
    """

    strategy: str
    weights: Weights
    steps: Pipeline


def plan(
    folders: Sequence[MaskFolder],
    *,
    allow_in_fold: bool = False,
    allow_same_model: bool = False,
    force: bool = False,
) -> EnsemblePlan:
    """Merges folders without common photos into members and checks where masks come from.

    Folders merge where network and TTA agree. Every member must have every photo.

    Args:
        folders: To be combined.
        allow_in_fold: Whether some may be out of fold and some not.
        allow_same_model: Whether one model may have made two folders of the same photos.
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
        *([] if allow_same_model else same_models(folders)),
        *_missing(members, stems),
    ]
    for problem in problems:
        warn_or_raise(problem, force=force)
    unknown = [f"'{f.path}' has no {MANIFEST}" for f in folders if f.manifest is None]
    return EnsemblePlan(stems, members, problems, unknown)


def given_weights(plan: EnsemblePlan, numbers: Sequence[str]) -> Weights:
    """The weights that `--weights` names; equal ones for none.

    Raises:
        UserError: They are not as many as members, or no weights.
    """
    if not numbers:
        return Weights()
    if len(numbers) != len(plan.members):
        members = "; ".join(" + ".join(folders) for folders in plan.names)
        raise UserError(
            f"--weights has {len(numbers)} numbers for {len(plan.members)} members ({members}); "
            "give one for each."
        )
    try:
        return Weights(combining.normalise([float(text) for text in numbers]))
    except ValueError as error:
        raise UserError(
            f"--weights={','.join(numbers)}: {error}; give one number per member."
        ) from error


def mixed_sizes(plan: EnsemblePlan, threads: int, *, force: bool = False) -> list[str]:
    """The first photo whose masks differ in size; with `force` they are resized to the first.

    Masks that cannot be read are left to `combine`, which lists them all.

    Raises:
        UserError: There is one, without `force`.
    """

    def sizes(stem: str) -> list[tuple[Path, tuple[int, int]]]:
        try:
            return [(path, read_size(path)) for _, path in plan.files(stem)]
        except UnreadableImage:
            return []

    for found in interruptible(ordered_map(sizes, plan.stems, threads)):
        if not found:
            continue
        (first, size), *others = found
        for path, other in others:
            if other != size:
                problem = (
                    f"'{path}' is {other[1]}x{other[0]}, but '{first}' is {size[1]}x{size[0]}; "
                    "predict both at the photo's own size"
                )
                return [warn_or_raise(problem, force=force)]
    return []


def common_threshold(
    plan: EnsemblePlan, given: int | None, *, force: bool = False
) -> tuple[int, list[str]]:
    """The threshold that all folders may be cut at, and refusals that `force` skipped.

    Args:
        plan: The folders.
        given: The flag `--threshold`, None for that of the folders.
        force: Go on where two folders, or the flag, have another one.

    Raises:
        UserError: They have, without `force`.
    """
    decided = [folder for folder in plan.folders if folder.threshold is not None]
    problems: list[str] = []
    for folder in decided[1:]:
        if folder.threshold != decided[0].threshold:
            problem = (
                f"'{decided[0].path}' was post-processed at grey > {decided[0].threshold}, but "
                f"'{folder.path}' at {folder.threshold}: no threshold is right for both; make one "
                "of them again with the other's --threshold"
            )
            problems.append(warn_or_raise(problem, force=force))
            break
    first = (decided or plan.folders)[0]
    threshold, contradictions = choose_threshold(first.path, first.manifest, given, force=force)
    return threshold, [*problems, *contradictions]


def combine(
    plan: EnsemblePlan,
    rule: Rule,
    folder: Path,
    made: manifests.Manifest,
    threads: int,
    *,
    overwrite: bool = False,
    shard: Shard | None = None,
) -> list[tuple[str, str]]:
    """Combines the photos that the folder does not hold yet, and writes its manifest.

    Args:
        plan: The members.
        rule: How their masks become one.
        folder: Where the PNGs go.
        made: Its manifest, from `describe`.
        threads: That read, combine and write.
        overwrite: Combine again what is there.
        shard: Combine only its photos, while others combine theirs into the same folder.

    Returns:
        The file name and the problem of each photo whose masks cannot be read.

    Raises:
        UserError: The folder holds masks of another origin.
        KeyboardInterrupt: After what was begun was finished.
    """

    def one(stem: str) -> tuple[str, str] | None:
        try:
            combine_photo(plan, rule, stem, folder, group.write_bytes)
        except UnreadableImage as error:
            return f"{stem}.png", str(error)
        return None

    mine = [stem for stem in plan.stems if shard is None or shard.has(stem)]
    with Interrupt() as interrupt, shards.held(folder, shard), Group() as group:
        shards.begin(folder, shard)
        present = manifests.begin(folder, made, plan.stems, overwrite=overwrite, shard=shard)
        todo = [stem for stem in mine if stem not in present]
        counts = f"{len(mine)} photos, {len(present)} already combined"
        print(f"{counts}; {len(plan.members)} members")
        results = interruptible(ordered_map(one, todo, threads), interrupt)
        bad = [each for each in bar(results, total=len(todo), unit="mask") if each is not None]
        bad_files.record(shards.own_folder(folder, shard), bad)
    shards.finish(folder, shard, unreadable=len(bad))
    return bad


def combine_photo(
    plan: EnsemblePlan,
    rule: Rule,
    stem: str,
    folder: Path,
    save: Callable[[Path, bytes], object] = write_bytes,
) -> None:
    """Reads a photo's masks, combines them, and writes `<folder>/<stem>.png`.

    Args:
        plan: Its members.
        rule: How the masks become one. A photo that only members of weight 0 have is their mean.
        stem: The photo.
        folder: Where the PNG goes.
        save: Writes a file.

    Raises:
        UnreadableImage: A PNG is damaged.
    """
    files = plan.files(stem)
    weights = rule.weights.by_photo.get(stem, rule.weights.default)
    shares = None if weights is None else [weights[i] for i, _ in files]
    if shares is not None and not any(shares):  # the members that count lack it, by --force
        shares = None
    greys = [read_grey(path) for _, path in files]
    greys = [resize(grey, *greys[0].shape) for grey in greys]
    combined = rule.steps(combining.combine(greys, rule.strategy, shares, rule.steps.threshold))
    # The values of a vote are two, for which there is a faster filter.
    vote = rule.strategy == "vote"
    png = encode_mask(combined > 0) if vote else encode_probability(combined)
    save(folder / f"{stem}.png", png)


def describe(plan: EnsemblePlan, rule: Rule, forced: Sequence[str] = ()) -> manifests.Manifest:
    """The manifest of the combined masks.

    Args:
        plan: What is combined.
        rule: How.
        forced: Refusals that `--force` skipped.
    """
    known = [folder.manifest for folder in plan.folders if folder.manifest is not None]

    def common(values: set[str]) -> str:
        return values.pop() if len(values) == 1 else "mixed" if values else "unknown"

    models = [model for one in known for model in one.models]
    # Of a folder without manifest that much is known: there was a model.
    models += [
        {"file": None, "network": None, "fold": None, "training_groups": None}
        for folder in plan.folders
        if folder.manifest is None
    ]
    stacked = sorted({one.stacked for one in known if one.stacked is not None})
    ensemble: dict[str, Any] = {
        "strategy": rule.strategy,
        "weights": rule.weights.default,
        "postprocess": rule.steps.text,
        "threshold": rule.steps.threshold,
        "members": plan.names,
        # Masks of other tiles, boxes or engines, under the same name, are others.
        "manifests_digest": digest_of_lines([_origin(folder) for folder in plan.folders]),
        "forced": list(forced),
    }
    if rule.weights.fit is not None:
        ensemble["fitted"] = rule.weights.fit
    decides = bool(rule.steps.text) or rule.strategy == "vote"
    decided = decides or any(folder.threshold is not None for folder in plan.folders)
    return manifests.Manifest(
        models=tuple(model for i, model in enumerate(models) if model not in models[:i]),
        out_of_fold=plan.out_of_fold and not forced,
        tta=common({one.tta for one in known}),
        engine=common({one.engine for one in known}),
        dtype=common({one.dtype for one in known}),
        photos=len(plan.stems),
        photos_digest=digest_of_lines(plan.stems),
        encoding=manifests.ENCODING,
        version=__version__,
        ensemble=ensemble,
        stacked=digest_of_lines(stacked) if stacked else None,
        threshold=rule.steps.threshold if decided else None,
        extensions=_extensions(plan),
    )


def _origin(folder: MaskFolder) -> str:
    """What made a folder, independent of its name and of the version that wrote it."""
    if folder.manifest is None:
        return ""
    content = dataclasses.asdict(folder.manifest)
    kept = {key: value for key, value in content.items() if key not in manifests.FREE}
    return json.dumps(kept, sort_keys=True)


def _extensions(plan: EnsemblePlan) -> dict[str, list[str]] | None:
    """The photos' extensions, where manifests have that of each, and all the same."""
    found: dict[str, set[str]] = {stem: set() for stem in plan.stems}
    for folder in plan.folders:
        if folder.manifest is not None:
            for stem, name in folder.manifest.photo_names(folder.masks).items():
                found[stem].add(names.extension(name))
    if any(len(extensions) != 1 for extensions in found.values()):
        return None
    return manifests.extensions_of((stem, each) for stem, (each,) in found.items())


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
