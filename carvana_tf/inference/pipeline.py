"""The pipeline of a prediction: read | run | write, each in a pool of threads.

    readers --batches--> network threads --outputs--> writers --events--> main thread

Bounded channels lie between them, so memory stays bounded and the slowest pool sets the
pace. What is computed depends on the list of photos alone, never on which thread was
first: batches are cut from the list before any thread starts. What becomes of an output is
the business of the `Output` that the caller gives.

A batch whose device fails goes back into its channel, where the threads of the other devices
take it.
"""

import contextlib
import dataclasses
import enum
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import UnreadableImage
from carvana_tf.data.loader import read_channels
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory, describe, is_device_error, named
from carvana_tf.inference.engines import Engine
from carvana_tf.inference.predictor import (
    Batch,
    InputView,
    PhotoInfo,
    PipelineSettings,
    Predictor,
)
from carvana_tf.interrupt import Interrupt

READERS, NETWORK, WRITERS = "readers", "network", "writers"
POOLS = {
    READERS: ("read", "prepare"),
    NETWORK: ("network",),
    WRITERS: ("restore", "encode", "write"),
}
"""The stages that the threads of each pool run."""
WAITING = "waiting"
"""The stage of every pool in which it waits for the others."""

# A network call cannot be interrupted; after this many seconds its thread is left behind.
_PATIENCE = 60.0

_T = TypeVar("_T")


class Output(Protocol):
    """What becomes of predictions, and where they go; any thread may call it."""

    @property
    def shows_photo(self) -> bool:
        """Whether `encode` needs the photo."""

    @property
    def takes_uint8(self) -> bool:
        """Whether `encode` takes `uint8` predictions, `round(255 p)`, as it takes `float32`."""

    def restore(self, output: np.ndarray, resizer: Resizer, size: tuple[int, int]) -> np.ndarray:
        """A network's output for one photo as its prediction at the photo's own size.

        Args:
            output: Of `Engine.predict` or, where `takes_uint8`, of `Engine.predict_uint8`.
            resizer: How the photo, or its box, was brought to the network's input.
            size: The (height, width) of the photo, or of its box.
        """

    def encode(
        self, prediction: np.ndarray, photo: np.ndarray | None, path: Path | None = None
    ) -> Any:
        """What is written for one photo, as bytes of a file.

        Args:
            prediction: The mean of what `restore` gave for the photo.
            photo: `uint8[H, W, 3]` where `shows_photo`.
            path: The photo's file.
        """

    def write(self, sample: Sample, data: Any) -> None:
        """Writes what `encode` gave for a photo."""

    def skip(self, sample: Sample, problem: str) -> None:
        """Goes on without a photo, which cannot be read, and why."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        written: For how many photos something was written.
        unreadable: Each photo that could not be read, and why, sorted.
        seconds: From start to end.
        stages: Where the time went, see `StageTimes.rows`.
        interrupted: Whether Ctrl-C or SIGTERM came when all was done.
        too_large: Of the first photo that is unreadable for want of memory.
    """

    written: int
    unreadable: list[tuple[str, str]]
    seconds: float
    stages: list[dict[str, Any]]
    interrupted: bool = False
    too_large: OutOfMemory | None = None


def run(
    samples: Sequence[Sample],
    devices: Sequence[Sequence[Engine]],
    output: Output,
    settings: PipelineSettings,
    on_photo: Callable[[], object] = lambda: None,
    on_failure: "Callable[[DeviceFailure], object]" = lambda failure: None,
) -> Outcome:
    """Predicts photos with the mean of several networks and writes what they give.

    A device fails where its backend says so, or where memory is not enough on it for one input
    at a time. The others do its photos then, the batch that it was at included. A batch that
    fails on a second device ends the run, since that is hardly the devices' fault.

    Args:
        samples: The photos, with their stacked channels.
        devices: For each device its own engines, the same networks in the same order.
        output: Where predictions go, as what.
        settings: How to run.
        on_photo: Called in the calling thread after each photo, readable or not.
        on_failure: Called in the calling thread when a device has failed and others go on.

    Raises:
        OutOfMemory: Memory was not enough for these settings, on every device where these are one
            input at a time. Where they are the least there are, a photo that it is not enough for
            to be read is unreadable.
        UserError: What else went wrong in any thread; the message names the photos that it was
            at. All other threads have been stopped then.
        KeyboardInterrupt: Ctrl-C or SIGTERM came before the end, and nothing went wrong;
            what was written stays.
    """
    return _Pipeline(samples, devices, output, settings).run(on_photo, on_failure)


