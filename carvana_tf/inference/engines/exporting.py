"""Networks as files for other programs, with what those need to know in them and next to them."""

import dataclasses
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from carvana_tf import __version__, files
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError
from carvana_tf.inference.engines.base import extra
from carvana_tf.inference.engines.keras import PHOTO, PROBABILITY, output_name
from carvana_tf.inference.engines.onnx import to_onnx
from carvana_tf.inference.engines.openvino import to_openvino
from carvana_tf.inference.engines.saved_model import to_litert, to_saved_model
from carvana_tf.inference.options import LITERT, ONNX, OPENVINO, SAVED_MODEL
from carvana_tf.models.checkpoint import Checkpoint, load_model

KEY = "carvana_tf"
"""Under which name a file has its metadata inside, see docs/export.md."""

PACKAGES = {ONNX: ("onnx", "tf2onnx"), OPENVINO: ("openvino",), SAVED_MODEL: (), LITERT: ()}
"""What each format needs besides TensorFlow; pip calls the extra as the format."""

# Of the metadata of a model file, what those who use the network may want to know.
_KEPT = ("network", "decoder", "fold", "scores", "photo_depth", "classes", "scoring", "top_k")

_Size = tuple[int, int] | None
_Write = Callable[[keras.Model, _Size, str, Path], None]


@dataclasses.dataclass(frozen=True)
class Export:
    """One network as a file of another format.

    Attributes:
        checkpoint: The network.
        format: Key of `options.FORMATS`.
        output: The file, or folder, that is made.
        size: The only (height, width) it is to take; None: any.
    """

    checkpoint: Checkpoint
    format: str
    output: Path
    size: tuple[int, int] | None = None

    @property
    def described(self) -> Path:
        """The JSON next to the output."""
        return self.output.with_name(f"{self.output.name}.json")

    @property
    def targets(self) -> list[Path]:
        """All that is made."""
        more = [self.output.with_suffix(".bin")] if self.format == OPENVINO else []
        return [self.output, *more, self.described]

    def write(self, *, overwrite: bool = False) -> dict[str, Any]:
        """Converts the network and writes it, whole or not at all, and its metadata.

        Args:
            overwrite: Whether to replace an earlier export.

        Returns:
            The metadata.

        Raises:
            UserError: Something is there already, a package is not installed, or the network
                cannot be converted.
        """
        for package in PACKAGES[self.format]:
            extra(package, self.format, "format")
        if keras.backend.backend() != "tensorflow":
            raise UserError(
                f"--format={self.format} converts with TensorFlow; unset KERAS_BACKEND."
            )
        with files.claimed(self.output):
            self._refuse_present(overwrite)
            model = load_model(self.checkpoint, "cpu:0", "float32")
            size = self._size(model)
            facts = self._describe(model, size)
            text = json.dumps(facts, indent=2)
            try:
                _WRITERS[self.format](model, size, text, self.output)
            except (UserError, OSError):
                raise
            except Exception as error:  # the converters raise every kind
                reason = str(error).strip().split("\n")[0][:200]
                raise UserError(
                    f"cannot convert '{self.checkpoint.path}' to --format={self.format} "
                    f"({reason}); use another format."
                ) from error
            files.write_text(self.described, text + "\n")
        return facts

    def _refuse_present(self, overwrite: bool) -> None:
        present = [path for path in self.targets if path.exists() or path.is_symlink()]
        if present and not overwrite:
            raise UserError(f"'{present[0]}' exists; use --overwrite, or another --output.")
        for path in present:
            is_ours = path.is_file()
            if path == self.output and self.format == SAVED_MODEL:
                is_ours = _extra_asset(path).is_file()
            if not is_ours:
                raise UserError(
                    f"'{path}' is not what an earlier export has made, and is not overwritten; use "
                    "another --output."
                )

    def _size(self, model: keras.Model) -> _Size:
        """The only size it is to take, of the network or of `size`.

        Raises:
            UserError: They contradict.
        """
        height, width = model.input_shape[1:3]
        own = None if height is None else (height, width)
        stride = self.checkpoint.resizer.stride
        for flag, side, only in zip(
            ("height", "width"), self.size or (), own or (None, None), strict=False
        ):
            if only not in (None, side):
                raise UserError(
                    f"--{flag}={side}: '{self.checkpoint.path}' takes {only} alone; leave --height "
                    "and --width out."
                )
            if side % stride:
                raise UserError(
                    f"--{flag}={side} is no multiple of {stride}, the network's stride; use "
                    f"{side + -side % stride}."
                )
        return self.size or own

    def _describe(self, model: keras.Model, size: _Size) -> dict[str, Any]:
        checkpoint = self.checkpoint
        height, width = size or (None, None)
        stacked = [f"stacked {i}" for i in range(checkpoint.stacked_channels)]
        output = output_name(model)
        facts: dict[str, Any] = {
            "made_by": f"carvana_tf {__version__}",
            "format": self.format,
            "source": {"file": checkpoint.path.name, "sha256": checkpoint.digest},
            "task": checkpoint.task,
            "input": {
                "name": PHOTO,
                "dtype": "uint8",
                "axes": ["photo", "row", "column", "channel"],
                "shape": [None, height, width, model.input_shape[-1]],
                "channels": ["red", "green", "blue", *stacked],
            },
            "output": {
                "name": output,
                "dtype": "float32",
                "axes": ["photo", "row", "column"] if output == PROBABILITY else ["photo", "class"],
                "shape": [None, height, width]
                if output == PROBABILITY
                else [None, model.output_shape[-1]],
            },
            "stride": checkpoint.resizer.stride,
            "sizing": dataclasses.asdict(checkpoint.resizer),
        }
        facts |= {name: checkpoint.metadata[name] for name in _KEPT if name in checkpoint.metadata}
        if output == PROBABILITY:
            # Grey values above the default are object, and `round(255 p)` makes them.
            facts["threshold"] = (DEFAULT_THRESHOLD + 0.5) / 255
        return facts


