"""Encoders: one table from a name to a builder, its skip layers and its normalisation.

A row is data. To add an encoder of `keras.applications`, add a row: its builder, the
names of the layers whose outputs are the last at each stride, and the normalisation its
ImageNet weights were trained with.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras

from carvana_tf.errors import UserError, unknown_name
from carvana_tf.models import builders
from carvana_tf.models.blocks import scaled
from carvana_tf.models.cloning import counted_names, flat_clone

IMAGENET, RANDOM = "imagenet", "none"
"""Words of --weights: download what the encoder learnt from ImageNet, or load nothing."""

INPUT = "input_1"
"""Name of the input layer: the published default of --freeze_till_layer."""

BEFORE = "before "
"""Begins the name of a skip that is a layer's input."""

NORMALISE = "normalise"
"""Layers whose names start so put the photo on an encoder's scale, always in float32."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """One row of the table.

    Attributes:
        builder: Makes the encoder, with the arguments of `keras.applications`:
            `include_top`, `weights`, `input_tensor` and, where `alphas` says so, `alpha`.
        skips: Stride -> name of the layer whose output has that stride, or `BEFORE` and the
            name of the layer whose input it is; the largest stride is the bottleneck.
        normalisation: Key of `NORMALISATIONS`.
        source: Who has weights of it that were trained on ImageNet: "keras", "torchvision",
            "timm" or "" (nobody). Builders of any but Keras' encoders take any `alpha`.
        alphas: The width multipliers it comes in, ascending; empty: one width only.
        first: First convolution and its filters at alpha 1, from which a network's
            alpha is read back; only where there are `alphas`.
        same_padding: Whether to pad the layers that the builder leaves unpadded, so that
            the strides divide exactly; the weights are the same.
        scratch: How the names of layers begin that always start from random weights.
    """

    builder: Callable[..., keras.Model]
    skips: Mapping[int, str]
    normalisation: str
    source: str = "keras"
    alphas: tuple[float, ...] = ()
    first: tuple[str, int] | None = None
    same_padding: bool = False
    scratch: tuple[str, ...] = builders.SCRATCH

    @property
    def stride(self) -> int:
        """Height and width of a photo must be multiples of this."""
        return max(self.skips)


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """`scale * x + offset` for each channel, after RGB was turned to BGR where asked."""

    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    bgr: bool = False


# Shares of red, green and blue in a pixel's grey (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NORMALISATIONS: dict[str, Normalisation] = {
    # BGR minus ImageNet's channel means.
    "caffe": Normalisation((1.0,) * 3, (-103.939, -116.779, -123.68), bgr=True),
    # -1..1
    "tf": Normalisation((1 / 127.5,) * 3, (-1.0,) * 3),
    # ImageNet's mean 0 and standard deviation 1, of RGB in 0..1.
    "torch": Normalisation(
        tuple(1 / (255 * s) for s in _STD),  # type: ignore[arg-type]
        tuple(-m / s for m, s in zip(_MEAN, _STD, strict=True)),  # type: ignore[arg-type]
    ),
    # 0..1
    "unit": Normalisation((1 / 255,) * 3, (0.0,) * 3),
    # 0..1, BGR
    "unit_bgr": Normalisation((1 / 255,) * 3, (0.0,) * 3, bgr=True),
    # -127/128..1, as EfficientNet-Lite has it.
    "lite": Normalisation((1 / 128,) * 3, (-127 / 128,) * 3),
    # -1..1 and a little less, as the larger EfficientNetV2 have it.
    "tf128": Normalisation((1 / 128,) * 3, (-1.0,) * 3),
}


def _plain(
    levels: tuple[tuple[int, ...], ...],
    bottleneck: tuple[int, ...],
    normalisation: str = "unit",
    norm: str = "each",
    dropout: float = 0.0,
    source: str = "",
    **style: Any,
) -> Encoder:
    """The row of a `builders.plain`, whose last layer of each level is the skip."""
    if dropout:
        ends = ["relu"] * (len(levels) - 1) + ["dropout"]
    else:
        ends = ["bn" if norm == "last" else "relu"] * len(levels)
    skips = {}
    for n, (filters, end) in enumerate(zip(levels, ends, strict=True)):
        skips[2**n] = f"encoder_stage{n + 1}_{end}{len(filters) if end == 'relu' else ''}"
    deepest = f"bottleneck_relu{len(bottleneck)}" if bottleneck else f"encoder_stage{n + 1}_pool"
    skips[2 ** len(levels)] = "bottleneck_dropout" if dropout else deepest
    builder = functools.partial(
        builders.plain, levels=levels, bottleneck=bottleneck, norm=norm, dropout=dropout, **style
    )
    scratch = builders.SCRATCH[1:] if source else builders.SCRATCH
    return Encoder(builder, skips, normalisation, source=source, scratch=scratch)


def _efficientnet_lite(width: float, depth: float) -> Encoder:
    """EfficientNet-Lite, whose last feature maps of each stride are the skips."""
    ends = builders.lite_stages(width, depth)
    names = {2: 1, 4: 2, 8: 3, 16: 5, 32: 7}
    skips = {}
    for stride, stage in names.items():
        repeats = ends[stage - 1].repeats
        end = "add" if repeats > 1 else "project_bn"
        skips[stride] = f"block{stage}{'abcdefghij'[repeats - 1]}_{end}"
    builder = functools.partial(builders.efficientnet_lite, stages=ends)
    return Encoder(builder, skips, "lite", source="timm")


def _pairs(*filters: int) -> tuple[tuple[int, int], ...]:
    """Two convolutions for each number of filters."""
    return tuple((count, count) for count in filters)


def _vgg11(*bottleneck: int) -> Encoder:
    """The convolutions of VGG11, which torchvision has ImageNet weights of, and a bottleneck."""
    levels = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    return _plain(levels, bottleneck, "torch", norm="none", source="torchvision")


ENCODERS: dict[str, Encoder] = {
    "resnet50": Encoder(
        keras.applications.ResNet50,
        {
            2: "conv1_relu",
            4: "conv2_block3_out",
            8: "conv3_block4_out",
            16: "conv4_block6_out",
            32: "conv5_block3_out",
        },
        "caffe",
    ),
    "mobilenet": Encoder(
        keras.applications.MobileNet,
        {
            2: "conv_pw_1_relu",
            4: "conv_pw_3_relu",
            8: "conv_pw_5_relu",
            16: "conv_pw_11_relu",
            32: "conv_pw_13_relu",
        },
        "tf",
        alphas=(0.25, 0.5, 0.75, 1.0),
        first=("conv1", 32),
    ),
    "inception_resnet_v2": Encoder(
        keras.applications.InceptionResNetV2,
        {
            2: "activation_3",
            4: "activation_5",
            8: "block35_10_ac",
            16: "block17_20_ac",
            32: "conv_7b_ac",
        },
        "tf",
        same_padding=True,
    ),
    "vgg7": Encoder(
        builders.vgg7,
        {
            1: "block1_conv2",
            2: "block2_conv2",
            4: "block3_conv3",
            8: "encoder_stage4_relu2",
            16: "encoder_stage5_relu2",
            32: "encoder_stage6_relu2",
            64: "bottleneck_relu2",
        },
        "caffe",
    ),
    "resnet34": Encoder(
        builders.resnet34,
        {
            2: "conv1_relu",
            4: "conv2_block3_out",
            8: "conv3_block4_out",
            16: "conv4_block6_out",
            32: "conv5_block3_out",
        },
        "unit_bgr",
        source="torchvision",
    ),
    "efficientnetv2b0": Encoder(
        functools.partial(keras.applications.EfficientNetV2B0, include_preprocessing=False),
        {
            2: "block1a_project_activation",
            4: "block2b_add",
            8: "block3b_add",
            16: "block5e_add",
            32: "top_activation",
        },
        "torch",
    ),
    "efficientnetv2s": Encoder(
        functools.partial(keras.applications.EfficientNetV2S, include_preprocessing=False),
        {
            2: "block1b_add",
            4: "block2d_add",
            8: "block3d_add",
            16: "block5i_add",
            32: "top_activation",
        },
        "tf128",
    ),
    "convnext_tiny": Encoder(
        functools.partial(keras.applications.ConvNeXtTiny, include_preprocessing=False),
        {
            # The sums that end the stages are no layers and have no names.
            4: f"{BEFORE}convnext_tiny_downsampling_layernorm_0",
            8: f"{BEFORE}convnext_tiny_downsampling_layernorm_1",
            16: f"{BEFORE}convnext_tiny_downsampling_layernorm_2",
            32: "layer_normalization_1",
        },
        "torch",
    ),
    "mobilenetv3large": Encoder(
        functools.partial(keras.applications.MobileNetV3Large, include_preprocessing=False),
        {
            2: "expanded_conv_add",
            4: "expanded_conv_2_add",
            8: "expanded_conv_5_add",
            16: "expanded_conv_11_add",
            32: "activation_20",
        },
        "tf",
    ),
    "efficientnet_lite0": _efficientnet_lite(1.0, 1.0),
    "efficientnet_lite1": _efficientnet_lite(1.0, 1.1),
    "efficientnet_lite2": _efficientnet_lite(1.1, 1.2),
    "efficientnet_lite3": _efficientnet_lite(1.2, 1.4),
    "efficientnet_lite4": _efficientnet_lite(1.4, 1.8),
    "plain": _plain(_pairs(32, 64, 128), (256, 256, 256), "tf"),
    "vgg11v1": _vgg11(1024),
    "vgg11v2": _vgg11(),
    "ternaus": _vgg11(512),
    "unet_scratch": _plain(_pairs(32, 64, 128, 256, 512, 1024), (1024, 1024)),
    "unarrow": _plain(_pairs(32, 32, 64, 128, 256, 512), (768, 768)),
    "unet4": _plain(_pairs(24, 64, 128, 256), (512, 512)),
    "unet5": _plain(_pairs(32, 64, 128, 256, 512), (1024, 1024)),
    "unet7": _plain(_pairs(48, 96, 128, 256, 512, 1024, 1536), (1536, 1536)),
    "unet_classic": _plain(_pairs(16, 32, 64, 128, 256), (512, 512), norm="none", dropout=0.5),
    "unet_tiny": _plain(_pairs(16, 32), (64, 64), norm="none"),
    "unet_bn": _plain(_pairs(16, 32, 64, 256), (256, 256), norm="last"),
    "unet_bn_simple": _plain(((16,), (32,), (64,), (256,)), (256,), norm="last"),
    "unet_no_bn": _plain(_pairs(16, 32, 64, 256), (256, 256), norm="none"),
    "unet_no_bn_simple": _plain(((16,), (32,), (64,), (256,)), (256,), norm="none"),
    "unet_bn_dense": _plain(_pairs(16, 32, 64, 256), (256, 256), norm="last", dense=True),
    "autoencoder4": _plain(((16,), (8,)), (4,), norm="none"),
    "autoencoder64": _plain(((16,), (32,)), (64,), norm="none"),
}


def feature(model: keras.Model, skip: str) -> keras.KerasTensor:
    """The tensor that a name in `Encoder.skips` stands for."""
    if skip.startswith(BEFORE):
        return model.get_layer(skip.removeprefix(BEFORE)).input
    return model.get_layer(skip).output


def normalise(
    photo: keras.KerasTensor, mode: str, *, stacked_channels: int = 0, name: str = NORMALISE
) -> keras.KerasTensor:
    """Puts raw channels on the scale an encoder expects.

    Made of Keras' own operations, so that a saved network needs no code of ours.

    Args:
        photo: float32[B, H, W, C + stacked_channels] in 0..255, where C is 3, RGB, or 1, grey.
        mode: Key of `NORMALISATIONS`, for the photo's channels; grey gets the mean of the
            scales and of the offsets.
        stacked_channels: How many channels follow the photo; they are scaled to -1..1.
        name: Name of the scaling layer; starts with `NORMALISE`.

    Returns:
        float32 of the same shape, whatever the dtype policy.

    Raises:
        UserError: `mode` is unknown.
    """
    if mode not in NORMALISATIONS:
        raise unknown_name("--preprocessing_function", mode, NORMALISATIONS)
    row = NORMALISATIONS[mode]
    colours = photo.shape[-1] - stacked_channels
    scale, offset = list(row.scale), list(row.offset)
    if colours == 1:
        scale, offset = [sum(scale) / 3], [sum(offset) / 3]
    elif row.bgr:
        order = [2, 1, 0, *range(3, 3 + stacked_channels)]
        photo = keras.ops.take(photo, order, axis=-1)
    scale += [1 / 127.5] * stacked_channels
    offset += [-1.0] * stacked_channels
    # float32 because 0..255 less a mean loses its last bits in half precision.
    return keras.layers.Rescaling(scale, offset, dtype="float32", name=name)(photo)


def check_photo_channels(count: int) -> None:
    """Refuses numbers of photo channels that no network is built with.

    Raises:
        UserError: It is neither 3 nor 1.
    """
    if count not in (1, 3):
        raise UserError(f"--photo_channels={count} must be 3 (RGB) or 1 (grey).")


def to_grey(
    photo: keras.KerasTensor, channels: int, *, stacked_channels: int = 0, name: str = NORMALISE
) -> keras.KerasTensor:
    """Takes the colour from a photo: the luma of ITU-R BT.601, as OpenCV's grey.

    Made of Keras' own operations, in float32 and not rounded.

    Args:
        photo: float32[B, H, W, 3 + stacked_channels], RGB and stacked channels in 0..255.
        channels: How many times the grey channel stands in the result.
        stacked_channels: How many channels follow RGB; they stay as they are.
        name: How the name of the layer begins; starts with `NORMALISE`.

    Returns:
        float32[B, H, W, channels + stacked_channels].
    """
    shares = keras.layers.Rescaling(list(_LUMA), [0.0] * 3, dtype="float32", name=f"{name}_grey")
    colours = photo[..., :3] if stacked_channels else photo
    grey = keras.ops.sum(shares(colours), axis=-1, keepdims=True)
    parts = [grey] * channels + ([photo[..., 3:]] if stacked_channels else [])
    return keras.ops.concatenate(parts, axis=-1) if len(parts) > 1 else grey


def build(
    name: str,
    *,
    photo_channels: int = 3,
    stacked_channels: int = 0,
    preprocessing: str | None = None,
    alpha: float | None = None,
    width: float = 1.0,
) -> keras.Model:
    """Makes the encoder `name` for raw photos, normalisation included.

    Args:
        name: Key of `ENCODERS`.
        photo_channels: 3, or 1: the network takes the colour from the photo first. Encoders
            that ImageNet weights exist for get the grey channel three times, so that these
            fit as they are; others have kernels for one channel.
        stacked_channels: How many grey channels follow RGB; the first convolution sees
            them too.
        preprocessing: Key of `NORMALISATIONS`; None is the encoder's own.
        alpha: Width multiplier of encoders that come in several widths; None is 1, or
            the least where `width` is below 1.
        width: Multiplies the filters of the others, down to 8 at least.

    Returns:
        A flat model from float32[B, H, W, 3 + stacked_channels] in 0..255, whose layers
        are named as the row's `skips` say.

    Raises:
        UserError: `preprocessing` is unknown, or there is no such alpha, or
            `photo_channels` is neither 3 nor 1.
    """
    row = ENCODERS[name]
    if alpha not in (None, 1.0) and alpha not in row.alphas:
        widths = ", ".join(map(str, row.alphas)) or "1.0 only"
        raise UserError(f"--alpha={alpha} does not exist for {name}; it comes in {widths}.")
    check_photo_channels(photo_channels)
    x = photo = keras.Input((None, None, 3 + stacked_channels), name=INPUT)
    if photo_channels == 1:
        x = to_grey(photo, 3 if row.source else 1, stacked_channels=stacked_channels)
    x = normalise(x, preprocessing or row.normalisation, stacked_channels=stacked_channels)
    if row.alphas:
        least = 1.0 if width == 1 else row.alphas[0]
        arguments = {"alpha": least if alpha is None else alpha}
    else:
        arguments = {} if row.source == "keras" else {"alpha": width}
    model = row.builder(include_top=False, weights=None, input_tensor=x, **arguments)
    if arguments:
        width = 1.0  # the builder has seen to it
    nested = any(isinstance(layer, keras.Sequential) for layer in model.layers)
    automatic = counted_names(layer.name for layer in model.layers)
    if not (row.same_padding or nested or automatic or width != 1):
        return model

    def change(_: keras.layers.Layer, config: dict[str, Any]) -> None:
        if row.same_padding and config.get("padding") == "valid":
            config["padding"] = "same"
        for key in ("filters", "units", "projection_dim", "groups"):
            if config.get(key, 1) > 1:
                config[key] = scaled(config[key], width)
        if "target_shape" in config:
            *rest, channels = config["target_shape"]
            config["target_shape"] = (*rest, scaled(channels, width))

    return flat_clone(model, change)
