"""What may be drawn to augment a sample, and the settings of the published systems."""

import dataclasses
from typing import NamedTuple

BORDERS = ("reflect", "constant", "edge")

Range = tuple[float, float]
Amount = float | Range
"""A number `a` is drawn evenly from -a..a, a range from what it says."""


def limits(amount: Amount) -> Range:
    """The range that an amount is drawn from."""
    return amount if isinstance(amount, tuple) else (-amount, amount)


class Chance(NamedTuple):
    """With `probability`, an amount is drawn."""

    probability: float
    limit: Amount


NEVER = Chance(0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What may be drawn; the default changes nothing.

    An amount may be a range too: `rotation=(-5.0, 10.0)`.

    Attributes:
        hflip: Probability of a mirror image.
        vflip: Probability of turning it upside down.
        geometry: Probability of zoom, shift, rotation and shear, which are drawn together.
        zoom: Range of the zoom factor of both axes; above 1 enlarges.
        zoom_y: Range of a further factor for the height alone.
        zoom_x: Range of a further factor for the width alone.
        shift_y: Largest shift up or down, as a share of the height.
        shift_x: Largest shift left or right, as a share of the width.
        rotation: Largest rotation in degrees, either way.
        shear: Largest shear along the rows in radians, either way.
        border: What stands where the photo ends, in photo, mask and stacked channels:
            "reflect", "constant" (0) or "edge" (the outermost pixel).
        brightness: Change of the factor on all colours: 0.5 is a factor of 0.5..1.5.
        contrast: Change of the factor on the distance from the photo's mean grey.
        saturation: Change of the factor on the distance from each pixel's own grey.
        hsv: Probability of the three shifts below.
        hue: Largest shift of the hue, in OpenCV's units of two degrees.
        hsv_saturation: Largest amount added to the saturation, on the 0..255 scale.
        value: Largest amount added to the value, on the 0..255 scale.
        channel_shift: Amount added to each colour channel, on the 0..255 scale.
        grey: Probability of a photo without colour.
        grey_car: Probability of turning the masked pixels grey and no others. A photo
            gets this or the HSV shifts, never both: the two may sum to 1 at most.
        clahe: Probability of contrast-limited adaptive histogram equalisation of the
            luma (clip limit 2, 8 x 8 tiles).
    """

    hflip: float = 0.0
    vflip: float = 0.0
    geometry: float = 1.0
    zoom: Range = (1.0, 1.0)
    zoom_y: Range = (1.0, 1.0)
    zoom_x: Range = (1.0, 1.0)
    shift_y: Amount = 0.0
    shift_x: Amount = 0.0
    rotation: Amount = 0.0
    shear: Amount = 0.0
    border: str = "reflect"
    brightness: Chance = NEVER
    contrast: Chance = NEVER
    saturation: Chance = NEVER
    hsv: float = 0.0
    hue: Amount = 0.0
    hsv_saturation: Amount = 0.0
    value: Amount = 0.0
    channel_shift: Chance = NEVER
    grey: float = 0.0
    grey_car: float = 0.0
    clahe: float = 0.0

    def __post_init__(self) -> None:
        if self.border not in BORDERS:
            raise ValueError(f"border must be one of {', '.join(BORDERS)}: {self.border!r}.")
        if self.hsv + self.grey_car > 1:
            raise ValueError(f"hsv + grey_car must be at most 1: {self.hsv} + {self.grey_car}.")


_AUG1 = Augmentation(
    hflip=0.5,
    geometry=0.5,
    zoom=(0.91, 1.21),
    shift_y=0.0625,
    shift_x=0.0625,
    rotation=10.0,
    brightness=Chance(0.5, 0.5),
    contrast=Chance(0.5, 0.5),
    saturation=Chance(0.5, 0.3),
    grey=0.25,
)
_ALBU = Augmentation(
    hflip=0.5,
    geometry=0.75,
    zoom=(0.9, 1.1),
    # As meant: the published code rounds the share before it multiplies by the side, so
    # that it never shifts.
    shift_y=0.0625,
    shift_x=0.0625,
    rotation=5.0,
    brightness=Chance(0.5, 0.1),
    hsv=0.5,
    hue=10.0,
    hsv_saturation=25.0,
    value=25.0,
)

# Numbers are places: 000 the winners (three parts), 001 the 4th place, 002 and 004 two
# published solutions of one author each. "default" is this project's own.
PRESETS = {
    "none": Augmentation(),
    "default": Augmentation(
        hflip=0.5,
        zoom_y=(0.9, 1.1),
        zoom_x=(0.9, 1.1),
        shift_y=0.04,
        shift_x=0.04,
        rotation=3.0,
        channel_shift=Chance(1.0, 12.0),
    ),
    "000-aug0": Augmentation(
        hflip=0.5, geometry=0.75, zoom=(0.91, 1.21), shift_y=0.0625, shift_x=0.0625, rotation=5.0
    ),
    "000-aug1": _AUG1,
    "000-aug2": dataclasses.replace(_AUG1, rotation=7.0),
    "000-albu": _ALBU,
    # Two of their six models equalise every photo, in prediction too: that is --clahe. This
    # shows the network both kinds, so that it predicts photos as they are.
    "000-albu-clahe": dataclasses.replace(_ALBU, clahe=0.5),
    # Half the photos get one of the two, each as often.
    "000-ternaus": Augmentation(
        hflip=0.5, hsv=0.25, hue=50.0, hsv_saturation=5.0, value=15.0, grey_car=0.25
    ),
    # Their channel shift of 0.1 is on the 0..255 scale too: it does nothing.
    "001": Augmentation(
        hflip=0.5,
        zoom_y=(0.95, 1.05),
        zoom_x=(0.95, 1.05),
        border="constant",
        channel_shift=Chance(1.0, 0.1),
    ),
    "002": Augmentation(zoom_y=(0.9, 1.1), shift_y=0.1),
    "004": Augmentation(
        hflip=0.5,
        zoom_y=(0.97, 1.03),
        zoom_x=(0.97, 1.03),
        rotation=4.0,
        shear=0.1,
        border="edge",
    ),
}
