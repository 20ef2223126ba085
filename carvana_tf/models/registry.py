"""Networks: one table from the name of `--network` to what it is made of.

All take raw photos float32[B, H, W, 3 + stacked] in 0..255 with H and W multiples of the
row's stride and give probabilities float32[B, H, W, 1]. They are flat: every layer of the
encoder is a layer of the network, under the name `keras.applications` gives it.

The architectures are those of the 4th place of Kaggle's Carvana Image Masking Challenge
(killthekitten/kaggle-carvana-2017, MIT).
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

import keras

from carvana_tf.errors import UserError, unknown_name
from carvana_tf.models import decoders
from carvana_tf.models.encoders import ENCODERS, NORMALISE, Encoder, encode, normalise

INPUT = "input_1"
"""Name of the input layer: the published default of --freeze_till_layer."""

VGG_BRANCH = ("block1_conv1", "block1_conv2")
"""VGG16's first two convolutions under their own names, beside some encoders."""


@dataclasses.dataclass(frozen=True)
class Network:
    """One row of the table.

    Attributes:
        encoder: Key of `ENCODERS`.
        stages: Filters of the decoder's stages, deepest first.
        photo_skip: Whether the normalised photo joins the last stage.
        vgg_branch: Whether VGG16's block 1 joins the last stage.
        dropout: Spatial dropout before the last layer.
        supports_stacked: Whether grey channels may follow RGB; only where no ImageNet
            weights fix the first convolution's three channels.
    """

    encoder: str
    stages: tuple[tuple[int, ...], ...]
    photo_skip: bool = True
    vgg_branch: bool = False
    dropout: float = 0.2
    supports_stacked: bool = False

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of this."""
        return ENCODERS[self.encoder].stride

    @property
    def preprocessing(self) -> str:
        """The default of --preprocessing_function."""
        return ENCODERS[self.encoder].normalisation


NETWORKS: dict[str, Network] = {
    "resnet50": Network(
        "resnet50", ((256, 256), (192, 192), (128, 128), (64, 64), (32, 32)), vgg_branch=True
    ),
    "mobilenet": Network("mobilenet", ((256, 256), (256, 256), (192, 128), (96, 64), (48, 32))),
    "simple_unet": Network(
        "plain", ((128, 128), (64, 64), (32, 32)), photo_skip=False, supports_stacked=True
    ),
}


def find(name: str) -> Network:
    """The row of a network.

    Raises:
        UserError: There is no network of this name.
    """
    if name not in NETWORKS:
        raise unknown_name("--network", name, NETWORKS)
    return NETWORKS[name]


def build(
    name: str,
    *,
    stacked_channels: int = 0,
    preprocessing: str | None = None,
    alpha: float | None = None,
    width: float = 1.0,
) -> keras.Model:
    """Makes a network with fresh weights, under the current dtype policy.

    Args:
        name: Key of `NETWORKS`; the model bears it too.
        stacked_channels: How many grey channels follow RGB.
        preprocessing: Key of `NORMALISATIONS`; None is the encoder's own.
        alpha: Width multiplier of encoders that come in several widths. None is 1, or
            the least where `width` is below 1.
        width: Multiplies the filters of the decoder, and of encoders without an alpha,
            down to 8 at least; below 1 for trials whose result does not matter.

    Returns:
        float32[B, H, W, 3 + stacked_channels] in 0..255 -> float32[B, H, W, 1] in 0..1.

    Raises:
        UserError: A name is unknown, or the network does not know the alpha or stacked
            channels.
    """
    row = find(name)
    encoder = ENCODERS[row.encoder]
    if stacked_channels and not row.supports_stacked:
        able = ", ".join(key for key, network in NETWORKS.items() if network.supports_stacked)
        raise UserError(
            f"--stacked_channels={stacked_channels}: {name} takes RGB only; use --network={able}."
        )
    if alpha is None and width < 1 and encoder.alphas:
        alpha = encoder.alphas[0]
    photo = keras.Input((None, None, 3 + stacked_channels), name=INPUT)
    mode = preprocessing or row.preprocessing
    x = normalise(photo, mode, stacked_channels=stacked_channels)
    features = {stride: [tensor] for stride, tensor in encode(row.encoder, x, alpha).items()}
    if row.photo_skip:
        features.setdefault(1, []).append(x)
    if row.vgg_branch:
        features.setdefault(1, []).append(_vgg_branch(photo))
    output = decoders.unet(features, row.stages, row.dropout)
    model = keras.Model(photo, output, name=name)
    return model if width == 1 else _scale_filters(model, width, encoder)


def encoder_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers that weights trained on ImageNet exist for, from input to bottleneck.

    Empty for networks without such an encoder. The VGG branch is not among them.

    Raises:
        UserError: The model is none of `NETWORKS`.
    """
    encoder = ENCODERS[find(model.name).encoder]
    return _upstream(model, encoder) if encoder.pretrained else []


def branch_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The convolutions of the VGG branch; empty for networks without one.

    Raises:
        UserError: The model is none of `NETWORKS`.
    """
    return [model.get_layer(name) for name in VGG_BRANCH if find(model.name).vgg_branch]


def freeze(model: keras.Model, till_layer: str) -> None:
    """Keeps training from changing the layers before a named one.

    Layers that are frozen already, as the pretrained VGG branch is, stay so. Call it
    before `model.compile`.

    Args:
        model: Any model.
        till_layer: The first layer left as it is; `input_1`, the first of all, freezes
            nothing and `ALL` everything.

    Raises:
        UserError: There is no such layer.
    """
    names = [layer.name for layer in model.layers]
    if till_layer not in (*names, "ALL"):
        nearest = difflib.get_close_matches(till_layer, names, n=1, cutoff=0.3)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise UserError(
            f"--freeze_till_layer '{till_layer}' is no layer of {model.name}.{hint} "
            f"'{INPUT}' freezes nothing, 'ALL' everything."
        )
    end = len(names) if till_layer == "ALL" else names.index(till_layer)
    for layer in model.layers[:end]:
        layer.trainable = False


def clone(
    model: keras.Model, change: Callable[[keras.layers.Layer, dict[str, Any]], None]
) -> keras.Model:
    """A copy with fresh weights whose layers' configurations `change` may edit in place."""

    def copy(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # operations hold no state: both models may use them
        config = layer.get_config()
        change(layer, config)
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=copy)


def _vgg_branch(photo: keras.KerasTensor) -> keras.KerasTensor:
    """VGG16's block 1 before its pooling: [B, H, W, 64], fed as VGG16 was trained."""
    x = normalise(photo, "caffe", name=f"{NORMALISE}_vgg")
    for name in VGG_BRANCH:
        x = keras.layers.Conv2D(64, 3, padding="same", activation="relu", name=name)(x)
    return x


def _upstream(model: keras.Model, encoder: Encoder) -> list[keras.layers.Layer]:
    skips = [model.get_layer(name).output for name in encoder.skips.values()]
    return [
        layer
        for layer in keras.Model(model.input, skips).layers
        if not isinstance(layer, keras.layers.InputLayer) and not layer.name.startswith(NORMALISE)
    ]


def _scale_filters(model: keras.Model, width: float, encoder: Encoder) -> keras.Model:
    kept = {layer.name for layer in _upstream(model, encoder)} if encoder.alphas else set()
    kept.add(decoders.LOGITS)

    def scale(layer: keras.layers.Layer, config: dict[str, Any]) -> None:
        if "filters" in config and layer.name not in kept:
            config["filters"] = max(8, round(width * config["filters"]))

    return clone(model, scale)
