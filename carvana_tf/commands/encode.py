"""Encodes a folder of probability PNGs as a submission, or checks an existing one.

python generate_encoded_submission.py --pred_mask_dir=predicted_masks

With --check=FILE nothing is written; FILE is compared with --pred_mask_dir, and with
--pred_sample_csv where there is one; without one, every mask must have a row. With
--pred_sample_csv alone given, its names alone are checked.
"""

import dataclasses
import datetime
import itertools
import sys
import time
from pathlib import Path
from typing import ClassVar

from carvana_tf import cluster
from carvana_tf.cli import Command
from carvana_tf.data.threshold import DEFAULT_THRESHOLD, HIGHEST_THRESHOLD
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.failures import first_few
from carvana_tf.filenames import SAMPLE_SUBMISSION, SUBMISSION
from carvana_tf.flags import Needs, Values, option
from carvana_tf.masks import manifest, parts, rle_parquet, submission
from carvana_tf.masks.open_folder import choose_threshold, record_forced, warn_or_raise
from carvana_tf.options import ImageOptions
from carvana_tf.shards import MOST, ShardOptions
from carvana_tf.tasks.options import TaskOptions


@dataclasses.dataclass(frozen=True)
class SubmissionOptions:
    """The masks, and the submission that is made of them."""

    pred_mask_dir: str = option("predicted_masks", "Folder of the probability PNGs.")
    submissions_dir: str = option("submissions", "Folder the submission is written to.")
    submission_name: str | None = option(
        None,
        "Name of its file, compressed if it ends in .gz, replaced if it exists; by default "
        "'submission-<time>.csv.gz'.",
    )
    dataset_dir: str = option("input", "Folder of the dataset, for its sample submission.")
    pred_sample_csv: str = option(
        f"input/{SAMPLE_SUBMISSION}",
        "Sample submission that gives the images, their order and the column names; by default "
        f"{SAMPLE_SUBMISSION} inside --dataset_dir. Where the default file does not exist, every "
        "PNG of the folder is a row.",
        key="sample_submission",
        inside=True,
    )
    test_data_dir: str | None = option(
        None,
        "Folder of the photos, whose names are the first column where no sample names them; by "
        "default the masks' manifest.json has the names.",
    )
    image_extension: str | None = option(
        None, "The extension of all photos (.jpg), where nothing else has their names."
    )
    threshold: int | None = option(
        None,
        "Grey values above it are object; by default the one that the masks were post-processed "
        f"at, else {DEFAULT_THRESHOLD}.",
        lower=0,
        upper=HIGHEST_THRESHOLD,
    )
    pred_threads: int = option(8, "Threads that read and encode masks.", lower=1)
    merge_shards: int = option(
        0,
        "Make one submission of the parts that so many shards have written: those of "
        "--num_shards in --submissions_dir, or of a prediction with --output=rle in "
        "--pred_mask_dir.",
        lower=0,
        upper=MOST,
    )
    check: str | None = option(
        None,
        "An existing submission to compare, instead of writing one: with the masks of "
        "--pred_mask_dir, and with the names of --pred_sample_csv where it exists.",
    )
    force: bool = option(
        False,
        "Go on where the folder is not what its manifest.json says; <submission>.forced.json "
        "records it.",
    )

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("submissions_dir", "submission_name", "image_extension"),
            lambda o: o.check is None,
            "with --check, which writes nothing",
        ),
    )


def run(values: Values) -> None:
    """Writes and verifies a submission, or checks the one given."""
    options = _options(values)
    if options.check is not None:
        _check(values, Path(options.check))
        return
    if rle_parquet.list_parts(Path(options.pred_mask_dir)):
        _merge_parquet(values)
        return
    if options.merge_shards:
        _merge(values, options.merge_shards)
        return
    folder, path = Path(options.submissions_dir), _path(options)
    rows, shard = _choose_rows(values), values[ShardOptions].chosen
    _warn_of_surplus(rows.surplus)
    threshold, problems = _threshold(options)
    start = time.perf_counter()
    if shard is None:
        spent = submission.write(path, rows, options.pred_threads, threshold)
    else:
        spent = parts.write(folder, rows, shard, options.pred_threads, threshold)
        rows, path = parts.of_shard(rows, shard), shard.folder(folder) / SUBMISSION
    seconds = time.perf_counter() - start
    record_forced(path, [*rows.forced, *problems])
    print(
        f"{seconds:.1f} s; in {options.pred_threads} threads: read {spent.read:.1f} s, "
        f"encode {spent.encode:.1f} s, verify {spent.verify:.1f} s"
    )
    print(f"{len(rows.images)} rows, each decoded back and equal to its mask -> {path}")


