"""Photos in, probability PNGs out: readers, one thread per device, writers.

    readers --batches--> network threads --predictions--> writers --events--> main thread

Bounded channels lie between them, so memory stays bounded and the slowest room sets the
pace. What is computed depends on the list of photos alone, never on which thread was
first: batches are cut from the list before any thread starts.
"""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import UnreadableImage, encode_probability, quantise
from carvana_tf.data.loader import read_channels
from carvana_tf.data.sizing import Sizing
from carvana_tf.errors import UserError
from carvana_tf.files import write_bytes
from carvana_tf.inference import tta
from carvana_tf.inference.channel import Channel, Cut
from carvana_tf.inference.engines import Engine
from carvana_tf.inference.timings import WAITING, Timings, table

READERS, NETWORK, WRITERS = "readers", "network", "writers"
ROOMS = {
    READERS: ("read", "prepare"),
    NETWORK: ("network",),
    WRITERS: ("restore", "encode", "write"),
}

# A network call cannot be interrupted; after this many seconds its thread is left behind.
_PATIENCE = 60.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        batch_size: Photos per batch, at least 1; augmented views come on top.
        tta: One of `tta.NAMES`.
        readers: Threads that decode and prepare.
        writers: Threads that restore, encode and write.
    """

    batch_size: int = 1
    tta: str = "none"
    readers: int = 2
    writers: int = 2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        written: How many PNGs were written.
        unreadable: One message per photo that could not be read, sorted.
        seconds: From start to end.
        stages: The rows of `timings.table`.
    """

    written: int
    unreadable: list[str]
    seconds: float
    stages: list[dict[str, Any]]


def mask_path(folder: Path, sample: Sample) -> Path:
    """Where a photo's probability PNG lies."""
    return Path(folder) / f"{sample.stem}.png"


