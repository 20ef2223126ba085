"""The convolution block that the plain encoder and every decoder are built of."""

import keras


def conv_bn_relu(x: keras.KerasTensor, filters: tuple[int, ...], prefix: str) -> keras.KerasTensor:
    """3x3 convolutions with bias (he_normal), each with batch normalisation and ReLU.

    Args:
        x: [B, H, W, C].
        filters: Filters of each convolution in turn.
        prefix: The layers are named `<prefix>_conv1`, `<prefix>_bn1`, `<prefix>_relu1`, …

    Returns:
        [B, H, W, filters[-1]].
    """
    for i, count in enumerate(filters, start=1):
        x = keras.layers.Conv2D(
            count, 3, padding="same", kernel_initializer="he_normal", name=f"{prefix}_conv{i}"
        )(x)
        x = keras.layers.BatchNormalization(name=f"{prefix}_bn{i}")(x)
        x = keras.layers.ReLU(name=f"{prefix}_relu{i}")(x)
    return x
