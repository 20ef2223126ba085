"""One training run of one fold, from options to models."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

import carvana_tf
from carvana_tf import devices, machines, replicas
from carvana_tf.data import amounts, bad_files
from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import read_size
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.resizing import Resizer, input_size, small_crop
from carvana_tf.environment import BACKENDS
from carvana_tf.errors import UserError
from carvana_tf.filenames import BEST, CURVES
from carvana_tf.files import digest_of_lines, write_json
from carvana_tf.flags import refuse_unused
from carvana_tf.masks import manifest
from carvana_tf.models import model_file, networks
from carvana_tf.models.encoders import IMAGENET
from carvana_tf.tasks import MASKS, Task
from carvana_tf.training import curves, debug, network, optimizers, schedules, state, tracking
from carvana_tf.training import folder as run_folder
from carvana_tf.training.board import Board
from carvana_tf.training.folder import BOARD, DEBUG, SETTINGS
from carvana_tf.training.loop import TrainingPlan, train
from carvana_tf.training.options import TrainingOptions
from carvana_tf.training.replay import EVERY
from carvana_tf.training.splits import Split, with_pseudo
from carvana_tf.training.tracking import tracked

_SMOKE_PHOTOS = 4


def check(options: TrainingOptions, task: Task) -> None:
    """Refuses what no data is needed to refuse.

    Raises:
        UserError: A flag has no effect, the task has no such loss or score, or the package of a
            tracker is missing.
    """
    refuse_unused(options)
    tracking.check(options.run.tracker)
    task.check(options.loss.loss_function, options.length.monitor)


def train_split(
    options: TrainingOptions,
    split: Split,
    task: Task = MASKS,
    names: Sequence[str] = (),
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Trains one run, or continues it, or leaves a finished one as it is.

    Args:
        options: As the flags say.
        split: Of `splits.find_splits`.
        task: What is predicted.
        names: Of `keras.device`, where several devices train together.
        callbacks: Further ones of `fit`.

    Returns:
        `folder`, `rows` (one dictionary per epoch) and `trained` (False where the run
        was finished before).

    Raises:
        UserError: Something in the flags or the data does not fit.
        KeyboardInterrupt: After the state was saved.
    """
    options = options.of_fold(split.name)
    split = with_pseudo(options, split)
    # What does not fit is reported before it counts as another setting, or a file is written.
    check(options, task)
    options = options.resolved(task)
    count = replicas.total(names)
    whole = split
    if options.run.smoke:
        options, split = options.shrunk(), split.shortened(_SMOKE_PHOTOS)
        task = task.shrunk()
        options = options.replace(batch_size=max(options.length.batch_size, count))
    _refuse_batch(options, count)
    folder = Path(options.run.models_dir) / options.run_name(split.name)
    settings = _settings(options, split, task)
    if count > 1:  # another number of them computes something else
        settings["devices"] = count
    if keras.backend.backend() != BACKENDS[0]:  # so does another backend
        settings["backend"] = keras.backend.backend()
    with run_folder.writable(folder) as folder, devices.forgotten_gradients():
        saved = None
        if not options.run.restart:
            saved = run_folder.saved_state(folder, settings, options.run.from_epoch)
        computed = (carvana_tf.__version__, devices.compute_dtype(options.run.dtype))
        same = json.dumps(settings, sort_keys=True)
        replicas.refuse_difference(f"{computed} {saved and saved.progress} {same}")
        if saved is not None and saved.end and saved.has_ended(run_folder.length_of(settings)):
            run_folder.refuse_lost_models(folder, settings)
            return {"folder": folder, "rows": saved.end.rows, "trained": False}
        task.check_targets(whole.training, "training")
        task.check_targets(whole.validation, "validation")
        rows = _train(options, split, folder, settings, saved, task, names, callbacks)
    return {"folder": folder, "rows": rows, "trained": True}


def _refuse_batch(options: TrainingOptions, devices_used: int) -> None:
    size = options.length.batch_size
    if size % devices_used:
        near = size + -size % devices_used
        where = machines.VARIABLE if replicas.is_joined() else f"--gpu={options.run.gpu}"
        raise UserError(
            f"--batch_size={size} is the batch of all {devices_used} devices of {where} "
            f"together, and cannot be divided among them; give --batch_size={near}."
        )