def run(
    samples: Sequence[Sample],
    devices: Sequence[Sequence[Engine]],
    folder: Path,
    settings: Settings,
    on_photo: Callable[[], object] = lambda: None,
) -> Outcome:
    """Predicts photos with the mean of several networks and writes their PNGs.

    Args:
        samples: The photos, with their stacked channels.
        devices: For each device its own engines, the same networks in the same order.
        folder: Where the PNGs go.
        settings: How to run.
        on_photo: Called in the calling thread after each photo, readable or not.

    Raises:
        UserError: What went wrong in any thread; all others have been stopped then.
        KeyboardInterrupt: Likewise; PNGs that were written stay.
    """
    return _Run(samples, devices, Path(folder), settings).go(on_photo)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Photos that travel together.

    Attributes:
        samples: B photos.
        sizes: Their own (height, width).
        inputs: For each way of sizing `uint8[views * B, H, W, C]`.
    """

    samples: list[Sample]
    sizes: list[tuple[int, int]]
    inputs: dict[Sizing, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Prediction:
    """A batch after the networks.

    Attributes:
        batch: What was predicted, its inputs dropped.
        sums: For each way of sizing the sum over its networks, `float32[views * B, H, W]`.
    """

    batch: _Batch
    sums: dict[Sizing, np.ndarray]


class _Run:
    """One call of `run`: the channels between its threads, and what they share."""

    def __init__(
        self,
        samples: Sequence[Sample],
        devices: Sequence[Sequence[Engine]],
        folder: Path,
        settings: Settings,
    ) -> None:
        self._devices = devices
        self._networks = len(devices[0])
        self._sizings = list(dict.fromkeys(engine.sizing for engine in devices[0]))
        self._folder = folder
        self._settings = settings
        self._timings = Timings()
        self._chunks: SimpleQueue[Sequence[Sample]] = SimpleQueue()
        for start in range(0, len(samples), settings.batch_size):
            self._chunks.put(samples[start : start + settings.batch_size])
        self._prepared: Channel[_Batch] = Channel(2 * len(devices), settings.readers)
        self._predicted: Channel[_Prediction] = Channel(2 * len(devices), len(devices))
        # An event is None for a written photo, or why a photo could not be read.
        self._events: Channel[tuple[str | None]] = Channel(
            math.inf, settings.readers + settings.writers
        )
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def go(self, on_photo: Callable[[], object]) -> Outcome:
        """Starts the threads, follows their events and joins them."""
        start = time.perf_counter()
        threads = self._threads()
        written, unreadable = 0, []
        for thread in threads:
            thread.start()
        try:
            for (trouble,) in self._events:
                if trouble is None:
                    written += 1
                else:
                    unreadable.append(trouble)
                on_photo()
        except Cut:
            pass  # a thread failed; its exception is raised below
        finally:
            # After a regular end nobody uses the channels any more, and cutting is harmless.
            self._cut()
            for thread in threads:
                thread.join(_PATIENCE)
        if self._failure is not None:
            raise self._failure
        seconds = time.perf_counter() - start
        counts = {
            READERS: self._settings.readers,
            NETWORK: len(self._devices),
            WRITERS: self._settings.writers,
        }
        stages = table(self._timings, ROOMS, counts, seconds)
        return Outcome(written, sorted(unreadable), seconds, stages)

    def _threads(self) -> list[threading.Thread]:
        bodies: list[Callable[[], None]] = [self._read] * self._settings.readers
        bodies += [self._network(engines) for engines in self._devices]
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
            with self._lock:
                self._failure = self._failure or error
            self._cut()

    def _cut(self) -> None:
        for channel in (self._prepared, self._predicted, self._events):
            channel.cut()

    def _read(self) -> None:
        for chunk in self._take_chunks():
            photos = []
            for sample in chunk:
                try:
                    with self._timings.measure(READERS, "read"):
                        photos.append((sample, read_channels(sample)))
                except UnreadableImage as error:
                    self._events.put((str(error),))
            with self._timings.measure(READERS, "prepare"):
                batches = self._prepare(photos)
            for batch in batches:
                with self._timings.measure(READERS, WAITING):
                    self._prepared.put(batch)
        self._prepared.finish()
        self._events.finish()

    def _take_chunks(self) -> Iterator[Sequence[Sample]]:
        while True:
            try:
                yield self._chunks.get_nowait()
            except Empty:
                return

    def _prepare(self, photos: list[tuple[Sample, np.ndarray]]) -> list[_Batch]:
        """Batches of equal shapes, in the order of the first photo of each."""
        groups: dict[tuple, list[tuple[Sample, np.ndarray, list[np.ndarray]]]] = {}
        for sample, photo in photos:
            inputs = [sizing.whole(photo) for sizing in self._sizings]
            shapes = tuple(each.shape for each in inputs)
            groups.setdefault(shapes, []).append((sample, photo, inputs))
        return [
            _Batch(
                samples=[sample for sample, _, _ in group],
                sizes=[photo.shape[:2] for _, photo, _ in group],
                inputs={
                    sizing: tta.expand(np.stack([each[i] for _, _, each in group]), self._tta)
                    for i, sizing in enumerate(self._sizings)
                },
            )
            for group in groups.values()
        ]

    def _network(self, engines: Sequence[Engine]) -> Callable[[], None]:
        def body() -> None:
            while True:
                with self._timings.measure(NETWORK, WAITING):
                    batch = self._prepared.get()
                if batch is None:
                    break
                with self._timings.measure(NETWORK, "network"):
                    sums = _predict(engines, batch.inputs)
                slim = dataclasses.replace(batch, inputs={})
                with self._timings.measure(NETWORK, WAITING):
                    self._predicted.put(_Prediction(slim, sums))
            self._predicted.finish()

        return body

    def _write(self) -> None:
        while True:
            with self._timings.measure(WRITERS, WAITING):
                prediction = self._predicted.get()
            if prediction is None:
                break
            with self._timings.measure(WRITERS, "restore"):
                merged = {s: tta.merge(total, self._tta) for s, total in prediction.sums.items()}
            for i, sample in enumerate(prediction.batch.samples):
                with self._timings.measure(WRITERS, "restore"):
                    size = prediction.batch.sizes[i]
                    values = self._restore(sample, size, {s: m[i] for s, m in merged.items()})
                with self._timings.measure(WRITERS, "encode"):
                    data = encode_probability(values)
                with self._timings.measure(WRITERS, "write"):
                    write_bytes(mask_path(self._folder, sample), data)
                self._events.put((None,))
        self._events.finish()

    def _restore(
        self, sample: Sample, size: tuple[int, int], sums: dict[Sizing, np.ndarray]
    ) -> np.ndarray:
        """The `uint8[H, W]` mean over networks at the photo's own size."""
        restored = [sizing.restore(total, *size) for sizing, total in sums.items()]
        mean = sum(restored[1:], start=restored[0]) / np.float32(self._networks)
        if math.isnan(float(mean.sum())):
            raise UserError(
                f"the network gives NaN for '{sample.photo}'; try --dtype=float32, else train it "
                "anew with a lower --learning_rate."
            )
        return quantise(mean)

    @property
    def _tta(self) -> str:
        return self._settings.tta


def _predict(
    engines: Sequence[Engine], inputs: dict[Sizing, np.ndarray]
) -> dict[Sizing, np.ndarray]:
    """Sums over the networks of each way of sizing, so that one array per way travels on."""
    sums: dict[Sizing, np.ndarray] = {}
    for engine in engines:
        output = engine.predict(inputs[engine.sizing][..., : engine.channels])
        if engine.sizing in sums:
            sums[engine.sizing] = sums[engine.sizing] + output
        else:
            sums[engine.sizing] = output
    return sums
