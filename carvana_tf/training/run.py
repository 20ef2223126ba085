"""From flags to a trained model: one run of one fold."""

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

import carvana_tf
from carvana_tf import devices
from carvana_tf.data import amounts, bad_files
from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import read_size
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.sizing import Sizing, input_size, small_crop
from carvana_tf.errors import UserError
from carvana_tf.filenames import BEST, CURVES, LAST, LOG
from carvana_tf.files import digest_of_lines, held, read_json, write_json
from carvana_tf.flags import refuse_unused
from carvana_tf.masks import manifest
from carvana_tf.models import decoders, inputs, model_file, networks, registry, weights
from carvana_tf.models.encoders import IMAGENET, RANDOM
from carvana_tf.options import DatasetOptions
from carvana_tf.tasks import MASKS, Task
from carvana_tf.training import curves, debug, losses, optimizers, rates, schedules, state
from carvana_tf.training.board import Board
from carvana_tf.training.loop import ASIDE, KEPT_STATE, Plan, train
from carvana_tf.training.options import TrainingOptions
from carvana_tf.training.replay import EVERY
from carvana_tf.training.splits import Split, with_pseudo
from carvana_tf.training.state import PREVIOUS, STATE

SETTINGS = "run.json"
DEBUG = "debug"
BOARD = "tensorboard"
_SMOKE_WIDTH = 0.125
_SMOKE_PHOTOS = 4
# Settings that may change between an interrupted run and its continuation: they do
# not change what is computed.
_FREE = (
    *("threads", "cache", "cache_dir", "tensorboard", "show_summary", "debug_pictures"),
    *("restart", "from_epoch", "models_dir", "gpu", "keep_every", "save_minutes", "max_pixels"),
)
# What decides where a run ends, and may change as far as the result is that of a run that was
# so long from the beginning.
_LENGTH = ("epochs", "patience")


def check(options: TrainingOptions) -> None:
    """Refuses what no data is needed to refuse.

    Raises:
        UserError: There is no such network, loss or augmentation, or the flags of input,
            optimiser or schedule do not fit.
    """
    refuse_unused(options)
    networks.find(options.network)
    options = options.resolved()
    amounts.parse(options.augmentation)
    inputs.check_photo_channels(options.photo_channels)
    losses.parse(options.loss_function)
    _optimizers(options, steps_per_epoch=1)(0)


def train_split(
    dataset: DatasetOptions, options: TrainingOptions, split: Split, task: Task = MASKS
) -> dict[str, Any]:
    """Trains one run, or continues it, or leaves a finished one as it is.

    Returns:
        `folder`, `rows` (one dictionary per epoch) and `trained` (False where the run
        was finished before).

    Raises:
        UserError: Something in the flags or the data does not fit.
        KeyboardInterrupt: After the state was saved.
    """
    options = options.of_fold(split.name)
    split = with_pseudo(dataset, options, split)
    # What does not fit is reported before it counts as another setting, or a file is written.
    check(options)
    options = options.resolved()
    whole = split
    if options.smoke:
        options, split = options.shrunk(), split.shortened(_SMOKE_PHOTOS)
    folder = Path(options.models_dir) / options.run_name(split.name)
    settings = _settings(dataset, options, split)
    with held(folder), devices.forgotten_gradients():
        return _train(options, split, whole, folder, settings, task)


