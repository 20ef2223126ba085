"""Decoding and encoding: every kind of file a user brings."""

import io
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from carvana_tf.data import images
from carvana_tf.errors import UserError

SHAPE = (24, 36)


def truth():
    mask = np.zeros(SHAPE, bool)
    mask[4:15, 6:30] = True
    mask[0, 0] = True
    return mask


def photo(seed=0, shape=SHAPE):
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return cv2.resize(small, shape[::-1], interpolation=cv2.INTER_LINEAR)


def palette_image(colours):
    image = PIL.Image.fromarray(truth().astype(np.uint8)).convert("P")
    image.putpalette([level for colour in colours for level in colour])
    return image


def grey(values):
    return PIL.Image.fromarray(values)


def cut_out():
    rgba = np.dstack([photo(), truth() * np.uint8(255)])
    return PIL.Image.fromarray(rgba)


def colour(object_colour):
    rgb = np.zeros((*SHAPE, 3), np.uint8)
    rgb[truth()] = object_colour
    return PIL.Image.fromarray(rgb)


MASKS = {
    "palette.gif": (palette_image([(0, 0, 0), (255, 255, 255)]), "0/255"),
    "palette.png": (palette_image([(0, 0, 0), (0, 0, 255)]), "0/255"),
    "voc.png": (palette_image([(0, 0, 0), (128, 0, 0)]), "two values"),
    "palette01.png": (palette_image([(0, 0, 0), (1, 1, 1)]), "0/1"),
    "grey255.png": (grey(truth() * np.uint8(255)), "0/255"),
    "grey255.bmp": (grey(truth() * np.uint8(255)), "0/255"),
    "grey255.tif": (grey(truth() * np.uint8(255)), "0/255"),
    "grey1.png": (grey(truth() * np.uint8(1)), "0/1"),
    "grey37.png": (grey(truth() * np.uint8(37)), "two values"),
    "deep.png": (grey(truth() * np.uint16(65535)), "0/255"),
    "deep1.png": (grey(truth() * np.uint16(1)), "0/1"),
    "deep300.png": (grey(truth() * np.uint16(300)), "two values"),
    "bits.png": (grey(truth()), "0/255"),
    "red.png": (colour((255, 0, 0)), "0/255"),
    "alpha.png": (cut_out(), "alpha"),
    "alpha.webp": (cut_out(), "alpha"),
    "opaque.png": (colour((255, 255, 255)).convert("RGBA"), "0/255"),
    "grey_alpha.png": (grey(truth() * np.uint8(255)).convert("LA"), "0/255"),
    "float.tif": (grey(truth().astype(np.float32)), "0/1"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_kind(tmp_path, name):
    image, kind = MASKS[name]
    options = {"lossless": True} if name.endswith("webp") else {}
    image.save(tmp_path / name, **options)
    mask = images.decode_mask(tmp_path / name)
    assert mask.pixels.dtype == np.bool_
    np.testing.assert_array_equal(mask.pixels, truth())
    assert mask.kind == kind


def test_jpeg_mask_is_soft_and_cut_in_the_middle(tmp_path):
    blocks = np.zeros(SHAPE, bool)
    blocks[8:16, 8:32] = True
    grey(blocks * np.uint8(255)).save(tmp_path / "m.jpg", quality=60)
    soft = cv2.GaussianBlur(blocks * np.uint8(255), (0, 0), 1)
    grey(soft).save(tmp_path / "m.png")
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.jpg"), blocks)
    assert images.decode_mask(tmp_path / "m.png").kind == "soft"
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png"), soft >= 128)


@pytest.mark.parametrize(("level", "kind"), [(0, "empty"), (255, "full")])
def test_constant_masks(tmp_path, level, kind):
    grey(np.full(SHAPE, level, np.uint8)).save(tmp_path / "m.png")
    mask = images.decode_mask(tmp_path / "m.png")
    assert mask.kind == kind and (mask.pixels == (level > 0)).all()


def test_transparent_gif(tmp_path):
    image = palette_image([(0, 0, 0), (255, 255, 255)])
    image.save(tmp_path / "m.gif", transparency=0)
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.gif"), truth())


def test_mask_follows_its_orientation_as_its_photo_does(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    stored = np.rot90(truth() * np.uint8(255), 1)
    grey(np.ascontiguousarray(stored)).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png"), truth())


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_lossless_photo_round_trip(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    images.write_photo(path, photo())
    np.testing.assert_array_equal(images.read_photo(path), photo())
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(path).convert("RGB")), photo())
    assert images.read_size(path) == SHAPE


def test_jpeg_keeps_the_order_of_colours(tmp_path):
    red = np.zeros((*SHAPE, 3), np.uint8)
    red[..., 0] = 250
    images.write_photo(tmp_path / "p.jpg", red)
    assert np.abs(images.read_photo(tmp_path / "p.jpg").astype(int) - red).max() < 8


def test_grey_alpha_and_deep_photos(tmp_path):
    values = photo()[..., 0]
    grey(values).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(images.read_photo(tmp_path / "grey.png"), np.dstack([values] * 3))
    cut_out().save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(images.read_photo(tmp_path / "alpha.png"), photo())
    grey(values.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(images.read_photo(tmp_path / "deep.png"), np.dstack([values] * 3))


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(tmp_path, turn):
    exif = PIL.Image.Exif()
    exif[0x0112] = turn
    upright = photo(shape=(48, 32))
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        8: lambda a: np.rot90(a, -1),
    }[turn]
    stored = PIL.Image.fromarray(np.ascontiguousarray(undo(upright)))
    stored.save(tmp_path / "p.jpg", exif=exif, quality=98, subsampling=0)
    read = images.read_photo(tmp_path / "p.jpg")
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).mean() < 3
    assert images.read_size(tmp_path / "p.jpg") == upright.shape[:2]


def with_thumbnail():
    """A JPEG that carries another whole JPEG in its EXIF segment."""
    thumbnail, whole = io.BytesIO(), io.BytesIO()
    PIL.Image.fromarray(photo(1, (8, 8))).save(thumbnail, "JPEG")
    PIL.Image.fromarray(photo(2, (64, 64))).save(whole, "JPEG")
    payload = b"Exif\x00\x00" + thumbnail.getvalue()
    segment = b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload
    data = whole.getvalue()
    return data[:2] + segment + data[2:]


@pytest.mark.parametrize("share", [0.6, 0.9, 0.99])
def test_truncated_jpeg_with_a_thumbnail(tmp_path, share):
    data = with_thumbnail()
    (tmp_path / "p.jpg").write_bytes(data)
    assert images.read_photo(tmp_path / "p.jpg").shape == (64, 64, 3)
    (tmp_path / "p.jpg").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(images.UnreadableImage, match=r"p\.jpg"):
        images.read_photo(tmp_path / "p.jpg")


def encoded(suffix, **options):
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 40), dtype=np.uint8)
    grey(noise).save(stream, PIL.Image.registered_extensions()[suffix], **options)
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:(Truncated File Read|Corrupt EXIF)")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_truncated_files_are_told(tmp_path, suffix, share):
    data = encoded(suffix)
    path = tmp_path / f"p{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    readers = [images.decode_mask]
    if suffix != ".gif":
        readers += [images.read_photo, images.read_grey]
    for reader in readers:
        with pytest.raises(images.UnreadableImage) as caught:
            reader(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_progressive_jpeg_cut_between_its_scans(tmp_path):
    data = encoded(".jpg", progressive=True)
    (tmp_path / "whole.jpg").write_bytes(data)
    assert images.read_grey(tmp_path / "whole.jpg").shape == (32, 40)
    (tmp_path / "cut.jpg").write_bytes(data[: data.rfind(b"\xff\xda")])
    with pytest.raises(images.UnreadableImage):
        images.read_photo(tmp_path / "cut.jpg")


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path, head, name):
    path = tmp_path / "photo.jpg"
    path.write_bytes(head + b"\0" * 60)
    with pytest.raises(UserError, match=f"is {name}, which is not read: convert it"):
        images.read_photo(path)


