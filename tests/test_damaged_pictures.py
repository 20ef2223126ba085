"""What a format reveals of its damage is refused, whichever decoder would let it pass."""

import io
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from carvana_tf.data import images

sys.path.insert(0, str(Path(__file__).parent / "faults"))
import pictures

SIZE = (96, 128)


def test_shares_of_damaged_pictures():
    """The short form of tests/faults/pictures.py."""
    found = pictures.shares(270, size=SIZE)
    for suffix in pictures.FORMATS:
        assert found[suffix, "truncation"] == 0
    for kind in pictures.DAMAGE:
        assert found["png", kind] == 0
    # These have no checksums; most of a hole still upsets a JPEG or a GIF.
    assert found["jpg", "hole"] < 0.5 and found["gif", "hole"] < 0.5


def test_every_bit_of_a_png_counts(tmp_path):
    data = pictures.encode("png", 1, (8, 8))
    for place in range(8, len(data) - 12):
        damaged = bytearray(data)
        damaged[place] ^= 4
        (tmp_path / "p.png").write_bytes(damaged)
        with pytest.raises(images.UnreadableImage):
            images.read_mask(tmp_path / "p.png")


def jpeg(**options):
    stream = io.BytesIO()
    PIL.Image.fromarray(pictures.picture(0, SIZE)).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_hole_is_a_warning_of_its_decoder(tmp_path, progressive):
    data = jpeg(quality=95, progressive=progressive)
    path = tmp_path / "p.jpg"
    path.write_bytes(data[: len(data) // 2] + bytes(512) + data[len(data) // 2 + 512 :])
    with pytest.raises(images.UnreadableImage, match=r"p\.jpg' is truncated or damaged"):
        images.read_photo(path)


@pytest.mark.parametrize("change", ["no end", "padding", "more behind", "end twice"])
def test_a_jpeg_that_decodes_whole_is_whole(tmp_path, change):
    data = jpeg()
    (tmp_path / "p.jpg").write_bytes(data)
    expected = images.read_photo(tmp_path / "p.jpg")
    body, end = data[:-2], data[-2:]
    changed = {
        "no end": body,
        "padding": body + bytes(5) + end,
        "more behind": data + b"more" * 50,
        "end twice": data + end,
    }[change]
    (tmp_path / "p.jpg").write_bytes(changed)
    np.testing.assert_array_equal(images.read_photo(tmp_path / "p.jpg"), expected)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_file_without_its_end_mark_is_whole(tmp_path, suffix):
    data = pictures.encode(suffix, 1, SIZE)
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(data[: data.rindex(b"IEND") - 4] if suffix == "png" else data[:-1])
    np.testing.assert_array_equal(images.read_mask(path), pictures.mask(1, SIZE) > 127)


def test_a_png_cut_between_its_chunks(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (200, 300), dtype=np.uint8)
    data = images.encode_probability(image)
    assert data.count(b"IDAT") > 2
    (tmp_path / "p.png").write_bytes(data[: data.rindex(b"IDAT") - 4])
    with pytest.raises(images.UnreadableImage):
        images.read_grey(tmp_path / "p.png")


def test_cmyk_jpeg(tmp_path):
    image = PIL.Image.fromarray(pictures.picture(0, SIZE)).convert("CMYK")
    image.save(tmp_path / "p.jpg", quality=100, subsampling=0)
    read = images.read_photo(tmp_path / "p.jpg").astype(int)
    assert np.abs(read - np.asarray(image.convert("RGB"))).mean() < 3