def _train(
    options: TrainingOptions,
    split: Split,
    whole: Split,
    folder: Path,
    settings: dict[str, Any],
    task: Task,
) -> dict[str, Any]:
    """`train_split` in a folder that no other process works in; `whole` is of more than a trial."""
    row, loss = networks.find(options.network), task.loss(options.loss_function)
    saved = None if options.restart else _saved(folder, settings, options)
    if saved is not None and saved.end and saved.has_ended(_length(settings)):
        _refuse_lost_models(folder, settings)
        return {"folder": folder, "rows": saved.end.rows, "trained": False}

    task.check_targets(whole.training, "training masks")
    task.check_targets(whole.validation, "validation masks")
    samples = [*split.training, *split.validation, *split.pseudo]
    bad_files.refuse(samples, folder, options.threads, "the first step", task)
    keras.utils.clear_session()
    keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        devices.make_deterministic()
    with _dtype(options.dtype) as policy:
        network, report = build_network(options)
        unknown = _of_unknown_origin(options, report)
        if unknown and split.validation and not options.force:
            raise UserError(
                f"--weights '{options.weights}' holds a trained network, but does not tell on "
                f"which groups: it may know those of fold {split.name}; start from a .keras file "
                "of this toolkit or from an encoder's weights, say with --foreign_weights that it "
                "was trained on other photos, or --force."
            )
        sizing = _sizing(options, row.stride, split)
        augmentation = amounts.parse(options.augmentation)
        drawn = amounts.format_amounts(augmentation)
        print(f"augmentation {options.augmentation}: {drawn}")
        training = TrainingSet(
            split.training,
            sizing,
            augmentation,
            task,
            batch_size=options.batch_size,
            seed=options.seed,
            cache=options.cache,
            cache_dir=Path(options.cache_dir) if options.cache_dir else None,
            pseudo=split.pseudo,
            pseudo_share=options.pseudo_weight,
        )
        steps = options.steps_per_epoch or training.steps_per_pass()
        if options.bn_momentum is None:
            _set_bn_momentum(network, bn_momentum(steps))
        print(_start(options, sizing, steps))
        provenance = {"version": carvana_tf.__version__}
        metadata = settings | {
            **provenance,
            "stride": row.stride,
            "augmentation_amounts": drawn,
            "decoder": options.decoder or row.decoder,
            "size_policy": sizing.policy,
            "input_height": sizing.height,
            "input_width": sizing.width,
            "preprocessing": options.preprocessing_function or row.preprocessing,
            "compute_dtype": policy,
            "machine": devices.describe(),
            model_file.UNKNOWN_ORIGIN: unknown,
        }
        if saved is None:
            _clear(folder)
        write_json(folder / SETTINGS, settings | provenance)
        debug.write_pictures(
            folder / DEBUG,
            training,
            task,
            options.loss_function,
            options.debug_pictures,
        )
        board = Board(folder / BOARD, split.validation, task) if options.tensorboard else None
        progress = train(
            Plan(
                network=network,
                optimizer=_optimizers(options, steps),
                task=task,
                loss=loss,
                training=training,
                validation=split.validation,
                epochs=options.epochs,
                steps_per_epoch=steps,
                validate_every=options.validate_every,
                monitor=options.monitor,
                patience=options.patience,
                min_delta=options.min_delta,
                keep_every=options.keep_every,
                save_minutes=options.save_minutes,
                accumulation=options.gradient_accumulation,
                steps_given=options.steps_per_epoch,
                threads=options.threads,
                folder=folder,
                save_model=lambda path, scores: model_file.save(
                    network,
                    path,
                    metadata
                    | {"scores": scores}
                    | ({manifest.CHOSEN_BY: options.monitor} if path.name == BEST else {}),
                ),
                on_epoch=lambda rows: _report(rows, folder, board, task),
                on_prediction=board.show if board else lambda *_: None,
                frozen=(
                    _encoder(network, "freeze_encoder_epochs")
                    if options.freeze_encoder_epochs
                    else ()
                ),
                freeze_epochs=options.freeze_encoder_epochs or options.fresh_optimizer_epoch,
                replay=options.hard_example_replay,
            )
        )
    return {"folder": folder, "rows": progress.rows, "trained": True}


