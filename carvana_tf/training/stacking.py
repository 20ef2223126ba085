"""Masks as further channels of a second network, which must be out of fold.

A network that predicted photos it was trained on is surer of them than of new ones. A
second network that learns from such masks trusts them too much.
"""

from pathlib import Path

from carvana_tf.data.dataset import stacked_folders
from carvana_tf.errors import UserError
from carvana_tf.filenames import MANIFEST
from carvana_tf.masks import ensembling, manifest
from carvana_tf.masks.open_folder import open_complete, warn_or_raise


def refuse_leak(folder: Path | None, channels: int) -> None:
    """Ensures that the stacked masks of training photos are out of fold.

    Args:
        folder: As in `stacked_folders`.
        channels: How many.

    Raises:
        UserError: Some are not, or nothing shows that they are.
    """
    for each in stacked_folders(folder, channels):
        made = manifest.read(each)
        if made is None or not made.out_of_fold:
            fault = f"has no {MANIFEST}" if made is None else "is not out of fold"
            raise UserError(
                f"--stacked_channels_dir: '{each}' {fault}, so its masks may come from networks "
                "that were trained on these photos; predict each fold with --predict_on_val and "
                "merge the folds with ensemble.py, or --force."
            )


def refuse_misfits(folder: Path | None, channels: int, *, force: bool = False) -> None:
    """Ensures that each channel's masks are those of its manifest, and of a model of its own.

    Args:
        folder: As in `stacked_folders`.
        channels: How many.
        force: Warn instead.

    Raises:
        UserError: Something is wrong, without `force`.
    """
    folders = [open_complete(each, force=force) for each in stacked_folders(folder, channels)]
    for problem in ensembling.same_models(folders):
        warn_or_raise(f"--stacked_channels_dir: {problem}", force=force)
