"""Exported networks in their own runtimes, on photos that were padded before."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from carvana_tf.commands import find
from carvana_tf.data.dataset import find_photos
from carvana_tf.data.images import read_photo
from carvana_tf.data.resizing import Resizer
from harness import Rounds

KERAS = "keras"
"""Of `run`: not exported."""


def export(model: str, form: str, output: str, size: tuple[int, int] | None) -> None:
    """Writes one export; call it in a process of its own.

    Args:
        model: A `.keras` file.
        form: A value of --format.
        output: Where to.
        size: The only height and width it is to take; None: any.
    """
    flags = [f"--weights={model}", f"--format={form}", f"--output={output}", "--overwrite"]
    if size is not None:
        flags += [f"--height={size[0]}", f"--width={size[1]}"]
    find("export_model").call(flags)


def run(rounds: Rounds, form: str, path: str, photos: str, stride: int, threads: int) -> None:
    """Computes the probabilities of photos one after the other, in float32.

    Args:
        rounds: What to measure.
        form: A value of --format, or `KERAS`.
        path: What `export` has written, or the `.keras` file.
        photos: Folder of photos.
        stride: Of the network.
        threads: Of the runtime, 0 for all cores.
    """
    resizer = Resizer("pad", 0, 0, stride)
    batches = [resizer.whole(read_photo(one.photo))[None] for one in find_photos(Path(photos))]
    predict = _LOADERS[form](path, threads or os.cpu_count() or 1)
    for _ in rounds:
        for batch in batches:
            predict(batch)


def _keras(path: str, threads: int) -> Callable[[np.ndarray], Any]:
    _limit_tensorflow(threads)
    from carvana_tf.inference.engines.keras import load
    from carvana_tf.models import checkpoint

    found = checkpoint.read(Path(path), checkpoint.NetworkOptions())
    return load(found, "cpu:0", "float32").predict


def _saved_model(path: str, threads: int) -> Callable[[np.ndarray], Any]:
    _limit_tensorflow(threads)
    import tensorflow as tf

    network = tf.saved_model.load(path).signatures["serving_default"]
    return lambda batch: network(photo=tf.constant(batch))["probability"].numpy()


def _onnx(path: str, threads: int) -> Callable[[np.ndarray], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["probability"], {"photo": batch})


def _openvino(path: str, threads: int) -> Callable[[np.ndarray], Any]:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    network = openvino.Core().compile_model(path, "CPU", hints)
    return lambda batch: network({"photo": batch})["probability"]


def _litert(path: str, threads: int) -> Callable[[np.ndarray], Any]:
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(path, num_threads=threads).get_signature_runner()
    return lambda batch: network(photo=batch)["probability"]


def _limit_tensorflow(threads: int) -> None:
    from carvana_tf import devices  # noqa: F401  (starts the backend quietly)

    import tensorflow as tf  # isort: skip

    tf.config.threading.set_intra_op_parallelism_threads(threads)


_LOADERS = {
    KERAS: _keras,
    "tf_saved_model": _saved_model,
    "onnx": _onnx,
    "openvino": _openvino,
    "litert": _litert,
}
