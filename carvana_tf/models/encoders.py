"""Encoders: one table from a name to a builder, its skip layers and its normalisation.

A row is data. To add an encoder of `keras.applications`, add a row: its builder, the
names of the layers whose outputs are the last at each stride, and the normalisation its
ImageNet weights were trained with.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras

from carvana_tf.errors import UserError, unknown_name
from carvana_tf.models.blocks import conv_bn_relu

NORMALISE = "normalise"
"""Layers whose names start so put the photo on an encoder's scale, always in float32."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """One row of the table.

    Attributes:
        builder: Makes the encoder, with the arguments of `keras.applications`:
            `include_top`, `weights`, `input_tensor` and, where `alphas` says so, `alpha`.
        skips: Stride -> name of the layer whose output has that stride; the largest
            stride is the bottleneck.
        normalisation: Key of `NORMALISATIONS`.
        pretrained: Whether weights trained on ImageNet exist.
        alphas: The width multipliers it comes in, ascending; empty: one width only.
        first: First convolution and its filters at alpha 1, from which a network's
            alpha is read back; only where there are `alphas`.
    """

    builder: Callable[..., keras.Model]
    skips: Mapping[int, str]
    normalisation: str
    pretrained: bool = True
    alphas: tuple[float, ...] = ()
    first: tuple[str, int] | None = None

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
}


def _plain_encoder(*, input_tensor: keras.KerasTensor, **_: Any) -> keras.Model:
    """Three stages of two convolutions and a max-pooling, then three convolutions.

    The encoder of the published `simple_unet`; there are no weights to start it from.
    """
    x = input_tensor
    for stage, filters in enumerate((32, 64, 128), start=1):
        x = conv_bn_relu(x, (filters, filters), f"encoder_stage{stage}")
        x = keras.layers.MaxPooling2D(2, name=f"encoder_stage{stage}_pool")(x)
    x = conv_bn_relu(x, (256, 256, 256), "bottleneck")
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


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
    "plain": Encoder(
        _plain_encoder,
        {
            1: "encoder_stage1_relu2",
            2: "encoder_stage2_relu2",
            4: "encoder_stage3_relu2",
            8: "bottleneck_relu3",
        },
        "tf",
        pretrained=False,
    ),
}


def normalise(
    photo: keras.KerasTensor, mode: str, *, stacked_channels: int = 0, name: str = NORMALISE
) -> keras.KerasTensor:
    """Puts raw channels on the scale an encoder expects.

    Made of Keras' own operations, so that a saved network needs no code of ours.

    Args:
        photo: float32[B, H, W, 3 + stacked_channels], RGB and stacked channels in 0..255.
        mode: Key of `NORMALISATIONS`, for the RGB channels.
        stacked_channels: How many channels follow RGB; they are scaled to -1..1.
        name: Name of the scaling layer; starts with `NORMALISE`.

    Returns:
        float32 of the same shape, whatever the dtype policy.

    Raises:
        UserError: `mode` is unknown.
    """
    if mode not in NORMALISATIONS:
        raise unknown_name("--preprocessing_function", mode, NORMALISATIONS)
    row = NORMALISATIONS[mode]
    if row.bgr:
        order = [2, 1, 0, *range(3, 3 + stacked_channels)]
        photo = keras.ops.take(photo, order, axis=-1)
    scale = [*row.scale, *([1 / 127.5] * stacked_channels)]
    offset = [*row.offset, *([-1.0] * stacked_channels)]
    # float32 because 0..255 less a mean loses its last bits in half precision.
    return keras.layers.Rescaling(scale, offset, dtype="float32", name=name)(photo)


def encode(name: str, x: keras.KerasTensor, alpha: float | None) -> dict[int, keras.KerasTensor]:
    """Runs the encoder `name` on a normalised photo.

    Args:
        name: Key of `ENCODERS`.
        x: float32[B, H, W, C] that `normalise` returned.
        alpha: Width multiplier; None is 1.

    Returns:
        Stride -> [B, H / stride, W / stride, channels].

    Raises:
        UserError: The encoder does not come in this width.
    """
    row = ENCODERS[name]
    if alpha not in (None, 1.0) and alpha not in row.alphas:
        widths = ", ".join(map(str, row.alphas)) or "1.0 only"
        raise UserError(f"--alpha={alpha} does not exist for {name}; it comes in {widths}.")
    width = {"alpha": 1.0 if alpha is None else alpha} if row.alphas else {}
    encoder = row.builder(include_top=False, weights=None, input_tensor=x, **width)
    return {stride: encoder.get_layer(layer).output for stride, layer in row.skips.items()}
