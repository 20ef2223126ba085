"""The groups of flags of networks; none of them needs Keras."""

import dataclasses

from carvana_tf.errors import UserError
from carvana_tf.flags import option
from carvana_tf.models.encoders import NORMALISATIONS
from carvana_tf.models.networks import DECODERS, NETWORKS, find


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The network."""

    network: str = option("mobilenet", f"Network: {', '.join(NETWORKS)}.")
    decoder: str | None = option(
        None, "Decoder; by default the network's own.", choices=DECODERS, advanced=True
    )
    alpha: float | None = option(
        1.0, "Width multiplier of the mobilenet encoder.", lower=0.25, upper=1.0, advanced=True
    )
    preprocessing_function: str | None = option(
        None,
        "Normalisation of the photo; by default the one the encoder was pretrained with.",
        choices=tuple(NORMALISATIONS),
        advanced=True,
    )
    photo_channels: int = option(
        3,
        "1: the network takes the colour from the photo first; 3: it sees RGB. Encoders that "
        "ImageNet weights exist for see the grey channel three times, others once.",
        lower=1,
        upper=3,
        advanced=True,
    )
    stacked_channels: int = option(
        0, "Grey channels stacked onto the photo.", lower=0, advanced=True
    )

    def __post_init__(self) -> None:
        find(self.network)
        if self.photo_channels not in (1, 3):
            raise UserError(f"--photo_channels={self.photo_channels} must be 3 (RGB) or 1 (grey).")


@dataclasses.dataclass(frozen=True)
class NetworkOptions(ModelOptions):
    """The network of weight files, and of models of other programs; our model files know it."""

    network: str = option("resnet50", f"Network: {', '.join(NETWORKS)}.")
    alpha: float | None = option(None, "Width multiplier of the encoder.", lower=0.0, advanced=True)
    preprocessing_function: str | None = option(
        None,
        "How photos are normalised; by default as the encoder was trained. For model files of "
        "other programs: what they expect instead of 0..255.",
        advanced=True,
    )
    photo_channels: int = option(
        3,
        "1 where the network was trained with --photo_channels=1, or takes grey.",
        lower=1,
        upper=3,
        advanced=True,
    )
    stacked_channels: int = option(0, "Grey channels after RGB.", lower=0, advanced=True)
    object_class: int | None = option(
        None,
        "Which output channel is the object, counted from 0, of model files of other programs "
        "that have several.",
        lower=0,
        advanced=True,
    )
    logits: bool = option(
        False,
        "Model files of other programs give logits: apply a sigmoid or, to several channels, a "
        "softmax.",
        advanced=True,
    )
    size_policy: str = option(
        "pad",
        "How photos became the network's input in training: whole at full resolution, or resized "
        "to --input_height x --input_width. Model files say it themselves.",
        choices=("pad", "crop", "resize"),
        advanced=True,
    )
    input_height: int = option(0, "Rows for --size_policy=resize.", lower=0, advanced=True)
    input_width: int = option(0, "Columns for --size_policy=resize.", lower=0, advanced=True)
    clahe: bool = option(
        False, "Whether it was trained with --clahe. Model files say it too.", advanced=True
    )
