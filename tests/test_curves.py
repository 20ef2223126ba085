"""Learning curves and pictures of training samples."""

import keras
import numpy as np
import pytest

from carvana_tf.data.dataset import find_samples
from carvana_tf.data.images import read_grey, read_mask, read_photo
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.presets import Augmentation
from carvana_tf.data.sizing import Sizing
from carvana_tf.errors import UserError
from carvana_tf.training import curves, debug

BLUE, RED = (0, 114, 178), (213, 94, 0)


def row(epoch, **validation):
    return {"epoch": epoch, "loss": 1 / epoch, "dice": 0.5, "learning_rate": 0.1} | validation


def colours(path):
    picture = read_photo(path)
    return {tuple(colour) for colour in picture.reshape(-1, 3)}


def test_the_picture_has_a_line_for_what_there_is(tmp_path):
    path = tmp_path / "curves.png"
    curves.draw([row(1), row(2)], path, "run")
    assert BLUE in colours(path)
    assert RED not in colours(path)
    # Validated every second epoch only.
    curves.draw([row(1), row(2, val_loss=1.0, val_dice=0.4)], path)
    assert {BLUE, RED} <= colours(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["curves.png"]


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        curves.draw([row(1)], tmp_path / "file" / "curves.png")


@pytest.fixture
def training(make_dataset):
    root = make_dataset()
    samples = find_samples(root / "train", root / "train_masks")
    return TrainingSet(samples, Sizing("pad", 0, 0, 8), Augmentation(), batch_size=1, seed=3)


@pytest.mark.parametrize("loss", ["bce_dice", *debug.WEIGHTS])
def test_the_first_samples_are_drawn_as_the_network_sees_them(training, tmp_path, loss):
    debug.write_pictures(tmp_path / "debug", training, loss, 2)
    kinds = ["mask", "overlay", "photo", *(["weights"] if loss in debug.WEIGHTS else [])]
    samples = [training.samples[training.pick(g)[1]] for g in range(2)]
    assert sorted(path.name for path in (tmp_path / "debug").iterdir()) == [
        f"{g:03d}_{sample.stem}_{kind}.png" for g, sample in enumerate(samples) for kind in kinds
    ]
    stem = tmp_path / "debug" / f"000_{samples[0].stem}"
    photo, mask = read_photo(f"{stem}_photo.png"), read_grey(f"{stem}_mask.png")
    np.testing.assert_array_equal(photo, read_photo(samples[0].photo))
    np.testing.assert_array_equal(mask > 127, read_mask(samples[0].mask))
    overlay = read_photo(f"{stem}_overlay.png").astype(int)
    np.testing.assert_array_equal(overlay[mask == 0], photo[mask == 0])
    red = np.array((255, 0, 0))
    assert (abs(overlay - (photo + red) / 2)[mask == 255] <= 0.5).all()
    if loss in debug.WEIGHTS:
        weights = read_grey(f"{stem}_weights.png")
        assert weights.max() == 255
        # Along the contour they are higher than in the corner.
        assert weights[mask == 255].max() > weights[0, 0]


def test_pixel_weights_are_those_of_the_flag():
    truth = np.zeros((1, 32, 32, 1), np.float32)
    truth[:, :, 16:] = 1
    for loss, share in (("weighted_bce_dice", 3), ("weighted_bce_dice:boundary_weight=7", 7)):
        weights = np.asarray(debug.pixel_weights(loss)(truth))
        assert weights.max() / weights.min() == pytest.approx(share)
    assert debug.pixel_weights("dice:smooth=2") is None


def test_nothing_is_drawn_unasked(training, tmp_path):
    debug.write_pictures(tmp_path / "debug", training, "bce_dice", 0)
    assert not (tmp_path / "debug").exists()


def test_distance_weights_are_those_of_the_loss():
    """With p = 1/2, cross-entropy is ln 2 in each pixel: only the weights are left."""
    from carvana_tf.training import losses

    truth = np.zeros((1, 30, 40, 1), np.float32)
    truth[:, 10:20, 5:30] = 1
    half = np.full_like(truth, 0.5)
    weights = keras.ops.convert_to_numpy(debug.pixel_weights("distance_weighted")(truth))
    value = float(keras.ops.convert_to_numpy(losses.LOSSES["distance_weighted"](truth, half))[0])
    dice = float(keras.ops.convert_to_numpy(losses.LOSSES["dice"](truth, half))[0])
    assert value - dice == pytest.approx(np.log(2) * weights.mean(), rel=1e-5)
