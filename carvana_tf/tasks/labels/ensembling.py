"""Tables of scores as members of an ensemble: the mean of their scores, photo by photo."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from carvana_tf.data import names
from carvana_tf.errors import UserError
from carvana_tf.files import held
from carvana_tf.masks import ensembling, manifest
from carvana_tf.masks.ensembling import EnsemblePlan, Rule, Weights
from carvana_tf.masks.growing import InOrder
from carvana_tf.masks.open_folder import MaskFolder, warn_or_raise
from carvana_tf.masks.postprocess import parse as parse_steps
from carvana_tf.progress import bar
from carvana_tf.tasks.labels import table
from carvana_tf.tasks.labels.table import PhotoLabels, open_scores

_Rows = dict[str, PhotoLabels]


@dataclasses.dataclass(frozen=True)
class Members:
    """Tables that are combined.

    Attributes:
        plan: Which photos are where, checked as for masks: provenance, folds, missing photos.
        rows: By folder, the photos of its table by stem.
    """

    plan: EnsemblePlan
    rows: dict[Path, _Rows]


def open_members(paths: Sequence[Path], *, allow_in_fold: bool, force: bool) -> Members:
    """Reads the tables of some folders; each takes about 3 KB of memory per photo.

    Raises:
        UserError: One is damaged, or they do not fit, see `masks.ensembling.plan`.
    """
    folders, rows = [], {}
    known: dict[str, None] = {}
    for path in paths:
        found = open_scores(path)
        own = {names.stem(photo.photo): photo for photo in found.rows()}
        if not own:
            raise UserError(f"'{path}' holds no photo; predict into it first.")
        # One name for each photo, as in the plan, however the file systems of two tables spell it.
        spelled = names.match(own, known, f"'{path}'")
        rows[path] = {spelled.get(stem, stem): photo for stem, photo in own.items()}
        known.update(dict.fromkeys(rows[path]))
        files = dict.fromkeys(sorted(own), path / table.NAME)
        folders.append(MaskFolder(path, files, found.manifest))
    plan = ensembling.plan(folders, allow_in_fold=allow_in_fold, force=force)
    problems = _misfits(folders)
    for problem in problems:
        warn_or_raise(problem, force=force)
    return Members(dataclasses.replace(plan, problems=[*plan.problems, *problems]), rows)


def _misfits(folders: Sequence[MaskFolder]) -> list[str]:
    """What keeps the scores of two tables from being averaged, a sentence for each."""
    problems = []
    for key, differ in (
        (
            "classes",
            "are of models of different labels: one that a model lacks would count as 0",
        ),
        ("scoring", "have scores of different kinds, of the ranking loss and of another"),
    ):
        first: dict[str, Path] = {}
        for folder in folders:
            for model in folder.manifest.models if folder.manifest is not None else ():
                if model.get(key):
                    first.setdefault(str(model[key]), folder.path)
        if len(first) > 1:
            one, other, *_ = first.values()
            problems.append(f"'{one}' and '{other}' {differ}; leave one out.")
    return problems


def mean(found: Sequence[tuple[PhotoLabels, float]]) -> tuple[list[str], np.ndarray]:
    """The weighted mean of the scores of a photo, the best label first.

    A label that a table does not have for the photo counts as 0 there: it is none of its best.

    Args:
        found: What each member has for the photo, and its share; shares sum to 1.

    Returns:
        Labels, and scores `float32[k]`.
    """
    total: dict[str, float] = {}
    for photo, share in found:
        for label, score in zip(photo.labels, photo.scores, strict=True):
            total[label] = total.get(label, 0.0) + share * float(score)
    order = sorted(total, key=lambda label: (-total[label], label))
    scores = np.array([total[label] for label in order], np.float32)
    return order, np.minimum(scores, np.float32(1))


def combine(
    members: Members,
    weights: Weights,
    folder: Path,
    forced: Sequence[str] = (),
    *,
    overwrite: bool = False,
) -> int:
    """Writes the mean of all members' tables, and its manifest, into a folder.

    Args:
        members: What is combined.
        weights: Of the members.
        folder: Where the table goes; a begun one is completed.
        forced: Refusals that `--force` turned into warnings.
        overwrite: Combine again what is there.

    Returns:
        How many photos were combined now.

    Raises:
        UserError: The folder holds a table of another origin.
    """
    plan = members.plan
    made = dataclasses.replace(
        ensembling.describe(plan, Rule("mean", weights, parse_steps([])), forced),
        encoding=table.ENCODING,
        task=manifest.LABELS,
    )
    if overwrite:
        table.discard(folder)
    with held(folder), table.growing(folder) as rows:
        present = manifest.begin(
            folder, made, plan.stems, rows=[names.stem(photo) for photo in rows.done]
        )
        todo = [stem for stem in plan.stems if stem not in present]
        photos = {stem: _photo(members, stem) for stem in todo}
        ordered = InOrder(rows.add, list(photos.values()))
        for stem in bar(todo, total=len(todo), desc="combining", unit="photo"):
            found = _found(members, stem, weights)
            ordered.put(photos[stem], table.row(photos[stem], *mean(found)))
        rows.finish(Path(folder) / table.NAME)
    return len(todo)


def _found(members: Members, stem: str, weights: Weights) -> list[tuple[PhotoLabels, float]]:
    found = [
        (members.rows[folder.path][stem], 1.0 if weights.default is None else weights.default[i])
        for i, member in enumerate(members.plan.members)
        for folder in member
        if stem in folder.masks
    ]
    total = sum(share for _, share in found)
    if not total:  # the members that count lack it, by --force
        return [(photo, 1 / len(found)) for photo, _ in found]
    return [(photo, share / total) for photo, share in found]


def _photo(members: Members, stem: str) -> str:
    """The file name of a photo, as the first table that has it says."""
    return next(rows[stem].photo for rows in members.rows.values() if stem in rows)
