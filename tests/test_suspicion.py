"""Folders without a manifest: what is no probability is not scored as one."""

import cv2
import numpy as np
import pytest

from carvana_tf.data import areas, images
from carvana_tf.data.dataset import Naming, Sample
from carvana_tf.errors import UserError
from carvana_tf.evaluation import pairs, rows
from carvana_tf.evaluation.measure import MeasureSettings, measure
from carvana_tf.masks.open_folder import open_complete
from carvana_tf.tasks import MASKS

SHAPE = (48, 64)


def truth():
    mask = np.zeros(SHAPE, np.uint8)
    cv2.ellipse(mask, (30, 24), (20, 14), 20, 0, 360, 1, -1)
    return mask


def probabilities(sigma):
    return cv2.GaussianBlur(truth() * np.uint8(255), (0, 0), sigma)


def regions(values):
    """Vertical stripes of ids on the object."""
    stripes = np.asarray(values, np.uint8)[np.arange(SHAPE[1]) * len(values) // SHAPE[1]]
    return truth() * np.tile(stripes, (SHAPE[0], 1))


WRONG = {
    "0/1": truth(),
    "small labels": regions([1, 2, 3, 4]),
    "labels": regions([20, 90, 140, 210]),
    "labels above the middle": regions([200, 150, 180, 230]),
    "class and border": np.where(cv2.dilate(truth(), np.ones((7, 7))) > truth(), 255, truth() * 15),
    "below the middle": probabilities(2) // 3,
}
RIGHT = {
    "smooth": probabilities(2),
    "steep": probabilities(0.5),
    "unsure": 60 + probabilities(6) // 2,
    "two values": truth() * np.uint8(255),
    "votes of three": np.rint(regions([1, 2, 3]) * 85.0).astype(np.uint8),
    "noise": np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8),
    "nothing": np.zeros(SHAPE, np.uint8),
}


def write(folder, grey):
    for name in "ab":
        images.write_probability(folder / f"{name}.png", grey.astype(np.uint8))


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_probability_is_refused(tmp_path, name):
    write(tmp_path, WRONG[name])
    with pytest.raises(UserError, match=r"does not look like probabilities.*--force"):
        open_complete(tmp_path)
    forced = open_complete(tmp_path, force=True).forced
    assert len(forced) == 1 and str(tmp_path) in forced[0]


@pytest.mark.parametrize("name", RIGHT)
def test_probabilities_are_not_suspected(tmp_path, name):
    write(tmp_path, RIGHT[name])
    assert open_complete(tmp_path).forced == ()


def test_one_object_in_a_folder_is_enough(tmp_path):
    for i in range(30):
        grey = probabilities(2) if i == 17 else np.ones(SHAPE, np.uint8)
        images.write_probability(tmp_path / f"{i:02d}.png", grey)
    assert open_complete(tmp_path).forced == ()


def empty(tmp_path, count=2):
    samples = []
    for i in range(count):
        photo, mask = tmp_path / f"train/p_{i}.png", tmp_path / f"train_masks/p_{i}_mask.png"
        images.write_photo(photo, np.full((*SHAPE, 3), 90, np.uint8))
        images.write_mask(mask, np.zeros(SHAPE, bool))
        images.write_probability(tmp_path / f"pred/p_{i}.png", np.zeros(SHAPE, np.uint8))
        samples.append(Sample(f"p_{i}", "p", photo, mask))
    return samples


def test_masks_that_are_all_empty_are_no_perfect_score(tmp_path):
    samples = empty(tmp_path)
    truths = {sample.stem: sample.mask for sample in samples}
    predictions = {sample.stem: tmp_path / f"pred/{sample.stem}.png" for sample in samples}
    (tmp_path / "s.csv").write_text("img,rle_mask\np_0.png,\np_1.png,\n")
    matching = pairs.match(predictions, truths, Naming(), {})
    for score in (
        lambda: measure(matching.pairs, MeasureSettings(), 1),
        lambda: rows.score(tmp_path / "s.csv", truths, Naming()),
        lambda: MASKS.check_targets(samples, "validation"),
        lambda: areas.measure(samples, None, 1, tmp_path),
    ):
        with pytest.raises(UserError, match=r"all 2 .*masks are empty") as caught:
            score()
        assert "--mask_values" in str(caught.value)
    # One object among them is enough.
    images.write_mask(samples[1].mask, truth() > 0)
    MASKS.check_targets(samples, "validation")
    assert list(measure(matching.pairs, MeasureSettings(), 1).photos["dice"]) == [1.0, 0.0]