def _optimizers(
    options: TrainingOptions, steps_per_epoch: int
) -> Callable[[int], keras.optimizers.Optimizer]:
    """Makes the run's optimisers, as `Plan.optimizer` wants them.

    Raises:
        UserError: The flags of optimiser or schedule do not fit.
    """
    if options.freeze_encoder_epochs and options.fresh_optimizer_epoch:
        raise UserError(
            "--freeze_encoder_epochs and --fresh_optimizer_epoch both start a fresh optimiser; "
            "give one of the two."
        )
    rate = schedules.build(
        options.lr_schedule,
        options.learning_rate or 0.0,
        epochs=options.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=options.warmup_steps,
        decay_every=options.decay_every,
        decay_factor=options.decay_factor,
        clr=options.clr,
    )

    def make(start: int) -> keras.optimizers.Optimizer:
        return optimizers.build(
            options.optimizer,
            schedules.continued(rate, start, EVERY if options.hard_example_replay else 0),
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=options.weight_decay,
            clipnorm=options.clipnorm,
            accumulation=options.gradient_accumulation,
            ema=options.ema,
        )

    return make


def _encoder(network: keras.Model, flag: str) -> list[keras.layers.Layer]:
    """The layers of the pretrained encoder, for a flag that freezes them."""
    layers = registry.encoder_layers(network)
    if not layers:
        raise UserError(f"--{flag}: {network.name} has no pretrained encoder; drop the flag.")
    return layers


def _settings(dataset: DatasetOptions, options: TrainingOptions, split: Split) -> dict[str, Any]:
    """All that decides what a run computes, as JSON has it.

    Raises:
        UserError: The weights it starts from know the validation fold.
    """
    flags = dataclasses.asdict(dataset) | dataclasses.asdict(options)
    labelled, inherited = _groups(split.training), _groups_behind_weights(options)
    validated = _groups(split.validation)
    known = sorted(inherited & validated)
    if known and not options.force:
        raise UserError(
            f"--weights '{options.weights}' was trained on {len(known)} groups of the validation "
            f"fold, the first is '{known[0]}'; start from a model of the same fold ('{{fold}}' "
            "becomes it), or --force."
        )
    return {
        **{name: value for name, value in flags.items() if name not in _FREE},
        "fold": split.name if split.fold is None else split.fold,
        # All that the model may know: its masks of these are not out of fold.
        "training_groups": sorted(
            labelled | _groups(split.pseudo) | inherited | (validated if split.leaks else set())
        ),
        "labelled_groups_digest": digest_of_lines(sorted(labelled)),
        "pseudo_photos": len(split.pseudo),
        "val_groups": sorted(validated),
        "data_digest": digest_of_lines(
            [
                f"{sample.stem} {path.stat().st_size}"
                for sample in (*split.training, *split.validation, *split.pseudo)
                for path in (sample.photo, sample.mask, *sample.stacked)
                if path is not None
            ]
        ),
    }


def _groups(samples: Sequence[Sample]) -> set[str]:
    return {sample.group for sample in samples}


def _groups_behind_weights(options: TrainingOptions) -> set[str]:
    """The groups that the model of `--weights` was trained on, as far as it tells."""
    path = Path(options.weights or "")
    if path.suffix != model_file.SUFFIX or not path.is_file() or options.smoke:
        return set()
    return set(model_file.read_metadata(path).get("training_groups") or ())


def _of_unknown_origin(options: TrainingOptions, report: weights.LoadReport) -> bool:
    """Whether more than an encoder comes from a file that does not tell what it was trained on."""
    if options.foreign_weights:
        return False
    path = Path(options.weights or "")
    told: dict[str, Any] = {}
    if report.matched and path.suffix == model_file.SUFFIX:
        told = model_file.read_metadata(path)
    if "training_groups" in told:
        return bool(told.get(model_file.UNKNOWN_ORIGIN))
    return any(name.startswith(decoders.PREFIXES) for name in report.matched)


