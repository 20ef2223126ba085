"""What goes into a network and comes out of it, found without its weights.

Files of other authors hold networks of every kind. What is needed here is one photo in, one
probability for each of its pixels out; `read` finds out what a file holds, once for all
commands, and `adapt` changes it where flags say how.
"""

import copy
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import keras

from carvana_tf.errors import UserError
from carvana_tf.masks.manifest import MASKS
from carvana_tf.models import inputs, safety
from carvana_tf.models.decoders import MASK
from carvana_tf.models.encoders import INPUT, NORMALISE

BOUNDED = ("sigmoid", "hard_sigmoid", "softmax")
"""Activations whose values lie in 0..1, as probabilities do."""

LINEAR = "linear"

_STRIDES = tuple(2**n for n in range(8))
# Bytes of one float32 tensor for an input of three by five strides; ours need 10 MB.
_MOST_BYTES = 1 << 30
# What passes on values between 0 and 1, and picks, moves or averages them.
_PASSING_NAMES = """
Identity Dropout SpatialDropout2D Cropping2D CenterCrop ZeroPadding2D AveragePooling2D MaxPooling2D
Average Maximum Minimum Concatenate Take GetItem Cast Activation
"""
_PASSING = frozenset(_PASSING_NAMES.split())
_LINEAR = frozenset({"Add", "Subtract", "BatchNormalization", "Rescaling", "Resizing"})
_OWN_NORMALISATION = frozenset({"Rescaling", "Normalization", "BatchNormalization"})


@dataclasses.dataclass(frozen=True)
class Interface:
    """What a network takes and gives.

    Attributes:
        channels: Of its input.
        size: The only (height, width) it takes, or None for any.
        stride: Heights and widths must be multiples of this.
        classes: Channels of its output.
        activation: What its last values went through: one of `BOUNDED`, `LINEAR`, or
            another by name.
        normalises: Whether the photo is scaled by the network itself.
        vector: Whether it gives a vector for each photo, as networks of labels do.
    """

    channels: int
    size: tuple[int, int] | None
    stride: int
    classes: int
    activation: str
    normalises: bool
    vector: bool = False


