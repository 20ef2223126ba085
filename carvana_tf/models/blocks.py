"""The convolution block that the plain encoders and every U-Net decoder are built of."""

from collections.abc import Sequence

import keras


def scaled(filters: int, width: float) -> int:
    """A number of filters times `width`, 8 at least; as it is where `width` is 1."""
    return filters if width == 1 else max(8, round(width * filters))


def convolve(
    x: keras.KerasTensor,
    filters: Sequence[int],
    prefix: str,
    *,
    norm: str = "each",
    bias: bool = True,
    dense: bool = False,
    width: float = 1.0,
    first: int = 1,
) -> keras.KerasTensor:
    """3x3 convolutions (he_normal) and ReLU, batch-normalised or not.

    Args:
        x: [B, H, W, C].
        filters: Filters of each convolution in turn.
        prefix: The layers are named `<prefix>_conv1`, `<prefix>_bn1`, `<prefix>_relu1`, …
        norm: "each": every convolution is normalised before its ReLU; "last": once, after
            the last ReLU, as `<prefix>_bn`; "none": never.
        bias: Whether convolutions that are normalised next have one, which does nothing but
            count among the published parameters.
        dense: Every convolution sees the block's input and what all before it made.
        width: Multiplies the filters.
        first: Number of the first convolution in the names.

    Returns:
        [B, H, W, filters[-1]], or `x` where there are no filters.
    """
    made = [x]
    for i, count in enumerate(filters, start=first):
        if dense and len(made) > 1:
            # The input comes last: of it, stacked channels are last, and weights made without
            # them are then a prefix of the kernel.
            x = keras.layers.Concatenate(name=f"{prefix}_dense{i}")(made[::-1])
        x = keras.layers.Conv2D(
            scaled(count, width),
            3,
            padding="same",
            use_bias=bias or norm != "each",
            kernel_initializer="he_normal",
            name=f"{prefix}_conv{i}",
        )(x)
        if norm == "each":
            x = keras.layers.BatchNormalization(name=f"{prefix}_bn{i}")(x)
        x = keras.layers.ReLU(name=f"{prefix}_relu{i}")(x)
        made.append(x)
    if norm == "last" and filters:
        x = keras.layers.BatchNormalization(name=f"{prefix}_bn")(x)
    return x
