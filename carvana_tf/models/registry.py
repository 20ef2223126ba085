"""Builds the networks of the table `networks.NETWORKS`.

All take raw photos float32[B, H, W, 3 + stacked] in 0..255 with H and W multiples of the
row's stride and give probabilities float32[B, H, W, 1]. They are flat: every layer of the
encoder is a layer of the network, under the name `keras.applications` gives it.
"""

import difflib

import keras

from carvana_tf.errors import UserError, unknown_name
from carvana_tf.models import builders, decoders
from carvana_tf.models.blocks import scaled
from carvana_tf.models.builders import feature
from carvana_tf.models.encoders import ENCODERS, INPUT, NORMALISE, Encoder
from carvana_tf.models.inputs import normalise, to_grey
from carvana_tf.models.networks import DECODERS, Network, find
from carvana_tf.models.options import ModelOptions

VGG_BRANCH = ("block1_conv1", "block1_conv2")
"""VGG16's first two convolutions under their own names, next to some encoders."""


def build(options: ModelOptions, width: float = 1.0) -> keras.Model:
    """Makes a network with fresh weights, under the current dtype policy.

    Stacked channels enter the encoder's first convolution and, where the photo joins the
    U-Net's last stage, that stage as the last of its channels. `weights.load_into` knows
    how to put weights of three channels into these layers.

    Args:
        options: Which network; the model has its name. Its input is RGB also where
            `photo_channels` is 1.
        width: Multiplies the filters of the decoder and of the encoder, down to 8 at least; an
            encoder that comes in several widths is the narrowest. Below 1 for trials whose
            result does not matter.

    Returns:
        float32[B, H, W, 3 + stacked_channels] in 0..255 -> float32[B, H, W, 1] in 0..1.

    Raises:
        UserError: A name is unknown, or the network does not come in the alpha.
    """
    row = find(options.network)
    decoder = options.decoder or row.decoder
    if decoder not in DECODERS:
        raise unknown_name("--decoder", decoder, DECODERS)
    encoder = builders.build(row.encoder, options, width)
    features = {
        stride: [feature(encoder, skip)]
        for stride, skip in ENCODERS[row.encoder].skips.items()
        if row.skips or stride == row.stride
    }
    if decoder == "linknet":
        output = decoders.linknet(features, width)
    else:
        features.setdefault(1, []).extend(
            _full_size_skips(encoder, row, width, grey=options.photo_channels == 1)
        )
        output = decoders.unet(features, row.unet, width)
    return keras.Model(encoder.inputs[0], output, name=options.network)


def encoder_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers that weights trained on ImageNet exist for, from input to bottleneck.

    Empty for networks without such an encoder. The VGG branch is not among them.

    Raises:
        UserError: The model is none of `NETWORKS`.
    """
    encoder = ENCODERS[find(model.name).encoder]
    return _upstream(model, encoder) if encoder.source else []


def branch_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The convolutions of the VGG branch; empty for networks without one.

    Raises:
        UserError: The model is none of `NETWORKS`.
    """
    names = VGG_BRANCH if find(model.name).vgg_branch else ()
    return [layer for layer in model.layers if layer.name in names]


def freeze(model: keras.Model, till_layer: str) -> None:
    """Keeps training from changing the layers before a named one.

    Layers that are frozen already, as the pretrained VGG branch is, stay so. Call it
    before `model.compile`.

    Args:
        model: Any model.
        till_layer: The first layer left as it is; `input_1`, the first of all, freezes
            nothing and `ALL` everything.

    Raises:
        UserError: There is no such layer.
    """
    names = [layer.name for layer in model.layers]
    if till_layer not in (*names, "ALL"):
        nearest = difflib.get_close_matches(till_layer, names, n=1, cutoff=0.3)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise UserError(
            f"--freeze_till_layer '{till_layer}' is no layer of {model.name}.{hint} "
            f"'{INPUT}' freezes nothing, 'ALL' everything."
        )
    end = len(names) if till_layer == "ALL" else names.index(till_layer)
    for layer in model.layers[:end]:
        layer.trainable = False


def _full_size_skips(
    encoder: keras.Model, row: Network, width: float, *, grey: bool
) -> list[keras.KerasTensor]:
    """What joins a U-Net's last stage, apart from the encoder's own features.

    Stacked channels come last: weights made without them are then a prefix of the kernel.
    """
    photo, x = encoder.inputs[0], encoder.get_layer(NORMALISE).output
    stacked = photo.shape[-1] - 3
    colours = x.shape[-1] - stacked
    skips = []
    if row.photo_skip:
        skips.append(x[..., :colours] if stacked else x)
    if row.vgg_branch:
        rgb = photo[..., :3] if stacked else photo
        skips.append(_vgg_branch(rgb, width, grey=grey))
    if row.photo_skip and stacked:
        skips.append(x[..., colours:])
    return skips


def _vgg_branch(photo: keras.KerasTensor, width: float, *, grey: bool) -> keras.KerasTensor:
    """VGG16's block 1 before its pooling: [B, H, W, 64], fed as VGG16 was trained."""
    name = f"{NORMALISE}_vgg"
    x = normalise(to_grey(photo, 3, name=name) if grey else photo, "caffe", name=name)
    for name in VGG_BRANCH:
        filters = scaled(64, width)
        x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)(x)
    return x


def _upstream(model: keras.Model, encoder: Encoder) -> list[keras.layers.Layer]:
    skips = [feature(model, skip) for skip in encoder.skips.values()]
    return [
        layer
        for layer in keras.Model(model.input, skips).layers
        if not isinstance(layer, keras.layers.InputLayer)
        and not layer.name.startswith((NORMALISE, *encoder.scratch))
    ]
