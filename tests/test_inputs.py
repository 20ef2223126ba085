"""What masks mean: every reader of masks understands an encoding alike, or refuses it alike."""

import io

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile

from carvana_tf.commands import make_folds
from carvana_tf.data import areas, checks, images, mask_values
from carvana_tf.data.dataset import find_samples, list_masks
from carvana_tf.data.folds import read_folds
from carvana_tf.data.images import Reading
from carvana_tf.errors import UserError
from carvana_tf.evaluation import ensemble_weights, pairs, rows
from carvana_tf.evaluation.measure import MeasureSettings, measure
from carvana_tf.masks import ensembling, rle
from carvana_tf.masks.open_folder import open_complete, open_folder
from carvana_tf.options import DatasetOptions
from carvana_tf.tasks import MASKS

SHAPE = (48, 64)
READ, REFUSED = True, False


def truth():
    mask = np.zeros(SHAPE, bool)
    mask[6:30, 8:40] = True
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    mask |= (yy - 36) ** 2 + (xx - 48) ** 2 < 70
    return mask


def labels(dtype=np.uint8, count=300):
    """Instances: every object pixel has one of many ids."""
    ids = np.zeros(SHAPE, np.int64)
    cells = np.indices(SHAPE).transpose(1, 2, 0) // 4
    ids[truth()] = (1 + (cells[..., 0] * 16 + cells[..., 1]) * 7 % count)[truth()]
    return ids.astype(dtype)


