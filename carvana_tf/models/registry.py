"""Networks: one table from the name of `--network` to what it is made of.

All take raw photos float32[B, H, W, 3 + stacked] in 0..255 with H and W multiples of the
row's stride and give probabilities float32[B, H, W, 1]. They are flat: every layer of the
encoder is a layer of the network, under the name `keras.applications` gives it.

The published architectures are those of Kaggle's Carvana Image Masking Challenge: of the
1st place (asanakoy/kaggle_carvana_segmentation, MIT), of the 4th
(killthekitten/kaggle-carvana-2017, MIT), and two more built from their descriptions.
"""

import dataclasses
import difflib

import keras

from carvana_tf.errors import UserError, unknown_name
from carvana_tf.models import decoders, encoders
from carvana_tf.models.blocks import scaled
from carvana_tf.models.decoders import Unet
from carvana_tf.models.encoders import (
    ENCODERS,
    INPUT,
    NORMALISE,
    Encoder,
    feature,
    normalise,
    to_grey,
)

VGG_BRANCH = ("block1_conv1", "block1_conv2")
"""VGG16's first two convolutions under their own names, beside some encoders."""


@dataclasses.dataclass(frozen=True)
class Network:
    """One row of the table.

    Attributes:
        encoder: Key of `ENCODERS`.
        unet: The decoder, where it is a U-Net's.
        photo_skip: Whether the normalised photo joins the U-Net's last stage.
        vgg_branch: Whether VGG16's block 1 joins the U-Net's last stage.
        decoder: One of `DECODERS`: the default of --decoder.
        skips: Whether the decoder joins the encoder's features on its way up.
        learning_rate: The default of --learning_rate.
    """

    encoder: str
    unet: Unet = dataclasses.field(default_factory=Unet)
    photo_skip: bool = True
    vgg_branch: bool = False
    decoder: str = "unet"
    skips: bool = True
    learning_rate: float = 1e-3

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of this."""
        return ENCODERS[self.encoder].stride

    @property
    def preprocessing(self) -> str:
        """The default of --preprocessing_function."""
        return ENCODERS[self.encoder].normalisation

    @property
    def source(self) -> str:
        """Who has ImageNet weights of the encoder, see `Encoder.source`."""
        return ENCODERS[self.encoder].source


def _scratch(*filters: int) -> Unet:
    """The decoder of the 1st place's networks from scratch: three convolutions a stage."""
    stages = tuple((count,) * 3 for count in filters)
    return Unet(stages, up="bilinear", skip_first=True, dropout=0.0)


_VGG = Unet(
    ((384,), (256,), (192,), (128,), (64,), (32,)), up="transposed_3x3", norm="none", dropout=0.0
)
_VGG11 = dataclasses.replace(_VGG, stages=((512,), (512,), (256,), (128,), (64,)))
_CLASSIC = Unet(
    ((256, 256), (128, 128), (64, 64), (32, 32), (16, 16)),
    up="transposed_2x2",
    norm="none",
    dropout=0.0,
)
_BN = dataclasses.replace(
    _CLASSIC, stages=((256, 256), (128, 128), (32, 32), (16, 16)), norm="last"
)

