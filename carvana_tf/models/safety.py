"""What model and weight files may hold, checked before anything is read from them.

Files come from the network: what one declares of itself (sizes, links, classes) is believed
by the libraries that read it. Keras' safe mode refuses code, but has been bypassed before,
and neither Keras nor HDF5 bounds memory. What is allowed here is what networks of Keras' own
layers need; everything else is refused, by name. `docs/reliability.md` lists the kinds.
"""

import functools
import io
import json
import math
import os
import re
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from carvana_tf.data.names import printable
from carvana_tf.errors import UserError
from carvana_tf.models import metadata as metadata_of

CONFIG, KERAS_METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
METADATA = "carvana_tf.json"
"""Our own member of a `.keras` file."""

ZIP_START = b"PK\x03\x04"

MOST_WEIGHTS = 1_500_000_000
"""Bytes of all arrays of a file: unet_scratch, the largest network here, has 1.1 GB with the
state of Adam."""

# What reading a damaged archive or text raises; RuntimeError: encrypted members.
_DAMAGES = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)

_MEMBERS = frozenset({CONFIG, KERAS_METADATA, WEIGHTS, METADATA})
_MOST_JSON = 16 << 20  # bytes; inception_resnet_v2 has 1 MB
_MOST_NESTED = 100  # levels; our networks have 20
_JSON_TEXT = re.compile(r'"(?:[^"\\]++|\\.)*+"')  # its brackets do not count
_MOST_LAYERS = 5_000  # inception_resnet_v2 has 824
_MOST_OBJECTS = 100_000  # in HDF5, groups and arrays; a layer has up to ten
_MOST_TEXT = 4 << 20  # bytes of one attribute; HDF5 itself splits lists of names at 64 KB
_MOST_SIDE = 4096  # of a kernel, a stride, a padding, …
_MOST_FILTERS = 1 << 20
_MOST_DILATION = 256  # an input is padded by as much on each side of a pixel
# Weights hardly compress; zeros do, by up to 1,032 with deflate. Small files may.
_MOST_EXPANSION, _ALWAYS_ALLOWED = 100, 64 << 20

# Of HDF5: deflate, shuffle, checksums, and h5py's LZF. It looks for others in plug-ins.
_FILTERS = frozenset({1, 2, 3, 32000})

# Keras' own layers that compute on images, by name. Not among them, on purpose: what holds
# Python code (Lambda), loads other files (TFSMLayer, StringLookup, TextVectorization, …) or
# wraps another framework (TorchModuleWrapper, JaxLayer, FlaxLayer).
_LAYER_NAMES = """
Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention Average
AveragePooling1D AveragePooling2D BatchNormalization CenterCrop Concatenate Conv1D
Conv1DTranspose Conv2D Conv2DTranspose Cropping1D Cropping2D Dense DepthwiseConv1D
DepthwiseConv2D Dot Dropout ELU Flatten GaussianDropout GaussianNoise
GlobalAveragePooling1D GlobalAveragePooling2D GlobalMaxPooling1D GlobalMaxPooling2D
GroupNormalization GroupQueryAttention Identity InputLayer LayerNormalization LeakyReLU
Maximum MaxPooling1D MaxPooling2D Minimum MultiHeadAttention Multiply Normalization PReLU
Permute RMSNormalization RandomBrightness RandomContrast RandomCrop RandomFlip
RandomRotation RandomTranslation RandomZoom ReLU RepeatVector Rescaling Reshape Resizing
SeparableConv1D SeparableConv2D Softmax SpatialDropout1D SpatialDropout2D
SpectralNormalization Subtract UnitNormalization UpSampling1D UpSampling2D ZeroPadding1D
ZeroPadding2D
"""
_LAYERS = frozenset(_LAYER_NAMES.split())
_MODELS = frozenset({"Functional", "Model", "Sequential"})
_MODEL_MODULES = re.compile(r"keras(\.models|\.src\.(models|engine)\.\w+)?")
# Of Keras' core operations; others hold functions.
_CORE = frozenset({"Cast", "SaturateCast", "StopGradient"})
_APPLICATIONS = frozenset({"CustomScaleLayer", "LayerScale", "StochasticDepth"})
# Modules whose classes hold numbers only, and operations on tensors.
_PLAIN = re.compile(
    r"keras\.(initializers|regularizers|constraints|dtype_policies|random)"
    r"|keras\.src\.(initializers|regularizers|constraints|dtype_policies)(\.\w+)*"
    r"|keras\.src\.random\.seed_generator"
    r"|keras(\.src)?\.ops(\.(numpy|nn|image|math))?"
)
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*")
_ACTIVATIONS = re.compile(r"keras\.(src\.)?activations(\.activations)?")
_VALUES = frozenset(
    {"__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__"}
)
_SIDES = [
    "kernel_size",
    "pool_size",
    "strides",
    "padding",
    "size",
    "cropping",
    "height",
    "width",
    "n",
    "output_padding",
]
_COUNTS = ["filters", "units", "depth_multiplier", "num_heads", "key_dim", "groups"]
_MOST = {
    **dict.fromkeys(_SIDES, _MOST_SIDE),
    **dict.fromkeys(_COUNTS, _MOST_FILTERS),
    "dilation_rate": _MOST_DILATION,
}