@dataclasses.dataclass(frozen=True)
class DeviceFailure:
    """A device that takes no part any more.

    Attributes:
        device: `Engine.device` of its engines.
        error: Why, in a line.
        memory: Whether it lacked memory.
    """

    device: str
    error: str
    memory: bool


@dataclasses.dataclass(frozen=True)
class _Outputs:
    """A batch after the networks.

    Attributes:
        photos: Its photos.
        sums: What `Predictor.predict` gave for them.
    """

    photos: list[PhotoInfo]
    sums: dict[InputView, np.ndarray]


class _Event(enum.Enum):
    """What the main thread gets, next to the reasons why photos could not be read."""

    WRITTEN = "a prediction is written"
    END = "a reader or writer has nothing more to do"
    STOP = "a thread failed, or an interrupt came"


class _Pipeline:
    """One call of `run`: the channels between its pools, and what its threads share."""

    def __init__(
        self,
        samples: Sequence[Sample],
        devices: Sequence[Sequence[Engine]],
        output: Output,
        settings: PipelineSettings,
    ) -> None:
        streams = [
            number
            for number, engines in enumerate(devices)
            for _ in range(min(_streams(engines), settings.streams or _streams(engines)))
        ]
        self._streams = streams
        self._devices = devices
        self._predictor = Predictor(
            devices[0],
            settings,
            output.restore,
            shows_photo=output.shows_photo,
            takes_uint8=output.takes_uint8,
        )
        self._output = output
        self._settings = settings
        self._times = StageTimes()
        self._photos = len(samples)
        self._chunks: SimpleQueue[Sequence[Sample]] = SimpleQueue()
        for start in range(0, len(samples), settings.photos_per_batch):
            self._chunks.put(samples[start : start + settings.photos_per_batch])
        self._prepared: _Batches[Batch] = _Batches(2 * len(streams), settings.readers)
        self._predicted: Channel[_Outputs] = Channel(2 * len(streams), len(streams))
        # No channel: a signal's handler, which runs in the thread that waits, puts here, too.
        self._events: SimpleQueue[_Event | tuple[str, str] | DeviceFailure] = SimpleQueue()
        self._failure: BaseException | None = None
        self._failed: set[int] = set()
        self._returned: set[str] = set()
        self._too_large: list[OutOfMemory] = []
        self._lock = threading.Lock()

    def run(
        self,
        on_photo: Callable[[], object],
        on_failure: Callable[[DeviceFailure], object],
    ) -> Outcome:
        """Starts the threads, follows their events and joins them."""
        start = time.perf_counter()
        threads = self._threads()
        written, unreadable = 0, []
        with Interrupt(lambda: self._events.put(_Event.STOP)) as interrupt:
            try:
                for thread in threads:
                    thread.start()
                for event in self._until_the_end():
                    if isinstance(event, DeviceFailure):
                        on_failure(event)
                        continue
                    if isinstance(event, tuple):
                        unreadable.append(event)
                    else:
                        written += 1
                    on_photo()
            finally:
                # After a regular end nobody uses the channels any more: this changes nothing.
                self._cancel()
                for thread in threads:
                    if thread.is_alive():  # one that was never started cannot be joined
                        thread.join(_PATIENCE)
        if self._failure is not None:
            raise self._failure
        if interrupt.requested and written + len(unreadable) < self._photos:
            raise KeyboardInterrupt
        seconds = time.perf_counter() - start
        counts = {
            READERS: self._settings.readers,
            NETWORK: len(self._streams),
            WRITERS: self._settings.writers,
        }
        return Outcome(
            written,
            sorted(unreadable),
            seconds,
            self._times.rows(counts, seconds),
            interrupt.requested,
            self._too_large[0] if self._too_large else None,
        )

    def _until_the_end(self) -> Iterator[_Event | tuple[str, str] | DeviceFailure]:
        """What happens to each photo and device, until all threads have ended or must."""
        busy = self._settings.readers + self._settings.writers
        while busy:
            event = self._events.get()
            if event is _Event.STOP:
                break
            if event is _Event.END:
                busy -= 1
            else:
                yield event

    def _threads(self) -> list[threading.Thread]:
        bodies: list[Callable[[], None]] = [self._read] * self._settings.readers
        bodies += [self._network(number) for number in self._streams]
        bodies += [self._write] * self._settings.writers
        # Daemons: a network call that outlasts our patience must not keep the process.
        return [
            threading.Thread(target=self._guarded, args=(body,), daemon=True) for body in bodies
        ]

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Cancelled:
            pass
        except BaseException as error:
            if isinstance(error, OutOfMemory):
                # What its frames and its cause hold is needed.
                error = OutOfMemory(str(error), error.pixels)
            with self._lock:
                self._failure = self._failure or error
            self._cancel()
            self._events.put(_Event.STOP)

    def _cancel(self) -> None:
        self._prepared.cancel()
        self._predicted.cancel()

    def _read(self) -> None:
        for chunk in self._take_chunks():
            photos = []
            for sample in chunk:
                try:
                    reading = named("reading", sample.source, *sample.stacked)
                    with self._times.measure(READERS, "read"), reading:
                        photos.append((sample, read_channels(sample)))
                except (UnreadableImage, OutOfMemory) as error:
                    if isinstance(error, OutOfMemory):
                        if not self._settings.is_least:
                            raise
                        self._too_large.append(OutOfMemory(str(error)))
                    self._output.skip(sample, str(error))
                    self._events.put((str(sample.source), str(error)))
            paths = [sample.source for sample, _ in photos]
            with self._times.measure(READERS, "prepare"), named("preparing", *paths):
                batches = self._predictor.prepare(photos)
            for batch in batches:
                with self._times.measure(READERS, WAITING):
                    self._prepared.put(batch)
        self._prepared.finish()
        self._events.put(_Event.END)

    def _take_chunks(self) -> Iterator[Sequence[Sample]]:
        while True:
            try:
                yield self._chunks.get_nowait()
            except Empty:
                return

    def _network(self, number: int) -> Callable[[], None]:
        def body() -> None:
            while number not in self._failed:
                with self._times.measure(NETWORK, WAITING):
                    batch = self._prepared.get()
                if batch is None:
                    break
                try:
                    with self._times.measure(NETWORK, "network"):
                        sums = self._predict(self._devices[number], batch)
                except UserError as error:
                    self._fail(number, batch, error)
                    self._prepared.give_back(batch)
                    continue
                self._prepared.done()
                with self._times.measure(NETWORK, WAITING):
                    self._predicted.put(_Outputs(batch.photos, sums))
            self._predicted.finish()

        return body

    def _fail(self, number: int, batch: Batch, error: UserError) -> None:
        """Goes on without a device.

        Raises:
            UserError: The error is none of a device, or the others cannot take over.
        """
        memory = isinstance(error, OutOfMemory)
        if not (self._settings.calls_singly if memory else is_device_error(error)):
            raise error  # for want of memory, all devices get smaller batches
        device, stem = self._devices[number][0].device, batch.photos[0].sample.stem
        with self._lock:
            if number in self._failed:  # another of its threads was first
                return
            last = len(self._failed) + 1 == len(self._devices)
            if last or stem in self._returned:
                if memory or not self._failed:
                    raise error
                raise UserError(
                    f"{str(error).rstrip('.')} (on {device}, after {len(self._failed)} of "
                    f"{len(self._devices)} devices had failed); the same command goes on."
                ) from error
            self._failed.add(number)
            self._returned.add(stem)
        text = str(error) if memory else describe(error.__cause__ or error)
        self._events.put(DeviceFailure(device, text, memory))

    def _predict(self, engines: Sequence[Engine], batch: Batch) -> dict[InputView, np.ndarray]:
        try:
            with named("predicting", *(photo.sample.source for photo in batch.photos)):
                return self._predictor.predict(engines, batch)
        except OutOfMemory as error:
            shapes = [images[0].shape for images in batch.inputs.values()]
            raise OutOfMemory(str(error), max(h * w for h, w, _ in shapes)) from None

    def _write(self) -> None:
        while True:
            with self._times.measure(WRITERS, WAITING):
                outputs = self._predicted.get()
            if outputs is None:
                break
            for i, photo in enumerate(outputs.photos):
                sums = {view: total[i] for view, total in outputs.sums.items()}
                with named("writing the prediction of", photo.sample.source):
                    with self._times.measure(WRITERS, "restore"):
                        prediction = self._predictor.restore(photo, sums)
                    with self._times.measure(WRITERS, "encode"):
                        data = self._output.encode(prediction, photo.pixels, photo.sample.photo)
                    with self._times.measure(WRITERS, "write"):
                        self._output.write(photo.sample, data)
                self._events.put(_Event.WRITTEN)
        self._events.put(_Event.END)