def elsewhere(values: Values) -> int | None:
    """Encodes on the cluster that --ray_address names, and merges the parts here."""
    options, shards = _options(values), values[ShardOptions]
    if not shards.ray_address:
        return None
    folder, threads = Path(options.submissions_dir), options.pred_threads
    # The name is that of the whole.
    without = ["--submission_name="]
    work = cluster.Work("encode", values.arguments, folder, "row", threads, without=without)
    _merge(values, cluster.run(work, shards))
    return 0


def _merge(values: Values, count: int) -> None:
    """Makes one submission of the parts of so many shards."""
    options = _options(values)
    path, masks = _path(options), Path(options.pred_mask_dir)
    if parts.is_predicted(masks):
        merged = parts.merge_predicted(path, masks, count, options.pred_threads)
        print(f"{merged} rows of {count} shards -> {path}")
        return
    rows = _choose_rows(values)
    _warn_of_surplus(rows.surplus)
    threshold, problems = _threshold(options)
    folder = Path(options.submissions_dir)
    parts.merge(path, folder, rows, count, options.pred_threads, threshold)
    record_forced(path, [*rows.forced, *problems])
    print(f"{len(rows.images)} rows of {count} shards -> {path}")


def _merge_parquet(values: Values) -> None:
    """Makes one submission of the parts of a prediction with --output=rle-parquet."""
    options, masks = _options(values), Path(values[SubmissionOptions].pred_mask_dir)
    for flag in ("pred_sample_csv", "test_data_dir", "image_extension", "merge_shards"):
        if values.is_set(flag) and values.flag(flag):
            raise UserError(
                f"--{flag}={values.flag(flag)} has no effect on the Parquet files of '{masks}': "
                "they give a row for each photo of their listing, in its order; drop it."
            )
    choose_threshold(masks, manifest.read(masks), options.threshold)
    path, found, problems = _path(options), rle_parquet.complete(masks), list[str]()
    if unreadable := sum(part.unreadable for part in found):
        problem = (
            f"{unreadable} photos of '{masks}' could not be read and would have no row; run the "
            "prediction again when they can be"
        )
        problems = [warn_or_raise(problem, force=options.force)]
    rows = parts.merge_parquet(path, found, options.pred_threads)
    record_forced(path, problems)
    print(f"{rows} rows of {len(found)} Parquet files -> {path}")


def _path(options: SubmissionOptions) -> Path:
    folder = Path(options.submissions_dir)
    return folder / options.submission_name if options.submission_name else dated_path(folder)


def validate(values: Values, problems: Problems) -> None:
    """Adds every file and folder that does not exist."""
    options, shard = _options(values), values[ShardOptions].chosen
    divided = values[ShardOptions].divided
    if divided and options.merge_shards:
        problems.add(
            "--merge_shards contradicts --num_shards and --ray_address, which merges by itself; "
            "leave it or those out."
        )
    if shard and options.submission_name:
        problems.add(
            f"--submission_name={options.submission_name} names no part of {shard}; give it with "
            "--merge_shards."
        )
    parquet = rle_parquet.list_parts(Path(options.pred_mask_dir))
    if divided and parquet:
        problems.add(
            f"the Parquet files of '{options.pred_mask_dir}' are made one submission by one "
            "process; leave --num_shards and --ray_address out."
        )
    if options.check and (divided or options.merge_shards):
        problems.add("--check compares a whole submission; leave the shards out.")
    names_alone = _names_alone(values)
    folders = [("test_data_dir", options.test_data_dir)]
    folders += [] if names_alone else [("pred_mask_dir", options.pred_mask_dir)]
    for flag, path in folders:
        missing = path is not None and not Path(path).is_dir()
        problems.add(f"--{flag}: the folder '{path}' {absent(path)}", missing)
    files = [("check", options.check)]
    files += [("pred_sample_csv", options.pred_sample_csv)] if _has_sample(values) else []
    for flag, path in files:
        missing = path is not None and not Path(path).is_file()
        problems.add(f"--{flag}: the file '{path}' {absent(path)}", missing)