class Contents(NamedTuple):
    """What a `.keras` file says, without its weights.

    Attributes:
        config: Of the network, as Keras wrote it.
        keras: What Keras noted: its version.
        metadata: Ours; {} where the file has none.
        elements: How many numbers its weights hold.
    """

    config: dict[str, Any]
    keras: dict[str, Any]
    metadata: dict[str, Any]
    elements: int


def read_keras(path: Path) -> Contents:
    """Checks a `.keras` file, and reads what it says.

    The result is shared between calls; do not change it.

    Raises:
        UserError: The file is missing or damaged, or holds what no network of Keras' own
            layers needs.
    """
    return _read_keras(Path(path), stamp_of(path))


def check_weights(path: Path) -> bool:
    """Checks a file that weights are to be read from: `.keras`, `.weights.h5` or `.h5`.

    Returns:
        Whether it is a `.keras` file, by its content.

    Raises:
        UserError: As `read_keras`.
    """
    path, stamp = Path(path), stamp_of(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_START)) == ZIP_START
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}.") from error
    if is_zip:
        _read_keras(path, stamp)
    else:
        _check_hdf5_file(path, stamp)
    return is_zip


def shown(text: Any, most: int = 60) -> str:
    """A text from a file for a message: short, and without control characters."""
    plain = printable(str(text)[: most + 1])
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def stamp_of(path: Path) -> tuple[int, int, int]:
    """What changes when a file does.

    Raises:
        UserError: It is missing, or no regular file: a pipe would block forever.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read the model '{path}': {error.strerror}.") from error
    except ValueError as error:  # a zero byte
        raise UserError(f"'{shown(path)}' is no file name ({error}).") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"'{path}' is no regular file; name a .keras, .weights.h5 or .h5 file.")
    return found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _read_keras(path: Path, stamp: tuple[int, int, int]) -> Contents:
    del stamp  # a key
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            config, keras, metadata = (
                _read_json(path, archive, name) for name in (CONFIG, KERAS_METADATA, METADATA)
            )
            content = io.BytesIO(archive.read(WEIGHTS))
    except OSError as error:
        raise UserError(f"cannot read the model '{path}': {error.strerror or error}.") from error
    except _DAMAGES as error:
        raise UserError(
            f"'{path}' is no .keras file, or a damaged or truncated one ({shown(error)}); copy or "
            "make it again."
        ) from error
    metadata_of.check(path, metadata)
    _check_config(path, config)
    elements = _check_hdf5(path, content, len(content.getbuffer()))
    return Contents(config, keras, metadata, elements)


@functools.lru_cache(maxsize=8)
def _check_hdf5_file(path: Path, stamp: tuple[int, int, int]) -> None:
    _check_hdf5(path, path, stamp[1])


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses members that no `.keras` file has, twice the same one, and bombs."""
    members = archive.infolist()
    names = [member.filename for member in members]
    for name in (CONFIG, WEIGHTS):
        if name not in names:
            raise UserError(f"'{path}' is no Keras model: it has no {name} inside.")
    unknown = next((name for name in names if name not in _MEMBERS), None)
    if unknown is not None:
        raise UserError(
            f"'{path}' holds '{shown(unknown)}', which no Keras model of plain layers has inside; "
            f"it may hold {', '.join(sorted(_MEMBERS))}."
        )
    if len(set(names)) < len(names):
        raise UserError(f"'{path}' holds a member twice; save the model again.")
    for member in members:
        most = MOST_WEIGHTS if member.filename == WEIGHTS else _MOST_JSON
        _refuse_large(path, member.filename, member.file_size, most, path.stat().st_size)