def photo(seed=0):
    small = np.random.default_rng(seed).integers(20, 235, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(small, SHAPE[::-1], interpolation=cv2.INTER_LINEAR)


def with_border(inside, border):
    """Object, background and a ring of 4 pixels around the object."""
    grey = np.where(truth(), inside, 0).astype(np.uint8)
    ring = cv2.dilate(truth().astype(np.uint8), np.ones((9, 9))) > 0
    grey[ring & ~truth()] = border
    return grey


def soft(sigma=0.8):
    """Antialiased, cut in the middle where the truth is."""
    blurred = cv2.GaussianBlur(truth() * np.uint8(255), (0, 0), sigma).astype(np.float32)
    sure = truth() != (blurred > 127)
    return np.where(sure, truth() * np.float32(255), blurred).astype(np.uint8)


def pil(array, suffix="PNG", mode=None, palette=None, **options):
    image = PIL.Image.fromarray(array) if mode is None else PIL.Image.fromarray(array).convert(mode)
    if palette is not None:
        image = PIL.Image.frombytes("P", array.shape[::-1], array.astype(np.uint8).tobytes())
        image.putpalette([level for colour in palette for level in colour])
    stream = io.BytesIO()
    image.save(stream, suffix, **options)
    return stream.getvalue()


def tif(array, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def rgba(colours, alpha):
    return np.dstack([colours, alpha])


BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0)
VOC = [(i & 7, 64 * (i >> 3 & 3), 32 * (i >> 5)) for i in range(256)]
M = truth()
U8, U16 = M.astype(np.uint8), M.astype(np.uint16)
IMAGE = photo()
TINY = np.full(SHAPE, 255, np.uint8)
TINY[0, :5] = 0

# Encoding -> bytes, suffix, whether it is read without a flag, and a flag that settles it.
ENCODINGS = {
    "0/255 grey PNG": (pil(U8 * 255), "png", READ, None),
    "0/1 grey PNG": (pil(U8), "png", READ, None),
    "0/37 grey PNG": (pil(U8 * 37), "png", READ, None),
    "0/255 BMP": (pil(U8 * 255, "BMP"), "bmp", READ, None),
    "0/255 TIFF": (pil(U8 * 255, "TIFF"), "tif", READ, None),
    "0/255 lossless WebP": (
        pil(np.dstack([U8 * 255] * 3), "WEBP", lossless=True),
        "webp",
        READ,
        None,
    ),
    "1-bit PNG": (pil(M), "png", READ, None),
    "1-bit TIFF": (pil(M, "TIFF"), "tif", READ, None),
    "1-bit TIFF, 0 is white": (tif(~M, photometric="miniswhite"), "tif", READ, None),
    "palette GIF": (pil(U8, "GIF", palette=[BLACK, WHITE]), "gif", READ, None),
    "palette GIF, white first": (pil(1 - U8, "GIF", palette=[WHITE, BLACK]), "gif", READ, None),
    "palette PNG, red": (pil(U8, palette=[BLACK, RED]), "png", READ, None),
    "palette PNG 0/1": (pil(U8, palette=[BLACK, (1, 1, 1)]), "png", READ, None),
    "VOC, one class": (pil(U8 * 8, palette=VOC), "png", READ, None),
    "transparent GIF": (pil(U8, "GIF", palette=[BLACK, WHITE], transparency=0), "gif", READ, None),
    "16-bit 0/65535": (pil(U16 * 65535), "png", READ, None),
    "16-bit 0/1": (pil(U16), "png", READ, None),
    "16-bit 0/300": (pil(U16 * 300), "png", READ, None),
    "16-bit RGB PNG": (
        cv2.imencode(".png", np.dstack([U16 * 65535] * 3))[1].tobytes(),
        "png",
        READ,
        None,
    ),
    "32-bit 0/1 TIFF": (tif(M.astype(np.int32)), "tif", READ, None),
    "float 0/1 TIFF": (tif(M.astype(np.float32)), "tif", READ, None),
    "double 0/255 TIFF": (tif(M * 255.0), "tif", READ, None),
    "RGB red PNG": (pil(np.where(M[..., None], RED, BLACK).astype(np.uint8)), "png", READ, None),
    "opaque RGBA": (
        pil(rgba(np.dstack([U8 * 255] * 3), np.full(SHAPE, 255, np.uint8))),
        "png",
        READ,
        None,
    ),
    "cut-out": (pil(rgba(IMAGE, U8 * 255)), "png", READ, None),
    "cut-out WebP": (pil(rgba(IMAGE, U8 * 255), "WEBP", lossless=True), "webp", READ, None),
    "soft edge": (pil(soft()), "png", READ, None),
    "soft alpha": (pil(rgba(IMAGE, soft())), "png", READ, None),
    "16-bit soft edge": (pil(soft().astype(np.uint16) * 257), "png", READ, None),
    "JPEG of 0/255": (pil(U8 * 255, "JPEG", quality=95), "jpg", READ, None),
    "JPEG of 0/255, saved as PNG": (
        pil(np.asarray(PIL.Image.open(io.BytesIO(pil(U8 * 255, "JPEG", quality=95))))),
        "png",
        READ,
        None,
    ),
    "8-bit ids": (pil(labels(count=250)), "png", REFUSED, "nonzero"),
    "16-bit ids": (pil(labels(np.uint16)), "png", REFUSED, "nonzero"),
    "32-bit ids": (tif(labels(np.int32)), "tif", REFUSED, "object:1-300"),
    "VOC with border": (pil(with_border(8, 255), palette=VOC), "png", REFUSED, "object:8"),
    "grey with border": (pil(with_border(1, 255)), "png", REFUSED, "object:1"),
    "trimap": (
        pil((with_border(1, 3) + 2 * (with_border(1, 3) == 0)).astype(np.uint8)),
        "png",
        REFUSED,
        "object:1",
    ),
    "trimap 0/128/255": (pil(with_border(255, 128)), "png", REFUSED, "above:200"),
    "JPEG of a trimap 0/128/255": (
        pil(with_border(255, 128), "JPEG", quality=90),
        "jpg",
        REFUSED,
        None,
    ),
    "transparent object": (
        pil(U8, palette=[BLACK, WHITE], transparency=1),
        "png",
        REFUSED,
        "object:1",
    ),
    "no zero": (pil(U8 + 1), "png", REFUSED, "object:2"),
    "12-bit soft edge": (pil(soft().astype(np.uint16) * 16), "png", REFUSED, "above:2047"),
    "float with NaN": (tif(np.where(M, 1, np.nan).astype(np.float32)), "tif", REFUSED, "nonzero"),
    "negative": (tif(np.where(M, 1, -1).astype(np.int16)), "tif", REFUSED, "object:1"),
    "no data": (tif(U8 * 255, extratags=[(42113, 2, 0, "0", True)]), "tif", REFUSED, "object:255"),
    "two colours": (
        pil(np.where(M[..., None], RED, GREEN).astype(np.uint8)),
        "png",
        REFUSED,
        "colour:ff0000",
    ),
    "palette without black": (pil(U8, palette=[GREEN, RED]), "png", REFUSED, "object:1"),
    "palette of one colour twice": (pil(U8, palette=[BLACK, BLACK]), "png", REFUSED, "object:1"),
    "colours under alpha": (
        pil(rgba(np.dstack([U8 * 255] * 3), TINY)),
        "png",
        REFUSED,
        "above:127",
    ),
    "photo with a hardly varying alpha": (pil(rgba(IMAGE, TINY)), "png", REFUSED, None),
    "photo as mask": (pil(IMAGE), "png", REFUSED, None),
    "JPEG of 0/1": (pil(U8, "JPEG", quality=100), "jpg", REFUSED, None),
    "two pages": (tif(np.stack([U8, U8])), "tif", REFUSED, None),
    "alpha that covers all": (pil(rgba(IMAGE, np.zeros(SHAPE, np.uint8))), "png", REFUSED, None),
}


@pytest.fixture
def dataset(tmp_path):
    """Two photos of two folds, perfect predictions and a perfect submission."""

    def make(data, suffix):
        folders = [tmp_path / name for name in ("train", "train_masks", "predicted")]
        for folder in folders:
            folder.mkdir()
        for stem in ("a_1", "b_1"):
            (folders[1] / f"{stem}_mask.{suffix}").write_bytes(data)
            images.write_photo(folders[0] / f"{stem}.png", IMAGE)
            images.write_mask(folders[2] / f"{stem}.png", truth())
        (tmp_path / "folds.csv").write_text("id,fold,area\na,0,1\nb,1,1\n")
        lines = [f"{stem}.png,{rle.encode_text(truth())}" for stem in ("a_1", "b_1")]
        (tmp_path / "s.csv").write_text("\n".join(["img,rle_mask", *lines]) + "\n")
        return tmp_path

    return make


def by_check(options, root):
    findings = checks.check_dataset(
        root / "train", root / "train_masks", options.naming, None, 1, options.reading
    )
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise UserError(f"{errors[0].file} {errors[0].what}")
    return True


def by_folds(options, root):
    given = make_folds.FoldOptions(n_folds=2)
    measured = areas.measure(make_folds._find_samples(options, given), None, 1, root)
    return list(measured["area"]) == [truth().sum()] * 2


def by_training(options, root):
    samples = find_samples(root / "train", root / "train_masks", options.naming, options.reading)
    return all(np.array_equal(MASKS.read_planes(s)[1], U8 * 255) for s in samples)


def by_evaluation(options, root):
    masks = open_complete(root / "predicted").masks
    truths = images_by_stem(root, options)
    matching = pairs.match(masks, truths, options.naming, {}, reading=options.reading)
    return set(measure(matching.pairs, MeasureSettings(), 1).photos["dice"]) == {1.0}


def by_calibration(options, root):
    plan = ensembling.plan([open_folder(root / "predicted")], force=True)
    table = read_folds(root / options.folds_source)
    _, fit, _ = ensemble_weights.fit_members(
        *(plan, root / "train_masks", table, options.naming, options.reading),
        *(127, 1, root / "combined"),
    )
    return fit.equal == 1.0


def by_scoring(options, root):
    truths = images_by_stem(root, options)
    scored = rows.score(root / "s.csv", truths, options.naming, reading=options.reading)
    return set(scored.photos["dice"]) == {1.0}


def images_by_stem(root, options):
    return list_masks(root / "train_masks", options.naming)


READERS = [by_check, by_folds, by_training, by_evaluation, by_calibration, by_scoring]


@pytest.mark.parametrize("name", ENCODINGS)
def test_six_readers_agree_or_refuse(dataset, name):
    data, suffix, readable, rule = ENCODINGS[name]
    root = dataset(data, suffix)
    options = DatasetOptions(dataset_dir=str(root))
    for reader in READERS:
        if readable:
            assert reader(options, root), reader.__name__
        else:
            with pytest.raises(UserError, match="a_1_mask") as caught:
                reader(options, root)
            assert "\n" not in str(caught.value)
    if not readable and rule:
        with pytest.raises(UserError, match="--mask_values"):
            by_training(options, root)
        settled = DatasetOptions(dataset_dir=str(root), mask_values=rule)
        for reader in READERS:
            assert reader(settled, root), reader.__name__


def test_a_check_of_a_settled_mask_says_the_rule(tmp_path):
    (tmp_path / "m.png").write_bytes(ENCODINGS["trimap"][0])
    reading = Reading(mask_values.parse("object:1,3"))
    mask = images.decode_mask(tmp_path / "m.png", reading)
    assert mask.kind == "object:1,3"
    np.testing.assert_array_equal(mask.pixels, with_border(1, 3) > 0)


@pytest.mark.parametrize(
    "text",
    ["", "object", "object:", "object:a", "above:", "above:x", "colour:red", "nonzero:1", "2"],
)
def test_a_rule_that_is_none(text):
    with pytest.raises(UserError, match="--mask_values") as caught:
        mask_values.parse(text)
    assert "above:127" in str(caught.value)


@pytest.mark.parametrize("rule", ["alpha", "object:1"])
def test_a_rule_that_does_not_suit_the_file(tmp_path, rule):
    images.write_photo(tmp_path / "m.png", IMAGE)
    with pytest.raises(images.AmbiguousMask, match=rf"m\.png.*'{rule}' does not suit"):
        images.read_mask(tmp_path / "m.png", Reading(mask_values.parse(rule)))


def ellipses(shape=(96, 128), scale=1):
    """Two objects with curved edges, antialiased at a scale above 1."""
    large = np.zeros([scale * n for n in shape], np.uint8)
    for centre, axes, turn in (((40, 44), (23, 31), 20), ((95, 60), (17, 25), 65)):
        centre, axes = ([scale * n for n in pair] for pair in (centre, axes))
        cv2.ellipse(large, centre, axes, turn, 0, 360, 255, -1)
    return cv2.resize(large, shape[::-1], interpolation=cv2.INTER_AREA)


def saved(grey, quality):
    if quality is None:
        return pil(grey), "png"
    return pil(grey, "JPEG", quality=quality), "jpg"


@pytest.mark.parametrize("quality", [60, 75, 90, 100, None])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("level", [90, 128, 165])
def test_a_border_of_another_grey_is_refused_however_thin(tmp_path, width, level, quality):
    mask = ellipses()
    mask[mask < 255] = 0
    inside = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=width) > 0
    data, suffix = saved(np.where(inside, 255, (mask > 0) * level).astype(np.uint8), quality)
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(data)
    with pytest.raises(images.AmbiguousMask, match="above:127"):
        images.read_mask(path)
    settled = images.read_mask(path, Reading(mask_values.parse(f"above:{(level + 255) // 2}")))
    assert np.count_nonzero(settled != inside) < 0.1 * np.count_nonzero(inside)


