"""From flags to a trained model: one run of one fold."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

import carvana_tf
from carvana_tf import devices
from carvana_tf.data import amounts, bad_files
from carvana_tf.data.dataset import Sample
from carvana_tf.data.loader import TrainingSet, refuse_all_empty
from carvana_tf.data.sizing import Sizing
from carvana_tf.errors import UserError
from carvana_tf.files import digest_of_lines, held, make_folder, read_json, write_json
from carvana_tf.models import decoders, encoders, model_file, registry, weights
from carvana_tf.options import DatasetOptions
from carvana_tf.training import curves, debug, losses, optimizers, schedules
from carvana_tf.training.loop import BEST, LAST, LOG, STATE, Plan, train
from carvana_tf.training.options import TrainingOptions
from carvana_tf.training.replay import EVERY
from carvana_tf.training.splits import Split, with_pseudo
from carvana_tf.training.state import load_progress

SETTINGS = "run.json"
CURVES = "curves.png"
DEBUG = "debug"
_SMOKE_WIDTH = 0.125
_SMOKE_PHOTOS = 4
# Settings that may change between an interrupted run and its continuation: they do
# not change what is computed.
_FREE = (
    *("threads", "cache", "cache_dir", "tensorboard", "show_summary", "debug_pictures"),
    *("overwrite", "models_dir", "gpu", "keep_every", "max_pixels"),
)


def check(options: TrainingOptions) -> None:
    """Refuses what no data is needed to refuse.

    Raises:
        UserError: There is no such network, loss or augmentation, or the flags of input,
            optimiser or schedule do not fit.
    """
    registry.find(options.network)
    amounts.parse(options.augmentation)
    encoders.check_photo_channels(options.photo_channels)
    losses.parse(options.loss_function)
    _optimizers(options, steps_per_epoch=1)(0)


def run_name(options: TrainingOptions, split: Split) -> str:
    """The name of a run's folder, `<network>[-<alias>]-fold_<fold>`."""
    alias = f"-{options.net_alias}" if options.net_alias else ""
    return f"{options.network}{alias}-fold_{split.name}"


def train_split(dataset: DatasetOptions, options: TrainingOptions, split: Split) -> dict[str, Any]:
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
    refuse_all_empty(split.training, "training masks")
    refuse_all_empty(split.validation, "validation masks")
    if options.smoke:
        options, split = options.shrunk(), split.shortened(_SMOKE_PHOTOS)
    # What does not fit shall be told before it counts as another setting, or a file is written.
    check(options)
    folder = Path(options.models_dir) / run_name(options, split)
    settings = _settings(dataset, options, split)
    with held(folder), devices.forgotten_gradients():
        return _train(dataset, options, split, folder, settings)


