"""Predictions as arrays, for Python programs; `carvana_tf.load` makes a `Model`."""

import dataclasses
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from carvana_tf.data.dataset import Sample, find_photos
from carvana_tf.data.images import Reading, UnreadableImage
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError, absent
from carvana_tf.failures import OutOfMemory
from carvana_tf.flags import Values
from carvana_tf.inference import session as sessions
from carvana_tf.inference.engines.agreement import choose_photos
from carvana_tf.inference.loading import PythonOptions
from carvana_tf.inference.options import INT8, EngineOptions, OutputOptions
from carvana_tf.inference.pipeline import Cancelled, Channel
from carvana_tf.inference.session import Session
from carvana_tf.masks.cutouts import encoding
from carvana_tf.masks.cutouts.cutter import Cutter
from carvana_tf.models import checkpoint
from carvana_tf.models.options import NetworkOptions
from carvana_tf.tasks import MASKS
from carvana_tf.tasks.masks.writers import MaskOutput, OnMask

Photo: TypeAlias = str | os.PathLike | np.ndarray
Photos: TypeAlias = Photo | Iterable[Photo]
Weights: TypeAlias = str | os.PathLike | Iterable[str | os.PathLike]

_log = logging.getLogger("carvana_tf")
_WAITING = 4  # predictions that nobody has asked for yet


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The mask of one photo.

    Attributes:
        index: The photo's place among those that were given, from 0.
        photo: Its file; None for an array.
        grey: `uint8[H, W]`, `round(255 p)`: the values of the command's probability PNG.
        cutout: With `cutout=True`, `uint8[H, W, 4]` RGBA, or `uint8[H, W, 3]` before a
            background; else None.
    """

    index: int
    photo: Path | None
    grey: np.ndarray
    cutout: np.ndarray | None = None

    @property
    def probability(self) -> np.ndarray:
        """`float32[H, W]` in 0..1, in steps of 1/255."""
        return self.grey / np.float32(255)

    def mask(self, threshold: int = DEFAULT_THRESHOLD) -> np.ndarray:
        """`bool[H, W]`: where the grey value, 0..255, is above the threshold."""
        return self.grey > threshold


class Model:
    """One or several models, whose predictions are averaged.

    They are loaded for the first photos. With --engine=auto these decide what runs them, as in the
    command: for fewer than 64 photos it is Keras, unless OpenVINO has been checked before.

    Args:
        paths: The model files.
        values: Of the flags in `loading.GROUPS`.
        names: Of `keras.device`.

    Raises:
        UserError: A file is no model, or predicts no masks.
    """

    def __init__(self, paths: Sequence[Path], values: Values, names: Sequence[str]) -> None:
        self._output = values[OutputOptions]
        self._engine = values[EngineOptions]
        self._own = values[PythonOptions]
        self._names = names
        self._members = [checkpoint.read(path, values[NetworkOptions]) for path in paths]
        task = sessions.task_of(self._members)
        if task is not MASKS:
            raise UserError(f"'{paths[0]}' predicts {task.name}; use predict_multithreaded.py.")
        for member in self._members:
            if member.stacked_channels:
                raise UserError(f"'{member.path}' needs stacked channels; use the command.")
        self._reading = Reading(
            photo_depth=self._own.photo_depth or sessions.depth_of(self._members)
        )
        self._session: Session | None = None
        self._lock = threading.Lock()

    def predict(self, photos: Photos) -> Iterator[Prediction]:
        """The masks of photos, in their order, while the next ones are computed.

        Whoever stops early stops the computation. Files are read when it is their turn, so a list
        of files needs the memory of a few photos.

        Args:
            photos: As of `carvana_tf.predict`.

        Raises:
            UserError: There is no photo, one cannot be read, or the prediction fails.
        """
        samples = self._samples(photos)  # mistakes show now, not with the first mask
        return self._predictions(samples)

    def _predictions(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        if not samples:
            return
        with self._lock:
            if self._session is None:
                self._session = self._load(samples)
        run = _Run(self._session, samples, self._output.cutout if self._own.cutout else None)
        thread = threading.Thread(target=run.work, daemon=True)
        thread.start()
        try:
            for result in run.results():
                if isinstance(result, Prediction):
                    yield result
                elif not self._own.skip_unreadable:
                    raise UnreadableImage(result)
                else:
                    _log.warning("left out: %s", result)
        finally:
            run.close()
            thread.join()

    def _load(self, samples: Sequence[Sample]) -> Session:
        return sessions.prepare(
            samples,
            self._members,
            self._output.prediction,
            self._names,
            MASKS,
            engine=self._engine.engine,
            calibration=self._calibration,
            report=_log.info,
        )

    def _calibration(self) -> list[Sample]:
        folder = self._engine.calibration_dir
        if not folder:
            raise UserError(f"engine='{INT8}' needs calibration_dir: a folder of training photos.")
        photos = find_photos(Path(folder), reading=self._reading)
        return choose_photos(photos, self._engine.calibration_photos)

    def _samples(self, photos: Photos) -> list[Sample]:
        if isinstance(photos, str | os.PathLike):
            path = Path(photos)
            listed: list[Any] = [path]
            if path.is_dir():
                listed = [sample.photo for sample in find_photos(path)]
        elif isinstance(photos, np.ndarray) and photos.ndim == 3:
            listed = [photos]
        else:
            listed = list(photos)
        return [self._sample(index, photo) for index, photo in enumerate(listed)]

    def _sample(self, index: int, photo: Photo) -> Sample:
        """A sample whose stem is the photo's place: files of several folders may share names."""
        stem = str(index)
        if isinstance(photo, str | os.PathLike):
            path = Path(photo)
            if not path.is_file():
                raise UserError(f"the photo '{path}' {absent(path)}")
            return Sample(stem, stem, path, reading=self._reading)
        pixels = np.asarray(photo)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise UserError(
                f"photo {index} is {pixels.dtype}{list(pixels.shape)}; give uint8[H, W, 3] in RGB, "
                "or a file."
            )
        return Sample(stem, stem, Path(f"array {index}"), pixels=np.ascontiguousarray(pixels))


