"""Engines of other toolkits: converted once, kept next to the model file, checked once."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from carvana_tf import __version__, devices, files
from carvana_tf.data.dataset import Sample
from carvana_tf.errors import UserError
from carvana_tf.inference.engines import agreement, cache, keras, openvino
from carvana_tf.inference.engines.base import Engine, extra
from carvana_tf.inference.engines.onnx import onnx_engine, to_onnx
from carvana_tf.inference.engines.openvino import PRECISIONS, STREAMS
from carvana_tf.inference.options import INT8, ONNX, OPENVINO
from carvana_tf.models.checkpoint import Checkpoint, load_model
from carvana_tf.tasks import TASKS
from carvana_tf.tasks.base import Verdict

PACKAGES = {
    OPENVINO: ("openvino",),
    INT8: ("openvino", "nncf"),
    ONNX: ("onnxruntime", "tf2onnx"),
}
"""What each engine needs; pip calls the extra as the engine."""

# To be raised when this toolkit converts a network otherwise than before.
_CONVERSION = 3


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One network for one engine.

    Attributes:
        checkpoint: The network.
        engine: Key of `PACKAGES`.
        policy: Keras dtype policy to compute in.
        calibration: Photos for 8 bits.
        report: Gets what the user should know, a line at a time.
        streams: How many photos OpenVINO computes at once.
    """

    checkpoint: Checkpoint
    engine: str
    policy: str
    calibration: Sequence[Sample] = ()
    report: Callable[[str], object] = print
    streams: int = STREAMS

    @property
    def precision(self) -> str:
        """What the policy means to the engine.

        Raises:
            UserError: The engine cannot compute in it.
        """
        precision = self.policy.removeprefix("mixed_")
        if precision not in PRECISIONS:
            raise UserError(
                f"--engine={self.engine} does not compute in {precision}; use --dtype=auto, or "
                "--engine=keras."
            )
        return "float32" if self.engine == ONNX else precision

    @property
    def archive(self) -> Path:
        """Where the converted network is kept.

        Raises:
            UserError: A package is not installed.
        """
        # Not the versions of distributions: onnxruntime may come from onnxruntime-gpu.
        packages = [extra(name, self.engine) for name in PACKAGES[self.engine]]
        made_of = {
            "network": self.checkpoint.description,
            "toolkit": [__version__, _CONVERSION],
            "packages": [package.__version__ for package in packages],
            "calibration": [
                files.digest(path)
                for sample in self.calibration
                for path in (sample.photo, *sample.stacked)
            ],
        }
        return cache.entry(self.checkpoint.path, self.engine, made_of)

    def load(self) -> Engine:
        """The engine; the network is converted where that was not done yet.

        Raises:
            UserError: The network cannot be converted, a package is not installed, or the
                engine cannot compute as asked for.
        """
        precision = self.precision  # before minutes are spent
        parts = cache.fetch(self.archive, self._convert, self.report)
        path = str(self.checkpoint.path)
        if self.engine == ONNX:
            engine = onnx_engine(parts["model.onnx"], self.checkpoint.resizer)
            return dataclasses.replace(engine, path=path)
        core = extra("openvino", OPENVINO).Core()
        graph = core.read_model(parts["model.xml"], parts["model.bin"])
        engine = openvino.openvino_engine(
            graph, self.checkpoint.resizer, self.engine, precision, self.streams
        )
        # In 8 bits masks depend on the photos of the calibration and on the quantizer.
        conversion = self.archive.stem if self.engine == INT8 else ""
        return dataclasses.replace(engine, conversion=conversion, path=path)

    def known_verdict(self, photos: int) -> Verdict | None:
        """What an earlier check on this kind of machine said.

        Args:
            photos: How many there would be to check on now; a verdict on fewer is not
                good enough.
        """
        try:
            note = cache.read_note(self._notes)[self._machine]
            verdict = self._verdict.recall(note)
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return verdict if verdict.photos >= min(photos, agreement.PHOTOS) else None

    def check(self, engine: Engine, samples: Sequence[Sample], side: int | None = None) -> Verdict:
        """Compares the engine with Keras in float32, or remembers having done so.

        Args:
            engine: From `load`.
            samples: As of `agreement.outputs`, but more.
            side: As of `agreement.outputs`.
        """
        verdict = self.known_verdict(len(samples))
        if verdict is None:
            reference = keras.load(self.checkpoint, "cpu:0", "float32")
            chosen = agreement.choose_photos(samples, agreement.PHOTOS)
            verdict = self._verdict.of(agreement.outputs(engine, reference, chosen, side))
            notes = cache.read_note(self._notes)
            notes[self._machine] = dataclasses.asdict(verdict)
            cache.write_note(self._notes, notes)
        return verdict

    def _convert(self) -> cache.Parts:
        model = load_model(self.checkpoint, "cpu:0", "float32")
        self.report(f"converting '{self.checkpoint.path}' for {self.engine}, once")
        try:
            if self.engine == ONNX:
                return {"model.onnx": to_onnx(model)}
            graph = openvino.to_openvino(model)
            if self.engine == INT8:
                channels = model.input_shape[-1]
                resizer = self.checkpoint.resizer
                graph = openvino.quantize(graph, resizer, channels, self.calibration)
            return _to_parts(graph)
        except UserError:
            raise
        except Exception as error:  # the converters raise every kind
            reason = str(error).strip().split("\n")[0][:200]
            raise UserError(
                f"cannot convert '{self.checkpoint.path}' for {self.engine} ({reason}); use "
                "--engine=keras."
            ) from error

    @property
    def _verdict(self) -> type[Verdict]:
        return TASKS[self.checkpoint.task].verdict

    @property
    def _notes(self) -> Path:
        return self.archive.with_suffix(".json")

    @property
    def _machine(self) -> str:
        return f"{devices.describe()}, {self.precision}"


def _to_parts(graph: Any) -> cache.Parts:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        extra("openvino", OPENVINO).save_model(graph, path, compress_to_fp16=False)
        return {part.name: part.read_bytes() for part in (path, path.with_suffix(".bin"))}
