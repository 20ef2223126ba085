"""Suggests which photos to annotate next: those on whose contours masks agree least.

python tools/suggest_photos.py --pred_mask_dirs=predicted/fold_0,predicted/fold_1 \\
    --dataset_dir=input --test_data_dir=input/test --out_dir=suggestions

Takes the masks of several models, as those of folds, or the probabilities of one. Writes a table
and a contact sheet. See docs/own_photos.md.
"""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from carvana_tf import files
from carvana_tf.cli import Command
from carvana_tf.data import bad_files, names
from carvana_tf.data.dataset import list_masks, photos_of_masks
from carvana_tf.data.images import write_photo
from carvana_tf.data.names import printable
from carvana_tf.data.tables import write_table
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.evaluation import suggestions
from carvana_tf.evaluation.suggestions import Candidate, Suggestion
from carvana_tf.flags import Values, option
from carvana_tf.interrupt import interruptible
from carvana_tf.masks import ensembling
from carvana_tf.masks.open_folder import choose_threshold, open_folder
from carvana_tf.options import DatasetOptions
from carvana_tf.progress import bar

TABLE, SHEET = "suggestions.csv", "suggestions.jpg"
_SHOWN = 20  # rows and problems that are printed; the tables have all


@dataclasses.dataclass(frozen=True)
class SuggestOptions:
    """The masks, the photos, and how many are suggested."""

    pred_mask_dirs: tuple[str, ...] = option(
        (),
        "Folders of masks of the same photos, comma-separated: the photos on which they differ "
        "most are suggested; of one folder of probabilities, those that it is least sure of.",
        alias="pred_mask_dir",
    )
    test_data_dir: str | None = option(
        None,
        "Folder of the photos; by default 'test' inside --dataset_dir.",
        key="test_photos",
        inside=True,
    )
    train_mask_dir_name: str = option(
        "train_masks",
        "Folder, inside --dataset_dir, of the ground-truth masks; photos that have one are left "
        "out.",
        alias="train_mask_dir",
        key="masks",
    )
    out_dir: str | None = option(None, f"Folder for '{TABLE}' and '{SHEET}'.")
    count: int = option(20, "Photos to suggest, at most.", lower=1, upper=suggestions.MOST)
    per_group: int = option(
        1, "Photos of one group, at most: see --group_pattern.", lower=1, upper=suggestions.MOST
    )
    threads: int = option(4, "Threads that read masks and photos.", lower=1)
    force: bool = option(False, "Go on where folders do not fit, with a warning.")


def validate(values: Values, problems: Problems) -> None:
    """Adds what is missing or does not exist."""
    dataset, options = values[DatasetOptions], values[SuggestOptions]
    if not options.pred_mask_dirs:
        problems.add("--pred_mask_dirs is missing; name the folders of the masks.")
    for path in options.pred_mask_dirs:
        missing = not Path(path).is_dir()
        problems.add(f"--pred_mask_dirs: '{path}' {absent(path)}", missing)
    if len({Path(path).resolve() for path in options.pred_mask_dirs}) < len(options.pred_mask_dirs):
        problems.add("--pred_mask_dirs names a folder twice; name each once.")
    if options.out_dir is None:
        problems.add("--out_dir is missing; name the folder for the suggestions.")
    problems.attempt(lambda: dataset.naming)
    problems.attempt(lambda: dataset.reading)
    problems.attempt(_photo_dir, dataset, options)
    if values.is_set("train_mask_dir_name"):
        flag = "train_mask_dir_name"
        problems.attempt(dataset.existing_folder, options.train_mask_dir_name, flag)


