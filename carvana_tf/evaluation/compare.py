"""Two mask folders on the same photos: the paired difference, photo by photo."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pandas as pd

from carvana_tf.data import names
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError
from carvana_tf.evaluation.pairs import Pair
from carvana_tf.evaluation.scores import interval
from carvana_tf.masks.open_folder import MaskFolder, choose_threshold, warn_or_raise

MEASURES = ("dice", "boundary_f", "band_dice")


def thresholds(
    folder: MaskFolder, other: MaskFolder | None, given: int | None, *, force: bool = False
) -> tuple[int, int, list[str]]:
    """What the masks here and there are cut at, and refusals that `force` skipped.

    Args:
        folder: The masks here.
        other: Those there, None for none.
        given: The flag `--threshold`. Without it each folder has the threshold it was
            post-processed at, and one that was not has the other's.
        force: Take the flag's although the masks were decided by another one.

    Raises:
        UserError: They were, without `force`.
    """
    default = other.threshold if other and other.threshold is not None else DEFAULT_THRESHOLD
    here, problems = choose_threshold(folder.path, folder.manifest, given, default, force=force)
    if other is None:
        return here, here, problems
    there, more = choose_threshold(other.path, other.manifest, given, here, force=force)
    return here, there, [*problems, *more]


def refuse_in_fold(folder: MaskFolder, other: MaskFolder, *, force: bool = False) -> list[str]:
    """Why two folders' scores do not compare: one is out of fold and the other is not.

    Raises:
        UserError: They do not, without `force`.
    """
    if {folder.out_of_fold, other.out_of_fold} != {True, False}:
        return []
    inside, outside = (other, folder) if folder.out_of_fold else (folder, other)
    problem = (
        f"'{outside.path}' is out of fold and '{inside.path}' is not, so its scores may be too "
        "good to compare; predict it with --predict_on_val"
    )
    return [warn_or_raise(problem, force=force)]


def pairs_of(other: MaskFolder, ours: list[Pair]) -> list[Pair]:
    """The pairs of our photos that the other folder holds, with its predictions.

    Raises:
        UserError: It holds none of them.
    """
    masks = names.rekey(other.masks, [pair.stem for pair in ours], f"'{other.path}'")
    found = [
        dataclasses.replace(pair, prediction=masks[pair.stem])
        for pair in ours
        if pair.stem in masks
    ]
    if not found:
        raise UserError(
            f"--compare_mask_dir '{other.path}' holds none of the {len(ours)} scored photos, the "
            f"first is '{ours[0].stem}'; predict the same photos into both folders."
        )
    return found


def per_photo(ours: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The photos both folders have, the largest difference of Dice first.

    Args:
        ours: From `scores.per_photo` of one folder.
        other: The same of the other.

    Returns:
        Columns `id`, `group`, `fold`, and for each of `MEASURES` its value here, with
        `_other` there, and with `_difference` here minus there.
    """
    columns = ["id", *MEASURES]
    both = ours[["id", "group", "fold", *MEASURES]].merge(
        other[columns], on="id", suffixes=("", "_other")
    )
    for name in MEASURES:
        both[f"{name}_difference"] = both[name] - both[f"{name}_other"]
    order = both.assign(size=both["dice_difference"].abs()).sort_values(
        ["size", "id"], ascending=[False, True]
    )
    return order.drop(columns="size").reset_index(drop=True)


def summarise(
    differences: pd.DataFrame, ours: int, other: MaskFolder, seed: int = 80
) -> dict[str, Any]:
    """The comparison's figures, ready for JSON.

    Args:
        differences: From `per_photo`, at least one row.
        ours: How many photos were scored here.
        other: The folder there.
        seed: Of the intervals.

    Returns:
        `other`, `photos`, `notes` (what to mind, one sentence each) and `measures`:
        for each of `MEASURES` its name as `measure`, and `paired`.
    """
    lacking = ours - len(differences)
    notes = [f"{lacking} scored photos have no mask there and are not compared."] * (lacking > 0)
    if other.out_of_fold is False:
        notes.append("the masks there are not out of fold, so they may score too well.")
    return {
        "other": str(other.path),
        "photos": len(differences),
        "notes": notes,
        "measures": [
            {"measure": name}
            | paired(differences[name], differences[f"{name}_other"], differences["group"], seed)
            for name in MEASURES
        ],
    }


def describe(comparison: Mapping[str, Any]) -> str:
    """The lines for the terminal."""
    dice = in_words(comparison["measures"][0], comparison["photos"])
    return "\n".join([*comparison["notes"], f"against {comparison['other']}: {dice}"])


def paired(here: pd.Series, there: pd.Series, groups: pd.Series, seed: int = 80) -> dict[str, Any]:
    """Two scores of the same N photos.

    Returns:
        `mean`, `mean_other`, `difference` (here minus there), `interval` (None with one
        group), `better` and `worse` (shares of the photos).
    """
    values = pd.Series(here.to_numpy() - there.to_numpy())
    return {
        "mean": float(here.mean()),
        "mean_other": float(there.mean()),
        "difference": float(values.mean()),
        "interval": interval(values, groups, seed),
        "better": float((values > 0).mean()),
        "worse": float((values < 0).mean()),
    }


def in_words(pair: Mapping[str, Any], photos: int) -> str:
    """What `paired` found of the Dice of so many photos, for the terminal."""
    interval = "no interval of one group"
    if pair["interval"]:
        interval = "95 % interval {:+.5f}..{:+.5f}".format(*pair["interval"])
    return (
        f"mean Dice {pair['difference']:+.5f} ({interval}, {100 * pair['better']:.1f} % of "
        f"{photos} photos better, {100 * pair['worse']:.1f} % worse)"
    )
