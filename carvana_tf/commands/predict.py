"""Predicts photos with one or several models: by default one probability PNG per photo.

python predict_multithreaded.py --weights=models/mobilenet-fold_0/best.keras \\
    --test_data_dir=input/test --pred_mask_dir=predicted_masks/mobilenet
"""

import dataclasses
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from carvana_tf import cluster
from carvana_tf.cli import Command
from carvana_tf.data import bad_files
from carvana_tf.data.dataset import Sample, find_photos, with_stacked_channels
from carvana_tf.data.folds import find_folds_file, fold_of_samples, known, read_folds
from carvana_tf.data.listing import EXTRA, Listing, Photos, Row
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.failures import installed
from carvana_tf.flags import Needs, Values, option
from carvana_tf.inference.options import RLE_PARQUET, EngineOptions, OutputOptions
from carvana_tf.masks.rle_parquet import list_parts
from carvana_tf.models.options import NetworkOptions
from carvana_tf.options import DatasetOptions, InertOptions
from carvana_tf.shards import ShardOptions, own_folder
from carvana_tf.tasks import MASKS, TASKS, Task
from carvana_tf.tasks.options import grouped

if TYPE_CHECKING:
    from carvana_tf.inference.pipeline import Outcome
    from carvana_tf.models.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """The models, the photos, and where the masks go."""

    weights: tuple[str, ...] = option(
        (), "Model files (.keras) or weights (.h5), comma-separated; several are averaged."
    )
    task: str | None = option(
        None,
        "What the models predict; model files say it themselves.",
        choices=tuple(TASKS),
        advanced=True,
    )
    pred_mask_dir: str | None = option(
        None, "Folder for the predictions; a half filled one is completed."
    )
    test_data_dir: str | None = option(
        None,
        "Folder of the photos; by default 'test' inside --dataset_dir.",
        key="test_photos",
        inside=True,
    )
    listing: str | None = option(
        None,
        "Listing of the photos instead of their folder, for very many, with --output=rle-parquet: "
        "a .txt file of a path or URL in each line, or a .csv or .parquet file (or a folder of "
        "these) with a column 'path', and if wanted 'id'. See docs/scale.md.",
    )
    val_data_dir_name: str = option(
        "train", "Folder, inside --dataset_dir, of the photos for --predict_on_val.", key="photos"
    )
    predict_on_val: bool = option(
        False, "Predict exactly the photos of one fold, which the models have not seen."
    )
    fold: int | None = option(
        None, "The fold for --predict_on_val; by default the models' own.", lower=0
    )
    stacked_channels_dir: str | None = option(
        None,
        "Folder with 0/, 1/, ... that hold '<stem>.png' for models with stacked channels, or that "
        "many mask folders, comma-separated.",
        advanced=True,
    )
    gpu: str = option("0", "Numbers of the GPUs, as 0,1; empty means the processor.")
    seed: int = option(
        80, "Accepted for published command lines; nothing is drawn at random.", advanced=True
    )
    overwrite: bool = option(False, "Predict again what is in --pred_mask_dir.")
    force: bool = option(
        False, "Predict a fold although models were trained on it; the manifest records it."
    )

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("fold", "val_data_dir_name"), lambda o: o.predict_on_val, "without --predict_on_val"
        ),
        Needs(("val_data_dir_name",), lambda o: not o.test_data_dir, "with --test_data_dir"),
        Needs(
            ("listing",),
            lambda o: not (o.test_data_dir or o.predict_on_val or o.stacked_channels_dir),
            "with --test_data_dir, --predict_on_val or --stacked_channels_dir",
        ),
    )

    def forgets(self, given: Collection[str]) -> tuple[str, ...]:
        """Flags whose remembered values do not count, as others decide: see `flags.Values`."""
        return ("test_data_dir",) if self.predict_on_val or self.listing else ()


def validate(values: Values, problems: Problems) -> None:
    """Adds models, folders and folds that do not exist."""
    dataset, options = values[DatasetOptions], values[PredictOptions]
    if not options.weights:
        problems.add("--weights is missing; name one or several .keras or .h5 files.")
    for path in map(Path, options.weights):
        problems.add(f"--weights '{path}' {absent(path)}", not path.is_file())
    if not options.pred_mask_dir:
        problems.add("--pred_mask_dir is missing; name the folder for the masks.")
    values[OutputOptions].cutout.check(problems)
    naming = problems.attempt(lambda: dataset.naming)
    problems.attempt(lambda: dataset.reading)
    parts = values[OutputOptions].prediction.output == RLE_PARQUET
    if options.listing is None:
        problems.attempt(lambda: find_photos(_photo_dir(dataset, options), naming))
    elif not parts:
        problems.add(
            f"--listing has no folder of masks, which would hold too many files; give "
            f"--output={RLE_PARQUET}."
        )
    else:
        problems.attempt(Listing, Path(options.listing))
        _refuse_own_listing(options, problems)
    if parts:
        problems.attempt(installed, "pyarrow", f"--output={RLE_PARQUET}", EXTRA)
    if options.predict_on_val:
        problems.attempt(
            lambda: read_folds(find_folds_file(dataset.folds_source, Path(dataset.dataset_dir)))
        )