@dataclasses.dataclass(frozen=True)
class Use:
    """How flags say that a network of another author is to be used; nothing for ours.

    Attributes:
        object_class: Which channel of several is the object, counted from 0.
        logits: Whether its output is to go through a sigmoid or, for several channels, a
            softmax.
        photo_channels: 1 where it takes grey.
        preprocessing: Key of `encoders.NORMALISATIONS` for a network that does not scale the
            photo itself; None: it takes 0..255.
    """

    object_class: int | None = None
    logits: bool = False
    photo_channels: int | None = None
    preprocessing: str | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from using the network as it is, for the manifest."""
        values = dataclasses.asdict(self).items()
        return {name: v for name, v in values if v is not None and v is not False}


def read(path: Path) -> Interface:
    """What the network of a `.keras` file takes and gives; its weights are not loaded.

    Raises:
        UserError: The file cannot be read, or holds no network from one image to one image
            of the same size.
    """
    return _read(Path(path), safety.stamp_of(path))


@functools.lru_cache(maxsize=64)
def _read(path: Path, stamp: tuple[int, int, int]) -> Interface:
    del stamp  # a key
    contents = safety.read_keras(path)
    model = _without_weights(path, contents.config)
    if model.count_params() > contents.elements:
        raise UserError(
            f"'{path}' describes a network of {model.count_params():,} parameters, but holds "
            f"{contents.elements:,} numbers; it is damaged, or made to fill memory."
        )
    vectors = contents.metadata.get("task", MASKS) != MASKS
    return describe(model, path, contents.metadata.get("stride"), vectors=vectors)


def describe(
    model: keras.Model, path: Path, stride: int | None = None, *, vectors: bool = False
) -> Interface:
    """What a network takes and gives.

    Args:
        model: Functional or sequential.
        path: Its file, for messages.
        stride: Of its metadata; None: it is found by trying.
        vectors: Whether it may give a vector instead, as networks of other tasks.

    Raises:
        UserError: It is no network from one image to one image of the same size.
    """
    photo = _one(path, "input", model.inputs)
    mask = _one(path, "output", model.outputs, vectors=vectors)
    for layer in _leaves(model):
        if getattr(layer, "data_format", None) == "channels_first":
            raise UserError(
                f"'{path}' takes channels before rows (layer '{safety.shown(layer.name)}' is "
                "channels_first); convert it to channels_last where it was made."
            )
    batch, height, width, channels = photo.shape
    if batch is not None:
        raise UserError(f"'{path}' takes {batch} photos at once only; save it with a free batch.")
    if channels is None or (height is None) != (width is None):
        raise UserError(f"'{path}' takes {_shape(photo)}, expected [any, any, any, 3]; save it so.")
    size = None if height is None else (height, width)
    found = _stride(model, path, size, channels, stride)
    classes = mask.shape[-1]
    if classes is None:
        raise UserError(
            f"'{path}' gives {_shape(mask)}, expected a fixed number of channels; save it so."
        )
    return Interface(
        *(channels, size, found, classes, _activation(mask), _normalises(model)),
        vector=len(mask.shape) == 2,
    )


def use(path: Path, interface: Interface, chosen: Use, stacked_channels: int) -> None:
    """Checks that, used as flags say, a network gives one probability for each pixel.

    Raises:
        UserError: They do not; the message says what was found and which flag settles it.
    """
    found = f"'{path}' gives {interface.classes} channels by '{interface.activation}'"
    if chosen.logits and interface.activation != LINEAR:
        raise UserError(f"{found}, which are no logits; leave --logits out.")
    if not chosen.logits and interface.activation == LINEAR:
        raise UserError(
            f"{found}: any numbers; if they are logits, --logits turns them into probabilities."
        )
    if interface.activation not in (*BOUNDED, LINEAR):
        raise UserError(
            f"{found}, expected probabilities ({', '.join(BOUNDED)}) or logits; use a network "
            "that ends so."
        )
    if interface.classes == 1:
        if chosen.object_class:
            raise UserError(f"--object_class={chosen.object_class}: {found}; leave the flag out.")
    elif chosen.object_class is None:
        raise UserError(
            f"{found}; say with --object_class=0 to {interface.classes - 1} which is the object."
        )
    elif chosen.object_class >= interface.classes:
        raise UserError(
            f"--object_class={chosen.object_class}: {found}, counted from 0; choose one of them."
        )
    _check_channels(path, interface, chosen, stacked_channels)


def adapt(model: keras.Model, interface: Interface, chosen: Use) -> keras.Model:
    """The network as it is to be used: RGB in 0..255 in, float32[B, H, W, 1] in 0..1 out.

    Args:
        model: As its file has it.
        interface: From `read`.
        chosen: Accepted by `use`. The model itself is returned where there is nothing to change.
    """
    named = not isinstance(model, keras.Sequential) and not (
        isinstance(model.input, keras.KerasTensor) and isinstance(model.output, keras.KerasTensor)
    )
    if named:  # a list or dictionary of one
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if not chosen.changes:
        return model
    grey = chosen.photo_channels == 1
    stacked = interface.channels - (1 if grey else 3)
    photo = x = keras.Input((*(interface.size or (None, None)), 3 + stacked), name=INPUT)
    if grey:
        x = inputs.to_grey(x, 1, stacked_channels=stacked, name=f"{NORMALISE}_photo")
    if chosen.preprocessing:
        name = f"{NORMALISE}_foreign"
        x = inputs.normalise(x, chosen.preprocessing, stacked_channels=stacked, name=name)
    x = model(x)
    if chosen.logits:
        activation = "softmax" if interface.classes > 1 else "sigmoid"
        x = keras.layers.Activation(activation, dtype="float32", name=MASK)(x)
    if interface.classes > 1:
        x = keras.ops.take(x, [chosen.object_class], axis=-1)
    return keras.Model(photo, x, name=model.name)


def _without_weights(path: Path, config: dict[str, Any]) -> keras.Model:
    """The network with its shapes only: the size of its weights is not known yet."""
    # Keras edits what it is given. Losses and optimizers, which may be the author's, are not made.
    config = copy.deepcopy(config) | {"compile_config": None}
    try:
        with keras.StatelessScope(initialize_variables=False):
            model = keras.saving.deserialize_keras_object(config, safe_mode=True)
    except Exception as error:  # Keras raises nearly every kind for a bad file
        raise UserError(
            f"cannot make the network of '{path}' ({safety.first_line(error)}); save it again with "
            f"Keras {keras.__version__}."
        ) from error
    if not isinstance(model, keras.Model) or not model.built or not model.outputs:
        raise UserError(f"'{path}' holds no network with an input; save one that was built.")
    return model


def _one(
    path: Path, kind: str, tensors: list[keras.KerasTensor], *, vectors: bool = False
) -> keras.KerasTensor:
    found = ", ".join(map(_shape, tensors))
    if len(tensors) != 1:
        fix = "a network with one input"
        if kind == "output":
            fix = "keras.Model(model.input, model.outputs[0]), or with another of them"
        raise UserError(
            f"'{path}' has {len(tensors)} {kind}s ({found}), expected one image; save {fix}."
        )
    if len(tensors[0].shape) != 4 and not (vectors and len(tensors[0].shape) == 2):
        raise UserError(
            f"the {kind} of '{path}' is {found}, expected [photos, H, W, channels]; save a network "
            "from images to images."
        )
    if not tensors[0].dtype.startswith(("float", "bfloat", "uint8", "int")):
        raise UserError(
            f"the {kind} of '{path}' is of type {tensors[0].dtype}, expected numbers; save it with "
            "an input and output of float32."
        )
    return tensors[0]


def _stride(
    model: keras.Model,
    path: Path,
    size: tuple[int, int] | None,
    channels: int,
    claimed: int | None,
) -> int:
    """The least stride with which the output has the input's size.

    Raises:
        UserError: There is none, or not the one claimed.
    """
    if size is not None:
        _check_size(model, path, (*size, channels))
        return claimed or 1
    sizes = [(3 * s, 5 * s, channels) for s in ((claimed,) if claimed else _STRIDES)]
    for shape in sizes:
        try:
            _check_size(model, path, shape)
            return shape[0] // 3
        except UserError:
            if shape is sizes[-1]:
                raise
    raise AssertionError  # the loop returns or raises


def _check_size(model: keras.Model, path: Path, shape: tuple[int, int, int]) -> None:
    """Follows the shape of a photo through the network.

    Raises:
        UserError: The mask is of another size, or some tensor is too large.
    """
    try:
        (mask,), largest = _trace(model, [(1, *shape)])
    except Exception as error:
        raise UserError(
            f"the network of '{path}' does not take a photo of {shape[0]} x {shape[1]} "
            f"({safety.first_line(error)}); correct it where it was made, and save it again."
        ) from error
    if 4 * largest > _MOST_BYTES:
        raise UserError(
            f"'{path}' makes {largest:,} numbers of a photo of {shape[0]} x {shape[1]}; it is "
            "damaged, or made to fill memory."
        )
    if len(mask) == 4 and tuple(mask[1:3]) != shape[:2]:
        raise UserError(
            f"'{path}' gives a mask of {mask[1]} x {mask[2]} for a photo of {shape[0]} x "
            f"{shape[1]}, expected the same size; save a network that resizes its output."
        )


def _trace(model: keras.Model, shapes: list[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], int]:
    """The shapes of a network's outputs, and how many numbers its largest tensor has."""
    nodes = [node for level in _graph(model)._nodes_by_depth.values() for node in level]
    tensors = [tensor for node in nodes for tensor in node.output_tensors]
    every = keras.Model(model.inputs, [*model.outputs, *tensors])
    found = every.compute_output_shape(shapes if len(shapes) > 1 else shapes[0])
    of_tensor = dict(zip(map(id, tensors), found[len(model.outputs) :], strict=True))
    largest = max(math.prod(n or 1 for n in shape) for shape in found)
    for node in nodes:
        inputs = [of_tensor[id(tensor)] for tensor in node.input_tensors]
        # Keras looks at these when it computes, not before.
        joins = type(node.operation).__name__ == "Concatenate" and node.operation.axis in (-1, 3)
        if joins and len({shape[:-1] for shape in inputs}) > 1:
            raise ValueError(f"{node.operation.name} joins {', '.join(map(str, inputs))}")
        if isinstance(node.operation, keras.Model):
            largest = max(largest, _trace(node.operation, inputs)[1])
    return found[: len(model.outputs)], largest


