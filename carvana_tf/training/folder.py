"""The folder of a training run: its files, and whether a run may go on in it."""

import contextlib
import dataclasses
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from carvana_tf import replicas
from carvana_tf.errors import UserError
from carvana_tf.filenames import BEST, LAST, LOG
from carvana_tf.files import held, make_folder, read_json
from carvana_tf.flags import defaults
from carvana_tf.models.encoders import RANDOM
from carvana_tf.training import rates, state
from carvana_tf.training.loop import ASIDE, KEPT_STATE
from carvana_tf.training.options import TrainingOptions
from carvana_tf.training.state import PREVIOUS, STATE
from carvana_tf.training.tracking import IDS

SETTINGS = "run.json"
DEBUG = "debug"
BOARD = "tensorboard"

FREE = (
    *("threads", "cache", "cache_dir", "tensorboard", "tracker", "show_summary", "debug_pictures"),
    *("restart", "from_epoch", "models_dir", "gpu", "parallel", "keep_every", "save_minutes"),
    "max_pixels",
    "ray_address",
)
"""Settings that may change between an interrupted run and its continuation.

They do not change what is computed.
"""

# What decides where a run ends. It may change as far as the result is that of a run that was so
# long from the beginning.
_LENGTH = ("epochs", "patience")


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[Path]:
    """The folder of a run, in which no other process works meanwhile.

    Of the processes of several machines, the first one has it; the others get a copy of their own
    of what a run goes on from, with empty models, which is removed at the end.

    Raises:
        UserError: Another process works in it.
    """
    if replicas.is_first():
        with held(folder):
            replicas.asked_of_any(False)  # the others have their copies
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="carvana_tf-") as own:
        copy = make_folder(Path(own) / folder.name)
        for path in (*_products(folder), folder / SETTINGS):
            if path.suffix == ".keras":
                (copy / path.name).touch()  # that it is there is all that is asked
            elif path.is_file():
                shutil.copyfile(path, copy / path.name)
        replicas.asked_of_any(False)
        try:
            yield copy
        except UserError as error:
            error.args = (str(error).replace(str(copy), str(folder)),)
            raise


def saved_state(folder: Path, settings: dict[str, Any], from_epoch: int) -> state.Saved | None:
    """The state of this run that a folder holds, or None where there is nothing to go on from.

    Args:
        folder: Of the run.
        settings: All that decides what the run computes.
        from_epoch: The epoch after which the run goes on; 0: the last one.

    Raises:
        UserError: The folder holds a run of other settings, or a part of a run.
    """
    saved = state.load(folder)
    models = [path.name for path in _products(folder) if path.suffix in (".keras", ".csv")]
    if saved is None and models:
        raise UserError(
            f"'{folder}' holds {models[0]} but no {STATE}, which says how that run stood; put it "
            "back, give this run a name with --net_alias, or replace that one with --restart."
        )
    if saved is not None and not (folder / SETTINGS).is_file():
        raise UserError(
            f"'{folder}' holds {STATE} but no {SETTINGS}, which says what run it is of; put it "
            "back, give this run a name with --net_alias, or replace that one with --restart."
        )
    if saved is None or not (saved.progress.step or models):
        saved = None  # nothing that could be lost
    else:
        _refuse_other_settings(folder, settings, saved)
    if not from_epoch:
        return saved
    return _rewound(folder, from_epoch, saved)


def refuse_lost_models(folder: Path, settings: dict[str, Any]) -> None:
    """Refuses a finished run whose models are gone.

    Raises:
        UserError: Some are.
    """
    models = (BEST, LAST) if settings["val_groups"] else (LAST,)
    missing = [name for name in models if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"the run in '{folder}' is finished, but {' and '.join(missing)} is gone; put it back, "
            "or train again with --restart."
        )


def clear(folder: Path) -> None:
    """Removes what another run has left in a folder."""
    for path in _products(folder):
        path.unlink()
    (folder / IDS).unlink(missing_ok=True)  # what they name stays
    if (folder / BOARD).is_dir():
        shutil.rmtree(folder / BOARD)


def length_of(settings: dict[str, Any]) -> dict[str, int]:
    """As `TrainingPlan.length`."""
    return {name: settings[name] for name in _LENGTH}


