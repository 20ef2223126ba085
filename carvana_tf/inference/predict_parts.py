"""Predicts a listing of any length into run lengths in Parquet, a part at a time.

Parts are the unit of work: one that is whole is skipped, one with photos that could not be read
gets those that can be by now, any other is made from its first row on. Which rows a part has
depends on the listing and the size of parts alone, so shards and restarts give the same parts.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from carvana_tf import shards
from carvana_tf.data import bad_files, listing
from carvana_tf.data.dataset import Naming, Sample
from carvana_tf.data.images import Reading
from carvana_tf.data.listing import Listing, Photos, Row
from carvana_tf.data.tables import write_table
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory, SystemFailure, named
from carvana_tf.filenames import MANIFEST
from carvana_tf.inference import predict_folder
from carvana_tf.inference import session as sessions
from carvana_tf.inference.options import AUTO, RLE_PARQUET, OutputOptions
from carvana_tf.inference.pipeline import Outcome
from carvana_tf.inference.session import Session
from carvana_tf.interrupt import Interrupt
from carvana_tf.masks import manifest, rle_parquet
from carvana_tf.masks.growing import InOrder
from carvana_tf.masks.manifest import Manifest
from carvana_tf.models.checkpoint import Checkpoint
from carvana_tf.progress import bar, report
from carvana_tf.shards import Shard
from carvana_tf.tasks import MASKS
from carvana_tf.tasks.masks.writers import MaskOutput, OnMask, run_lengths

FIRST = 100
"""So many photos, or all where they are fewer, are not all unreadable by their own fault."""
OnPhoto = Callable[[], object]
Put = Callable[[str, rle_parquet.Row], object]
_SHOWN = 10  # problems that are printed while it runs


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be predicted, and where to.

    Attributes:
        photos: The listing.
        naming: Gives the groups of photos.
        reading: How photos are read.
        folder: Of the parts.
        options: How to predict.
        shard: Which parts to do, of `count` parts each `count`-th one; None for all.
        overwrite: Whether parts that are there are made again.
    """

    photos: Listing | Photos
    naming: Naming
    reading: Reading
    folder: Path
    options: OutputOptions
    shard: Shard | None = None
    overwrite: bool = False

    @property
    def size(self) -> int:
        """Rows of a part."""
        return self.options.prediction.photos_per_part

    @property
    def own(self) -> Path:
        """Where this process keeps what is not shared."""
        return shards.own_folder(self.folder, self.shard)

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / rle_parquet.name(number)

    def parts(self, photos: int) -> int:
        """How many parts so many photos are."""
        return -(-photos // self.size)

    def numbers(self, photos: int) -> range:
        """The parts that this process does.

        Args:
            photos: How many there are in all.
        """
        step = self.shard or Shard(0, 1)
        return range(step.number, self.parts(photos), step.count)

    def samples(self, rows: Iterable[Row]) -> list[Sample]:
        """The photos of rows."""
        return [row.sample(self.naming, self.reading) for row in rows]


class Done(NamedTuple):
    """What a run did.

    Attributes:
        outcome: None where nothing was left to do.
        unreadable: How many photos have no mask by now; `bad_files.NAME` lists them.
    """

    outcome: Outcome | None
    unreadable: int


def predict_parts(
    job: Job,
    members: Sequence[Checkpoint],
    names: Sequence[str],
    *,
    engine: str = AUTO,
    calibration: Callable[[], Sequence[Sample]] = tuple,
) -> Done:
    """Predicts a listing with the mean of several models into the parts of a folder.

    Args:
        job: What.
        members: The models.
        names: Of `keras.device`, one per device to use.
        engine: What runs the models, one of `options.ENGINES`.
        calibration: Finds the photos that 8 bits are calibrated on.

    Raises:
        UserError: An option does not fit, the listing or a model cannot be read, the folder holds
            something else, another process fills it, or the prediction fails.
    """
    with shards.held(job.folder, job.shard):
        shards.begin(job.folder, job.shard)
        session, made = _prepare(job, members, names, engine, calibration)
        outcome = _Run(job, session, made).do(names)
        unreadable = _record_unreadable(job, made)
        if outcome is not None and outcome.written:
            predict_folder.keep_timings(job.own, outcome, names, session.failed)
        shards.finish(job.folder, job.shard, unreadable=unreadable)
        return Done(outcome, unreadable)


def _prepare(
    job: Job,
    members: Sequence[Checkpoint],
    names: Sequence[str],
    engine: str,
    calibration: Callable[[], Sequence[Sample]],
) -> tuple[Session, Manifest]:
    """Loads the models, and makes the folder ready."""
    for member in members:
        if member.task != MASKS.name or member.stacked_channels:
            raise UserError(
                f"--output={RLE_PARQUET} is for masks by models of photos alone, without stacked "
                f"channels, and '{member.path}' is another; leave it out."
            )
    digest = job.photos.digest()
    count = _count(job, digest)
    parts = job.parts(count)
    if parts > rle_parquet.MOST_PARTS:
        least = -(-count // rle_parquet.MOST_PARTS)
        raise UserError(
            f"{count} photos are {parts} parts of --photos_per_part={job.size}, more than "
            f"{rle_parquet.MOST_PARTS} in one folder; give --photos_per_part={least} or more."
        )
    # All shards choose an engine by the same photos.
    _, rows = next(listing.parts(job.photos, job.size, lambda number: number == 0))
    first = job.samples(rows)
    with predict_folder.choosing(job.folder, job.shard, lambda: _begun(job)) as begun:
        session = sessions.prepare(
            first,
            members,
            job.options.prediction,
            names,
            MASKS,
            engine=engine,
            calibration=calibration,
            begun=predict_folder.how(begun, job.shard) if begun else None,
        )
        origin = predict_folder.origin_of(first, job.options, session)
        made = dataclasses.replace(
            origin,
            photos=count,
            photos_digest=digest,
            out_of_fold=_out_of_fold(job, members),
            encoding=f"{origin.encoding}, {job.size} photos a part",
            extensions=None,
            cut_for_memory=begun.cut_for_memory if begun and job.shard is None else None,
        )
        _make_ready(job, made)
    return session, made


def _count(job: Job, digest: str) -> int:
    """How many photos there are; a listing that the folder is for already was checked then."""
    with contextlib.suppress(UserError):  # the manifest is damaged
        before = manifest.read(job.folder)
        if before is not None and before.photos_digest == digest:
            return before.photos
    return job.photos.check()


def _begun(job: Job) -> Manifest | None:
    """How a part of the folder was filled, or is being filled by shards."""
    fresh = job.overwrite and job.shard is None
    filled = job.shard or (not fresh and rle_parquet.list_parts(job.folder))
    return manifest.read(job.folder) if filled else None


def _out_of_fold(job: Job, members: Sequence[Checkpoint]) -> bool:
    """Whether no model was trained on a photo or its group; not looked for in a listing."""
    if isinstance(job.photos, Listing):
        return False
    return predict_folder.out_of_fold(job.samples(job.photos.every), members)


def _make_ready(job: Job, made: Manifest) -> None:
    """Writes the manifest, or takes part in the folder as it says.

    Raises:
        UserError: The folder holds something else.
    """
    present = rle_parquet.list_parts(job.folder)
    if job.shard is None and (job.overwrite or not present):
        # In this order: parts must at no moment lie next to a manifest that is not theirs.
        if job.overwrite and present:
            (job.folder / MANIFEST).unlink(missing_ok=True)
        for path in present:
            path.unlink()
        manifest.begin(job.folder, made, ())
        return
    manifest.join(job.folder, made, job.shard)
    if job.overwrite:
        for number in job.numbers(made.photos):
            job.part(number).unlink(missing_ok=True)


class _Run:
    """The parts of a job, one after the other."""

    def __init__(self, job: Job, session: Session, made: Manifest) -> None:
        self._job = job
        self._session = session
        self._made = made
        self._watch = MASKS.writers.watch(job.options.prediction.threshold)
        self._shown = 0

    def do(self, devices: Sequence[str]) -> Outcome | None:
        """Makes the parts that are not whole; None where all are."""
        job, photos = self._job, self._made.photos
        numbers = job.numbers(photos)
        rows = {n: min(job.size, photos - n * job.size) for n in numbers}
        left = dict(rows)  # photos without a mask
        for number in numbers:
            if known := rle_parquet.look(job.part(number), self._made):
                left[number] = known.unreadable
        todo = {number: count for number, count in left.items() if count}
        total, missing = sum(rows.values()), sum(todo.values())
        shard, ran = job.shard, self._session.engines[0][0]
        print(
            f"{total} photos in {len(rows)} parts{f' of {shard}' if shard else ''}, "
            f"{total - missing} already predicted; {', '.join(devices)}, {ran.name}, {ran.dtype}"
        )
        if not todo:
            return None
        start = _Start(job, min(FIRST, missing), readable=missing < total)
        done: Outcome | None = None
        begin = time.perf_counter()
        with bar(total=total, initial=total - missing, desc="predicting", unit="photo") as shown:
            for number, part in listing.parts(job.photos, job.size, todo.__contains__):
                one = self._part(number, part, rows[number] > todo[number], start, shown)
                done = one if done is None else _add(done, one)
                if one.interrupted:
                    raise KeyboardInterrupt
        job.photos.refuse_changes()  # a shorter one ends early
        models = ", ".join(f"'{member.path}'" for member in self._session.members)
        if warning := self._watch.warning(models):
            report(warning)
        return done and dataclasses.replace(done, seconds=time.perf_counter() - begin)

    def _part(
        self, number: int, rows: Sequence[Row], completes: bool, start: "_Start", shown: tqdm
    ) -> Outcome:
        """Makes a part, or completes it; where memory is not enough, with smaller batches or tiles.

        Raises:
            UserError: As of `pipeline.run`, or memory is not enough for anything.
        """
        before, make = shown.n, self._complete if completes else self._make
        while True:
            try:
                return make(number, rows, start, shown.update)
            except OutOfMemory as error:
                before_error = self._made
                self._session, self._made = predict_folder.with_less_memory(
                    error, self._session, self._made, self._job.folder
                )
                if self._made is not before_error:
                    manifest.join(self._job.folder, self._made, self._job.shard)
                shown.n = before

    def _make(
        self, number: int, rows: Sequence[Row], start: "_Start", on_photo: OnPhoto
    ) -> Outcome:
        """Writes a part from its first row on."""
        with Interrupt() as interrupt, self._writing(number) as part:
            ordered = InOrder(part.add, [row.id for row in rows])
            outcome = self._predict(rows, ordered.put, start, on_photo)
        return dataclasses.replace(outcome, interrupted=interrupt.requested or outcome.interrupted)

    def _complete(
        self, number: int, rows: Sequence[Row], start: "_Start", on_photo: OnPhoto
    ) -> Outcome:
        """Writes a part again with the masks that it lacked, as far as there are any by now."""
        path, found = self._job.part(number), dict[str, rle_parquet.Row]()
        lacks = {row.id for row in rle_parquet.read(path) if row.rle is None}
        again = [row for row in rows if row.id in lacks]
        with Interrupt() as interrupt:
            outcome = self._predict(again, found.__setitem__, start, on_photo)
            if outcome.written:
                with self._writing(number) as part:
                    for row in rle_parquet.read(path):
                        part.add(found.get(row.id, row))
        return dataclasses.replace(outcome, interrupted=interrupt.requested or outcome.interrupted)

    @contextlib.contextmanager
    def _writing(self, number: int) -> Iterator[rle_parquet.Part]:
        writing = rle_parquet.writing(self._job.folder, number, self._made)
        with named("writing", self._job.part(number)), writing as part:
            yield part
            # What it got are rows of the listing that its manifest names.
            self._job.photos.refuse_changes()

    def _predict(
        self, rows: Sequence[Row], put: Put, start: "_Start", on_photo: OnPhoto
    ) -> Outcome:
        threshold = self._job.options.prediction.threshold
        paths = {row.id: row.path for row in rows}
        output = _Output(paths, put, threshold, self._watch.add, start)
        outcome = self._session.run(self._job.samples(rows), output, on_photo, report)
        for _, problem in outcome.unreadable[: _SHOWN - self._shown]:
            report(f"unreadable: {problem}")
            self._shown += 1
        return outcome


class _Output(MaskOutput):
    """Rows of a part.

    Args:
        paths: Of the photos, by id.
        put: Gets each row with the photo's id.
        threshold: A grey value above it is object.
        on_mask: Gets each mask.
        start: Learns which photos can be read.
    """

    def __init__(
        self,
        paths: Mapping[str, str],
        put: Put,
        threshold: int,
        on_mask: OnMask,
        start: "_Start",
    ) -> None:
        super().__init__(on_mask)
        self._paths = paths
        self._put = put
        self._threshold = threshold
        self._start = start

    def encode(
        self, prediction: np.ndarray, photo: np.ndarray | None, path: Path | None = None
    ) -> tuple[int, int, str]:
        """The height, width and run lengths of the mask, decoded back and compared."""
        grey = self._grey(prediction)
        height, width = grey.shape
        return height, width, run_lengths(grey, self._threshold)

    def write(self, sample: Sample, data: tuple[int, int, str]) -> None:
        """Gives the row of a mask."""
        self._start.readable = True
        self._put(sample.stem, rle_parquet.Row(sample.stem, self._paths[sample.stem], *data))

    def skip(self, sample: Sample, problem: str) -> None:
        """Gives a row that says why it has no mask."""
        self._start.skip(problem)
        row = rle_parquet.Row(sample.stem, self._paths[sample.stem], problem=problem)
        self._put(sample.stem, row)


class _Start:
    """Ends a run in which no photo can be read.

    Attributes:
        readable: Whether one could be, in this run or before.
    """

    def __init__(self, job: Job, most: int, *, readable: bool) -> None:
        self.readable = readable
        self._job = job
        self._left = most
        self._lock = threading.Lock()

    def skip(self, problem: str) -> None:
        """Counts an unreadable photo.

        Raises:
            SystemFailure: The first ones all are.
        """
        with self._lock:
            self._left -= 1
            if not self.readable and self._left <= 0:
                raise SystemFailure(
                    f"the first photos of '{self._job.photos.path}' are all unreadable, one as "
                    f"{problem.rstrip('.')}; see that their storage is there, and lets you read, "
                    "and that relative paths start from this folder."
                )


def _add(one: Outcome, other: Outcome) -> Outcome:
    """Two runs, one after the other; who could not be read is written down elsewhere."""
    seconds = one.seconds + other.seconds
    stages = [
        {
            **late,
            "seconds": round(early["seconds"] + late["seconds"], 4),
            "share": round(
                (early["share"] * one.seconds + late["share"] * other.seconds) / seconds, 4
            ),
        }
        for early, late in zip(one.stages, other.stages, strict=True)
    ]
    return Outcome(one.written + other.written, [], seconds, stages)


def _record_unreadable(job: Job, made: Manifest) -> int:
    """Lists the photos without a mask, and returns how many there are."""
    known = [rle_parquet.look(job.part(number), made) for number in job.numbers(made.photos)]
    lacking = [part for part in known if part is not None and part.unreadable]
    rows = rle_parquet.rows(lacking)
    bad = ((row.path, row.problem) for row in rows if row.rle is None)
    if lacking:
        write_table(job.own / bad_files.NAME, bad_files.COLUMNS, bad)
    else:
        (job.own / bad_files.NAME).unlink(missing_ok=True)
    return sum(part.unreadable for part in lacking)