def _options(values: Values) -> SubmissionOptions:
    """The options, with the sample of the dataset where no flag names one."""
    options = values[SubmissionOptions]
    if values.is_set("pred_sample_csv") or "pred_sample_csv" in values.remembered:
        return options
    sample = Path(options.dataset_dir) / SAMPLE_SUBMISSION
    return dataclasses.replace(options, pred_sample_csv=str(sample))


def _names_alone(values: Values) -> bool:
    """Whether a submission's names are all that is to be checked."""
    given = values.is_set("pred_sample_csv") and not values.is_set("pred_mask_dir")
    return _options(values).check is not None and given and _has_sample(values)


def _threshold(options: SubmissionOptions) -> tuple[int, list[str]]:
    folder = Path(options.pred_mask_dir)
    return choose_threshold(folder, manifest.read(folder), options.threshold, force=options.force)


def dated_path(folder: Path) -> Path:
    """A name with the time, and with a number where another one was written this second."""
    name = f"submission-{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    paths = (folder / f"{name}{ending}.csv.gz" for ending in endings)
    return next(path for path in paths if not path.exists())


def _choose_rows(values: Values) -> submission.Rows:
    options = _options(values)
    mask_dir, sample = Path(options.pred_mask_dir), options.pred_sample_csv
    if _has_sample(values):
        if values.is_set("image_extension"):
            raise UserError(
                f"--image_extension={options.image_extension} has no effect where "
                f"--pred_sample_csv='{sample}' names the images; drop it, or give "
                "--pred_sample_csv= for rows without a sample."
            )
        return submission.rows_of_sample(mask_dir, Path(sample), force=options.force)
    photos = Path(options.test_data_dir) if options.test_data_dir else None
    rows = submission.rows_of_folder(mask_dir, options.image_extension, photos, force=options.force)
    print(
        f"no sample '{sample}': every PNG of '{mask_dir}' is a row, in the order of their names; "
        f"the first is '{rows.images[0]}'"
    )
    return rows


def _has_sample(values: Values) -> bool:
    """Whether a sample names the rows: one that was asked for, or the default file."""
    path = _options(values).pred_sample_csv
    named = values.is_set("pred_sample_csv") or "pred_sample_csv" in values.remembered
    return bool(path) and (Path(path).is_file() or named)


def _check(values: Values, path: Path) -> None:
    options, by_sample = _options(values), _has_sample(values)
    if by_sample:
        rows = submission.check_names(path, Path(options.pred_sample_csv))
        print(f"{rows} rows of '{path}' are the images of '{options.pred_sample_csv}', each once")
    if _names_alone(values):
        print("the masks themselves were not compared; give --pred_mask_dir for that")
        return
    folder = Path(options.pred_mask_dir)
    threshold, _ = _threshold(options)
    rows, surplus = submission.validate(
        path, folder, options.pred_threads, threshold, force=options.force
    )
    if surplus and not by_sample:
        raise UserError(
            f"{len(surplus)} masks of '{folder}' have no row in '{path}': "
            f"{first_few(surplus)}; write it again, or give the --pred_sample_csv that "
            "leaves them out."
        )
    _warn_of_surplus(surplus)
    print(f"{rows} rows of '{path}' decode to the masks of '{options.pred_mask_dir}'")


def _warn_of_surplus(names: tuple[str, ...]) -> None:
    if names:
        print(
            f"warning: {len(names)} masks belong to no row and are left out: {first_few(names)}",
            file=sys.stderr,
        )


COMMAND = Command(
    __doc__,
    (TaskOptions, SubmissionOptions, ShardOptions, ImageOptions),
    run,
    validate,
    elsewhere=elsewhere,
    variants={"labels": "carvana_tf.commands.encode_labels"},
)