def _refuse_other_settings(folder: Path, settings: dict[str, Any], saved: state.Saved) -> None:
    # What runs of earlier versions did not know was as it is by default.
    usual = {k: v for k, v in defaults(TrainingOptions).items() if k in settings}
    before = _comparable(usual | read_json(folder / SETTINGS))
    settings = _comparable(settings)
    # The groups show what --force allowed, and the version decides nothing.
    names = (settings.keys() | before.keys()) - {"force", "version", *FREE}
    changed = sorted(name for name in names if settings.get(name) != before.get(name))
    others = [name for name in changed if name not in _LENGTH]
    if others:
        raise UserError(
            f"'{folder}' holds a run with other settings ({', '.join(others)}); give this one "
            "a name with --net_alias, or replace that one with --restart."
        )
    if changed:
        _refuse_length(folder, settings, before, saved)


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in which what computes the same is equal, whatever version wrote them.

    Those of earlier versions have None for random weights and for the size policy of
    `use_crop`, and values that had no effect.
    """
    policy = settings["size_policy"] or ("pad" if settings["use_crop"] is False else "crop")
    known = settings | {"weights": settings["weights"] or RANDOM, "size_policy": policy}
    del known["use_crop"]
    if policy == "pad":
        known |= {"input_height": None, "input_width": None}
    if settings["clr"] is not None:
        known["lr_schedule"] = None
    if settings["clr"] is not None or ":" in settings["lr_schedule"]:
        known["learning_rate"] = None
    return known


def _refuse_length(
    folder: Path, settings: dict[str, Any], before: dict[str, Any], saved: state.Saved
) -> None:
    """Ensures that a run of another length can end as if it had that from the beginning."""
    now, was = length_of(settings), length_of(before)
    instead = (
        f"start another run from its last weights with --weights={folder / LAST} "
        "--net_alias=NAME, and --epochs for how many it trains, or replace it with --restart."
    )
    epochs = f"the run in '{folder}' has --epochs={was['epochs']}"
    if now["epochs"] != was["epochs"]:
        if rates.depends_on_length(settings["lr_schedule"], settings["clr"]):
            raise UserError(
                f"{epochs}, and the rates of --lr_schedule={settings['lr_schedule']} depend on "
                f"it, so that it cannot go on to --epochs={now['epochs']}; {instead}"
            )
        if now["epochs"] <= len(saved.progress.rows):
            raise UserError(
                f"{epochs} and has done more than --epochs={now['epochs']} of them; leave the "
                "flag as it was, or replace the run with --restart."
            )
    if 0 < now["patience"] < (was["patience"] or math.inf):
        raise UserError(
            f"the run in '{folder}' has --patience={was['patience']}, which can be raised but not "
            f"lowered to {now['patience']}: it would have ended before; {instead}"
        )
    if saved.end is not None and saved.version < state.FORMAT:
        raise UserError(
            f"the run in '{folder}' was ended by an earlier version, whose state does not say "
            f"how to go on; {instead}"
        )


def _rewound(folder: Path, epoch: int, saved: state.Saved | None) -> state.Saved:
    """Takes a run back to an epoch that --keep_every kept, and removes what came after it."""
    path = folder / KEPT_STATE.format(epoch)
    if saved is None or not path.is_file():
        kept = ", ".join(str(int(each.stem[6:])) for each in sorted(folder.glob("epoch_*.npz")))
        raise UserError(
            f"--from_epoch={epoch}: '{folder}' keeps no state of that epoch, but of "
            f"{kept or 'none'}; see --keep_every."
        )
    kept_state = state.read(path)
    progress = kept_state.progress
    if (saved.end or saved.progress).best_epoch >= epoch:
        # The best model is of an epoch that will be done again; that before it is gone.
        progress = dataclasses.replace(progress, best=None, best_epoch=0)
    rewound = dataclasses.replace(kept_state, progress=progress)
    state.save(folder, rewound)
    (folder / PREVIOUS).unlink(missing_ok=True)
    for path in (*_files_of_kept(folder, epoch), folder / ASIDE):
        path.unlink(missing_ok=True)
    return rewound


def _files_of_kept(folder: Path, after: int) -> list[Path]:
    return [path for path in folder.glob("epoch_*.*") if int(path.stem[6:]) > after]


def _products(folder: Path) -> list[Path]:
    """The state, log and models of a run."""
    names = (STATE, PREVIOUS, LOG, BEST, LAST, ASIDE)
    found = [*(folder / name for name in names), *sorted(folder.glob("epoch_*"))]
    return [path for path in found if path.is_file()]