def _graph(model: keras.Model) -> Any:
    return model._functional if isinstance(model, keras.Sequential) else model


def _activation(tensor: keras.KerasTensor) -> str:
    """What the values of a tensor went through last, by name."""
    history = tensor._keras_history
    node, kind = history.operation, type(history.operation).__name__
    if isinstance(node, keras.Model):
        return _activation(node.outputs[history.tensor_index])
    activation = getattr(node, "activation", None)
    if activation is not None and activation is not keras.activations.linear:
        return _named(getattr(activation, "__name__", type(activation).__name__), tensor)
    smooth = getattr(node, "interpolation", None) in ("nearest", "bilinear")
    if kind in _PASSING or (kind in ("UpSampling2D", "Resizing") and smooth):
        inputs = node._inbound_nodes[history.node_index].input_tensors
        names = {_activation(one) for one in inputs}
        return names.pop() if len(names) == 1 else "a mixture"
    if kind == "Softmax" and getattr(node, "axis", -1) not in (-1, 3):
        return "softmax over another axis"
    known = {"Sigmoid": "sigmoid", "HardSigmoid": "hard_sigmoid", "Softmax": "softmax"}
    # What adds up may give any number, and bicubic interpolation overshoots.
    linear = activation is not None or kind in _LINEAR or kind == "UpSampling2D"
    return LINEAR if linear else _named(known.get(kind, kind), tensor)