@pytest.mark.parametrize("quality", [60, 75, 90, 100, None])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_soft_edges_are_read_however_they_were_saved(tmp_path, scale, quality):
    mask = ellipses(scale=scale)
    data, suffix = saved(mask, quality)
    (tmp_path / f"m.{suffix}").write_bytes(data)
    read = images.read_mask(tmp_path / f"m.{suffix}")
    assert np.count_nonzero(read != (mask > 127)) < 0.02 * mask.size


@pytest.mark.parametrize("quality", [60, 90, None])
@pytest.mark.parametrize("scale", [3, 4, 8])
@pytest.mark.parametrize("level", [80, 128, 165])
def test_a_border_that_was_resized_to_two_pixels_is_refused(tmp_path, level, scale, quality):
    large = cv2.resize(ellipses(), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * scale + 1,) * 2)
    inside, outside = cv2.erode(large, disc) == 255, cv2.dilate(large, disc) > 0
    drawn = np.where(inside, 255, outside * level).astype(np.uint8)
    grey = cv2.resize(drawn, (128, 96), interpolation=cv2.INTER_AREA)
    data, suffix = saved(grey, quality)
    (tmp_path / f"m.{suffix}").write_bytes(data)
    with pytest.raises(images.AmbiguousMask, match="border"):
        images.read_mask(tmp_path / f"m.{suffix}")


def test_a_resized_rectangle_whose_sides_have_greys_of_their_own_is_read(tmp_path):
    grey = np.zeros((60, 80), np.uint8)
    grey[10:50, 10:70] = 255
    grey[10, 10:70], grey[49, 10:70], grey[10:50, 10], grey[10:50, 69] = 100, 110, 95, 113
    (tmp_path / "m.png").write_bytes(pil(grey))
    read = images.read_mask(tmp_path / "m.png")
    assert read.sum() == 38 * 58
    grey[10, 10:70] = grey[49, 10:70] = grey[10:50, 10] = grey[10:50, 69] = 100
    grey[10, 10] = 40
    grey[49, 69] = 41
    (tmp_path / "m.png").write_bytes(pil(grey))
    with pytest.raises(images.AmbiguousMask, match="border of about"):
        images.read_mask(tmp_path / "m.png")
