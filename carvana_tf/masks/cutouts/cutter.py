"""From a photo and its mask to the file of a cut-out."""

import threading
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np

from carvana_tf import files
from carvana_tf.data.images import read_photo, resize
from carvana_tf.masks.cutouts import encoding
from carvana_tf.masks.cutouts.matting import matte
from carvana_tf.masks.cutouts.options import CutoutOptions
from carvana_tf.masks.cutouts.shadow import shadow

ENCODING = "rgba8 cut-out"
"""How a manifest's description of cut-outs starts."""
_KEPT = 4  # backgrounds of other sizes or profiles


def describe(options: CutoutOptions) -> str:
    """How a manifest describes cut-outs: all that decides their pixels, but photo and mask."""
    background = options.background
    if options.photo is not None:
        background = f"photo {files.digest(options.photo)[:16]}"
    elif options.colour is not None:
        background = "#{:02x}{:02x}{:02x}".format(*options.colour)
    shadow = ", with shadow" if options.keep_shadow else ""
    kind = options.cutout_format
    return f"{ENCODING} ({kind}, edges of the {options.edges}, background {background}{shadow})"


class Cutter:
    """Makes cut-outs; any thread may call it.

    Args:
        options: What they are like.
    """

    def __init__(self, options: CutoutOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._backgrounds: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._read: tuple[np.ndarray, bytes | None] | None = None

    def encode(self, grey: np.ndarray, photo: np.ndarray, path: Path | None = None) -> bytes:
        """The bytes of a cut-out's file.

        Args:
            grey: `uint8[H, W]`, `round(255 p)`; the object is where it is above 127.
            photo: `uint8[H, W, 3]` RGB, upright.
            path: Its file, whose colour profile is kept.

        Raises:
            UserError: The background cannot be read, or the cut-out is too large for its format.
        """
        profile = None if path is None else encoding.read_profile(path)
        return encoding.encode(self.picture(grey, photo, profile), self._options.suffix, profile)

    def picture(
        self, grey: np.ndarray, photo: np.ndarray, profile: bytes | None = None
    ) -> np.ndarray:
        """The pixels of a cut-out, `uint8[H, W, 4]` RGBA or, before a background, `[H, W, 3]`.

        Args:
            grey: As of `encode`.
            photo: As of `encode`.
            profile: The photo's colour profile; None is sRGB.

        Raises:
            UserError: The background cannot be read.
        """
        pixels = self.cut(grey, photo)
        if self._options.colour is not None or self._options.photo is not None:
            pixels = _over(pixels, self._background(photo.shape[:2], profile))
        return pixels

    def cut(self, grey: np.ndarray, photo: np.ndarray) -> np.ndarray:
        """The cut-out before nothing, `uint8[H, W, 4]` RGBA; 0 wherever alpha is 0."""
        result = np.zeros((*grey.shape, 4), np.uint8)
        found = matte(photo, grey, follow_photo=self._options.edges == "photo")
        if found is None:
            return result
        part = result[found.area]
        opacity = cv2.convertScaleAbs(found.alpha, alpha=255)
        part[..., :3] = cv2.bitwise_and(found.colours, found.colours, mask=opacity)
        part[..., 3] = opacity
        if self._options.keep_shadow:
            whole = np.zeros(grey.shape, np.float32)
            whole[found.area] = found.alpha
            _lay_over_black(result, whole, shadow(photo, whole))
        return result

    def _background(self, size: tuple[int, int], profile: bytes | None) -> np.ndarray:
        """The background in a size (or one pixel of it) and in the colours of a profile."""
        colour, path = self._options.colour, self._options.photo
        key = (size if colour is None else None, profile)
        with self._lock:
            if key not in self._backgrounds:
                if path is None:
                    made = np.array([[colour]], np.uint8)
                    made = encoding.converted(made, None, profile)
                else:
                    if self._read is None:
                        self._read = read_photo(path), encoding.read_profile(path)
                    whole, own = self._read
                    made = encoding.converted(covering(whole, *size), own, profile)
                self._backgrounds[key] = made
                if len(self._backgrounds) > _KEPT:
                    self._backgrounds.popitem(last=False)
            return self._backgrounds[key]


def covering(photo: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of a photo in another shape, resized to `uint8[height, width, 3]`."""
    tall, wide = photo.shape[:2]
    rows = min(tall, max(1, round(wide * height / width)))
    columns = min(wide, max(1, round(tall * width / height)))
    top, left = (tall - rows) // 2, (wide - columns) // 2
    return resize(photo[top : top + rows, left : left + columns], height, width)


def _over(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """`uint8[H, W, 3]`: RGBA over a background of the same size, or of one pixel."""
    result = np.broadcast_to(background, (*pixels.shape[:2], 3)).copy()
    opacity = pixels[..., 3]
    cv2.copyTo(np.ascontiguousarray(pixels[..., :3]), cv2.inRange(opacity, 255, 255), result)
    at = np.flatnonzero((opacity > 0) & (opacity < 255))
    flat, front = result.reshape(-1, 3), pixels.reshape(-1, 4)[at]
    share = front[:, 3:].astype(np.float32) / np.float32(255)
    flat[at] = np.rint(share * front[:, :3] + (1 - share) * flat[at])
    return result


def _lay_over_black(result: np.ndarray, alpha: np.ndarray, dark: np.ndarray) -> None:
    """Puts a black layer behind the RGBA of an object, in place.

    Args:
        result: `uint8[H, W, 4]`.
        alpha: The object's opacity, `float32[H, W]`.
        dark: The layer's.
    """
    both = alpha + (1 - alpha) * dark
    at = np.flatnonzero((alpha > 0) & (alpha < 1))
    flat = result.reshape(-1, 4)
    share = (alpha.ravel()[at] / np.maximum(both.ravel()[at], np.float32(1e-6)))[:, None]
    flat[at, :3] = np.rint(flat[at, :3] * share)
    result[..., 3] = cv2.convertScaleAbs(both, alpha=255)
