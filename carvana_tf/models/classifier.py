"""Builds classifiers: an encoder of the table, pooled to a vector, and one logit for each label."""

import keras

from carvana_tf.errors import UserError
from carvana_tf.models import builders
from carvana_tf.models.decoders import LOGITS
from carvana_tf.models.encoders import ENCODERS
from carvana_tf.models.networks import POOLINGS, check_pooling, find
from carvana_tf.models.options import ModelOptions


def build(
    options: ModelOptions,
    classes: int,
    *,
    pooling: str = POOLINGS[0],
    dropout: float = 0.0,
    width: float = 1.0,
) -> keras.Model:
    """Makes a classifier with fresh weights, under the current dtype policy.

    Its input, normalisation and encoder are those of `registry.build`, under the same layer
    names, so that `weights.load_into` fills its encoder from the same files.

    Args:
        options: Whose encoder; the model has the network's name. The decoder's part of its row
            does not matter here.
        classes: How many labels there are, at least 1.
        pooling: "average": the mean over all pixels. "published": as in the 4th place of
            Kaggle's Inclusive Images Challenge (azat-d/inclusive-images-challenge, Apache-2.0),
            of `seresnet50` and `seresnet101` alone: the stem's pooling is not padded, and the
            mean is that of a window of 5x5 pixels, the upper left of the 7x7 that a photo of
            224x224 becomes. `check_pooling` refuses sizes that published code could not take,
            as there would be no window or several.
        dropout: Share of the vector's numbers that training drops, 0 to 1.
        width: Multiplies the encoder's filters, as of `registry.build`.

    Returns:
        float32[B, H, W, 3 + stacked_channels] in 0..255 -> logits float32[B, classes]. H and W
        are multiples of the row's stride.

    Raises:
        UserError: A name is unknown, the network does not come in the alpha or with the pooling,
            or a decoder is asked for.
    """
    row = find(options.network)
    check_pooling(options.network, pooling)
    if options.decoder is not None:
        raise UserError(f"--decoder={options.decoder}: classifiers have no decoder; drop the flag.")
    published = pooling == "published"
    changes = {"pool_padding": "valid"} if published else {}
    encoder = builders.build(row.encoder, options, width, **changes)
    x = builders.feature(encoder, ENCODERS[row.encoder].skips[row.stride])
    if published:
        x = x[:, :5, :5]
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    x = keras.layers.Dense(classes, dtype="float32", name=LOGITS)(x)
    return keras.Model(encoder.inputs[0], x, name=options.network)
