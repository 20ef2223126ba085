"""Encoders: one table from a name to a builder, its skip layers and its normalisation.

A row is data and needs no Keras; `builders` builds from it. To add an encoder of
`keras.applications`, add a row: its function there, the names of the layers whose outputs are
the last at each stride, and the normalisation its ImageNet weights were trained with.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

IMAGENET, RANDOM = "imagenet", "none"
"""Words of --weights: download what the encoder learnt from ImageNet, or load nothing."""

INPUT = "input_1"
"""Name of the input layer: the published default of --freeze_till_layer."""

BEFORE = "before "
"""Begins the name of a skip that is a layer's input."""

NORMALISE = "normalise"
"""Layers whose names start so put the photo on an encoder's scale, always in float32."""

SCRATCH = ("encoder_", "bottleneck_")
"""Prefixes of the names of layers that no ImageNet weights exist for."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """One row of the table.

    Attributes:
        builder: Name of the function in `builders` or `keras.applications` that makes it.
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
        scratch: Prefixes of the names of layers that always start from random weights.
        arguments: Further arguments of the builder.
        published_pooling: Whether the builder takes `pool_padding`, which the classifiers'
            pooling "published" needs.
    """

    builder: str
    skips: Mapping[int, str]
    normalisation: str
    source: str = "keras"
    alphas: tuple[float, ...] = ()
    first: tuple[str, int] | None = None
    same_padding: bool = False
    scratch: tuple[str, ...] = SCRATCH
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published_pooling: bool = False

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


class Stage(NamedTuple):
    """Blocks of an EfficientNet that give feature maps of one size.

    Attributes:
        repeats: Blocks; the first has the stride.
        kernel: Of the depthwise convolutions.
        stride: 1 or 2.
        expansion: How many times the input's filters the blocks widen to.
        filters: Of the stage's feature maps.
    """

    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


_LITE = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def lite_stages(width: float, depth: float) -> list[Stage]:
    """The stages of an EfficientNet-Lite: EfficientNet-B0's, wider and deeper.

    Filters are rounded to multiples of 8, not by more than a tenth down. The first and the
    last stage keep their single block.
    """
    stages = []
    for number, stage in enumerate(_LITE):
        wide = width * stage.filters
        filters = max(8, int(wide + 4) // 8 * 8)
        filters += 8 if filters < 0.9 * wide else 0
        fixed = number in (0, len(_LITE) - 1)
        repeats = stage.repeats if fixed else math.ceil(depth * stage.repeats)
        stages.append(stage._replace(filters=filters, repeats=repeats))
    return stages


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
    arguments = {
        "levels": levels,
        "bottleneck": bottleneck,
        "norm": norm,
        "dropout": dropout,
        **style,
    }
    scratch = SCRATCH[1:] if source else SCRATCH
    return Encoder(
        "plain", skips, normalisation, source=source, scratch=scratch, arguments=arguments
    )


def _efficientnet_lite(width: float, depth: float) -> Encoder:
    """EfficientNet-Lite, whose last feature maps of each stride are the skips."""
    stages = lite_stages(width, depth)
    names = {2: 1, 4: 2, 8: 3, 16: 5, 32: 7}
    skips = {}
    for stride, stage in names.items():
        repeats = stages[stage - 1].repeats
        end = "add" if repeats > 1 else "project_bn"
        skips[stride] = f"block{stage}{'abcdefghij'[repeats - 1]}_{end}"
    return Encoder("efficientnet_lite", skips, "lite", source="timm", arguments={"stages": stages})


def _seresnet(*blocks: int) -> Encoder:
    """A SE-ResNet of so many bottlenecks in each of four stages, whose ends are the skips."""
    ends = {2 ** (stage + 2): f"conv{stage + 2}_block{n}_out" for stage, n in enumerate(blocks)}
    return Encoder(
        "seresnet",
        {2: "conv1_relu", **ends},
        "torch",
        source="timm",
        arguments={"blocks": blocks},
        published_pooling=True,
    )


def _pairs(*filters: int) -> tuple[tuple[int, int], ...]:
    """Two convolutions for each number of filters."""
    return tuple((count, count) for count in filters)


def _vgg11(*bottleneck: int) -> Encoder:
    """The convolutions of VGG11, which torchvision has ImageNet weights of, and a bottleneck."""
    levels = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    return _plain(levels, bottleneck, "torch", norm="none", source="torchvision")


# These builders would normalise photos themselves.
_RAW = {"include_preprocessing": False}

ENCODERS: dict[str, Encoder] = {
    "resnet50": Encoder(
        "ResNet50",
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
        "MobileNet",
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
        "InceptionResNetV2",
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
        "vgg7",
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
        "resnet34",
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
    "seresnet50": _seresnet(3, 4, 6, 3),
    "seresnet101": _seresnet(3, 4, 23, 3),
    "efficientnetv2b0": Encoder(
        "EfficientNetV2B0",
        {
            2: "block1a_project_activation",
            4: "block2b_add",
            8: "block3b_add",
            16: "block5e_add",
            32: "top_activation",
        },
        "torch",
        arguments=_RAW,
    ),
    "efficientnetv2s": Encoder(
        "EfficientNetV2S",
        {
            2: "block1b_add",
            4: "block2d_add",
            8: "block3d_add",
            16: "block5i_add",
            32: "top_activation",
        },
        "tf128",
        arguments=_RAW,
    ),
    "convnext_tiny": Encoder(
        "ConvNeXtTiny",
        {
            # The sums that end the stages are no layers and have no names.
            4: f"{BEFORE}convnext_tiny_downsampling_layernorm_0",
            8: f"{BEFORE}convnext_tiny_downsampling_layernorm_1",
            16: f"{BEFORE}convnext_tiny_downsampling_layernorm_2",
            32: "layer_normalization_1",
        },
        "torch",
        arguments=_RAW,
    ),
    "mobilenetv3large": Encoder(
        "MobileNetV3Large",
        {
            2: "expanded_conv_add",
            4: "expanded_conv_2_add",
            8: "expanded_conv_5_add",
            16: "expanded_conv_11_add",
            32: "activation_20",
        },
        "tf",
        arguments=_RAW,
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
