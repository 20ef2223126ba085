"""From raw photos to what an encoder expects, as the first layers of a network."""

import keras

from carvana_tf.errors import unknown_name
from carvana_tf.models.encoders import NORMALISATIONS, NORMALISE

# Shares of red, green and blue in a pixel's grey (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


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
