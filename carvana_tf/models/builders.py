"""Builds the encoders of the table, those that `keras.applications` lacks among them.

The layers that no ImageNet weights exist for are named `encoder_…` and `bottleneck_…`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from carvana_tf.errors import UserError
from carvana_tf.models.blocks import convolve, scaled
from carvana_tf.models.cloning import counted_names, flat_clone
from carvana_tf.models.encoders import BEFORE, ENCODERS, INPUT, Encoder, Stage
from carvana_tf.models.inputs import normalise, to_grey
from carvana_tf.models.options import ModelOptions


def build(name: str, options: ModelOptions, width: float = 1.0, **changes: Any) -> keras.Model:
    """Makes the encoder `name` for raw photos, normalisation included.

    With one photo channel the network takes the colour from the photo first. Encoders that
    ImageNet weights exist for get the grey channel three times, so that these fit as they are;
    others have kernels for one channel. Stacked channels enter the first convolution too.

    Args:
        name: Key of `ENCODERS`.
        options: What it takes; `alpha` is of encoders that come in several widths.
        width: As of `registry.build`.
        **changes: Arguments of the builder in place of its defaults.

    Returns:
        A flat model from float32[B, H, W, 3 + stacked_channels] in 0..255, whose layers
        are named as the row's `skips` say.

    Raises:
        UserError: The normalisation is unknown, or there is no such alpha.
    """
    row, alpha, stacked = ENCODERS[name], options.alpha, options.stacked_channels
    if width == 1 and alpha not in (None, 1.0, *row.alphas):
        widths = ", ".join(map(str, row.alphas)) or "1.0 only"
        raise UserError(f"--alpha={alpha} does not exist for {name}; it comes in {widths}.")
    x = photo = keras.Input((None, None, 3 + stacked), name=INPUT)
    if options.photo_channels == 1:
        x = to_grey(photo, 3 if row.source else 1, stacked_channels=stacked)
    mode = options.preprocessing_function or row.normalisation
    x = normalise(x, mode, stacked_channels=stacked)
    if row.alphas:
        arguments = {"alpha": (alpha or 1.0) if width == 1 else row.alphas[0]}
    else:
        arguments = {} if row.source == "keras" else {"alpha": width}
    model = make(row, weights=None, input_tensor=x, **arguments, **changes)
    if arguments:
        width = 1.0  # the builder has applied it
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


def make(row: Encoder, **arguments: Any) -> keras.Model:
    """Calls an encoder's builder.

    Args:
        row: Of `ENCODERS`.
        **arguments: Those of `keras.applications`: `weights`, `input_tensor` and, where the
            encoder comes in several widths, `alpha`.
    """
    builder = _BUILDERS.get(row.builder) or getattr(keras.applications, row.builder)
    return builder(include_top=False, **row.arguments, **arguments)


def feature(model: keras.Model, skip: str) -> keras.KerasTensor:
    """The tensor that a name in `Encoder.skips` stands for."""
    if skip.startswith(BEFORE):
        return model.get_layer(skip.removeprefix(BEFORE)).input
    return model.get_layer(skip).output


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
        last = dropout if number == len(levels) else 0.0
        x = _level(x, filters, number, last, norm=norm, dense=dense, width=alpha)
    norm = "none" if norm == "last" else norm
    x = convolve(x, bottleneck, "bottleneck", norm=norm, dense=dense, width=alpha)
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


def seresnet(
    *,
    input_tensor: keras.KerasTensor,
    blocks: Sequence[int],
    pool_padding: str = "same",
    alpha: float = 1.0,
    **_: Any,
) -> keras.Model:
    """A ResNet of bottlenecks with squeeze and excitation (Hu et al. 2017, arXiv:1709.01507).

    The first 1x1 convolution of a stage has its stride, as in Caffe's ResNet and the authors'
    SE-ResNet; epsilon 1e-5; layers are named as those of Keras' ResNet50. Kernels are drawn from
    He's normal distribution by fan-out.

    Args:
        input_tensor: [B, H, W, C].
        blocks: Bottlenecks of each stage.
        pool_padding: Of the stem's pooling. "same" pads even sizes below and on the right, as
            Caffe rounds up, so that the strides divide exactly; "valid" pads nothing.
        alpha: Multiplies the filters.
    """
    x = _conv_bn(input_tensor, scaled(64, alpha), 7, 2, "conv1", fan="fan_out")
    x = keras.layers.ReLU(name="conv1_relu")(x)
    x = keras.layers.MaxPooling2D(3, 2, pool_padding, name="pool1_pool")(x)
    for stage, count in enumerate(blocks):
        filters = scaled(64 * 2**stage, alpha)
        for block in range(1, count + 1):
            stride = 2 if stage > 0 and block == 1 else 1
            x = _bottleneck(x, filters, stride, f"conv{stage + 2}_block{block}")
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


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
    epsilon = 1e-3
    x = _conv_bn(input_tensor, scaled(32, alpha), 3, 2, "stem", epsilon=epsilon, same=True)
    x = keras.layers.ReLU(6.0, name="stem_activation")(x)
    for number, stage in enumerate(stages, start=1):
        for block in range(stage.repeats):
            name = f"block{number}{'abcdefghij'[block]}"
            stride = stage.stride if block == 0 else 1
            before = x
            if stage.expansion > 1:
                wide = x.shape[-1] * stage.expansion
                x = _conv_bn(x, wide, 1, 1, f"{name}_expand", epsilon=epsilon)
                x = keras.layers.ReLU(6.0, name=f"{name}_expand_activation")(x)
            x = keras.layers.DepthwiseConv2D(
                *(stage.kernel, stride, "same"), use_bias=False, name=f"{name}_dwconv2"
            )(x)
            x = keras.layers.BatchNormalization(epsilon=epsilon, name=f"{name}_bn")(x)
            x = keras.layers.ReLU(6.0, name=f"{name}_activation")(x)
            narrow = scaled(stage.filters, alpha)
            x = _conv_bn(x, narrow, 1, 1, f"{name}_project", epsilon=epsilon)
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
        x = _level(x, (filters, filters), number, norm="none")
    x = convolve(x, (512, 512), "bottleneck", norm="none")
    return keras.Model(vgg16.input, x)


def _level(
    x: keras.KerasTensor, filters: Sequence[int], number: int, dropout: float = 0.0, **style: Any
) -> keras.KerasTensor:
    """The convolutions of one stride, and the max-pooling to the next one."""
    prefix = f"encoder_stage{number}"
    x = convolve(x, filters, prefix, **style)
    if dropout:
        x = keras.layers.SpatialDropout2D(dropout, name=f"{prefix}_dropout")(x)
    return keras.layers.MaxPooling2D(2, name=f"{prefix}_pool")(x)


def _conv_bn(
    x: keras.KerasTensor,
    filters: int,
    kernel: int,
    stride: int,
    name: str,
    *,
    epsilon: float = 1e-5,
    same: bool = False,
    fan: str = "fan_in",
) -> keras.KerasTensor:
    """A convolution without bias, normalised; padded by TensorFlow's "same" or as PyTorch does.

    Its kernel is drawn from He's normal distribution by `fan`: "fan_in", truncated as Keras
    does, or "fan_out", not truncated as in PyTorch.
    """
    if kernel > 1 and not same:  # half the kernel on each side, at any stride
        x = keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    x = keras.layers.Conv2D(
        filters,
        kernel,
        stride,
        "same" if same else "valid",
        use_bias=False,
        kernel_initializer=(
            "he_normal"
            if fan == "fan_in"
            else keras.initializers.VarianceScaling(2.0, fan, "untruncated_normal")
        ),
        name=f"{name}_conv",
    )(x)
    return keras.layers.BatchNormalization(epsilon=epsilon, name=f"{name}_bn")(x)


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


def _bottleneck(x: keras.KerasTensor, filters: int, stride: int, name: str) -> keras.KerasTensor:
    """Three convolutions, squeeze and excitation, and the shortcut: 4 times the filters."""
    shortcut, wide = x, 4 * filters
    if stride > 1 or x.shape[-1] != wide:
        shortcut = _conv_bn(x, wide, 1, stride, f"{name}_0", fan="fan_out")
    for n, kernel in ((1, 1), (2, 3)):
        x = _conv_bn(x, filters, kernel, stride if n == 1 else 1, f"{name}_{n}", fan="fan_out")
        x = keras.layers.ReLU(name=f"{name}_{n}_relu")(x)
    x = _conv_bn(x, wide, 1, 1, f"{name}_3", fan="fan_out")
    x = _squeeze_excite(x, f"{name}_se")
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.ReLU(name=f"{name}_out")(x)


def _squeeze_excite(x: keras.KerasTensor, name: str, ratio: int = 16) -> keras.KerasTensor:
    """Weights each channel by what two dense layers make of the means of all channels."""
    channels = x.shape[-1]
    # 1x1 convolutions of one pixel, which spare two reshapes.
    share = keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    narrow = max(1, channels // ratio)
    share = keras.layers.Conv2D(narrow, 1, activation="relu", name=f"{name}_reduce")(share)
    share = keras.layers.Conv2D(channels, 1, activation="sigmoid", name=f"{name}_expand")(share)
    return keras.layers.Multiply(name=f"{name}_excite")([x, share])


_BUILDERS: dict[str, Callable[..., keras.Model]] = {
    "plain": plain,
    "resnet34": resnet34,
    "seresnet": seresnet,
    "efficientnet_lite": efficientnet_lite,
    "vgg7": vgg7,
}
"""Those that `keras.applications` lacks."""