def test_png_with_a_damaged_byte(tmp_path):
    data = bytearray(encoded(".png"))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "p.png").write_bytes(data)
    for reader in (images.read_photo, images.read_grey, images.decode_mask):
        with pytest.raises(images.UnreadableImage):
            reader(tmp_path / "p.png")


@pytest.mark.parametrize(
    "reader", [images.read_photo, images.read_grey, images.decode_mask, images.read_size]
)
def test_missing_empty_and_foreign_files(tmp_path, reader):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    for name in ("missing.png", "empty.png", "text.png"):
        with pytest.raises(images.UnreadableImage, match=name):
            reader(tmp_path / name)


def test_a_header_of_absurd_size(tmp_path):
    header = struct.pack(">4s2I5B", b"IHDR", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b"0"), b"IEND")
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    for reader in (images.read_photo, images.read_grey, images.decode_mask, images.read_size):
        with pytest.raises(images.UnreadableImage, match=r"huge\.png") as caught:
            reader(tmp_path / "huge.png")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".bmp", ".tif"])
def test_opencv_does_not_tell_it_a_second_time(tmp_path, capfd, suffix):
    (tmp_path / f"p{suffix}").write_bytes(encoded(suffix)[:-20])
    with pytest.raises(images.UnreadableImage):
        images.read_photo(tmp_path / f"p{suffix}")
    assert capfd.readouterr() == ("", "")


