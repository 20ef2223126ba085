"""One decoder for photos and masks: orientation, depth, pixels, kinds of files."""

import io
import os
import socket
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile

from carvana_tf.data import checks, decoding, images
from carvana_tf.data.dataset import Naming, find_samples
from carvana_tf.data.images import Reading
from carvana_tf.errors import UserError

SHAPE = (24, 36)
UNDO = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}
XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF"}


def mask():
    pixels = np.zeros(SHAPE, bool)
    pixels[4:15, 6:30] = True
    pixels[0:8, 0:4] = True
    return pixels


def noise(top=255, dtype=np.uint8, shape=(*SHAPE, 3)):
    values = np.random.default_rng(1).integers(0, top + 1, shape)
    values.ravel()[0] = top
    return values.astype(dtype)


def exif(turn):
    tags = PIL.Image.Exif()
    tags[0x0112] = turn
    return tags.tobytes()


def png_chunk(name, content):
    crc = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + crc


def with_chunk(data, name, content, *, late=False):
    """A PNG with one more chunk: after its header, or after its pixels."""
    place = data.rindex(b"IEND") - 4 if late else 33
    return data[:place] + png_chunk(name, content) + data[place:]


def save(array, suffix, **options):
    stream = io.BytesIO()
    if FORMATS[suffix] == "WEBP":
        options["lossless"] = True
    if FORMATS[suffix] == "JPEG":
        options |= {"quality": 98, "subsampling": 0}
    PIL.Image.fromarray(array).save(stream, FORMATS[suffix], **options)
    return stream.getvalue()


def oriented(array, suffix, turn, source):
    array = np.ascontiguousarray(UNDO[turn](array))
    if source == "exif":
        return save(array, suffix, exif=exif(turn))
    if source == "xmp" and suffix == "png":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.format(turn).encode()
        return with_chunk(save(array, suffix), b"iTXt", text)
    if source == "xmp" and suffix == "jpg":
        data = save(array, suffix)
        content = b"http://ns.adobe.com/xap/1.0/\0" + XMP.format(turn).encode()
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]
    if source == "xmp" and suffix == "webp":
        return save(array, suffix, xmp=XMP.format(turn).encode())
    if source == "xmp" and suffix == "tif":
        info = PIL.TiffImagePlugin.ImageFileDirectory_v2()
        info[700] = XMP.format(turn).encode()
        return save(array, suffix, tiffinfo=info)
    if source == "late":
        return with_chunk(save(array, suffix), b"eXIf", exif(turn)[6:], late=True)
    profile = exif(turn)
    text = b"\nexif\n%8d\n" % len(profile) + profile.hex().encode() + b"\n"
    content = b"Raw profile type exif\0\0" + zlib.compress(text)
    return with_chunk(save(array, suffix), b"zTXt", content)


SOURCES = [(s, source) for s in FORMATS for source in ("exif", "xmp")]
SOURCES += [("png", "late"), ("png", "raw profile")]


@pytest.mark.parametrize("turn", [1, 3, 5, 6, 8])
@pytest.mark.parametrize(("suffix", "source"), SOURCES)
def test_photo_and_mask_are_turned_alike(tmp_path, suffix, source, turn):
    path = tmp_path / f"p.{suffix}"
    photo = np.dstack([mask() * np.uint8(255)] * 3)
    path.write_bytes(oriented(photo, suffix, turn, source))
    read = images.read_photo(path)
    assert read.shape == photo.shape
    np.testing.assert_array_equal(read[..., 0] > 127, mask())
    assert images.read_size(path) == SHAPE
    np.testing.assert_array_equal(images.read_mask(path), mask())


def test_exif_wins_over_xmp(tmp_path):
    data = oriented(mask() * np.uint8(255), "png", 1, "xmp")
    (tmp_path / "m.png").write_bytes(with_chunk(data, b"eXIf", exif(6)[6:]))
    assert images.read_mask(tmp_path / "m.png").shape == SHAPE[::-1]


def deep_png(values):
    return cv2.imencode(".png", values[..., ::-1] if values.ndim == 3 else values)[1].tobytes()


