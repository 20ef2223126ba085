"""A network as a TensorFlow SavedModel, and as LiteRT makes of it."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras

from carvana_tf.inference.engines.keras import traced
from carvana_tf.inference.options import SAVED_MODEL


def to_saved_model(model: keras.Model, folder: Path, size: tuple[int, int] | None = None) -> None:
    """Writes a float32 network as a SavedModel, for photos of any size.

    Its one signature is "serving_default". `Model.export` would not do: it takes float32 alone,
    and Keras' bilinear upsampling cannot be traced for every size.

    Args:
        model: The network.
        folder: Where to; it exists and is empty.
        size: The only (H, W) it is to take; None: any.

    Raises:
        UserError: Keras does not run on TensorFlow.
    """
    import tensorflow as tf

    function = traced(model, SAVED_MODEL, size).get_concrete_function()
    module = tf.Module()
    module.numbers = list(function.variables)  # what the module holds is saved with it
    with _silence():
        tf.saved_model.save(module, str(folder), signatures=function)


def to_litert(model: keras.Model, size: tuple[int, int] | None = None) -> bytes:
    """The LiteRT (TensorFlow Lite) file of a float32 network, for photos of any size.

    It has LiteRT's own operations only, so that every build of the runtime takes it.

    Args:
        model: The network.
        size: The only (H, W) it is to take; None: any.

    Raises:
        UserError: Keras does not run on TensorFlow.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        to_saved_model(model, Path(folder), size)
        with _silence():
            return tf.lite.TFLiteConverter.from_saved_model(folder).convert()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hides the messages of TensorFlow and absl, but errors, whatever levels they have."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    for logger in loggers:
        logger.addFilter(_is_error)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