def _train(
    options: TrainingOptions,
    split: Split,
    folder: Path,
    settings: dict[str, Any],
    saved: state.Saved | None,
    task: Task,
    names: Sequence[str],
    callbacks: Sequence[keras.callbacks.Callback],
) -> Sequence[dict[str, float]]:
    """`train_split` of a run that is not finished, in a folder no other process works in."""
    row, run, length = networks.find(options.model.network), options.run, options.length
    monitor = length.monitor or ""
    loss_name = options.loss.loss_function or ""
    loss = task.loss(loss_name)
    samples = [*split.training, *split.validation, *split.pseudo]
    bad_files.refuse(samples, folder, run.threads, "the first step", task)
    keras.utils.clear_session()
    keras.utils.set_random_seed(run.seed)
    if run.deterministic:
        devices.make_deterministic()
    with (
        _dtype(run.dtype) as policy,
        replicas.data_parallel(names),
        contextlib.ExitStack() as ends,
    ):
        model, report = network.build(options, task)
        unknown = network.has_unknown_origin(options.start, report)
        if unknown and split.validation and not run.force:
            raise UserError(
                f"--weights '{options.start.weights}' holds a trained network, but does not say "
                f"on which groups: it may know those of fold {split.name}; start from a .keras "
                "file of this toolkit or from an encoder's weights, say with --foreign_weights "
                "that it was trained on other photos, or --force."
            )
        resizer = _resizer(options, row.stride, split)
        augmentation = amounts.parse(options.augmentation.augmentation)
        drawn = amounts.format_amounts(augmentation)
        print(f"augmentation {options.augmentation.augmentation}: {drawn}")
        training = TrainingSet(
            split.training,
            resizer,
            augmentation,
            task,
            batch_size=length.batch_size,
            seed=run.seed,
            cache=run.cache,
            cache_dir=Path(run.cache_dir) if run.cache_dir else None,
            pseudo=split.pseudo,
            pseudo_share=options.pseudo.pseudo_weight,
        )
        steps = length.steps_per_epoch or training.steps_per_pass()
        if options.start.bn_momentum is None:
            network.set_bn_momentum(model, network.bn_momentum(steps))
        print(_start(options, resizer, steps))
        provenance = {"version": carvana_tf.__version__}
        metadata = settings | {
            **task.metadata,
            **provenance,
            "stride": row.stride,
            "augmentation_amounts": drawn,
            "decoder": options.model.decoder or row.decoder,
            "size_policy": resizer.policy,
            "input_height": resizer.height,
            "input_width": resizer.width,
            "preprocessing": network.preprocessing(options),
            "compute_dtype": policy,
            "machine": devices.describe(),
            model_file.UNKNOWN_ORIGIN: unknown,
        }
        if saved is None:
            run_folder.clear(folder)
        write_json(folder / SETTINGS, settings | provenance)
        debug.write_pictures(folder / DEBUG, training, task, loss_name, run.debug_pictures)
        first = replicas.is_first()  # what others write is removed at the end
        board = Board(folder / BOARD, split.validation, task) if run.tensorboard and first else None
        tracker = run.tracker if first else "none"
        track = ends.enter_context(tracked(tracker, folder, settings | provenance))

        def save_model(path: Path, scores: dict[str, float]) -> None:
            if not first:
                return
            chosen = {manifest.CHOSEN_BY: monitor} if path.name == BEST else {}
            model_file.save(model, path, metadata | {"scores": scores} | chosen)

        def on_epoch(rows: Sequence[dict[str, float]]) -> None:
            if not first:
                return
            curve = curves.Curve(folder.name, rows)
            curves.draw([curve], folder / CURVES, columns=task.columns, title=folder.name)
            if board is not None:
                board.write(rows[-1])
            track(rows[-1])

        frozen_epochs = options.start.freeze_encoder_epochs
        return train(
            TrainingPlan(
                network=model,
                optimizer=_optimizers(options, steps),
                task=task,
                loss=loss,
                training=training,
                validation=split.validation,
                epochs=length.epochs,
                steps_per_epoch=steps,
                validate_every=length.validate_every,
                monitor=monitor,
                patience=length.patience,
                min_delta=length.min_delta,
                keep_every=run.keep_every,
                save_minutes=run.save_minutes,
                accumulation=options.optimizer.gradient_accumulation,
                steps_given=length.steps_per_epoch,
                threads=run.threads,
                folder=folder,
                save_model=save_model,
                callbacks=callbacks,
                on_epoch=on_epoch,
                on_prediction=board.show if board else lambda *_: None,
                frozen=network.encoder(model, "freeze_encoder_epochs") if frozen_epochs else (),
                freeze_epochs=frozen_epochs or length.fresh_optimizer_epoch,
                replay=length.hard_example_replay,
            )
        ).rows


