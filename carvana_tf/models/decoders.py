"""Decoders: from the features of an encoder to a mask of the photo's size."""

from collections.abc import Mapping, Sequence

import keras

from carvana_tf.models.blocks import conv_bn_relu

LOGITS = "logits"
MASK = "mask"
"""Name of the last layer: the sigmoid, always in float32."""


def unet(
    features: Mapping[int, Sequence[keras.KerasTensor]],
    stages: Sequence[tuple[int, ...]],
    dropout: float,
) -> keras.KerasTensor:
    """The U-Net decoder of the published networks.

    Each stage doubles the size (nearest neighbour), joins [upsampled, skips] and
    convolves. Layers are named `decoder_stage<n>_…`; stage 1 is the deepest.

    Args:
        features: Stride -> tensors [B, H / stride, W / stride, C]; strides 1, 2, 4, …,
            where the largest is the bottleneck and those below it are the skips.
        stages: Filters of each stage's convolutions, deepest first.
        dropout: Share of the last feature maps that training drops as a whole.

    Returns:
        Probability float32[B, H, W, 1] in 0..1.
    """
    bottleneck, *strides = sorted(features, reverse=True)
    (x,) = features[bottleneck]
    for n, (stride, filters) in enumerate(zip(strides, stages, strict=True), start=1):
        prefix = f"decoder_stage{n}"
        x = keras.layers.UpSampling2D(2, name=f"{prefix}_up")(x)
        x = keras.layers.Concatenate(name=f"{prefix}_concat")([x, *features[stride]])
        x = conv_bn_relu(x, filters, prefix)
    x = keras.layers.SpatialDropout2D(dropout, name="decoder_dropout")(x)
    return mask_head(x)


def mask_head(x: keras.KerasTensor) -> keras.KerasTensor:
    """1x1 convolution and a sigmoid in float32, under any dtype policy.

    Args:
        x: [B, H, W, C].

    Returns:
        Probability float32[B, H, W, 1] in 0..1.
    """
    x = keras.layers.Conv2D(1, 1, name=LOGITS)(x)
    return keras.layers.Activation("sigmoid", dtype="float32", name=MASK)(x)