def test_equalising_leaves_stacked_channels_and_its_input_alone():
    stacked = np.dstack([photo(), photo()[..., :2]])
    before = stacked.copy()
    result = images.equalise(stacked)
    np.testing.assert_array_equal(result[..., :3], images.equalise(photo()))
    np.testing.assert_array_equal(result[..., 3:], before[..., 3:])
    np.testing.assert_array_equal(stacked, before)


def test_probability_and_mask_round_trips(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images.write_probability(tmp_path / "p.png", values)
    np.testing.assert_array_equal(images.read_grey(tmp_path / "p.png"), values)
    image = PIL.Image.open(tmp_path / "p.png")
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), values)
    images.write_mask(tmp_path / "m.png", truth())
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png"), truth())


def test_unknown_suffix_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"\.xyz"):
        images.write_photo(tmp_path / "p.xyz", photo())
    assert list(tmp_path.iterdir()) == []


def test_to_uint8_rounds():
    values = np.array([0, 0.0019, 0.002, 0.5, 0.4999, 1], np.float32)
    np.testing.assert_array_equal(images.to_uint8(values), [0, 0, 1, 128, 127, 255])


def test_resize_averages_areas_and_keeps_what_fits():
    image = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_allclose(images.resize(image, 2, 2), [[2.5, 4.5], [10.5, 12.5]])
    assert images.resize(image, 4, 4) is image


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("size", [(6, 9), (30, 50), (30, 9)])
def test_resize_treats_channels_alike(channels, size):
    single = np.random.default_rng(0).random((12, 20), np.float32)
    resized = images.resize(np.dstack([single] * channels).reshape(12, 20, channels), *size)
    assert resized.shape == (*size, channels)
    for channel in range(channels):
        np.testing.assert_allclose(
            resized[..., channel], images.resize(single, *size), rtol=1e-4, atol=1e-5
        )


def test_two_valued_16_bit_labels_are_object_and_background(tmp_path):
    labels = np.zeros((6, 8), np.uint16)
    labels[2:5, 1:7] = 300
    PIL.Image.fromarray(labels).save(tmp_path / "m.png")
    mask = images.decode_mask(tmp_path / "m.png")
    assert mask.kind == "two values"
    np.testing.assert_array_equal(mask.pixels, labels > 0)
