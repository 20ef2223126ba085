"""The group of flags of cut-outs."""

import dataclasses
import re
from pathlib import Path

from carvana_tf.data.images import read_size
from carvana_tf.errors import Problems
from carvana_tf.flags import option

TRANSPARENT = "transparent"
NAMED = {"white": (255, 255, 255), "black": (0, 0, 0)}
"""Colours, `uint8` RGB, that --background knows by name."""
FORMATS = ("png", "webp")
_HEXADECIMAL = re.compile("#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")


@dataclasses.dataclass(frozen=True)
class CutoutOptions:
    """Cut-outs."""

    background: str = option(
        TRANSPARENT,
        "What a cut-out stands before: transparent, white, black, a colour as #d0d0d0, or a photo, "
        "of which the middle is taken in the cut-out's shape.",
    )
    keep_shadow: bool = option(
        False, "Keep the shadow on the ground next to the object, as black of partial opacity."
    )
    edges: str = option(
        "photo",
        "photo: the edge follows the photo's where it is seen near the mask's; mask: it is the "
        "mask's own, for masks as fine as the photo.",
        choices=("photo", "mask"),
    )
    cutout_format: str = option(
        "png", "Files of cut-outs; WebP without loss is smaller.", choices=FORMATS
    )

    @property
    def colour(self) -> tuple[int, int, int] | None:
        """The background's RGB in 0..255; None where it is no colour."""
        found = _HEXADECIMAL.fullmatch(self.background)
        if found:
            red, green, blue = (int(part, 16) for part in found.groups())
            return red, green, blue
        return NAMED.get(self.background)

    @property
    def photo(self) -> Path | None:
        """The photo that is the background, or None."""
        if self.background == TRANSPARENT or self.colour is not None:
            return None
        return Path(self.background)

    @property
    def suffix(self) -> str:
        """Of the files."""
        return f".{self.cutout_format}"

    def check(self, problems: Problems) -> None:
        """Adds a background that there is not, or that is no image."""
        path = self.photo
        if path is not None and path.is_file():
            problems.attempt(read_size, path)
        if path is not None and not path.is_file():
            problems.add(
                f"--background='{self.background}' is neither {TRANSPARENT}, {', '.join(NAMED)}, a "
                "colour as #d0d0d0 nor a photo that exists; correct it (quote a colour: # begins "
                "a comment in some shells)."
            )
