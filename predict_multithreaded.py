"""Predicts photos with one or several models: one 8-bit probability PNG per photo.

python predict_multithreaded.py --weights=models/mobilenet-fold_0/best.keras \\
    --test_data_dir=input/test --pred_mask_dir=predicted_masks/mobilenet
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from carvana_tf import __version__, cli, devices, files, flags
from carvana_tf.data.dataset import Sample, find_photos, with_stacked_channels
from carvana_tf.data.folds import find_folds_file, fold_of_samples, read_folds
from carvana_tf.errors import UserError
from carvana_tf.flags import option
from carvana_tf.inference import pipeline, sources, timings, tta
from carvana_tf.inference.engines import Engine, choice
from carvana_tf.inference.engines.check import choose_photos
from carvana_tf.inference.engines.choice import EngineOptions
from carvana_tf.inference.sources import NetworkOptions, Source
from carvana_tf.masks import manifest
from carvana_tf.options import DatasetOptions, InertOptions
from carvana_tf.progress import bar


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """What only this script needs."""

    weights: tuple[str, ...] = option(
        (), "Model files (.keras) or weights (.h5), comma-separated; several are averaged."
    )
    pred_mask_dir: str | None = option(None, "Folder for the PNGs; a half filled one is completed.")
    test_data_dir: str | None = option(
        None, "Folder of the photos; by default 'test' inside --dataset_dir."
    )
    val_data_dir_name: str = option(
        "train", "Folder, inside --dataset_dir, of the photos for --predict_on_val."
    )
    predict_on_val: bool = option(
        False, "Predict exactly the photos of one fold, which the models have not seen."
    )
    fold: int | None = option(
        None, "The fold for --predict_on_val; by default the models' own.", lower=0
    )
    pred_batch_size: int = option(1, "Photos per batch.", lower=1)
    pred_tta: str = option(
        "none", "Average over views of the photo: none, or its mirror image.", choices=tta.NAMES
    )
    stacked_channels_dir: str | None = option(
        None, "Folder with 0/, 1/, ... that hold '<stem>.png' for models with stacked channels."
    )
    gpu: str = option("0", "Numbers of the GPUs, as 0,1; empty means the processor.")
    dtype: str = option("auto", "Compute type of the network.", choices=devices.DTYPES)
    threads: int = option(2, "Threads that read photos, and as many that write PNGs.", lower=1)
    seed: int = option(80, "Accepted for published command lines; nothing is drawn at random.")
    overwrite: bool = option(False, "Predict anew what is in --pred_mask_dir.")
    force: bool = option(
        False, "Predict a fold although models were trained on it; the manifest will tell."
    )


_DATASET = flags.define(DatasetOptions)
_NETWORK = flags.define(NetworkOptions)
_PREDICT = flags.define(PredictOptions)
_ENGINE = flags.define(EngineOptions)
_INERT = flags.define(InertOptions)


def main() -> int:
    """Finds out what is to do, loads the models and runs the pipeline."""
    dataset, options = _DATASET.read(), _PREDICT.read()
    folder = _required(options)
    names, note = devices.select(options.gpu)
    if note and _PREDICT.given("gpu"):
        print(note)
    network = _NETWORK.read()
    members = [sources.find(Path(path), network) for path in options.weights]
    photo_dir, samples = _photos(dataset, options, members)
    if folder.resolve() == photo_dir.resolve():
        raise UserError(f"--pred_mask_dir '{folder}' is the folder of the photos; name another.")
    samples = _stacked(samples, options, members)
    policy = devices.compute_dtype(options.dtype)
    job = choice.Job(
        members=members,
        devices=names,
        policy=policy,
        samples=samples,
        calibration=lambda: _calibration(dataset, options, _ENGINE.read(), members),
        begun_with=None if options.overwrite else _begun_with(folder),
    )
    stems = {sample.stem for sample in samples}
    # Before anything is removed, the models must have loaded.
    engines = choice.make_engines(_ENGINE.read().engine, job)
    ran = engines[0][0]
    origin = _origin(options, members, samples, ran)
    present = manifest.begin(folder, origin, stems, overwrite=options.overwrite)
    todo = [sample for sample in samples if sample.stem not in present]
    print(
        f"{len(samples)} photos, {len(present)} already predicted; {', '.join(names)}, "
        f"{ran.name}, {ran.dtype}"
    )
    if not todo:
        return 0
    outcome = _run(options, engines, todo, len(samples), folder)
    return _tell(outcome, names, folder)


def _required(options: PredictOptions) -> Path:
    if not options.weights:
        raise UserError("--weights is required: one or several .keras or .h5 files.")
    if not options.pred_mask_dir:
        raise UserError("--pred_mask_dir is required: the folder for the PNGs.")
    return Path(options.pred_mask_dir)


def _photos(
    dataset: DatasetOptions, options: PredictOptions, members: Sequence[Source]
) -> tuple[Path, list[Sample]]:
    """The folder of the photos and those of them that are to be predicted."""
    if options.test_data_dir:
        photo_dir = Path(options.test_data_dir)
    elif options.predict_on_val:
        photo_dir = dataset.folder(options.val_data_dir_name)
    else:
        photo_dir = Path(dataset.dataset_dir) / "test"
    samples = find_photos(photo_dir, dataset.naming)
    if not options.predict_on_val:
        return photo_dir, samples
    fold = _fold(options, members)
    path = find_folds_file(dataset.folds_source, Path(dataset.dataset_dir))
    of_sample = fold_of_samples(samples, read_folds(path))
    chosen = [sample for sample, f in zip(samples, of_sample, strict=True) if f == fold]
    if not chosen:
        known = ", ".join(map(str, sorted(set(of_sample))))
        raise UserError(f"no photo of '{photo_dir}' is in --fold={fold}; they are in {known}.")
    if not options.force:
        _refuse_leak(members, chosen, fold)
    return photo_dir, chosen


def _fold(options: PredictOptions, members: Sequence[Source]) -> int:
    if options.fold is not None:
        return options.fold
    folds = {member.fold for member in members}
    fold = folds.pop() if len(folds) == 1 else None
    if not isinstance(fold, int):
        told = "; ".join(f"{m.path}: {'unknown' if m.fold is None else m.fold}" for m in members)
        raise UserError(f"--predict_on_val needs --fold, the models do not agree on one ({told}).")
    return fold


def _refuse_leak(members: Sequence[Source], samples: Sequence[Sample], fold: int) -> None:
    for member in members:
        seen = member.seen(samples)
        if seen:
            raise UserError(
                f"'{member.path}' (fold {member.fold}) was trained on {len(seen)} groups of "
                f"--fold={fold}, the first is '{seen[0]}': their masks would not be out of fold; "
                "use the fold the model was not trained on, or --force."
            )


def _begun_with(folder: Path) -> str | None:
    """The engine that filled a part of the folder."""
    begun = manifest.read(folder)
    return begun.engine if begun else None


def _calibration(
    dataset: DatasetOptions,
    options: PredictOptions,
    engine: EngineOptions,
    members: Sequence[Source],
) -> list[Sample]:
    """Training photos for 8 bits."""
    folder = Path(engine.calibration_dir) if engine.calibration_dir else dataset.folder("train")
    photos = choose_photos(find_photos(folder, dataset.naming), engine.calibration_photos)
    return _stacked(photos, options, members)


def _stacked(
    samples: Sequence[Sample], options: PredictOptions, members: Sequence[Source]
) -> list[Sample]:
    return with_stacked_channels(
        samples,
        Path(options.stacked_channels_dir) if options.stacked_channels_dir else None,
        max(member.stacked_channels for member in members),
    )


def _origin(
    options: PredictOptions, members: Sequence[Source], samples: Sequence[Sample], ran: Engine
) -> manifest.Manifest:
    stems = [sample.stem for sample in samples]
    return manifest.Manifest(
        models=tuple(member.description for member in members),
        out_of_fold=all(
            member.training_groups is not None and not member.seen(samples) for member in members
        ),
        tta=options.pred_tta,
        engine=ran.name,
        dtype=ran.dtype,
        photos=len(stems),
        photos_digest=files.digest_of_lines(stems),
        encoding=manifest.ENCODING,
        version=__version__,
    )


def _run(
    options: PredictOptions,
    engines: Sequence[Sequence[Engine]],
    samples: Sequence[Sample],
    total: int,
    folder: Path,
) -> pipeline.Outcome:
    settings = pipeline.Settings(
        batch_size=options.pred_batch_size,
        tta=options.pred_tta,
        readers=options.threads,
        writers=options.threads,
    )
    done = total - len(samples)
    with bar(total=total, initial=done, desc="predicting", unit="photo") as progress:
        return pipeline.run(samples, engines, folder, settings, progress.update)


def _tell(outcome: pipeline.Outcome, names: Sequence[str], folder: Path) -> int:
    rate = outcome.written / outcome.seconds
    report = {
        "photos": outcome.written,
        "seconds": round(outcome.seconds, 3),
        "photos_per_second": round(rate, 3),
        "devices": list(names),
        "hardware": devices.describe(),
        "stages": outcome.stages,
    }
    files.write_json(folder / "timings.json", report)
    print(timings.format_table(outcome.stages, outcome.written))
    print(f"{outcome.written} masks in {outcome.seconds:.1f} s ({rate:.2f} photos/s) -> {folder}")
    if not outcome.unreadable:
        return 0
    for message in outcome.unreadable:
        print(f"unreadable: {message}", file=sys.stderr)
    print(f"error: {len(outcome.unreadable)} photos have no mask, see above.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    cli.run(main)
