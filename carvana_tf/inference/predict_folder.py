"""Predicts one folder of photos into one folder of masks and writes what made them."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from carvana_tf import __version__, devices, files, shards
from carvana_tf.data import bad_files
from carvana_tf.data.dataset import Sample, list_images
from carvana_tf.data.names import extension
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory, named
from carvana_tf.filenames import MANIFEST, TIMINGS
from carvana_tf.inference import session as sessions
from carvana_tf.inference import tiling, tta
from carvana_tf.inference.options import AUTO, OutputOptions, PredictionOptions
from carvana_tf.inference.pipeline import Outcome
from carvana_tf.inference.session import Begun, Session
from carvana_tf.masks import manifest
from carvana_tf.models.checkpoint import Checkpoint
from carvana_tf.progress import bar, report
from carvana_tf.shards import Shard
from carvana_tf.tasks import MASKS, TASKS, Task
from carvana_tf.tasks.base import Watch

_CHOICE = "engine"  # what is claimed while it is chosen


def predict_folder(
    samples: Sequence[Sample],
    members: Sequence[Checkpoint],
    folder: Path,
    options: OutputOptions,
    names: Sequence[str],
    *,
    engine: str = AUTO,
    calibration: Callable[[], Sequence[Sample]] = tuple,
    overwrite: bool = False,
    task: Task = MASKS,
    shard: Shard | None = None,
) -> Outcome | None:
    """Predicts photos with the mean of several models into a folder with a manifest.

    What the folder holds already, made in the same way, is kept. `TIMINGS` next to the
    masks says where the time went.

    Args:
        samples: All photos of the folder, with as many stacked channels as any model takes.
        members: The models.
        folder: Where the masks go.
        options: How to predict.
        names: Of `keras.device`, one per device to use.
        engine: What runs the models, one of `options.ENGINES`.
        calibration: Finds the photos that 8 bits are calibrated on.
        overwrite: Predict again what is there.
        task: What is predicted.
        shard: Predict only its photos, while others predict theirs into the same folder. What
            is one shard's own, as `TIMINGS`, lies in `Shard.folder`.

    Returns:
        What was done; None where nothing was left to do.

    Raises:
        UserError: An option does not fit, a model cannot be loaded, the folder holds
            something else, another process fills it, or the prediction fails.
    """
    if shard is not None and task.name != MASKS.name:
        raise UserError(
            f"--num_shards={shard.count} is for masks, and the models predict {task.name}; leave "
            "it out."
        )
    with shards.held(folder, shard):
        shards.begin(folder, shard)
        outcome = _predict(
            samples,
            members,
            folder,
            options,
            names,
            engine,
            calibration,
            task,
            overwrite=overwrite,
            shard=shard,
        )
        bad = 0 if outcome is None else len(outcome.unreadable)
        shards.finish(folder, shard, unreadable=bad)
        return outcome


def _predict(
    samples: Sequence[Sample],
    members: Sequence[Checkpoint],
    folder: Path,
    options: OutputOptions,
    names: Sequence[str],
    engine: str,
    calibration: Callable[[], Sequence[Sample]],
    task: Task,
    *,
    overwrite: bool,
    shard: Shard | None,
) -> Outcome | None:
    prediction = options.prediction
    own = shards.own_folder(folder, shard)
    mine = [sample for sample in samples if shard is None or shard.has(sample.stem)]
    rows = None if overwrite else task.writers.begun(own)
    finished = rows is None and not overwrite and (own / task.writers.TABLE).is_file()
    _refuse_folder(folder, samples, task, overwrite or rows is not None)

    def find() -> manifest.Manifest | None:
        fresh = overwrite and shard is None
        return None if fresh else _begun(folder, bool(rows), shard)

    with choosing(folder, shard, find) as begun:
        # Before anything is removed, the models must have loaded.
        session = sessions.prepare(
            samples,
            members,
            prediction,
            names,
            task,
            engine=engine,
            calibration=calibration,
            begun=how(begun, shard) if begun else None,
        )
        ran = session.engines[0][0]
        origin = origin_of(samples, options, session)
        if begun is not None and shard is None:
            origin = dataclasses.replace(origin, cut_for_memory=begun.cut_for_memory)
        if overwrite:
            for each in TASKS.values():
                each.writers.discard(own)
        suffix = options.cutout.suffix
        present = _begin(samples, folder, origin, task, suffix, shard, overwrite=overwrite)
    print(
        f"{len(mine)} photos{f' in {shard}' if shard else ''}, {len(present)} already predicted; "
        f"{', '.join(names)}, "
        f"{ran.name}, {ran.dtype}"
    )
    # A shard of a table has a part of it even where it has no photo.
    table = _kind(prediction, task) in task.writers.TABLES
    if finished or (len(present) == len(mine) and rows is None and not (shard and table)):
        return None
    outcome = _run(mine, samples, session, folder, options, origin, present, shard)
    bad_files.record(own, outcome.unreadable)
    if outcome.written:
        keep_timings(own, outcome, names, session.failed)
    return outcome


def _begin(
    samples: Sequence[Sample],
    folder: Path,
    origin: manifest.Manifest,
    task: Task,
    suffix: str,
    shard: Shard | None,
    *,
    overwrite: bool = False,
) -> set[str]:
    """Makes the folder ready; the stems of the photos that have a mask already."""
    stems = {sample.stem for sample in samples}
    own = shards.own_folder(folder, shard)
    rows = task.writers.begun(own) or ()
    present = manifest.begin(
        folder, origin, stems, overwrite=overwrite, rows=rows, suffix=suffix, shard=shard
    )
    if shard is None or overwrite or rows:
        (own / task.writers.TABLE).unlink(missing_ok=True)
    return present


def how(begun: manifest.Manifest, shard: Shard | None) -> Begun:
    """How a part of the folder was predicted; this run has no more memory than the last one.

    Where there are shards, the last one may have run on a machine with less.
    """
    large = None
    if begun.cut_for_memory and shard is None:
        last = begun.cut_for_memory[-1]
        large = tiling.LargeInputs(last["pixels"], tiling.Tiling(last["size"], last["overlap"]))
    return Begun(begun.engine, begun.dtype.endswith("float32"), large)


def _refuse_folder(folder: Path, samples: Sequence[Sample], task: Task, overwrite: bool) -> None:
    if samples[0].photo.parent.resolve() == folder.resolve():
        raise UserError(f"--pred_mask_dir '{folder}' is the folder of the photos; name another.")
    path = folder / task.writers.TABLE
    if path.exists() and not overwrite:
        raise UserError(f"'{path}' exists already; use --overwrite, or another folder.")


def _kind(options: PredictionOptions, task: Task) -> str:
    """The form of the predictions.

    Raises:
        UserError: The task has no such form.
    """
    if options.output not in (None, *task.writers.KINDS):
        raise UserError(
            f"--output={options.output} is no form of {task.product}s; leave it out, or give "
            f"{' or '.join(task.writers.KINDS)}."
        )
    return options.output or task.writers.KINDS[0]


def _begun(folder: Path, rows: bool, shard: Shard | None) -> manifest.Manifest | None:
    """How a part of the folder was filled, with PNGs or rows, or is being filled by shards."""
    filled = rows or shard or (folder.is_dir() and list_images(folder, manifest.SUFFIXES))
    return manifest.read(folder) if filled else None


@contextlib.contextmanager
def choosing(
    folder: Path, shard: Shard | None, find: Callable[[], manifest.Manifest | None]
) -> Iterator[manifest.Manifest | None]:
    """A block in which engine and type are chosen: by the first shard for all.

    Args:
        folder: Of the predictions.
        shard: What this process does, None for all.
        find: Reads how the folder was begun; None where it was not.

    Yields:
        What `find` gives. Where that is None, other shards wait until the end of the block.
    """
    with contextlib.ExitStack() as claim:
        begun = find()
        if shard is not None and begun is None:
            claim.enter_context(files.claimed(folder / _CHOICE, wait=True))
            begun = find()
        if begun is not None:
            claim.close()
        yield begun


def origin_of(
    samples: Sequence[Sample], options: OutputOptions, session: Session
) -> manifest.Manifest:
    """The manifest of predictions of photos that a session will make."""
    members, task, engines = session.members, session.task, session.engines[0]
    stems = [sample.stem for sample in samples]
    prediction = options.prediction
    table = prediction.use_bounding_boxes
    return manifest.Manifest(
        models=tuple(member.description for member in members),
        out_of_fold=out_of_fold(samples, members),
        tta=tta.describe(prediction.pred_tta, prediction.tta_average),
        engine=engines[0].name,
        dtype=engines[0].dtype,
        photos=len(stems),
        photos_digest=files.digest_of_lines(stems),
        encoding=task.writers.encoding(
            _kind(prediction, task), prediction.threshold, options.cutout
        ),
        version=__version__,
        tiles=str(session.settings.tiling) if session.settings.tiling else None,
        boxes=files.digest(Path(table)) if table else None,
        stacked=_stacked(samples[0]),
        extensions=manifest.extensions_of((s.stem, extension(s.photo.name)) for s in samples),
        photo_depth=samples[0].reading.photo_depth,
        conversion=" ".join(engine.conversion for engine in engines).strip() or None,
        threshold=prediction.threshold if prediction.output in task.writers.THRESHOLDED else None,
        task=task.name,
    )


def _stacked(sample: Sample) -> str | None:
    """What the stacked channels are, by their manifests in order; None without any."""
    manifests = [path.parent / MANIFEST for path in sample.stacked]
    lines = [
        f"{i} {files.digest(path) if path.is_file() else ''}" for i, path in enumerate(manifests)
    ]
    return files.digest_of_lines(lines) if lines else None


def out_of_fold(samples: Sequence[Sample], members: Sequence[Checkpoint]) -> bool:
    """Whether no model, nor one of the stacked channels, was trained on a photo or its group."""
    folders = {path.parent for sample in samples for path in sample.stacked}
    behind = [manifest.read(folder) for folder in folders]
    return all(made is not None and made.out_of_fold for made in behind) and all(
        member.lists_all_groups and not member.groups_trained_on(samples) for member in members
    )


def _run(
    samples: Sequence[Sample],
    every: Sequence[Sample],
    session: Session,
    folder: Path,
    options: OutputOptions,
    origin: manifest.Manifest,
    present: set[str],
    shard: Shard | None,
) -> Outcome:
    """Predicts all but the `present`; where memory is not enough, with smaller batches or tiles.

    Raises:
        UserError: As of `pipeline.run`, or memory is not enough for anything.
    """
    task = session.task
    start, watch = time.perf_counter(), task.writers.watch(options.prediction.threshold)
    already = len(present)
    while True:
        todo = [sample for sample in samples if sample.stem not in present]
        try:
            table = _kind(options.prediction, task) in task.writers.TABLES
            target = shards.own_folder(folder, shard) if table else folder
            outcome = _pass(todo, session, target, options, watch, len(present))
            break
        except OutOfMemory as error:
            session, origin = with_less_memory(error, session, origin, folder)
        present = _begin(every, folder, origin, task, options.cutout.suffix, shard)
    if warning := watch.warning(", ".join(f"'{member.path}'" for member in session.members)):
        report(warning)
    written = outcome.written + len(present) - already
    return dataclasses.replace(outcome, written=written, seconds=time.perf_counter() - start)


def with_less_memory(
    error: OutOfMemory, session: Session, origin: manifest.Manifest, folder: Path
) -> tuple[Session, manifest.Manifest]:
    """A session that needs less memory, and the manifest of a folder that it goes on with.

    That has a further rule by which large inputs may be cut from then on; it is yet to be written.

    Raises:
        UserError: Memory is not enough for anything.
    """
    session, meaning = session.with_less_memory(error)
    large = session.settings.large
    if large is not None:
        rule = {"pixels": large.pixels, **dataclasses.asdict(large.tiling)}
        rules = [*(origin.cut_for_memory or ()), rule]
        origin = dataclasses.replace(origin, cut_for_memory=rules)
        meaning += f"; '{folder / MANIFEST}' says so"
    report(f"{error}; going on {meaning}")
    return session, origin


def _pass(
    samples: Sequence[Sample],
    session: Session,
    folder: Path,
    options: OutputOptions,
    watch: Watch,
    done: int,
) -> Outcome:
    prediction, total, task = options.prediction, done + len(samples), session.task
    with (
        named(f"writing {task.product}s into", folder),
        task.writers.create(
            _kind(prediction, task),
            folder,
            samples,
            prediction.threshold,
            watch.add,
            options.cutout,
        ) as output,
        bar(total=total, initial=done, desc="predicting", unit="photo") as progress,
    ):
        outcome = session.run(samples, output, progress.update, report)
        if outcome.too_large is not None:
            raise outcome.too_large
        return outcome


def keep_timings(
    folder: Path, outcome: Outcome, names: Sequence[str], failed: Collection[str]
) -> None:
    """Writes `TIMINGS`.

    Args:
        folder: Where.
        outcome: Of the run.
        names: Of the devices.
        failed: Those that failed.
    """
    report = {
        "photos": outcome.written,
        "seconds": round(outcome.seconds, 3),
        "photos_per_second": round(outcome.written / outcome.seconds, 3),
        "devices": list(names),
        "failed_devices": sorted(failed),
        "hardware": devices.describe(),
        "stages": outcome.stages,
    }
    files.write_json(folder / TIMINGS, report)