def _write_onnx(model: keras.Model, size: _Size, text: str, output: Path) -> None:
    onnx = extra("onnx", ONNX, "format")
    network = onnx.load_model_from_string(to_onnx(model, size))
    onnx.helper.set_model_props(network, {KEY: text})
    names = ("photos", "height", "width")
    for tensor in (*network.graph.input, *network.graph.output):
        dimensions = tensor.type.tensor_type.shape.dim
        for dimension, name in zip(dimensions, names, strict=False):
            if not dimension.HasField("dim_value"):
                dimension.dim_param = name
    files.write_bytes(output, network.SerializeToString())


def _write_openvino(model: keras.Model, size: _Size, text: str, output: Path) -> None:
    openvino = extra("openvino", OPENVINO, "format")
    graph = to_openvino(model, size)
    graph.set_rt_info(text, KEY)
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "network.xml"
        openvino.save_model(graph, network, compress_to_fp16=False)
        # The network is there once both are: without the first file nobody looks at the second.
        output.unlink(missing_ok=True)
        files.write_bytes(output.with_suffix(".bin"), network.with_suffix(".bin").read_bytes())
        files.write_bytes(output, network.read_bytes())


def _write_saved_model(model: keras.Model, size: _Size, text: str, output: Path) -> None:
    with files.atomic_folder(output) as folder:
        to_saved_model(model, folder, size)
        _extra_asset(folder).parent.mkdir()
        _extra_asset(folder).write_text(text, encoding="utf-8")


def _extra_asset(folder: Path) -> Path:
    """Where a SavedModel has room for files that TensorFlow does not read."""
    return folder / "assets.extra" / f"{KEY}.json"


def _write_litert(model: keras.Model, size: _Size, text: str, output: Path) -> None:
    data = to_litert(model, size)
    with files.atomic_path(output) as temporary:
        temporary.write_bytes(data)
        # As LiteRT's own metadata has its files: a ZIP archive behind the network.
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(zipfile.ZipInfo(f"{KEY}.json"), text)


_WRITERS: dict[str, _Write] = {
    ONNX: _write_onnx,
    OPENVINO: _write_openvino,
    SAVED_MODEL: _write_saved_model,
    LITERT: _write_litert,
}