def _streams(engines: Sequence[Engine]) -> int:
    """How many threads may use all of the engines at once."""
    return min(engine.streams for engine in engines)


class Cancelled(Exception):
    """The channel was cancelled while, or before, a thread used it."""


class Channel(Generic[_T]):
    """A bounded first-in, first-out queue between pools that ends, and that can be cancelled.

    `queue.Queue` can do neither before Python 3.13: a thread that waits for it never learns that
    the other side has failed.

    Args:
        capacity: How many items may wait; a producer blocks while it is full.
        producers: How many times `finish` is called before the channel ends.
    """

    def __init__(self, capacity: int, producers: int) -> None:
        self._capacity = capacity
        self._producers = producers
        self._items: deque[_T] = deque()
        self._cancelled = False
        self._changed = threading.Condition()

    def put(self, item: _T) -> None:
        """Adds an item, waiting for space.

        Raises:
            Cancelled: The channel was cancelled.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or len(self._items) < self._capacity)
            if self._cancelled:
                raise Cancelled
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> _T | None:
        """The next item, waiting for one; None when every producer has finished.

        Raises:
            Cancelled: The channel was cancelled.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or self._items or self._has_ended())
            if self._cancelled:
                raise Cancelled
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def _has_ended(self) -> bool:
        return not self._producers

    def finish(self) -> None:
        """Says that one producer will put no more."""
        with self._changed:
            self._producers -= 1
            self._changed.notify_all()

    def cancel(self) -> None:
        """Makes every call on the channel, waiting or to come, raise `Cancelled`."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()


class _Batches(Channel[_T]):
    """A channel whose items may come back: it ends when every item that was taken is done."""

    def __init__(self, capacity: int, producers: int) -> None:
        super().__init__(capacity, producers)
        self._taken = 0

    def get(self) -> _T | None:
        """As `Channel.get`; `done` or `give_back` follows unless the channel is cancelled."""
        with self._changed:
            item = super().get()
            self._taken += item is not None
            return item

    def done(self) -> None:
        """Says that an item will not come back."""
        with self._changed:
            self._taken -= 1
            self._changed.notify_all()

    def give_back(self, item: _T) -> None:
        """Puts an item back before all others, even where the channel is full."""
        with self._changed:
            self._items.appendleft(item)
            self.done()

    def _has_ended(self) -> bool:
        return not (self._producers or self._taken)


class StageTimes:
    """Adds up seconds by pool and stage; any thread may measure.

    A pool is a group of threads that do the same work ("readers"), a stage one kind of work
    in it ("prepare"), or `WAITING` for the other pools.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[tuple[str, str], float] = defaultdict(float)

    @contextlib.contextmanager
    def measure(self, pool: str, stage: str) -> Iterator[None]:
        """Adds the time the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            with self._lock:
                self._seconds[pool, stage] += elapsed

    def rows(self, threads: Mapping[str, int], wall: float) -> list[dict[str, Any]]:
        """One row per pool and stage, waiting last.

        Args:
            threads: How many threads each pool had.
            wall: Seconds from start to end.

        Returns:
            Rows with `pool`, `threads`, `stage`, `seconds` (summed over threads) and `share`
            (of the pool's thread time, 0..1).
        """
        return [
            {
                "pool": pool,
                "threads": threads[pool],
                "stage": stage,
                "seconds": round(self._seconds[pool, stage], 4),
                "share": round(self._seconds[pool, stage] / max(wall * threads[pool], 1e-9), 4),
            }
            for pool, stages in POOLS.items()
            for stage in (*stages, WAITING)
        ]


def format_times(rows: Sequence[Mapping[str, Any]], photos: int) -> str:
    """The rows of `StageTimes` as aligned text, with milliseconds per photo."""
    lines = [
        f"{'pool':<10}{'threads':>8}  {'stage':<10}{'seconds':>10}{'share':>8}{'ms/photo':>10}"
    ]
    for row in rows:
        each = 1000 * row["seconds"] / max(photos, 1)
        lines.append(
            f"{row['pool']:<10}{row['threads']:>8}  {row['stage']:<10}{row['seconds']:>10.2f}"
            f"{row['share']:>8.0%}{each:>10.1f}"
        )
    return "\n".join(lines)
