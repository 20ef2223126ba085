"""Which prediction belongs to which truth, and reading both."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from carvana_tf.data import names
from carvana_tf.data.dataset import Naming, why_unmatched
from carvana_tf.data.folds import find_folds
from carvana_tf.data.images import AS_DECLARED, Reading, UnreadableImage, read_grey, read_mask
from carvana_tf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pair:
    """A photo to be scored: its stem, group, fold (None if unknown), two files, view, and how the
    truth and the photo are understood.
    """

    stem: str
    group: str
    fold: int | None
    prediction: Path
    truth: Path
    view: str | None = None
    reading: Reading = AS_DECLARED


@dataclasses.dataclass(frozen=True)
class Matching:
    """Predictions and truth brought together.

    Attributes:
        pairs: What can be scored, sorted by stem.
        without_truth: Stems of predictions that have no truth.
        without_prediction: Stems of ground-truth masks that have no prediction.
    """

    pairs: list[Pair]
    without_truth: list[str]
    without_prediction: list[str]


def match(
    predictions: Mapping[str, Path],
    truths: Mapping[str, Path],
    naming: Naming,
    folds: Mapping[str, int],
    *,
    only_fold: int | None = None,
    whole_folds: Iterable[int] = (),
    reading: Reading = AS_DECLARED,
) -> Matching:
    """Pairs predictions with truth by stem.

    Args:
        predictions: Probability PNGs by stem.
        truths: Masks by the stem of their photo.
        naming: Gives the group of a stem.
        folds: Fold by group, or by stem in an image-level table; may be empty.
        only_fold: Score this fold alone; None scores all.
        whole_folds: Folds of which every photo with truth must have a prediction.
        reading: How the truth is understood.

    Raises:
        UserError: Nothing can be scored, or a whole fold lacks predictions.
    """

    found = names.match(predictions, truths, "the folder of predictions")
    # The name of a file that has its photo's extension within it is the longer one.
    stem_of = {truth: min(truth, name, key=len) for name, truth in found.items()}
    predicted = {truth: predictions[name] for name, truth in found.items()}
    stems = [stem_of.get(truth, truth) for truth in truths]
    fold_of_stem = find_folds({stem: naming.group(stem) for stem in stems}, folds)
    fold_of = {truth: fold_of_stem.get(stem) for truth, stem in zip(truths, stems, strict=True)}

    wanted = {truth for truth in truths if only_fold is None or fold_of[truth] == only_fold}
    if only_fold is not None and not wanted:
        raise UserError(_why_no_fold(only_fold, stems, fold_of.values(), naming))
    scored = sorted(wanted & set(predicted))
    without_prediction = sorted(wanted - set(predicted))
    if not scored:
        raise UserError(_why_unscored(predictions, truths, found, naming, only_fold))
    whole = set(whole_folds)
    lacking = [stem for stem in without_prediction if fold_of[stem] in whole]
    if lacking:
        raise UserError(
            f"{len(lacking)} photos of fold {', '.join(map(str, sorted(whole)))} have no "
            f"prediction, the first is '{lacking[0]}'; predict them, or score what is there "
            "with --partial."
        )
    return Matching(
        [
            Pair(
                stem,
                naming.group(stem),
                fold_of[t],
                predicted[t],
                truths[t],
                view(stem, naming),
                reading,
            )
            for t in scored
            for stem in [stem_of[t]]
        ],
        sorted(set(predictions) - set(found)),
        without_prediction,
    )


def _why_no_fold(
    fold: int, stems: Sequence[str], folds: Iterable[int | None], naming: Naming
) -> str:
    """Why no truth is of a fold that exists."""
    known = sorted({number for number in folds if number is not None})
    if known:
        return (
            f"no photo with a ground-truth mask is in --fold={fold}; they are in "
            f"{', '.join(map(str, known))}: choose one of these, or add masks of that fold."
        )
    return (
        f"the folds file names none of the {len(stems)} photos with a ground-truth mask (the first "
        f"is '{stems[0]}' of the group '{naming.group(stems[0])}'); name the file of this dataset "
        "with --folds_source, or give the --group_pattern it was made with."
    )


def _why_unscored(
    predictions: Mapping[str, Path],
    truths: Mapping[str, Path],
    found: Mapping[str, str],
    naming: Naming,
    fold: int | None,
) -> str:
    """Why no prediction meets a truth."""
    if found:
        return (
            f"none of the {len(found)} predictions with a ground-truth mask is in --fold={fold}; "
            "leave --fold out, or predict that fold."
        )
    example = next(iter(predictions))
    folder = next(iter(truths.values())).parent
    needed = f"{example}{naming.mask_suffix}{naming.mask_extension or '.gif'}"
    why = why_unmatched(folder, naming, predictions.keys())
    return (
        f"none of {len(predictions)} predictions has a ground-truth mask (the first, '{example}', "
        f"needs '{needed}'): {why}"
    )


def view(stem: str, naming: Naming) -> str | None:
    """The number after the group in a photo's stem ("07" of `fff9b3a5373f_07`), if any."""
    number = re.search(r"\d+", stem.partition(naming.group(stem))[2])
    return number.group() if number else None


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """The grey values `uint8[H, W]` and the truth `bool[H, W]` of a pair.

    Raises:
        UnreadableImage: A file is unreadable, or the two sizes differ.
    """
    grey, truth = read_grey(pair.prediction), read_mask(pair.truth, pair.reading)
    if grey.shape != truth.shape:
        raise UnreadableImage(
            f"'{pair.prediction}' is {grey.shape[1]}x{grey.shape[0]}, but its ground truth "
            f"'{pair.truth}' is {truth.shape[1]}x{truth.shape[0]}; predict at the photo's "
            "own size, or replace the ground-truth mask."
        )
    return grey, truth
