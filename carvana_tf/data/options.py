"""The groups of flags of what networks take in; none of them needs Keras."""

import dataclasses
from typing import ClassVar

from carvana_tf.data import amounts
from carvana_tf.data.resizing import POLICIES
from carvana_tf.flags import Needs, option


@dataclasses.dataclass(frozen=True)
class InputOptions:
    """How photos become the input of a network."""

    size_policy: str | None = option(
        None,
        "crop: random full-resolution windows; resize: the whole photo resized; pad: the whole "
        "photo at full resolution. By default resize; crop with --use_crop, pad with "
        "--nouse_crop.",
        choices=POLICIES,
    )
    use_crop: bool | None = option(
        None, "The published flag for --size_policy=crop or pad.", advanced=True
    )
    input_width: int | None = option(
        None,
        "Width of the crop or of the resized photo. By default a crop is of 1024, less where "
        "photos are smaller; a resized photo has the photos' median shape and as many pixels as "
        "384x384, or less where they have less.",
        lower=1,
    )
    input_height: int | None = option(
        None,
        "Height of the crop or of the resized photo. By default a crop is of 1024, less where "
        "photos are smaller; a resized photo has the photos' median shape.",
        lower=1,
    )
    clahe: bool = option(
        False,
        "Equalise every photo's contrast (CLAHE of the luma: clip limit 2, 8x8 tiles), in "
        "training, validation and prediction.",
        advanced=True,
    )

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("use_crop",),
            lambda o: o.size_policy is None or (o.size_policy == "crop") == o.use_crop,
            "with --size_policy",
        ),
        Needs(
            ("input_width", "input_height"),
            lambda o: o.policy != "pad",
            "with --size_policy=pad or --nouse_crop, where photos keep their size",
        ),
    )

    @property
    def policy(self) -> str:
        """The size policy, from `--size_policy` or else `--use_crop`."""
        by_crop = {None: "resize", True: "crop", False: "pad"}
        return self.size_policy or by_crop[self.use_crop]


@dataclasses.dataclass(frozen=True)
class AugmentationOptions:
    """Random transformations of the training photos."""

    augmentation: str = option("default", amounts.HELP)

    def __post_init__(self) -> None:
        amounts.parse(self.augmentation)
