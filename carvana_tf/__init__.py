"""carvana_tf: photos plus some hand-made masks in, masks for all the rest out.

`predict` and `load` predict masks from Python, see docs/python.md; all else is commands.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carvana_tf.inference.in_memory import Model, Photos, Prediction, Weights

__version__ = "0.2.0"


def predict(photos: "Photos", weights: "Weights", **flags: Any) -> "Iterator[Prediction]":
    """Predicts the masks of photos, as `predict_multithreaded.py` does with the same flags.

    Args:
        photos: A file, a folder, an array `uint8[H, W, 3]` RGB, or an iterable of files and arrays.
        weights: A model file, or several whose predictions are averaged.
        **flags: See `load`.

    Yields:
        A `Prediction` for each photo, in their order.

    Raises:
        UserError: A photo cannot be read, or as of `load`.
    """
    return load(weights, **flags).predict(photos)


def load(weights: "Weights", **flags: Any) -> "Model":
    """Models that predict more than once; `Model.predict` takes photos.

    Keras is imported by this call, not by the import of this package.

    Args:
        weights: A model file, or several whose predictions are averaged.
        **flags: `cutout=True` makes cut-outs too, and `skip_unreadable=True` leaves out photos that
            cannot be read. All others are flags of predict_multithreaded.py by name, as
            `pred_tta="hflip"`, `engine="openvino"`, `tile_size=1024`, `background="white"`.

    Raises:
        UserError: A file is no model, or a flag is unknown or has no such value.
    """
    from carvana_tf.inference.loading import load_model

    return load_model(weights, flags)