NETWORKS: dict[str, Network] = {
    "resnet50": Network(
        "resnet50", Unet(((256, 256), (192, 192), (128, 128), (64, 64), (32, 32))), vgg_branch=True
    ),
    "mobilenet": Network(
        "mobilenet", Unet(((256, 256), (256, 256), (192, 128), (96, 64), (48, 32)))
    ),
    "inception_resnet_v2": Network(
        "inception_resnet_v2",
        Unet(((256, 256), (256, 256), (128, 128), (64, 64), (48, 32)), dropout=0.4),
    ),
    "vgg": Network("vgg7", _VGG, photo_skip=False),
    "simple_unet": Network("plain", Unet(((128, 128), (64, 64), (32, 32))), photo_skip=False),
    "linknet34": Network("resnet34", decoder="linknet"),
    "vgg11v1": Network("vgg11v1", _VGG11, photo_skip=False),
    "vgg11v2": Network(
        "vgg11v2",
        dataclasses.replace(
            _VGG11,
            stages=((), (), (), (), (64,)),
            up="bilinear",
            before=((1024, 512), (512, 512), (512, 256), (256, 128), (128, 64)),
        ),
        photo_skip=False,
    ),
    # The 1st place's vgg11av1 is its ternaus part's network.
    "ternaus": Network(
        "ternaus",
        dataclasses.replace(
            _VGG11,
            stages=((512,), (512,), (256,), (128,), (32,)),
            before=((256,), (256,), (128,), (64,), (32,)),
        ),
        photo_skip=False,
    ),
    "vgg11av2": Network(
        "vgg11v2",
        dataclasses.replace(
            _VGG11,
            stages=((), (), (), (), (32,)),
            up="bilinear",
            before=((512, 256), (512, 256), (512, 128), (256, 64), (128, 32)),
        ),
        photo_skip=False,
    ),
    "unet_scratch": Network(
        "unet_scratch", _scratch(1024, 512, 256, 128, 64, 32), photo_skip=False
    ),
    "unarrow": Network("unarrow", _scratch(512, 256, 128, 64, 32, 32), photo_skip=False),
    "unet4": Network("unet4", _scratch(256, 128, 64, 24), photo_skip=False),
    "unet5": Network("unet5", _scratch(512, 256, 128, 64, 32), photo_skip=False),
    "unet7": Network("unet7", _scratch(1536, 1024, 512, 256, 128, 96, 48), photo_skip=False),
    "unet_classic": Network("unet_classic", _CLASSIC, photo_skip=False),
    "unet_tiny": Network(
        "unet_tiny", dataclasses.replace(_CLASSIC, stages=((32, 32), (16, 16))), photo_skip=False
    ),
    "unet_bn": Network("unet_bn", _BN, photo_skip=False),
    "unet_bn_simple": Network(
        "unet_bn_simple",
        dataclasses.replace(_BN, stages=((256,), (128,), (32,), (16,))),
        photo_skip=False,
    ),
    "unet_no_bn": Network("unet_no_bn", dataclasses.replace(_BN, norm="none"), photo_skip=False),
    "unet_no_bn_simple": Network(
        "unet_no_bn_simple",
        dataclasses.replace(_BN, stages=((256,), (128,), (32,), (16,)), norm="none"),
        photo_skip=False,
    ),
    "unet_bn_dense": Network(
        "unet_bn_dense", dataclasses.replace(_BN, dense=True), photo_skip=False
    ),
    # Of the published ones only the deepest filters are known here: the rest is our choice.
    "autoencoder4": Network(
        "autoencoder4",
        dataclasses.replace(_CLASSIC, stages=((8,), (16,))),
        photo_skip=False,
        skips=False,
    ),
    "autoencoder64": Network(
        "autoencoder64",
        dataclasses.replace(_CLASSIC, stages=((32,), (16,))),
        photo_skip=False,
        skips=False,
    ),
    # No published count of parameters demands biases of these.
    **{
        name: Network(name, Unet(bias=False))
        for name in (
            *("efficientnetv2b0", "efficientnetv2s", "convnext_tiny", "mobilenetv3large"),
            *(f"efficientnet_lite{n}" for n in range(5)),
        )
    },
}


def find(name: str) -> Network:
    """The row of a network.

    Raises:
        UserError: There is no network of this name.
    """
    if name not in NETWORKS:
        raise unknown_name("--network", name, NETWORKS)
    return NETWORKS[name]


def build(
    name: str,
    *,
    photo_channels: int = 3,
    stacked_channels: int = 0,
    preprocessing: str | None = None,
    alpha: float | None = None,
    width: float = 1.0,
    decoder: str | None = None,
) -> keras.Model:
    """Makes a network with fresh weights, under the current dtype policy.

    Stacked channels enter the encoder's first convolution and, where the photo joins the
    U-Net's last stage, that stage as the last of its channels. `weights.load_into` knows
    how to put weights of three channels into these layers.

    Args:
        name: Key of `NETWORKS`; the model bears it too.
        photo_channels: 3, or 1: the network takes the colour from the photo first, see
            `encoders.build`. Its input is RGB all the same.
        stacked_channels: How many grey channels follow RGB.
        preprocessing: Key of `NORMALISATIONS`; None is the encoder's own.
        alpha: Width multiplier of encoders that come in several widths. None is 1, or
            the least where `width` is below 1.
        width: Multiplies the filters of the decoder, and of encoders without an alpha,
            down to 8 at least; below 1 for trials whose result does not matter.
        decoder: One of `DECODERS`; None is the network's own.

    Returns:
        float32[B, H, W, 3 + stacked_channels] in 0..255 -> float32[B, H, W, 1] in 0..1.

    Raises:
        UserError: A name is unknown, or the network does not come in the alpha or with
            so many photo channels.
    """
    row = find(name)
    decoder = decoder or row.decoder
    if decoder not in decoders.DECODERS:
        raise unknown_name("--decoder", decoder, decoders.DECODERS)
    encoder = encoders.build(
        row.encoder,
        photo_channels=photo_channels,
        stacked_channels=stacked_channels,
        preprocessing=preprocessing,
        alpha=alpha,
        width=width,
    )
    features = {
        stride: [feature(encoder, skip)]
        for stride, skip in ENCODERS[row.encoder].skips.items()
        if row.skips or stride == row.stride
    }
    if decoder == "linknet":
        output = decoders.linknet(features, width)
    else:
        features.setdefault(1, []).extend(
            _full_size_skips(encoder, row, width, grey=photo_channels == 1)
        )
        output = decoders.unet(features, row.unet, width)
    return keras.Model(encoder.inputs[0], output, name=name)


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
    """What joins a U-Net's last stage beside the encoder's own features.

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