def _train(
    dataset: DatasetOptions,
    options: TrainingOptions,
    split: Split,
    folder: Path,
    settings: dict[str, Any],
) -> dict[str, Any]:
    row, loss = registry.find(options.network), losses.parse(options.loss_function)
    if not options.overwrite and _is_finished(folder, settings):
        return {"folder": folder, "rows": load_progress(folder / STATE).rows, "trained": False}

    samples = [*split.training, *split.validation, *split.pseudo]
    bad_files.refuse(samples, folder, options.threads, "the first step")
    keras.utils.clear_session()
    keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        devices.make_deterministic()
    with _dtype(options.dtype) as policy:
        network, report = build_network(options)
        unknown = _of_unknown_origin(options, report)
        if unknown and split.fold is not None and not options.force:
            raise UserError(
                f"--weights '{options.weights}' holds a trained network, but does not tell on "
                f"which groups: it may know those of fold {split.name}; start from a .keras file "
                "of this toolkit or from an encoder's weights, say with --foreign_weights that it "
                "was trained on other photos, or --force."
            )
        sizing = _sizing(options, row.stride)
        augmentation = amounts.parse(options.augmentation)
        drawn = amounts.format_amounts(augmentation)
        print(f"augmentation {options.augmentation}: {drawn}")
        training = TrainingSet(
            split.training,
            sizing,
            augmentation,
            batch_size=options.batch_size,
            seed=options.seed,
            cache=options.cache,
            cache_dir=Path(options.cache_dir) if options.cache_dir else None,
            pseudo=split.pseudo,
            pseudo_share=options.pseudo_weight,
        )
        steps = options.steps_per_epoch or training.steps_per_pass()
        metadata = settings | {
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
        make_folder(folder)
        if options.overwrite:
            for path in (*(folder / name for name in (STATE, LOG, BEST, LAST)), *_kept(folder)):
                path.unlink(missing_ok=True)
        write_json(folder / SETTINGS, settings)
        debug.write_pictures(
            folder / DEBUG,
            training,
            options.loss_function,
            options.debug_pictures,
        )
        progress = train(
            Plan(
                network=network,
                optimizer=_optimizers(options, steps),
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
                threads=options.threads,
                folder=folder,
                save_model=lambda path, scores: model_file.save(
                    network, path, metadata | {"scores": scores}
                ),
                callbacks=_tensorboard(folder) if options.tensorboard else (),
                on_epoch=lambda rows: curves.draw(
                    [curves.Curve(folder.name, rows)], folder / CURVES, title=folder.name
                ),
                frozen=_encoder(network) if options.freeze_encoder_epochs else (),
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
        options.learning_rate,
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


def _encoder(network: keras.Model) -> list[keras.layers.Layer]:
    layers = registry.encoder_layers(network)
    if not layers:
        raise UserError(
            f"--freeze_encoder_epochs: {network.name} has no pretrained encoder; drop the flag."
        )
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
        "version": carvana_tf.__version__,
    }


def _kept(folder: Path) -> list[Path]:
    """The models of --keep_every, and what is written beside them."""
    return list(folder.glob("epoch_*"))


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


def _is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder's run ended.

    Raises:
        UserError: The folder holds a run of other settings, or one whose models are gone.
    """
    if not (folder / SETTINGS).is_file() or not (folder / STATE).is_file():
        return False
    # Runs of earlier versions had what they did not know as it is by default.
    options = (*dataclasses.fields(DatasetOptions), *dataclasses.fields(TrainingOptions))
    defaults = {field.name: field.default for field in options if field.name in settings}
    before = defaults | read_json(folder / SETTINGS)
    # What --force let pass shows in the groups.
    names = (settings.keys() | before.keys()) - {"force"}
    changed = sorted(name for name in names if settings.get(name) != before.get(name))
    if changed:
        raise UserError(
            f"'{folder}' holds a run with other settings ({', '.join(changed)}); give this one "
            "a name with --net_alias, or --overwrite that one."
        )
    if not load_progress(folder / STATE).done:
        return False
    models = (BEST, LAST) if settings["val_groups"] else (LAST,)
    missing = [name for name in models if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"the run in '{folder}' is finished, but {' and '.join(missing)} is gone; put it back, "
            "or --overwrite trains anew."
        )
    return True


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
    if options.weights not in (None, "", "none") and not options.smoke:
        report = weights.load_into(
            network, options.weights, allow_partial=options.allow_partial_weights
        )
        print(f"weights: {report} from {options.weights}")
        own = options.preprocessing_function or registry.find(options.network).preprocessing
        if report.normalisation not in (None, own):
            print(
                f"weights: trained on photos normalised as '{report.normalisation}', here they are "
                f"as '{own}'; --preprocessing_function={report.normalisation} gives what they know."
            )
    registry.freeze(network, options.freeze_till_layer)
    encoder = set(registry.encoder_layers(network)) if options.freeze_encoder_bn else set()
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            if layer in encoder:
                layer.trainable = False
            if options.bn_momentum is not None:
                layer.momentum = options.bn_momentum
    if options.show_summary:
        network.summary()
    return network, report


def _sizing(options: TrainingOptions, stride: int) -> Sizing:
    policy = options.policy
    if policy == "pad":
        return Sizing(policy, 0, 0, stride, options.clahe)
    if policy == "crop" and (options.input_height % stride or options.input_width % stride):
        raise UserError(
            f"a crop of {options.input_width}x{options.input_height} does not divide by the "
            f"stride {stride} of {options.network}; round --input_width and --input_height."
        )
    return Sizing(policy, options.input_height, options.input_width, stride, options.clahe)


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


def _tensorboard(folder: Path) -> list[keras.callbacks.Callback]:
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--tensorboard needs a package that is not installed: pip install "
            "'carvana_tf[tensorboard]'."
        ) from error
    return [keras.callbacks.TensorBoard(str(folder / "tensorboard"))]
