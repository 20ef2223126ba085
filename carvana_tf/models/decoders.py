"""Decoders: from the features of an encoder to a mask of the photo's size."""

from collections.abc import Mapping, Sequence

import keras

from carvana_tf.models.blocks import convolve, scaled
from carvana_tf.models.networks import Unet

LOGITS = "logits"
MASK = "mask"
"""Name of the last layer: the sigmoid, always in float32."""

PREFIXES = ("decoder_", LOGITS)
"""Prefixes of the names of all layers with weights that are not the encoder's."""

Features = Mapping[int, Sequence[keras.KerasTensor]]
"""Stride -> tensors [B, H / stride, W / stride, C], the largest stride one alone."""

# Filters of a U-Net's stage by its stride, for networks that give none of their own.
_STAGES = {8: (192, 192), 4: (128, 128), 2: (64, 64), 1: (32, 32)}
_DEEP_STAGE = (256, 256)


def unet(features: Features, settings: Unet, width: float = 1.0) -> keras.KerasTensor:
    """A U-Net decoder: each stage doubles the size, joins the skips and convolves.

    Layers are named `decoder_stage<n>_…`; stage 1 is the deepest. A stage of a stride that
    the encoder has no features of joins nothing.

    Args:
        features: The bottleneck, and the skips by their strides.
        settings: How the stages are made.
        width: Multiplies the filters.

    Returns:
        Probability float32[B, H, W, 1] in 0..1.
    """
    strides = _strides(features)
    (x,) = features[max(features)]
    stages = settings.stages or [_STAGES.get(stride, _DEEP_STAGE) for stride in strides]
    befores = settings.before or [()] * len(strides)
    for n, (stride, filters, before) in enumerate(
        zip(strides, stages, befores, strict=True), start=1
    ):
        prefix = f"decoder_stage{n}"
        if settings.up.startswith("transposed"):
            x = _transposed(x, scaled((before or filters)[0], width), settings.up, f"{prefix}_up")
            before = ()
        else:
            x = keras.layers.UpSampling2D(2, interpolation=settings.up, name=f"{prefix}_up")(x)
        x = convolve(x, before, prefix, norm=settings.norm, bias=settings.bias, width=width)
        skips = features.get(stride, ())
        if skips:
            parts = [*skips, x] if settings.skip_first else [x, *skips]
            x = keras.layers.Concatenate(name=f"{prefix}_concat")(parts)
        x = convolve(
            x,
            filters,
            prefix,
            norm=settings.norm,
            bias=settings.bias,
            dense=settings.dense,
            width=width,
            first=1 + len(before),
        )
    if settings.dropout:
        x = keras.layers.SpatialDropout2D(settings.dropout, name="decoder_dropout")(x)
    return mask_head(x)


def linknet(features: Features, width: float = 1.0) -> keras.KerasTensor:
    """The decoder of LinkNet: narrow blocks, and skips that are added.

    As in the 1st place of Kaggle's Carvana Image Masking Challenge
    (asanakoy/kaggle_carvana_segmentation, MIT): skips of stride 4 and more, then a head
    of unpadded convolutions that comes back to the exact size.

    Args:
        features: The bottleneck, of stride 4 or more, and the skips by their strides.
        width: Multiplies the head's filters; the blocks have the encoder's.

    Returns:
        Probability float32[B, H, W, 1] in 0..1.
    """
    (x,) = features[max(features)]
    for n, stride in enumerate(_strides(features)[:-1], start=1):
        skips = features.get(stride, ())[:1] if stride >= 4 else ()
        filters = skips[0].shape[-1] if skips else x.shape[-1]
        x = _linknet_block(x, filters, f"decoder_stage{n}")
        if skips:
            x = keras.layers.Add(name=f"decoder_stage{n}_add")([x, *skips])
    filters = scaled(32, width)
    # From n pixels to 2n + 1, 2n - 1 and 2n.
    x = keras.layers.Conv2DTranspose(filters, 3, 2, activation="relu", name="decoder_final_up")(x)
    x = keras.layers.Conv2D(filters, 3, activation="relu", name="decoder_final_conv")(x)
    x = keras.layers.ZeroPadding2D(1, name="decoder_final_pad")(x)
    return mask_head(x, kernel=2)


def mask_head(x: keras.KerasTensor, kernel: int = 1) -> keras.KerasTensor:
    """One last convolution, unpadded, and a sigmoid in float32 under any dtype policy.

    Args:
        x: [B, H + kernel - 1, W + kernel - 1, C].
        kernel: The convolution's height and width.

    Returns:
        Probability float32[B, H, W, 1] in 0..1.
    """
    x = keras.layers.Conv2D(1, kernel, name=LOGITS)(x)
    return keras.layers.Activation("sigmoid", dtype="float32", name=MASK)(x)


def _strides(features: Features) -> list[int]:
    """The strides of the stages, deepest first: half the bottleneck's down to 1."""
    return [max(features) >> n for n in range(1, max(features).bit_length())]


def _transposed(x: keras.KerasTensor, filters: int, up: str, name: str) -> keras.KerasTensor:
    kernel, activation = {"transposed_2x2": (2, None), "transposed_3x3": (3, "relu")}[up]
    return keras.layers.Conv2DTranspose(
        filters,
        kernel,
        strides=2,
        padding="same",
        activation=activation,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def _linknet_block(x: keras.KerasTensor, filters: int, prefix: str) -> keras.KerasTensor:
    """Doubles the size at a quarter of the channels: [B, 2H, 2W, filters]."""
    narrow = max(1, x.shape[-1] // 4)
    layers = (
        keras.layers.Conv2D(narrow, 1, name=f"{prefix}_conv1"),
        keras.layers.Conv2DTranspose(narrow, 3, 2, padding="same", name=f"{prefix}_up"),
        keras.layers.Conv2D(filters, 1, name=f"{prefix}_conv2"),
    )
    for i, layer in enumerate(layers, start=1):
        x = layer(x)
        x = keras.layers.BatchNormalization(name=f"{prefix}_bn{i}")(x)
        x = keras.layers.ReLU(name=f"{prefix}_relu{i}")(x)
    return x