def _refuse_own_listing(options: PredictOptions, problems: Problems) -> None:
    """Adds a listing that the parts would change, or that --overwrite would remove."""
    listing, folder = Path(options.listing or ""), Path(options.pred_mask_dir or "")
    listed = listing.resolve()
    problems.add(
        f"--listing='{listing}' is read from the Parquet files of --pred_mask_dir, which the masks "
        "are written to; name another folder for them.",
        listed in (folder.resolve(), *(part.resolve() for part in list_parts(folder))),
    )


def _photo_dir(dataset: DatasetOptions, options: PredictOptions) -> Path:
    if options.test_data_dir and Path(options.test_data_dir).is_dir():
        return Path(options.test_data_dir)
    if options.predict_on_val and not options.test_data_dir:
        return dataset.existing_folder(options.val_data_dir_name, "val_data_dir_name")
    return dataset.existing_folder(options.test_data_dir or "test", "test_data_dir")


def elsewhere(values: Values) -> int | None:
    """Predicts on the cluster that --ray_address names."""
    options, shards = values[PredictOptions], values[ShardOptions]
    if not shards.ray_address:
        return None
    threads = values[OutputOptions].prediction.threads
    folder = Path(options.pred_mask_dir or "")
    work = cluster.Work("predict", values.arguments, folder, "mask", threads, options.gpu)
    count = cluster.run(work, shards)
    print(f"{count} shards -> {folder}")
    return 0


def run(values: Values) -> int:
    """Finds out what is to do and does it."""
    from carvana_tf import devices
    from carvana_tf.inference.predict_folder import predict_folder
    from carvana_tf.models import checkpoint

    options = values[PredictOptions]
    folder = Path(options.pred_mask_dir or "")
    names, note = devices.select(options.gpu)
    if note and values.is_set("gpu"):
        print(note)
    network = values[NetworkOptions]
    members = [checkpoint.read(Path(path), network) for path in options.weights]
    task = _task(options, members)
    _refuse_other_channels(network, members)
    dataset = _with_depth(grouped(values[DatasetOptions], values, task), members)
    engine, shard = values[EngineOptions], values[ShardOptions].chosen
    if values[OutputOptions].prediction.output == RLE_PARQUET:
        return _predict_parts(values, dataset, members, names)
    samples = _with_stacked_channels(_photos(dataset, options, members), options, members)
    outcome = predict_folder(
        samples,
        members,
        folder,
        values[OutputOptions],
        names,
        engine=engine.engine,
        calibration=lambda: _calibration(dataset, options, engine, members),
        overwrite=options.overwrite,
        task=task,
        shard=shard,
    )
    if outcome is None:
        return 0
    _report_times(outcome, folder, task)
    for _, problem in outcome.unreadable:
        print(f"unreadable: {problem}", file=sys.stderr)
    return _report_unreadable(len(outcome.unreadable), own_folder(folder, shard), task)


def _predict_parts(
    values: Values,
    dataset: DatasetOptions,
    members: Sequence["Checkpoint"],
    devices: Sequence[str],
) -> int:
    """Predicts into the parts of a folder."""
    from carvana_tf.inference.predict_parts import Job, predict_parts

    options, engine = values[PredictOptions], values[EngineOptions]
    photos: Listing | Photos
    if options.listing is not None:
        photos = Listing(Path(options.listing))
    else:
        samples = _with_stacked_channels(_photos(dataset, options, members), options, members)
        rows = [Row(sample.stem, str(sample.photo)) for sample in samples]
        photos = Photos(_photo_dir(dataset, options), rows)
    job = Job(
        photos,
        dataset.naming,
        dataset.reading,
        Path(options.pred_mask_dir or ""),
        values[OutputOptions],
        values[ShardOptions].chosen,
        options.overwrite,
    )
    outcome, unreadable = predict_parts(
        job,
        members,
        devices,
        engine=engine.engine,
        calibration=lambda: _calibration(dataset, options, engine, members),
    )
    if outcome is not None:
        _report_times(outcome, job.folder, MASKS)
    # Without them it would be another listing, which needs another folder.
    fix = "replace them, and run the same command again, or encode the others with --force"
    return _report_unreadable(unreadable, job.own, MASKS, fix)


def _task(options: PredictOptions, members: Sequence["Checkpoint"]) -> Task:
    """What the models predict.

    Raises:
        UserError: They do not agree, or a flag contradicts them.
    """
    from carvana_tf.inference import session as sessions

    for member in members:
        if options.task not in (None, member.task):
            raise UserError(
                f"--task={options.task} contradicts '{member.path}', which predicts {member.task}; "
                "leave the flag out, model files know."
            )
    return sessions.task_of(members)


def _refuse_other_channels(network: NetworkOptions, members: Sequence["Checkpoint"]) -> None:
    """Refuses a number of stacked channels that no model takes."""
    takes = {member.stacked_channels for member in members}
    if network.stacked_channels and network.stacked_channels not in takes:
        raise UserError(
            f"--stacked_channels={network.stacked_channels} contradicts --weights, which takes "
            f"{', '.join(map(str, sorted(takes)))}; leave the flag out, model files know."
        )