def _refuse_large(path: Path, name: str, size: int, most: int, stored: int) -> None:
    most = min(most, max(_ALWAYS_ALLOWED, _MOST_EXPANSION * stored))
    if size > most:
        raise UserError(
            f"'{path}' declares {size:,} bytes for '{shown(name)}', more than the {most:,} that a "
            f"file of {stored:,} bytes may; it is damaged, or made to fill memory."
        )


def _read_json(path: Path, archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    if name not in archive.namelist():
        return {}
    text = archive.read(name).decode()
    _refuse_nested(path, name, text)
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no object")
    return value


def _refuse_nested(path: Path, name: str, text: str) -> None:
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", _JSON_TEXT.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > _MOST_NESTED:
        raise UserError(
            f"'{path}' nests {deepest} levels in '{name}', more than {_MOST_NESTED}; it is "
            "damaged, or made to fail."
        )


def _check_config(path: Path, config: dict[str, Any]) -> None:
    """Refuses all classes but Keras' own for images, and numbers no network has."""
    if not isinstance(config.get("config"), dict) or "class_name" not in config:
        raise UserError(f"'{path}' is no Keras model: its {CONFIG} describes none.")
    # Losses and optimizers are never made; people have their own.
    todo: list[Any] = [{key: v for key, v in config.items() if key != "compile_config"}]
    layers = 0
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                layers += _check_class(path, value)
            for key, item in value.items():
                _check_number(path, key, item)
                todo.append(item)
        elif isinstance(value, list):
            todo.extend(value)
    if layers > _MOST_LAYERS:
        raise UserError(f"'{path}' has {layers:,} layers, more than {_MOST_LAYERS:,} are read.")


def _check_class(path: Path, value: dict[str, Any]) -> bool:
    """Refuses a class, or says whether it is a layer."""
    name, module = value["class_name"], value.get("module")
    own = value.get("registered_name")
    if not isinstance(name, str) or not isinstance(module, str | None):
        raise UserError(f"'{path}' names a class by no text in its {CONFIG}; it is damaged.")
    if name in _VALUES:
        return False
    known = own is None or own == name  # 'package>Name' is a class of the author's
    if known and name in _LAYERS and module in (None, "keras.layers"):
        return True
    if known and isinstance(module, str):
        if name in _MODELS and _MODEL_MODULES.fullmatch(module):
            return True
        if name in _APPLICATIONS and module.startswith("keras.src.applications."):
            return True
        if _CLASS.fullmatch(name) and _PLAIN.fullmatch(module):
            return False
        if name in _CORE and module == "keras.src.ops.core":
            return False
        if name == "DTypePolicy" and module == "keras":
            return False
    if name == "function" and _ACTIVATIONS.fullmatch(module or ""):
        return False
    raise UserError(f"'{path}' {_found(name, module, value)}")


def _found(name: str, module: str | None, value: dict[str, Any]) -> str:
    """Why a class is refused."""
    if name in ("Lambda", "__lambda__"):
        inner = value.get("config")
        layer = inner.get("name") if isinstance(inner, dict) else None
        which = f" '{shown(layer)}'" if layer else ""
        return (
            f"holds Python code (a Lambda layer{which}), which is never run from a file; save the "
            "network without it, with Keras' own layers in its place."
        )
    kind = "function" if name == "function" else "class"
    which = shown(value.get("config") if kind == "function" else name)
    where = f" of '{shown(module)}'" if module else ""
    return (
        f"needs the {kind} '{which}'{where}, which is none of Keras' own layers for images; only "
        "these are made from a file, so save the network with them."
    )


def _check_number(path: Path, key: str, value: Any) -> None:
    most = _MOST.get(key)
    if most is None:
        return
    todo = [value]
    while todo:
        number = todo.pop()
        if isinstance(number, list):
            todo.extend(number)
        elif isinstance(number, int | float) and not 0 <= number <= most:
            raise UserError(
                f"'{path}' gives {shown(key)}={shown(number)} for a layer, expected 0 to {most:,}; "
                "it is damaged, or made to fill memory."
            )


def _check_hdf5(path: Path, source: Path | io.BytesIO, size: int) -> int:
    """Refuses links, arrays that lie elsewhere, and arrays that the file cannot hold.

    Returns:
        How many numbers it holds.
    """
    try:
        with h5py.File(source, "r") as file:
            return _check_objects(path, file, size)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise UserError(
            f"cannot read the weights '{path}' ({first_line(error)}); give a whole .keras, "
            ".weights.h5 or .h5."
        ) from error


def _check_objects(path: Path, file: h5py.File, size: int) -> int:
    todo: list[tuple[str, h5py.Group | h5py.Dataset]] = [("", file)]
    objects = elements = total = 0
    while todo:
        name, item = todo.pop()
        objects += 1
        if objects > _MOST_OBJECTS:
            raise UserError(f"'{path}' holds more than {_MOST_OBJECTS:,} groups and arrays.")
        # More links than one make circles, and one array many.
        if h5py.h5o.get_info(item.id).rc > 1:
            raise UserError(f"'{path}' links '{shown(name)}' from two places; save it again.")
        _check_attributes(path, name, item)
        if isinstance(item, h5py.Dataset):
            _check_array(path, name, item)
            elements += item.size
            total += item.size * item.dtype.itemsize
            _refuse_large(path, name, total, MOST_WEIGHTS, size)
            continue
        for key in item:
            child = f"{name}/{key}"
            if not isinstance(item.get(key, getlink=True), h5py.HardLink):
                raise UserError(
                    f"'{path}' has a link at '{shown(child)}' to another place or file, which is "
                    "not followed; save the weights again without links."
                )
            if not isinstance(found := item[key], h5py.Group | h5py.Dataset):
                raise UserError(f"'{path}' holds a type of its own, '{shown(child)}'.")
            todo.append((child, found))
    return elements


def _check_array(path: Path, name: str, item: h5py.Dataset) -> None:
    if item.external is not None or item.is_virtual:
        raise UserError(
            f"'{path}' takes the array '{shown(name)}' from other files of this machine, which are "
            "not read; save the weights again into one file."
        )
    filters = item.id.get_create_plist()
    for number in range(filters.get_nfilters()):
        if filters.get_filter(number)[0] not in _FILTERS:
            raise UserError(f"'{path}' compresses '{shown(name)}' by a filter of its own.")
    is_bfloat16 = item.dtype.kind == "V" and item.dtype.itemsize == 2 and not item.dtype.fields
    is_enum = h5py.check_enum_dtype(item.dtype) is not None
    if item.shape is None or is_enum or not (item.dtype.kind in "fiub" or is_bfloat16):
        raise UserError(
            f"'{path}' holds '{shown(name)}' of type {shown(item.dtype)}; weights are numbers."
        )


def _check_attributes(path: Path, name: str, item: h5py.Group | h5py.Dataset) -> None:
    if len(item.attrs) > _MOST_OBJECTS:
        raise UserError(f"'{path}' has {len(item.attrs):,} attributes at '{shown(name)}'.")
    for key in item.attrs:
        attribute = item.attrs.get_id(key)
        size = math.prod(attribute.shape or ()) * attribute.dtype.itemsize
        if size > _MOST_TEXT:
            raise UserError(
                f"'{path}' has an attribute '{shown(key)}' of {size:,} bytes "
                f"at '{shown(name)}', more than {_MOST_TEXT:,}."
            )


def first_line(error: BaseException) -> str:
    """The first line of an error, for a message."""
    return shown((str(error).strip() or type(error).__name__).split("\n")[0], 200)