def _saved(folder: Path, settings: dict[str, Any], options: TrainingOptions) -> state.Saved | None:
    """The state of this run that a folder holds, or None where there is nothing to go on from.

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
    if not options.from_epoch:
        return saved
    return _rewound(folder, options.from_epoch, saved)


def _refuse_other_settings(folder: Path, settings: dict[str, Any], saved: state.Saved) -> None:
    # Runs of earlier versions had what they did not know as it is by default.
    options = (*dataclasses.fields(DatasetOptions), *dataclasses.fields(TrainingOptions))
    defaults = {field.name: field.default for field in options if field.name in settings}
    before = _comparable(defaults | read_json(folder / SETTINGS))
    settings = _comparable(settings)
    # What --force let pass shows in the groups, and the version decides nothing.
    names = (settings.keys() | before.keys()) - {"force", "version", *_FREE}
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

    Those of earlier versions have None for random weights and for the size policy that
    `use_crop` said, and values that had no effect.
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
    now, was = _length(settings), _length(before)
    instead = (
        f"start another run from its last weights with --weights={folder / LAST} "
        "--net_alias=NAME, and --epochs for what it shall do, or replace it with --restart."
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
            f"the run in '{folder}' was ended by an earlier version, whose state does not tell "
            f"how to go on; {instead}"
        )


def _length(settings: dict[str, Any]) -> dict[str, int]:
    """As `Plan.length`."""
    return {name: settings[name] for name in _LENGTH}


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
    """The files of a run from which it goes on, or that it is for."""
    names = (STATE, PREVIOUS, LOG, BEST, LAST, ASIDE)
    found = [*(folder / name for name in names), *sorted(folder.glob("epoch_*"))]
    return [path for path in found if path.is_file()]


def _clear(folder: Path) -> None:
    """Removes what another run has left in a folder."""
    for path in _products(folder):
        path.unlink()
    if (folder / BOARD).is_dir():
        shutil.rmtree(folder / BOARD)


def _refuse_lost_models(folder: Path, settings: dict[str, Any]) -> None:
    models = (BEST, LAST) if settings["val_groups"] else (LAST,)
    missing = [name for name in models if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"the run in '{folder}' is finished, but {' and '.join(missing)} is gone; put it back, "
            "or train again with --restart."
        )


def build_network(options: TrainingOptions) -> tuple[keras.Model, weights.LoadReport]:
    """The network a run starts from: built, filled and frozen as the flags say.

    Returns:
        The network, and which of its layers got weights from a file.

    Raises:
        UserError: A name is unknown, or the weights do not fit.
    """
    network = registry.build(
        options.network,
        photo_channels=options.photo_channels,
        stacked_channels=options.stacked_channels,
        preprocessing=options.preprocessing_function,
        alpha=None if options.smoke else options.alpha,
        width=_SMOKE_WIDTH if options.smoke else 1.0,
        decoder=options.decoder,
    )
    report = weights.LoadReport()
    if options.loads_weights and options.smoke:
        # They cannot fit so narrow a network, but must be there for the run that is tried.
        if options.weights != IMAGENET:
            weights.read_layer_weights(Path(options.weights or ""))
        print(f"weights: none from {options.weights}, as --smoke makes a narrower network")
    elif options.loads_weights:
        report = weights.load_into(
            network, options.weights, allow_partial=options.allow_partial_weights
        )
        print(f"weights: {report} from {options.weights}")
        own = options.preprocessing_function or networks.find(options.network).preprocessing
        if report.normalisation not in (None, own):
            print(
                f"weights: trained on photos normalised as '{report.normalisation}', here they are "
                f"as '{own}'; --preprocessing_function={report.normalisation} gives what they know."
            )
    registry.freeze(network, options.freeze_till_layer)
    encoder = set(_encoder(network, "freeze_encoder_bn") if options.freeze_encoder_bn else [])
    normalises = any(isinstance(x, keras.layers.BatchNormalization) for x in network.layers)
    if options.bn_momentum is not None and not normalises:
        raise UserError(
            f"--bn_momentum={options.bn_momentum}: {network.name} has no BatchNormalization; drop "
            "the flag."
        )
    for layer in encoder:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    if options.bn_momentum is not None:
        _set_bn_momentum(network, options.bn_momentum)
    if options.show_summary:
        network.summary()
    return network, report


def bn_momentum(steps_per_epoch: int) -> float:
    """Momentum of BatchNormalization's moving averages, where none is given: 0.8 to 0.99.

    They are averages over about `1 / (1 - momentum)` steps, here a quarter of an epoch, at least
    5 steps and at most the 100 of Keras' default. That default keeps `0.99 ** n` of the start
    after n steps: a third after 100, so that short runs are validated with statistics of no
    photo. The rule looks at the length of an epoch alone, so that a lengthened run stays equal
    to one that was so long from the beginning.
    """
    return 1 - 1 / min(max(steps_per_epoch / 4, 5), 100)


def _set_bn_momentum(network: keras.Model, momentum: float) -> None:
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum


def _start(options: TrainingOptions, sizing: Sizing, steps: int) -> str:
    """What the run starts from, in one line."""
    random = options.smoke or not options.loads_weights
    start = "random weights" if random else str(options.weights)
    source = networks.find(options.network).source
    if options.smoke:
        start += ", as always with --smoke, which downloads nothing"
    elif random and source:
        given = IMAGENET if source == "keras" else f"FILE of {source}, see docs/weights.md"
        start += f" (its encoder has weights trained on ImageNet: --weights={given})"
    size = "" if sizing.policy == "pad" else f" {sizing.width}x{sizing.height}"
    if options.clr is not None:
        rate = f"--clr={options.clr}"
    elif options.rates_elsewhere:
        rate = options.lr_schedule
    else:
        rate = f"{options.learning_rate:g} ({options.lr_schedule})"
    return (
        f"start: {options.network} from {start}; {sizing.policy}{size}, batch "
        f"{options.batch_size}, learning rate {rate}, "
        f"{steps} steps an epoch, {options.epochs} epochs"
    )


def _sizing(options: TrainingOptions, stride: int, split: Split) -> Sizing:
    policy, samples = options.policy, (*split.training, *split.pseudo)
    flags = (options.input_height, options.input_width)
    sizes: list[tuple[int, int]] = []
    if policy != "pad" and None in flags:
        sizes = [read_size(sample.photo) for sample in samples]
    height, width = input_size(policy, sizes, stride, height=flags[0], width=flags[1])
    by_photos = policy == "crop" and flags == (None, None)
    if by_photos and (found := small_crop(sizes, (height, width), stride)):
        smallest, usual = found
        rows, columns = sizes[smallest]
        print(
            f"note: crops have only {width}x{height} pixels, as '{samples[smallest].photo}' has "
            f"{columns}x{rows}; half of the {len(sizes)} photos hold crops of "
            f"{usual[1]}x{usual[0]}. Remove small photos for larger crops, or train on whole "
            "photos with --size_policy=resize."
        )
    if policy == "crop" and (height % stride or width % stride):
        raise UserError(
            f"a crop of {width}x{height} does not divide by the stride {stride} of "
            f"{options.network}; round --input_width and --input_height."
        )
    return Sizing(policy, height, width, stride, options.clahe)


@contextlib.contextmanager
def _dtype(requested: str) -> Iterator[str]:
    """Sets Keras' dtype policy for the duration of a run."""
    before = keras.config.dtype_policy()
    policy = devices.compute_dtype(requested)
    keras.config.set_dtype_policy(policy)
    try:
        yield policy
    finally:
        keras.config.set_dtype_policy(before)


def _report(
    rows: Sequence[dict[str, float]], folder: Path, board: Board | None, task: Task
) -> None:
    """Shows the epochs so far as pictures, and the last one on TensorBoard."""
    curve = curves.Curve(folder.name, rows)
    curves.draw([curve], folder / CURVES, columns=task.columns, title=folder.name)
    if board is not None:
        board.write(rows[-1])
