"""What predictions become."""

import gzip
import itertools

import cv2
import numpy as np
import pytest

from carvana_tf.data.dataset import Sample
from carvana_tf.errors import UserError
from carvana_tf.filenames import SUBMISSION
from carvana_tf.masks import manifest, rle, submission
from carvana_tf.masks.cutouts.cutter import Cutter
from carvana_tf.masks.cutouts.options import CutoutOptions
from carvana_tf.masks.open_folder import open_complete, open_folder
from carvana_tf.tasks.masks import writers
from carvana_tf.training import stacking

VALUES = np.random.default_rng(0).integers(0, 256, (6, 9), np.uint8)
PHOTO = np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)


def make_samples(folder, count=1):
    return [Sample(f"car{i}_01", f"car{i}", folder / f"car{i}_01.jpg") for i in range(count)]


def write_one(tmp_path, kind):
    (sample,) = make_samples(tmp_path)
    with writers.create(kind, tmp_path / "out", [sample], 100) as output:
        photo = PHOTO if output.shows_photo else None
        output.write(sample, output.encode(VALUES, photo))
    return tmp_path / "out/car0_01.png"


def test_probabilities(tmp_path):
    path = write_one(tmp_path, "probability")
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), VALUES)


def test_binary_masks(tmp_path):
    grey = cv2.imread(str(write_one(tmp_path, "mask")), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(grey, 255 * (VALUES > 100))


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_cutouts(tmp_path, suffix):
    (sample,) = make_samples(tmp_path)
    options = CutoutOptions(background="white", cutout_format=suffix)
    with writers.create("cutout", tmp_path / "out", [sample], cutout=options) as output:
        assert output.shows_photo
        output.write(sample, output.encode(VALUES, PHOTO, sample.photo))
    path = tmp_path / f"out/car0_01.{suffix}"
    assert path.read_bytes() == Cutter(options).encode(VALUES, PHOTO)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_rows_come_in_the_order_of_the_photos(tmp_path, order):
    samples = make_samples(tmp_path, 4)
    masks = [VALUES, VALUES // 2, np.zeros_like(VALUES), 255 - VALUES]
    with writers.create("rle", tmp_path, samples, 100) as output:
        for i in order:
            output.write(samples[i], output.encode(masks[i], None))
        assert not (tmp_path / SUBMISSION).exists()
    with gzip.open(tmp_path / SUBMISSION, "rt") as stream:
        assert stream.readline() == "img,rle_mask\n"
    rows = list(submission.read_rows(tmp_path / SUBMISSION))
    assert [image for image, _ in rows] == [sample.photo.name for sample in samples]
    for (_, text), mask in zip(rows, masks, strict=True):
        np.testing.assert_array_equal(rle.decode(text, 6, 9), mask > 100)


def test_a_submission_that_fails_does_not_appear(tmp_path):
    samples = make_samples(tmp_path, 2)
    with pytest.raises(ZeroDivisionError), writers.create("rle", tmp_path, samples) as output:
        output.write(samples[0], output.encode(VALUES, None))
        raise ZeroDivisionError
    assert not (tmp_path / SUBMISSION).exists()
    assert writers.begun(tmp_path) == {samples[0].stem}


def fill(folder, kind):
    """A folder of PNGs whose manifest says what they are."""
    folder.mkdir()
    cv2.imwrite(str(folder / "a_1.png"), VALUES)
    made = manifest.Manifest(
        (), True, "none", "keras", "float32", 1, "", writers.encoding(kind, 127), "0"
    )
    manifest.write(folder, made)
    return folder


@pytest.mark.parametrize("kind", ["mask", "cutout"])
def test_what_wants_probabilities_refuses_others(tmp_path, kind):
    folder = fill(tmp_path / kind, kind)
    (tmp_path / "stack").mkdir()
    fill(tmp_path / "stack/0", kind)
    for read in (
        lambda: open_folder(folder),
        lambda: open_complete(folder),
        lambda: stacking.refuse_misfits(tmp_path / "stack", 1),
    ):
        with pytest.raises(UserError, match=r"--output=probability"):
            read()


def test_a_submission_takes_binary_masks_and_no_cutouts(tmp_path):
    with pytest.raises(UserError, match=r"rgba8.*--output=probability"):
        submission.rows_of_folder(fill(tmp_path / "cutout", "cutout"))
    # Refused for its photos, which come after the encoding.
    with pytest.raises(UserError, match="lists other photos"):
        submission.rows_of_folder(fill(tmp_path / "mask", "mask"))


def test_encodings_differ_and_name_the_threshold():
    described = {
        writers.encoding(kind, threshold) for kind in writers.KINDS for threshold in (1, 2)
    }
    assert len(described) == 2 + 3 * 2