def _with_depth(dataset: DatasetOptions, members: Sequence["Checkpoint"]) -> DatasetOptions:
    """The dataset with photos read at the depth of the training, unless a flag says otherwise."""
    from carvana_tf.inference import session as sessions

    if dataset.photo_depth:
        return dataset
    return dataclasses.replace(dataset, photo_depth=sessions.depth_of(members))


def _photos(
    dataset: DatasetOptions, options: PredictOptions, members: Sequence["Checkpoint"]
) -> list[Sample]:
    """The photos that are to be predicted."""
    photo_dir = _photo_dir(dataset, options)
    samples = find_photos(photo_dir, dataset.naming, dataset.reading)
    if not options.predict_on_val:
        return samples
    fold = _fold(options, members)
    path = find_folds_file(dataset.folds_source, Path(dataset.dataset_dir))
    folds = read_folds(path)
    in_table = known(samples, folds) or samples
    if len(in_table) < len(samples):
        print(f"{len(samples) - len(in_table)} photos of '{photo_dir}' are in no fold of '{path}'")
    of_sample = fold_of_samples(in_table, folds)
    chosen = [sample for sample, f in zip(in_table, of_sample, strict=True) if f == fold]
    if not chosen:
        numbers = ", ".join(map(str, sorted(set(of_sample))))
        raise UserError(f"no photo of '{photo_dir}' is in --fold={fold}; they are in {numbers}.")
    if not options.force:
        _refuse_leak(members, chosen, fold)
    return chosen


def _fold(options: PredictOptions, members: Sequence["Checkpoint"]) -> int:
    if options.fold is not None:
        return options.fold
    folds = {member.fold for member in members}
    fold = folds.pop() if len(folds) == 1 else None
    if not isinstance(fold, int):
        listed = "; ".join(f"{m.path}: {'unknown' if m.fold is None else m.fold}" for m in members)
        raise UserError(
            f"--predict_on_val needs --fold, the models do not agree on one ({listed})."
        )
    return fold


def _refuse_leak(members: Sequence["Checkpoint"], samples: Sequence[Sample], fold: int) -> None:
    for member in members:
        seen = member.groups_trained_on(samples)
        if seen:
            raise UserError(
                f"'{member.path}' (fold {member.fold}) was trained on {len(seen)} groups of "
                f"--fold={fold}, the first is '{seen[0]}': they would not be predicted out of "
                "fold; use the fold the model was not trained on, or --force."
            )


def _with_stacked_channels(
    samples: Sequence[Sample], options: PredictOptions, members: Sequence["Checkpoint"]
) -> list[Sample]:
    channels = max(member.stacked_channels for member in members)
    from carvana_tf.training import stacking

    folder = Path(options.stacked_channels_dir) if options.stacked_channels_dir else None
    stacked = with_stacked_channels(samples, folder, channels)
    stacking.refuse_misfits(folder, channels, force=options.force)
    if options.predict_on_val and not options.force:
        stacking.refuse_leak(folder, channels)
    return stacked


def _calibration(
    dataset: DatasetOptions,
    options: PredictOptions,
    engine: EngineOptions,
    members: Sequence["Checkpoint"],
) -> list[Sample]:
    """Training photos for 8 bits."""
    from carvana_tf.inference.engines.agreement import choose_photos

    folder = Path(engine.calibration_dir) if engine.calibration_dir else dataset.folder("train")
    try:
        photos = choose_photos(
            find_photos(folder, dataset.naming, dataset.reading), engine.calibration_photos
        )
        return _with_stacked_channels(photos, options, members)
    except UserError as error:
        raise UserError(
            f"8 bits need photos like those to be predicted, see --calibration_dir: {error}"
        ) from error


def _report_times(outcome: "Outcome", folder: Path, task: Task) -> None:
    from carvana_tf.inference import pipeline

    rate = outcome.written / outcome.seconds
    print(pipeline.format_times(outcome.stages, outcome.written))
    done = f"{outcome.written} {task.product}s in {outcome.seconds:.1f} s ({rate:.2f} photos/s)"
    print(f"{done} -> {folder}")


def _report_unreadable(
    count: int,
    own: Path,
    task: Task,
    fix: str = "replace or remove them, and run the same command again",
) -> int:
    """Says how many photos could not be read; returns the exit status."""
    if not count:
        return 0
    print(
        f"error: {count} photos have no {task.product}, see above and "
        f"'{own / bad_files.NAME}'; {fix}.",
        file=sys.stderr,
    )
    return 1


COMMAND = Command(
    __doc__,
    (
        PredictOptions,
        OutputOptions,
        EngineOptions,
        ShardOptions,
        DatasetOptions,
        NetworkOptions,
        InertOptions,
    ),
    run,
    validate,
    elsewhere=elsewhere,
    loads=("carvana_tf.inference.predict_folder", "carvana_tf.inference.predict_parts"),
)
