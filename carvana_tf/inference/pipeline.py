"""Photos in, masks out: readers, a thread for each stream of each device, writers.

    readers --batches--> network threads --predictions--> writers --events--> main thread

Bounded channels lie between them, so memory stays bounded and the slowest room sets the
pace. What is computed depends on the list of photos alone, never on which thread was
first: batches are cut from the list before any thread starts.
"""

import dataclasses
import enum
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import UnreadableImage
from carvana_tf.data.loader import read_channels
from carvana_tf.failures import OutOfMemory, named
from carvana_tf.inference.assembly import Assembly, Batch, Item, Settings, Way
from carvana_tf.inference.channel import Channel, Cut
from carvana_tf.inference.engines import Engine
from carvana_tf.inference.outputs import Output
from carvana_tf.inference.timings import WAITING, Timings, table
from carvana_tf.interrupt import Interrupt

READERS, NETWORK, WRITERS = "readers", "network", "writers"
ROOMS = {
    READERS: ("read", "prepare"),
    NETWORK: ("network",),
    WRITERS: ("restore", "encode", "write"),
}

# A network call cannot be interrupted; after this many seconds its thread is left behind.
_PATIENCE = 60.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        written: For how many photos something was written.
        unreadable: Each photo that could not be read, and why, sorted.
        seconds: From start to end.
        stages: The rows of `timings.table`.
    """

    written: int
    unreadable: list[tuple[str, str]]
    seconds: float
    stages: list[dict[str, Any]]


def run(
    samples: Sequence[Sample],
    devices: Sequence[Sequence[Engine]],
    output: Output,
    settings: Settings,
    on_photo: Callable[[], object] = lambda: None,
    on_mask: Callable[[np.ndarray], object] = lambda values: None,
) -> Outcome:
    """Predicts photos with the mean of several networks and writes what they give.

    Args:
        samples: The photos, with their stacked channels.
        devices: For each device its own engines, the same networks in the same order.
        output: Where masks go, as what.
        settings: How to run.
        on_photo: Called in the calling thread after each photo, readable or not.
        on_mask: Called with the `uint8[H, W]` of each mask, in any thread.

    Raises:
        OutOfMemory: Memory was not enough for these settings. Where they are the least there
            are, and it was not enough to read a photo, all others are done before.
        UserError: What else went wrong in any thread; the message names the photos that it was
            at. All other threads have been stopped then.
        KeyboardInterrupt: Ctrl-C or SIGTERM came before the end, and nothing went wrong;
            what was written stays.
    """
    return _Run(samples, devices, output, settings, on_mask).go(on_photo)


@dataclasses.dataclass(frozen=True)
class _Prediction:
    """A batch after the networks.

    Attributes:
        items: Its photos.
        sums: What `Assembly.predict` gave for them.
    """

    items: list[Item]
    sums: dict[Way, np.ndarray]


class _Event(enum.Enum):
    """What the main thread is told, beside why a photo could not be read."""

    WRITTEN = "a photo's mask is written"
    END = "a reader or writer has nothing more to do"
    STOP = "a thread failed, or an interrupt came"


class _Run:
    """One call of `run`: the channels between its threads, and what they share."""

    def __init__(
        self,
        samples: Sequence[Sample],
        devices: Sequence[Sequence[Engine]],
        output: Output,
        settings: Settings,
        on_mask: Callable[[np.ndarray], object],
    ) -> None:
        streams = [
            engines
            for engines in devices
            for _ in range(min(_streams(engines), settings.streams or _streams(engines)))
        ]
        self._streams = streams
        self._assembly = Assembly(devices[0], settings, shows_photo=output.shows_photo)
        self._output = output
        self._settings = settings
        self._on_mask = on_mask
        self._timings = Timings()
        self._photos = len(samples)
        self._chunks: SimpleQueue[Sequence[Sample]] = SimpleQueue()
        for start in range(0, len(samples), settings.photos_at_once):
            self._chunks.put(samples[start : start + settings.photos_at_once])
        self._prepared: Channel[Batch] = Channel(2 * len(streams), settings.readers)
        self._predicted: Channel[_Prediction] = Channel(2 * len(streams), len(streams))
        # No channel: a signal's handler, which runs in the thread that waits, puts here, too.
        self._events: SimpleQueue[_Event | tuple[str, str]] = SimpleQueue()
        self._failure: BaseException | None = None
        self._too_large: list[OutOfMemory] = []
        self._lock = threading.Lock()

    def go(self, on_photo: Callable[[], object]) -> Outcome:
        """Starts the threads, follows their events and joins them."""
        start = time.perf_counter()
        threads = self._threads()
        written, unreadable = 0, []
        with Interrupt(lambda: self._events.put(_Event.STOP)) as interrupt:
            try:
                for thread in threads:
                    thread.start()
                for event in self._until_the_end():
                    if isinstance(event, tuple):
                        unreadable.append(event)
                    else:
                        written += 1
                    on_photo()
            finally:
                # After a regular end nobody uses the channels any more, and cutting is harmless.
                self._cut()
                for thread in threads:
                    if thread.is_alive():  # one that was never started cannot be joined
                        thread.join(_PATIENCE)
        if self._failure is not None:
            raise self._failure
        if interrupt.requested and written + len(unreadable) < self._photos:
            raise KeyboardInterrupt
        if self._too_large:
            raise self._too_large[0]
        seconds = time.perf_counter() - start
        counts = {
            READERS: self._settings.readers,
            NETWORK: len(self._streams),
            WRITERS: self._settings.writers,
        }
        stages = table(self._timings, ROOMS, counts, seconds)
        return Outcome(written, sorted(unreadable), seconds, stages)

    def _until_the_end(self) -> Iterator[_Event | tuple[str, str]]:
        """What happens to each photo, until all threads have ended or must."""
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
        bodies += [self._network(engines) for engines in self._streams]
        bodies += [self._write] * self._settings.writers
        # Daemons: a network call that outlasts our patience must not keep the process.
        return [
            threading.Thread(target=self._guarded, args=(body,), daemon=True) for body in bodies
        ]

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Cut:
            pass
        except BaseException as error:
            if isinstance(error, OutOfMemory):
                # What its frames and its cause hold is needed.
                error = OutOfMemory(str(error), error.pixels)
            with self._lock:
                self._failure = self._failure or error
            self._cut()
            self._events.put(_Event.STOP)

    def _cut(self) -> None:
        self._prepared.cut()
        self._predicted.cut()

    def _read(self) -> None:
        for chunk in self._take_chunks():
            photos = []
            for sample in chunk:
                try:
                    reading = named("reading", sample.photo, *sample.stacked)
                    with self._timings.measure(READERS, "read"), reading:
                        photos.append((sample, read_channels(sample)))
                except (UnreadableImage, OutOfMemory) as error:
                    if isinstance(error, OutOfMemory):
                        if not self._settings.least:
                            raise
                        self._too_large.append(OutOfMemory(str(error)))
                    self._output.skip(sample)
                    self._events.put((str(sample.photo), str(error)))
            files = [sample.photo for sample, _ in photos]
            with self._timings.measure(READERS, "prepare"), named("preparing", *files):
                batches = self._assembly.prepare(photos)
            for batch in batches:
                with self._timings.measure(READERS, WAITING):
                    self._prepared.put(batch)
        self._prepared.finish()
        self._events.put(_Event.END)

    def _take_chunks(self) -> Iterator[Sequence[Sample]]:
        while True:
            try:
                yield self._chunks.get_nowait()
            except Empty:
                return

    def _network(self, engines: Sequence[Engine]) -> Callable[[], None]:
        def body() -> None:
            while True:
                with self._timings.measure(NETWORK, WAITING):
                    batch = self._prepared.get()
                if batch is None:
                    break
                with self._timings.measure(NETWORK, "network"):
                    sums = self._predict(engines, batch)
                with self._timings.measure(NETWORK, WAITING):
                    self._predicted.put(_Prediction(batch.items, sums))
            self._predicted.finish()

        return body

    def _predict(self, engines: Sequence[Engine], batch: Batch) -> dict[Way, np.ndarray]:
        try:
            with named("predicting", *(item.sample.photo for item in batch.items)):
                return self._assembly.predict(engines, batch)
        except OutOfMemory as error:
            shapes = [images[0].shape for images in batch.inputs.values()]
            raise OutOfMemory(str(error), max(h * w for h, w, _ in shapes)) from None

    def _write(self) -> None:
        while True:
            with self._timings.measure(WRITERS, WAITING):
                prediction = self._predicted.get()
            if prediction is None:
                break
            for i, item in enumerate(prediction.items):
                sums = {way: total[i] for way, total in prediction.sums.items()}
                with named("writing the mask of", item.sample.photo):
                    with self._timings.measure(WRITERS, "restore"):
                        values = self._assembly.restore(item, sums)
                        self._on_mask(values)
                    with self._timings.measure(WRITERS, "encode"):
                        data = self._output.encode(values, item.photo)
                    with self._timings.measure(WRITERS, "write"):
                        self._output.write(item.sample, data)
                self._events.put(_Event.WRITTEN)
        self._events.put(_Event.END)


def _streams(engines: Sequence[Engine]) -> int:
    """How many threads may use all of the engines at once."""
    return min(engine.streams for engine in engines)