def _named(activation: str, tensor: keras.KerasTensor) -> str:
    return (
        "softmax of one channel" if (activation, tensor.shape[-1]) == ("softmax", 1) else activation
    )


def _normalises(model: keras.Model) -> bool:
    """Whether something scales the photo before the first convolution."""
    for layer in _leaves(model):
        if type(layer).__name__ in _OWN_NORMALISATION:
            return True
        if getattr(layer, "kernel_size", None) is not None:
            return False
    return False


def _leaves(model: keras.Model) -> list[Any]:
    return [
        leaf
        for layer in model.layers
        for leaf in (_leaves(layer) if isinstance(layer, keras.Model) else [layer])
    ]


def _check_channels(path: Path, interface: Interface, chosen: Use, stacked_channels: int) -> None:
    photo = 1 if chosen.photo_channels == 1 else 3
    if interface.channels == photo + stacked_channels:
        return
    expected = f"expected {photo} of the photo and {stacked_channels} stacked ones"
    found = f"'{path}' takes {interface.channels} channels, {expected}"
    if interface.channels == 1 and not stacked_channels:
        raise UserError(f"{found}; --photo_channels=1 gives it the photo in grey, 0..255.")
    if interface.channels > photo:
        raise UserError(f"{found}; give --stacked_channels={interface.channels - photo}.")
    raise UserError(f"{found}; use a network that takes RGB photos.")


def _shape(tensor: keras.KerasTensor) -> str:
    return f"[{', '.join('any' if n is None else str(n) for n in tensor.shape)}]"
