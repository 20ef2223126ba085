"""Encoders that `keras.applications` lacks, built with the same arguments.

The layers that no weights of ImageNet exist for are named `encoder_…` and `bottleneck_…`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from carvana_tf.models.blocks import convolve, scaled

SCRATCH = ("encoder_", "bottleneck_")
"""How the names of layers begin that always start from random weights."""


def plain(
    *,
    input_tensor: keras.KerasTensor,
    levels: tuple[tuple[int, ...], ...],
    bottleneck: tuple[int, ...],
    norm: str = "each",
    dense: bool = False,
    dropout: float = 0.0,
    alpha: float = 1.0,
    **_: Any,
) -> keras.Model:
    """Levels of convolutions, each with a max-pooling after it, then the bottleneck's.

    Args:
        input_tensor: [B, H, W, C].
        levels: Filters of each level's convolutions, from full size down.
        bottleneck: Filters after the last pooling.
        norm: Batch normalisation, as `blocks.convolve` takes it; "last" spares the
            bottleneck.
        dense: Whether the convolutions of a level are densely connected.
        dropout: Spatial dropout after the last level and after the bottleneck.
        alpha: Multiplies the filters.
    """
    x = input_tensor
    for number, filters in enumerate(levels, start=1):
        prefix = f"encoder_stage{number}"
        x = convolve(x, filters, prefix, norm=norm, dense=dense, width=alpha)
        if dropout and number == len(levels):
            x = keras.layers.SpatialDropout2D(dropout, name=f"{prefix}_dropout")(x)
        x = keras.layers.MaxPooling2D(2, name=f"{prefix}_pool")(x)
    last = "none" if norm == "last" else norm
    x = convolve(x, bottleneck, "bottleneck", norm=last, dense=dense, width=alpha)
    if dropout:
        x = keras.layers.SpatialDropout2D(dropout, name="bottleneck_dropout")(x)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


def resnet34(*, input_tensor: keras.KerasTensor, alpha: float = 1.0, **_: Any) -> keras.Model:
    """ResNet34 (He et al. 2015, arXiv:1512.03385): 3, 4, 6 and 3 blocks of two convolutions.

    Args:
        input_tensor: [B, H, W, C].
        alpha: Multiplies the filters.
    """
    x = _conv_bn(input_tensor, scaled(64, alpha), 7, 2, "conv1")
    x = keras.layers.ReLU(name="conv1_relu")(x)
    x = keras.layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="pool1_pool")(x)
    for stage, (blocks, filters) in enumerate(
        zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=2
    ):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 2 and block == 1 else 1
            x = _residual_block(x, scaled(filters, alpha), stride, f"conv{stage}_block{block}")
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


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


def efficientnet_lite(
    *, input_tensor: keras.KerasTensor, stages: Sequence[Stage], alpha: float = 1.0, **_: Any
) -> keras.Model:
    """EfficientNet-Lite (Liu 2020) up to its last block, without the head's convolution.

    EfficientNet (Tan and Le 2019, arXiv:1905.11946) without squeeze and excitation and with
    ReLU6, made for 8 bits. TensorFlow's "same" padding, epsilon 1e-3; layers are named as
    those of Keras' EfficientNets.

    Args:
        input_tensor: [B, H, W, C].
        stages: From `lite_stages`.
        alpha: Multiplies the filters.
    """

    def norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return keras.layers.BatchNormalization(epsilon=1e-3, name=name)(x)

    def convolve_1x1(x: keras.KerasTensor, filters: int, name: str) -> keras.KerasTensor:
        x = keras.layers.Conv2D(
            filters, 1, use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
        )(x)
        return norm(x, f"{name}_bn")

    x = keras.layers.Conv2D(
        *(scaled(32, alpha), 3, 2, "same"),
        use_bias=False,
        kernel_initializer="he_normal",
        name="stem_conv",
    )(input_tensor)
    x = keras.layers.ReLU(6.0, name="stem_activation")(norm(x, "stem_bn"))
    for number, stage in enumerate(stages, start=1):
        for block in range(stage.repeats):
            name = f"block{number}{'abcdefghij'[block]}"
            stride = stage.stride if block == 0 else 1
            before = x
            if stage.expansion > 1:
                x = convolve_1x1(x, x.shape[-1] * stage.expansion, f"{name}_expand")
                x = keras.layers.ReLU(6.0, name=f"{name}_expand_activation")(x)
            x = keras.layers.DepthwiseConv2D(
                *(stage.kernel, stride, "same"), use_bias=False, name=f"{name}_dwconv2"
            )(x)
            x = keras.layers.ReLU(6.0, name=f"{name}_activation")(norm(x, f"{name}_bn"))
            x = convolve_1x1(x, scaled(stage.filters, alpha), f"{name}_project")
            if block > 0:
                x = keras.layers.Add(name=f"{name}_add")([x, before])
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


def vgg7(*, input_tensor: keras.KerasTensor | None = None, **arguments: Any) -> keras.Model:
    """VGG16's first three blocks, then three levels and a bottleneck of two convolutions.

    The encoder of `vgg` in the 4th place of Kaggle's Carvana Image Masking Challenge.

    Args:
        input_tensor: [B, H, W, C], or None.
        arguments: Those of `keras.applications.VGG16`.
    """
    vgg16 = keras.applications.VGG16(input_tensor=input_tensor, **arguments)
    x = vgg16.get_layer("block3_pool").output
    for number, filters in enumerate((384, 512, 512), start=4):
        x = convolve(x, (filters, filters), f"encoder_stage{number}", norm="none")
        x = keras.layers.MaxPooling2D(2, name=f"encoder_stage{number}_pool")(x)
    x = convolve(x, (512, 512), "bottleneck", norm="none")
    return keras.Model(vgg16.input, x)


def _conv_bn(
    x: keras.KerasTensor, filters: int, kernel: int, stride: int, name: str
) -> keras.KerasTensor:
    if kernel > 1:  # half the kernel on each side, at any stride
        x = keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    x = keras.layers.Conv2D(
        filters,
        kernel,
        stride,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return keras.layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn")(x)


def _residual_block(
    x: keras.KerasTensor, filters: int, stride: int, name: str
) -> keras.KerasTensor:
    shortcut = x
    if stride > 1:
        shortcut = _conv_bn(x, filters, 1, stride, f"{name}_0")
    x = _conv_bn(x, filters, 3, stride, f"{name}_1")
    x = keras.layers.ReLU(name=f"{name}_1_relu")(x)
    x = _conv_bn(x, filters, 3, 1, f"{name}_2")
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.ReLU(name=f"{name}_out")(x)
