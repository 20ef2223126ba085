"""Cut-outs as bytes of PNG and WebP files, with the colour profile of their photo."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms

from carvana_tf.errors import UserError

_LARGEST_PROFILE = 4 << 20
_COLOURS = slice(16, 20)  # bytes of a profile's header (ICC.1:2022, 7.2.6)
_SIGNATURE = slice(36, 40)


def read_profile(path: Path) -> bytes | None:
    """The ICC profile of a photo; None where it has none for RGB, or a damaged one.

    Only the header of the file is read. Profiles of grey and CMYK photos do not describe what these
    become when they are decoded.
    """
    try:
        with PIL.Image.open(path) as image:
            profile = image.info.get("icc_profile")
    except Exception:  # its decoder has read the photo, or will say what is wrong with it
        return None
    if not isinstance(profile, bytes) or not 128 < len(profile) <= _LARGEST_PROFILE:
        return None
    return profile if (profile[_COLOURS], profile[_SIGNATURE]) == (b"RGB ", b"acsp") else None


def converted(colours: np.ndarray, source: bytes | None, target: bytes | None) -> np.ndarray:
    """Colours `uint8[h, w, 3]` of one profile as those of another; None is sRGB.

    A profile that cannot be used leaves them as they are.
    """
    if source == target:
        return colours
    try:
        ours, theirs = (
            PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if profile
            else PIL.ImageCms.createProfile("sRGB")
            for profile in (source, target)
        )
        image = PIL.Image.fromarray(colours)
        return np.array(PIL.ImageCms.profileToProfile(image, ours, theirs, outputMode="RGB"))
    except (PIL.ImageCms.PyCMSError, OSError, ValueError):
        return colours


def encode(pixels: np.ndarray, suffix: str, profile: bytes | None) -> bytes:
    """The bytes of `uint8[H, W, 3]` RGB or `uint8[H, W, 4]` RGBA as a file, without loss.

    Args:
        pixels: The picture.
        suffix: ".png" or ".webp".
        profile: Its ICC profile; None is sRGB.

    Raises:
        UserError: It is too large for the format.
    """
    if suffix == ".png":
        order = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        # On photos the PAETH filter gives files a fifth smaller than UP for a tenth more time.
        flags = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH]
        ok, data = cv2.imencode(".png", cv2.cvtColor(pixels, order), flags)
        if not ok:
            raise UserError(f"cannot encode an array of shape {pixels.shape} as PNG.")
        return _with_profile(data.tobytes(), profile)
    if max(pixels.shape[:2]) > 16383:
        raise UserError(
            f"a WebP file has at most 16383 pixels a side, and a photo has {pixels.shape[1]}x"
            f"{pixels.shape[0]}; use --cutout_format=png."
        )
    stream = io.BytesIO()
    # Half of a PNG in twice its time; faster settings give larger files. `exact` keeps black where
    # alpha is 0.
    PIL.Image.fromarray(pixels).save(
        stream, "WEBP", lossless=True, exact=True, method=1, quality=20, icc_profile=profile or b""
    )
    return stream.getvalue()


def _with_profile(data: bytes, profile: bytes | None) -> bytes:
    """A PNG with an iCCP chunk (W3C PNG, 11.3.3.3) after its header, which has 13 bytes."""
    if profile is None:
        return data
    content = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
    end = 8 + 12 + 13
    chunk = struct.pack(">I", len(content) - 4) + content
    return data[:end] + chunk + struct.pack(">I", zlib.crc32(content)) + data[end:]