def tif(values, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


EIGHT = noise()
DEEP = {
    # name: file, suffix, --photo_depth that settles it (0: none is needed)
    "12 bits in 16": (deep_png(EIGHT.astype(np.uint16) * 16), "png", 12),
    "16 bits": (deep_png(EIGHT.astype(np.uint16) * 257), "png", 0),
    "16 bits, upper byte": (deep_png(EIGHT.astype(np.uint16) * 256), "png", 0),
    "10 bits TIFF": (tif(EIGHT.astype(np.uint16) * 4, photometric="rgb"), "tif", 10),
    "32 bits TIFF": (tif(EIGHT.astype(np.uint32) << 12, photometric="rgb"), "tif", 20),
    "float 0..1": (tif((EIGHT / 255).astype(np.float32), photometric="rgb"), "tif", 0),
    "float 0..255": (tif(EIGHT.astype(np.float32), photometric="rgb"), "tif", 8),
    "double 0..1": (tif(EIGHT / 255, photometric="rgb"), "tif", 0),
    "planes": (
        tif(np.moveaxis(EIGHT, -1, 0), photometric="rgb", planarconfig="separate"), "tif", 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_depth_in_use_or_named(tmp_path, name):
    data, suffix, depth = DEEP[name]
    path = tmp_path / f"p.{suffix}"
    path.write_bytes(data)
    if depth:
        with pytest.raises(images.AmbiguousDepth, match=rf"p\.{suffix}.*--photo_depth"):
            images.read_photo(path)
    read = images.read_photo(path, Reading(photo_depth=depth))
    np.testing.assert_array_equal(read, EIGHT)


@pytest.mark.parametrize("top", [864, 1023, 1024, 1920, 4095])
def test_scale_does_not_follow_a_photos_maximum(tmp_path, top):
    """Photos of one microscope have one scale, whichever of them is brighter."""
    values = noise(top, np.uint16, SHAPE)
    for suffix, data in (("tif", tif(values)), ("png", deep_png(values))):
        path = tmp_path / f"p.{suffix}"
        path.write_bytes(data)
        with pytest.raises(images.AmbiguousDepth, match=str(top)):
            images.read_photo(path)
        read = images.read_photo(path, Reading(photo_depth=12))
        np.testing.assert_array_equal(read, np.dstack([values >> 4] * 3))


def test_declared_depth(tmp_path):
    values = noise(1920, np.uint16, SHAPE)
    (tmp_path / "p.png").write_bytes(with_chunk(deep_png(values), b"sBIT", b"\x0c"))
    np.testing.assert_array_equal(images.read_photo(tmp_path / "p.png")[..., 0], values >> 4)
    (tmp_path / "p.tif").write_bytes(tif(values, extratags=[(281, 3, 1, 4095, True)]))
    np.testing.assert_array_equal(images.read_photo(tmp_path / "p.tif")[..., 0], values >> 4)
    # In a TIFF these are the lower bits, also where all values are multiples of 16.
    values &= 0xFF0
    (tmp_path / "p.tif").write_bytes(tif(values, extratags=[(281, 3, 1, 4095, True)]))
    np.testing.assert_array_equal(images.read_photo(tmp_path / "p.tif")[..., 0], values >> 4)
    # By the standard of PNG they would be the upper ones, by its writers the lower.
    (tmp_path / "p.png").write_bytes(with_chunk(deep_png(values), b"sBIT", b"\x0c"))
    with pytest.raises(images.AmbiguousDepth):
        images.read_photo(tmp_path / "p.png")
    # The tag's other use, the photo's own maximum, says nothing of the scale.
    (tmp_path / "q.tif").write_bytes(tif(values, extratags=[(281, 3, 1, 1920, True)]))
    with pytest.raises(images.AmbiguousDepth):
        images.read_photo(tmp_path / "q.tif")


@pytest.mark.parametrize(
    ("most", "depth", "needed"),
    [(300, 10, 9), (1535, 12, 11), (4096, 14, 13), (20000, 16, 15), (300000, 19, 19)],
)
def test_the_depth_that_is_suggested_holds_the_values(tmp_path, most, depth, needed):
    (tmp_path / "p.tif").write_bytes(tif(noise(most, np.uint32, SHAPE)))
    found = f"--photo_depth={depth}, a guess: values up to {most:g} need {needed} bits"
    with pytest.raises(images.AmbiguousDepth) as caught:
        images.read_photo(tmp_path / "p.tif")
    assert found in str(caught.value)
    images.read_photo(tmp_path / "p.tif", Reading(photo_depth=depth))


@pytest.mark.parametrize(
    ("values", "depth", "what"),
    [
        (np.full(SHAPE, np.nan, np.float32), 0, "not numbers"),
        (np.full(SHAPE, -3, np.int16), 0, "negative"),
        (np.full(SHAPE, 5000, np.uint16), 12, "values up to 5000 .*--photo_depth=12 ends at 4095"),
        (np.full(SHAPE, 1.1, np.float32), 0, "up to 1.1; save it with values in 0..1"),
    ],
)
def test_photos_of_no_scale(tmp_path, values, depth, what):
    (tmp_path / "p.tif").write_bytes(tif(values))
    with pytest.raises(images.UnreadableImage, match=what):
        images.read_photo(tmp_path / "p.tif", Reading(photo_depth=depth))


def test_floats_a_little_beyond_their_range_are_its_ends(tmp_path):
    """Filters and rounding overshoot."""
    for values in (EIGHT / 255 * 1.0001, EIGHT / 255 - 1e-6):
        (tmp_path / "p.tif").write_bytes(tif(values.astype(np.float32), photometric="rgb"))
        np.testing.assert_array_equal(images.read_photo(tmp_path / "p.tif"), EIGHT)
    soft = cv2.GaussianBlur(mask() * np.float32(1.000001), (0, 0), 1)
    (tmp_path / "m.tif").write_bytes(tif(soft))
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.tif"), soft > 0.5)


@pytest.mark.parametrize("kind", ["u2", "u4", "i2", "f4", "f8"])
@pytest.mark.parametrize("samples", [3, 4])
def test_deep_planes_are_refused(tmp_path, kind, samples):
    """OpenCV gives another picture."""
    planes = np.zeros((samples, *SHAPE), kind)
    options = {"photometric": "rgb", "planarconfig": "separate"}
    if samples == 4:
        options["extrasamples"] = [2]
    (tmp_path / "p.tif").write_bytes(tif(planes, **options))
    for read in (images.read_photo, images.read_mask):
        with pytest.raises(images.UnreadableImage, match=rf"{samples} \w+ samples .* planes of"):
            read(tmp_path / "p.tif")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_modes_of_photos(tmp_path, mode):
    image = PIL.Image.fromarray(EIGHT).convert("RGB").convert(mode)
    for suffix in ("png", "tif") if mode != "CMYK" else ("tif",):
        image.save(tmp_path / f"p.{suffix}")
        expected = np.asarray((image if mode != "RGBA" else image.convert("RGB")).convert("RGB"))
        np.testing.assert_array_equal(images.read_photo(tmp_path / f"p.{suffix}"), expected)


def test_check_names_the_depth_of_all_photos(tmp_path):
    for i, top in enumerate((864, 1920)):
        path = tmp_path / f"photos/p_{i}.tif"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tif(noise(top, np.uint16, SHAPE)))
        images.write_mask(tmp_path / f"masks/p_{i}.png", mask())
    found = checks.check_dataset(tmp_path / "photos", tmp_path / "masks", Naming(""), None)
    (finding,) = (f for f in found if f.kind == "depth of the photos")
    assert finding.severity == "error"
    assert "--photo_depth=12, a guess: values up to 1920 need 11 bits" in finding.fix
    settled = Reading(photo_depth=12)
    found = checks.check_dataset(
        tmp_path / "photos", tmp_path / "masks", Naming(""), None, 1, settled
    )
    assert not [f for f in found if f.severity == "error"]


def test_a_probability_is_8_bit_grey(tmp_path):
    grey = noise(shape=SHAPE)
    wrong = {
        "deep": deep_png(grey.astype(np.uint16) * 257),
        "colour": save(np.dstack([grey] * 3), "png"),
        "palette": palette_png(grey),
        "bits": save(mask(), "png"),
    }
    for name, data in wrong.items():
        (tmp_path / f"{name}.png").write_bytes(data)
        with pytest.raises(images.UnreadableImage, match=rf"{name}\.png.*expected 8-bit grey"):
            images.read_grey(tmp_path / f"{name}.png")


def palette_png(indices):
    image = PIL.Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(bytes(range(256)) * 3)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def few_pixels():
    decoding.limit_pixels(100)
    yield 100
    decoding.limit_pixels(decoding.DEFAULT_MAX_PIXELS)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp", "gif"])
def test_one_limit_for_every_format_and_reader(tmp_path, few_pixels, monkeypatch, suffix):
    path = tmp_path / f"p.{suffix}"
    PIL.Image.fromarray(mask()).convert("L").save(path)

    def fail(*args):
        raise AssertionError("decoded")

    monkeypatch.setattr(decoding, "_decode", fail)
    for reader in (images.read_photo, images.read_grey, images.read_mask, images.read_size):
        with pytest.raises(images.UnreadableImage, match=r"36x24 pixels.*--max_pixels=100"):
            reader(path)


def test_a_check_suggests_to_raise_the_limit(tmp_path, few_pixels):
    images.write_photo(tmp_path / "photos/a.png", EIGHT)
    images.write_mask(tmp_path / "masks/a.png", mask())
    found = checks.check_dataset(tmp_path / "photos", tmp_path / "masks", Naming(""), None)
    too_large = [finding for finding in found if finding.severity == "error"]
    assert [finding.kind for finding in too_large] == ["photo is too large", "mask is too large"]
    assert {finding.fix for finding in too_large} == {"--max_pixels"}


def test_default_limit_lets_large_photos_pass():
    assert decoding.DEFAULT_MAX_PIXELS >= 15_000 * 12_000


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        server.bind(os.path.relpath(path))
        server.close()
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    for reader in (images.read_photo, images.read_grey, images.read_mask, images.read_size):
        with pytest.raises(UserError, match=r"x\.png' is .*not a regular file"):
            reader(path)


def test_reading_reaches_the_samples(tmp_path):
    images.write_photo(tmp_path / "photos/a.png", EIGHT)
    images.write_mask(tmp_path / "masks/a.png", mask())
    reading = Reading(photo_depth=12)
    (sample,) = find_samples(tmp_path / "photos", tmp_path / "masks", Naming(""), reading)
    assert sample.reading == reading
