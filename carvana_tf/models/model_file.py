"""The model file: one `.keras` with a network and all that prediction needs to know of it.

It is what `model.save` writes, made of Keras' own layers only, so that plain
`keras.saving.load_model` reads it, plus one member with our metadata. The same metadata
lies next to it as readable JSON; only the file itself is read. Its bytes depend on the
network and the metadata only, not on the clock: equal runs leave equal files.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from carvana_tf import files
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory, is_out_of_memory
from carvana_tf.models import interface, safety
from carvana_tf.models.cloning import clone
from carvana_tf.models.encoders import NORMALISE
from carvana_tf.models.metadata import UNKNOWN_ORIGIN as UNKNOWN_ORIGIN

SUFFIX = ".keras"
# Which objects of the config are one; Keras identifies them by their address.
_ADDRESS = "shared_object_id"


def save(model: keras.Model, path: Path, metadata: dict[str, Any]) -> Path:
    """Writes a network without its optimizer, and its metadata, whole or not at all.

    Args:
        model: A functional model, compiled or not.
        path: Where to; `.keras` is appended where it is missing.
        metadata: What JSON can hold.

    Returns:
        The path of the model file; `<stem>.json` lies next to it.

    Raises:
        UserError: The folder cannot be written to.
    """
    path = Path(path)
    path = path.with_name(path.name.removesuffix(SUFFIX) + SUFFIX)
    text = json.dumps(metadata, indent=2)
    # A new model around the same layers: it has never been compiled.
    bare = keras.Model(model.input, model.output, name=model.name)
    with files.atomic_path(path) as temporary:
        bare.save(temporary)
        _rewrite(temporary, text)
    files.write_text(path.with_name(path.name.removesuffix(SUFFIX) + ".json"), text + "\n")
    return path


def load(path: Path, dtype: str | None = None) -> tuple[keras.Model, dict[str, Any]]:
    """Reads a network and its metadata.

    Args:
        path: A `.keras` file of Keras' own layers, by this toolkit or another program.
        dtype: Dtype policy to compute in ("float32", "mixed_bfloat16", "mixed_float16");
            None keeps that of training. Variables stay float32, and so do normalisation
            and sigmoid.

    Returns:
        The uncompiled model, and the metadata ({} where the file has none).

    Raises:
        UserError: The file is missing, broken, no Keras model, or wants custom code.
    """
    metadata = read_metadata(path)
    interface.read(path)  # refuses what would fill memory
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises nearly every kind for a bad file
        if is_out_of_memory(error):
            raise OutOfMemory(f"out of memory while loading the model '{path}'") from error
        raise UserError(
            f"cannot load the model '{path}' ({safety.first_line(error)}); save it again with "
            f"Keras {keras.__version__}, or train it again."
        ) from error
    for weight in model.weights:
        refuse_nan(path, weight.path, np.asarray(weight))
    return (model if dtype is None else with_policy(model, dtype)), metadata


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a model file ({} where it has none), without loading the network.

    Raises:
        UserError: The file is missing or broken, is no Keras model, or holds what none of
            Keras' own layers needs; or its metadata is not ours.
    """
    return dict(safety.read_keras(path).metadata)


def refuse_nan(path: Path, name: str, values: np.ndarray) -> None:
    """Refuses weights that are NaN or infinite.

    Raises:
        UserError: One of them is NaN or infinite.
    """
    # NaN survives in a sum, without a copy of the size of the array; few sums overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        if values.dtype.kind != "f" or np.isfinite(values.sum()) or np.isfinite(values).all():
            return
    raise UserError(
        f"'{path}' holds NaN or infinite weights in '{safety.shown(name)}': its training diverged; "
        "train it again with a lower --learning_rate, or take an earlier model."
    )


def with_policy(model: keras.Model, dtype: str) -> keras.Model:
    """The same network with the same weights, computing under another dtype policy.

    Normalisation and the layer that gives the output stay in float32. The model itself is
    returned where nothing would change.
    """

    last = {tensor._keras_history.operation.name for tensor in model.outputs}

    def wanted(layer: keras.layers.Layer) -> str:
        precise = layer.name in last or layer.name.startswith(NORMALISE)
        return "float32" if precise else dtype

    if all(layer.dtype_policy.name == wanted(layer) for layer in model.layers):
        return model

    def change(layer: keras.layers.Layer, config: dict[str, Any]) -> None:
        config["dtype"] = wanted(layer)

    copy = clone(model, change)
    copy.set_weights(model.get_weights())
    return copy


def _rewrite(path: Path, metadata: str) -> None:
    """Adds our metadata to what Keras wrote; takes out the time and addresses in memory."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    noted = json.loads(members[safety.KERAS_METADATA])
    del noted["date_saved"]
    members[safety.KERAS_METADATA] = json.dumps(noted).encode()
    numbers: dict[int, int] = {}

    def renumber(values: dict[str, Any]) -> dict[str, Any]:
        if _ADDRESS in values:
            values[_ADDRESS] = numbers.setdefault(values[_ADDRESS], len(numbers))
        return values

    config = json.loads(members[safety.CONFIG], object_hook=renumber)
    members[safety.CONFIG] = json.dumps(config).encode()
    members[safety.METADATA] = metadata.encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            member = zipfile.ZipInfo(name)  # dated 1980 by default
            member.external_attr = 0o644 << 16
            archive.writestr(member, data)
