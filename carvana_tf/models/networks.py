"""Networks: one table from the name of `--network` to what it is made of.

A row is data and needs no Keras; `registry` builds from it. The published architectures are
those of Kaggle's Carvana Image Masking Challenge: of the 1st place
(asanakoy/kaggle_carvana_segmentation, MIT), of the 4th (killthekitten/kaggle-carvana-2017,
MIT), and two more built from their descriptions.
"""

import dataclasses

from carvana_tf.errors import UserError, unknown_name
from carvana_tf.models.encoders import ENCODERS

DECODERS = ("unet", "linknet")
"""The values of --decoder."""

POOLINGS = ("average", "published")
"""How a classifier makes one vector of its features, see `classifier.build`; first the default."""


@dataclasses.dataclass(frozen=True)
class Unet:
    """How a network's U-Net decoder is made.

    Attributes:
        stages: Filters of each stage's convolutions after the skips have joined, deepest
            first; empty: by the stage's stride.
        up: How a stage doubles the size: "nearest", "bilinear", "transposed_2x2" (no
            activation) or "transposed_3x3" (ReLU).
        before: What each stage does between doubling and joining: filters of its
            convolutions or, where these double the size, of the transposed one. Empty: no
            convolutions, and transposed ones with the first filters of `stages`.
        norm: Batch normalisation, as `blocks.convolve` takes it.
        bias: Of normalised convolutions, as `blocks.convolve` takes it.
        dense: Whether a stage's convolutions are densely connected.
        skip_first: Join as [skips, upsampled], not as [upsampled, skips].
        dropout: Share of the last feature maps that training drops as a whole.
    """

    stages: tuple[tuple[int, ...], ...] = ()
    up: str = "nearest"
    before: tuple[tuple[int, ...], ...] = ()
    norm: str = "each"
    bias: bool = True
    dense: bool = False
    skip_first: bool = False
    dropout: float = 0.2


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
# Half as many filters as the others' in the large stages, where a training step takes its time.
_NARROW = Unet(((256, 256), (128, 128), (64, 64), (32, 32), (16, 16)), bias=False, dropout=0.0)

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
    "vgg": Network("vgg7", _VGG, photo_skip=False, learning_rate=3e-4),
    "simple_unet": Network("plain", Unet(((128, 128), (64, 64), (32, 32))), photo_skip=False),
    "linknet34": Network("resnet34", decoder="linknet"),
    "vgg11v1": Network("vgg11v1", _VGG11, photo_skip=False, learning_rate=3e-4),
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
            *("seresnet50", "seresnet101"),
            *("efficientnetv2b0", "efficientnetv2s", "convnext_tiny", "mobilenetv3large"),
        )
    },
    **{f"efficientnet_lite{n}": Network(f"efficientnet_lite{n}", _NARROW) for n in range(5)},
}


def find(name: str) -> Network:
    """The row of a network.

    Raises:
        UserError: There is no network of this name.
    """
    if name not in NETWORKS:
        raise unknown_name("--network", name, NETWORKS)
    return NETWORKS[name]


def check_pooling(network: str, pooling: str, size: tuple[int, int] | None = None) -> None:
    """Refuses a classifier's pooling that a network, or the size of its input, cannot have.

    Args:
        network: Key of `NETWORKS`.
        pooling: To be one of `POOLINGS`.
        size: (height, width) of the input; None where it is not known.

    Raises:
        UserError: A name is unknown, or they do not go together.
    """
    row = find(network)
    if pooling not in POOLINGS:
        raise unknown_name("--pooling", pooling, POOLINGS)
    if pooling == "average":
        return
    if not ENCODERS[row.encoder].published_pooling:
        having = [name for name, x in NETWORKS.items() if ENCODERS[x.encoder].published_pooling]
        raise UserError(
            f"--pooling={pooling} is of --network={' and '.join(having)}, not of {network}; drop "
            "the flag."
        )
    if size is not None and any(_windows(side) != 1 for side in size):
        raise UserError(
            f"--pooling={pooling} makes one vector of photos from 160 to 288 pixels high and wide, "
            f"224 as published, not of {size[0]}x{size[1]}; change --input_height and "
            "--input_width, or drop the flag."
        )


def _windows(side: int) -> int:
    """How many windows of the published pooling lie next to each other; 0 in too small a map."""
    side = (side + 1) // 2  # the stem's convolution
    side = (side - 1) // 2  # its pooling, which is not padded
    for _ in range(3):
        side = (side + 1) // 2
    return side // 5