def run(values: Values) -> None:
    """Measures every photo without ground truth, and writes the table and the contact sheet."""
    dataset, options = values[DatasetOptions], values[SuggestOptions]
    candidates = _candidates(dataset, options)
    out = Path(options.out_dir or "")
    with files.held(out):
        results = interruptible(suggestions.scored(candidates, options.threads))
        found, bad = [], []
        for one in bar(results, total=len(candidates), desc="comparing masks", unit="photo"):
            if isinstance(one, Suggestion):
                found.append(one)
            else:
                bad.append(one)
        bad_files.record(out, bad)
        chosen = suggestions.choose(found, options.count, options.per_group)
        if chosen:
            # The old sheet belongs to the old table.
            (out / SHEET).unlink(missing_ok=True)
            write_table(out / TABLE, suggestions.COLUMNS, suggestions.rows(chosen))
            sheet = suggestions.contact_sheet(chosen, dataset.reading, options.threads)
            write_photo(out / SHEET, sheet, 88)
    _print(chosen, candidates, options)
    for _, problem in bad[:_SHOWN]:
        print(f"unreadable: {printable(problem)}", file=sys.stderr)
    if bad:
        raise UserError(
            f"{len(bad)} photos were not compared; all are listed in '{out / bad_files.NAME}'; "
            "replace the files, and run the same command again."
        )


def _photo_dir(dataset: DatasetOptions, options: SuggestOptions) -> Path:
    if options.test_data_dir and Path(options.test_data_dir).is_dir():
        return Path(options.test_data_dir)
    return dataset.existing_folder(options.test_data_dir or "test", "test_data_dir")


def _candidates(dataset: DatasetOptions, options: SuggestOptions) -> list[Candidate]:
    """The photos that have masks and no ground truth.

    Raises:
        UserError: There is none, folders do not fit each other, or photos are missing.
    """
    several = len(options.pred_mask_dirs) > 1
    folders = [open_folder(Path(path), binary=several) for path in options.pred_mask_dirs]
    # One model may have predicted a photo in several views.
    plan = ensembling.plan(folders, allow_in_fold=True, allow_same_model=True, force=options.force)
    truth_dir = dataset.folder(options.train_mask_dir_name)
    truths = list_masks(truth_dir, dataset.naming) if truth_dir.is_dir() else {}
    labelled = set(names.match(truths, plan.stems, f"'{truth_dir}'").values())
    unlabelled = [stem for stem in plan.stems if stem not in labelled]
    # Only with --force some lack a mask.
    stems = [stem for stem in unlabelled if len(plan.files(stem)) == len(plan.members)]
    print(f"{len(stems)} photos, {len(labelled)} others have ground truth in '{truth_dir}'")
    if not unlabelled:
        raise UserError(
            f"every photo of '{folders[0].path}' has ground truth in '{truth_dir}'; predict others."
        )
    if not stems:
        raise UserError(
            f"none of {len(unlabelled)} photos without ground truth has a mask of every member; "
            "name in --pred_mask_dirs folders of the same photos."
        )
    photos = photos_of_masks(_photo_dir(dataset, options), stems, folders[0].path, "test_data_dir")
    members = tuple(" + ".join(each) for each in plan.names)
    limit = {f.path: choose_threshold(f.path, f.manifest, None)[0] for f in plan.folders}
    found = []
    for stem in stems:
        masks = tuple(path for _, path in plan.files(stem))
        thresholds = tuple(limit[path.parent] for path in masks)
        group = dataset.naming.group(stem)
        found.append(Candidate(stem, group, photos[stem], masks, members, thresholds))
    return found


def _print(
    chosen: Sequence[Suggestion], candidates: Sequence[Candidate], options: SuggestOptions
) -> None:
    for rank, photo, _, score, why in list(suggestions.rows(chosen))[:_SHOWN]:
        print(printable(f"{rank:3} {score} {photo}: {why}"))
    if not chosen:
        return
    if len(chosen) < min(options.count, len(candidates)):
        groups = len({one.group for one in candidates})
        print(
            f"{len(chosen)} photos of {groups} groups; for more of a group give --per_group, where "
            "groups are not what they should be --group_pattern"
        )
    out = Path(options.out_dir or "")
    print(f"{len(chosen)} photos -> {out / TABLE}, {out / SHEET}")
    arguments = (
        f"--pred_mask_dir={chosen[0].candidate.masks[0].parent}",
        f"--photo_dir={chosen[0].candidate.photo.parent}",
        f"--photo_list={out / TABLE}",
        "--format=labelme",
        f"--out_dir={out / 'to_correct'}",
    )
    command = " ".join(map(shlex.quote, arguments))
    print(printable(f"to correct their masks: carvana-tf export_masks {command}"))


COMMAND = Command(__doc__, (SuggestOptions, DatasetOptions), run, validate)