def _optimizers(
    options: TrainingOptions, steps_per_epoch: int
) -> Callable[[int], keras.optimizers.Optimizer]:
    """Makes the run's optimizers, as `TrainingPlan.optimizer` wants them."""
    length = options.length
    rate = schedules.build(options.schedule, epochs=length.epochs, steps_per_epoch=steps_per_epoch)
    repeat_every = EVERY if length.hard_example_replay else 0

    def make(start: int) -> keras.optimizers.Optimizer:
        return optimizers.build(options.optimizer, schedules.continued(rate, start, repeat_every))

    return make


def _settings(options: TrainingOptions, split: Split, task: Task) -> dict[str, Any]:
    """All that decides what a run computes, as JSON has it.

    Raises:
        UserError: The weights it starts from know the validation fold.
    """
    labelled, inherited = _groups(split.training), network.known_groups(options)
    validated = _groups(split.validation)
    known = sorted(inherited & validated)
    if known and not options.run.force:
        raise UserError(
            f"--weights '{options.start.weights}' was trained on {len(known)} groups of the "
            f"validation fold, the first is '{known[0]}'; start from a model of the same fold "
            "('{fold}' becomes it), or --force."
        )
    return {
        **{k: value for k, value in options.flat().items() if k not in run_folder.FREE},
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
                line
                for sample in (*split.training, *split.validation, *split.pseudo)
                for line in (
                    _size(sample, sample.photo),
                    *task.fingerprint(sample),
                    *(_size(sample, path) for path in sample.stacked),
                )
            ]
        ),
    }


def _size(sample: Sample, path: Path) -> str:
    return f"{sample.stem} {path.stat().st_size}"


def _groups(samples: Sequence[Sample]) -> set[str]:
    return {sample.group for sample in samples}


def _start(options: TrainingOptions, resizer: Resizer, steps: int) -> str:
    """What the run starts from, in one line."""
    name, schedule, smoke = options.model.network, options.schedule, options.run.smoke
    random = smoke or not options.start.loads_weights
    start = "random weights" if random else str(options.start.weights)
    source = networks.find(name).source
    if smoke:
        start += ", as always with --smoke, which downloads nothing"
    elif random and source:
        hint = IMAGENET if source == "keras" else f"FILE of {source}, see docs/weights.md"
        start += f" (its encoder has weights trained on ImageNet: --weights={hint})"
    size = "" if resizer.policy == "pad" else f" {resizer.width}x{resizer.height}"
    if schedule.clr is not None:
        rate = f"--clr={schedule.clr}"
    elif schedule.sets_all_rates:
        rate = schedule.lr_schedule
    else:
        rate = f"{schedule.learning_rate:g} ({schedule.lr_schedule})"
    return (
        f"start: {name} from {start}; {resizer.policy}{size}, batch "
        f"{options.length.batch_size}, learning rate {rate}, "
        f"{steps} steps an epoch, {options.length.epochs} epochs"
    )


def _resizer(options: TrainingOptions, stride: int, split: Split) -> Resizer:
    policy, samples = options.input.policy, (*split.training, *split.pseudo)
    flags = (options.input.input_height, options.input.input_width)
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
            f"{options.model.network}; round --input_width and --input_height."
        )
    return Resizer(policy, height, width, stride, options.input.clahe)


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