class _Run:
    """One call of `Model.predict`: the pipeline in a thread of its own, results in order."""

    def __init__(self, session: Session, samples: Sequence[Sample], cutouts: Any) -> None:
        self._session = session
        self._samples = samples
        self._cutter = None if cutouts is None else Cutter(cutouts)
        self._ready: Channel[tuple[int, Prediction | str]] = Channel(_WAITING, 1)
        self._failure: BaseException | None = None
        self._done: set[str] = set()

    def work(self) -> None:
        """Predicts all, where memory is not enough with smaller batches or tiles."""
        session = self._session
        watch = session.task.writers.watch(DEFAULT_THRESHOLD)
        output = _Results(self._put, watch.add, self._cutter)
        try:
            while True:
                try:
                    todo = [sample for sample in self._samples if sample.stem not in self._done]
                    outcome = session.run(todo, output, report=_log.warning)
                    if outcome.too_large is not None:
                        raise outcome.too_large
                    break
                except OutOfMemory as error:
                    session, meaning = session.with_less_memory(error)
                    _log.warning("%s; going on %s", error, meaning)
            names = ", ".join(f"'{member.path}'" for member in session.members)
            if warning := watch.warning(names):
                _log.warning("%s", warning)
        except BaseException as error:
            self._failure = error
        self._ready.finish()

    def results(self) -> Iterator[Prediction | str]:
        """What there is for each photo, in order: a prediction, or why it cannot be read."""
        waiting: dict[int, Prediction | str] = {}
        following = 0
        while (item := self._ready.get()) is not None:
            waiting[item[0]] = item[1]
            while following in waiting:
                yield waiting.pop(following)
                following += 1
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Ends the computation."""
        self._ready.cancel()

    def _put(self, sample: Sample, result: Prediction | str) -> None:
        try:
            self._ready.put((int(sample.stem), result))
        except Cancelled:
            # Not itself: the pipeline takes that for a channel of its own.
            raise RuntimeError("nobody wants the other predictions") from None
        self._done.add(sample.stem)


class _Results(MaskOutput):
    """A `pipeline.Output` that hands over arrays."""

    def __init__(self, put: Any, on_mask: OnMask, cutter: Cutter | None) -> None:
        super().__init__(on_mask, shows_photo=cutter is not None)
        self._put = put
        self._cutter = cutter

    def encode(
        self, prediction: np.ndarray, photo: np.ndarray | None, path: Path | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The grey values and the cut-out."""
        grey, cutout = self._grey(prediction), None
        if self._cutter is not None and photo is not None:
            profile = encoding.read_profile(path) if path else None
            cutout = self._cutter.picture(grey, photo, profile)
        return grey, cutout

    def write(self, sample: Sample, data: tuple[np.ndarray, np.ndarray | None]) -> None:
        """Hands a prediction over."""
        file = sample.photo if sample.pixels is None else None
        self._put(sample, Prediction(int(sample.stem), file, *data))

    def skip(self, sample: Sample, problem: str) -> None:
        """Hands over why there is none."""
        self._put(sample, problem)
