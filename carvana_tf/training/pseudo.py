"""Predicted masks of unlabelled photos as further training samples."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from carvana_tf.data.dataset import Naming, Sample, find_photos, with_masks
from carvana_tf.data.images import AS_DECLARED, Reading, read_grey
from carvana_tf.errors import UserError
from carvana_tf.filenames import MANIFEST
from carvana_tf.files import digest_of_lines
from carvana_tf.masks import manifest
from carvana_tf.masks.open_folder import MaskFolder
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

# Grey values of probabilities below 0.1 and above 0.9.
_SURE_BACKGROUND = 25
_SURE_OBJECT = 230


def find_samples(
    photo_dir: Path, folder: MaskFolder, naming: Naming, reading: Reading = AS_DECLARED
) -> list[Sample]:
    """Every photo of a folder that has a probability PNG of its name, sorted by stem.

    Raises:
        UserError: The folder of photos is missing, or no photo has a PNG.
    """
    photos = find_photos(photo_dir, naming, reading)
    samples = [
        dataclasses.replace(sample, soft=True)
        for sample in with_masks(photos, folder.masks, folder.path)
    ]
    if not samples:
        raise UserError(
            f"no photo of --pseudo_data_dir '{photo_dir}' has a '<stem>.png' in "
            f"--pseudo_mask_dir '{folder.path}'; predict them first."
        )
    return samples


def refuse_leak(mask_dir: Path, fold: int | str, groups: Collection[str] | None) -> None:
    """Ensures that no predicted mask comes from a model that saw the validation fold.

    Channels stacked onto the photos may come from any model, so masks made with them are
    refused, too.

    Args:
        mask_dir: Folder with a manifest.
        fold: The fold to validate on, "none" for a folder of its own: the models must have
            been validated on it too.
        groups: Those trained on here: the models must have been trained on the same,
            else their fold is one of another folds file. None skips this.

    Raises:
        UserError: Some model did, or nothing shows that none did.
    """
    fix = "predict them with a model of this fold, or --force."
    made = manifest.read(mask_dir)
    if made is None or not made.models:
        raise UserError(
            f"--pseudo_mask_dir '{mask_dir}' has no {MANIFEST} that says what made it; {fix}"
        )
    if made.stacked is not None:
        raise UserError(
            f"'{mask_dir}' was predicted with stacked channels, whose models may have been "
            f"trained on the photos that --fold={fold} validates on; {fix}"
        )
    digest = None if groups is None else digest_of_lines(sorted(groups))
    for model in made.models:
        trained = model.get("fold")
        if trained != fold:
            saw = "of an unknown fold" if trained is None else f"of fold {trained}"
            raise UserError(
                f"'{mask_dir}' was predicted by '{model.get('file')}' {saw}, which may have been "
                f"trained on the photos that --fold={fold} validates on; {fix}"
            )
        if model.get("training_groups") is None:
            raise UserError(
                f"'{mask_dir}' was predicted by '{model.get('file')}', which does not say what it "
                f"was trained on; {fix}"
            )
        if model.get("knows_its_fold"):
            raise UserError(
                f"'{mask_dir}' was predicted by '{model.get('file')}', which knows masks of fold "
                f"{trained}: it was trained with --force; {fix}"
            )
        if digest not in (None, model["training_groups"]):
            raise UserError(
                f"'{mask_dir}' was predicted by '{model.get('file')}' of fold {trained} of "
                f"another folds file, trained on other groups than this run; {fix}"
            )


def refuse_groups(samples: Sequence[Sample], groups: Collection[str]) -> None:
    """Ensures that no photo is of a group that is validated on.

    Raises:
        UserError: Some are.
    """
    shared = [sample for sample in samples if sample.group in groups]
    if shared:
        raise UserError(
            f"{len(shared)} photos of --pseudo_data_dir are of groups of the validation fold, the "
            f"first is '{shared[0].photo}'; take them out, or --force."
        )


def confident(samples: Sequence[Sample], least: float, threads: int) -> list[Sample]:
    """The samples whose masks are sure enough.

    Args:
        samples: With probability PNGs.
        least: Share of the pixels, 0..1, whose probability must be below 0.1 or above
            0.9; 0 takes all without a look.
        threads: That read the PNGs.

    Raises:
        UserError: A PNG is unreadable, or none is sure enough.
    """
    if least <= 0:
        return list(samples)

    def sure(sample: Sample) -> float:
        values = read_grey(sample.mask)  # type: ignore[arg-type]
        return float(np.mean((values <= _SURE_BACKGROUND) | (values >= _SURE_OBJECT)))

    shares = list(
        bar(
            ordered_map(sure, samples, threads),
            total=len(samples),
            desc="looking for sure masks",
            unit="mask",
        )
    )
    kept = [sample for sample, share in zip(samples, shares, strict=True) if share >= least]
    if not kept:
        raise UserError(
            f"--pseudo_confidence={least}: no predicted mask is that sure, the surest has "
            f"{max(shares):.4f}; lower it."
        )
    print(f"pseudo-labels: {len(kept)} of {len(samples)} masks are sure enough")
    return kept
