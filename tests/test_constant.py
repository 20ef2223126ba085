"""Predictions that show nothing are noticed, those that are right are not."""

import keras
import numpy as np
import pytest

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import write_mask, write_photo
from carvana_tf.data.resizing import Resizer
from carvana_tf.evaluation.constant import BACKGROUND, OBJECT, constant_prediction, warning
from carvana_tf.tasks import MASKS
from carvana_tf.tasks.masks import losses
from carvana_tf.training.validation import validate


@pytest.mark.parametrize(
    ("predicted", "true", "found"),
    [
        ([100, 400], [30, 90], OBJECT),
        ([0, 0], [30, 90], BACKGROUND),
        ([0, 0], None, BACKGROUND),
        ([0, 0], [0, 90], BACKGROUND),
        ([0, 0], [0, 0], None),
        ([100, 400], [100, 400], None),
        ([100, 400], [0, 0], OBJECT),
        ([0, 400], [30, 90], None),
        ([0, 2], [30, 90], None),
        ([], [], None),
    ],
)
def test_constant_predictions(predicted, true, found):
    pixels = [100, 400][: len(predicted)]
    assert constant_prediction(predicted, true, pixels) == found


def test_a_little_noise_is_constant_too():
    assert constant_prediction([5, 0], [2000, 3000], [10_000, 10_000]) == BACKGROUND
    assert constant_prediction([9995, 10_000], [2000, 3000], [10_000, 10_000]) == OBJECT


@pytest.mark.parametrize(("bias", "kind"), [(9.0, OBJECT), (-9.0, BACKGROUND), (0.0, None)])
def test_validation_warns(tmp_path, capsys, bias, kind):
    mask = np.zeros((32, 32), bool)
    mask[8:20, 8:20] = True
    write_photo(tmp_path / "a.png", np.repeat(mask[..., None], 3, -1) * np.uint8(255))
    write_mask(tmp_path / "a_mask.png", mask)
    # Object where the photo is white, unless the bias decides.
    photo = keras.Input((None, None, 3))
    convolution = keras.layers.Conv2D(1, 1, activation="sigmoid")
    network = keras.Model(photo, convolution(photo))
    weight = 0.0 if bias else 1.0
    convolution.set_weights([np.full((1, 1, 3, 1), weight), np.array([bias or -100.0])])
    sample = Sample("a", "a", tmp_path / "a.png", tmp_path / "a_mask.png")
    validate(network, [sample], Resizer("pad", 0, 0, 1), losses.parse("bce_dice"), MASKS)
    written = capsys.readouterr().err
    assert (warning(kind, 1, "validation photos") in written) if kind else not written
