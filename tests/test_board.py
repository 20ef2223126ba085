"""What TensorBoard gets, read back from the event files."""

import cv2
import numpy as np
import pytest

from carvana_tf.data.dataset import find_samples
from carvana_tf.data.images import read_mask
from carvana_tf.evaluation.pictures import PREDICTION, TRUTH
from carvana_tf.tasks import MASKS
from carvana_tf.training.board import PHOTOS, Board

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


@pytest.fixture
def samples(make_dataset):
    root = make_dataset(groups=6)
    return find_samples(root / "train", root / "train_masks")


def read(folder):
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def test_curves_and_photos_come_back(samples, tmp_path):
    board = Board(tmp_path, samples, MASKS)
    for sample in samples:
        truth = read_mask(sample.mask)
        board.show(sample, truth, np.roll(truth, 8, 1).astype(np.float32))
    row = {"loss": 0.5, "dice": 0.7, "learning_rate": 0.01, "seconds": 3.0}
    board.write({"epoch": 1.0, **row, "val_loss": 0.4, "val_dice": 0.9})
    # As another process, and an epoch without validation.
    Board(tmp_path, samples, MASKS).write({"epoch": 2.0, **row, "learning_rate": 0.001})
    training, validation = read(tmp_path / "training"), read(tmp_path / "validation")
    assert sorted(training.Tags()["scalars"]) == ["learning_rate", "loss", "soft_dice"]
    assert sorted(validation.Tags()["scalars"]) == ["dice", "loss"]
    rates = [(event.step, event.value) for event in training.Scalars("learning_rate")]
    assert rates == [(1, pytest.approx(0.01)), (2, pytest.approx(0.001))]
    assert [(e.step, e.value) for e in validation.Scalars("dice")] == [(1, pytest.approx(0.9))]
    (event,) = validation.Images(PHOTOS)
    data = np.frombuffer(event.encoded_image_string, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
    # Eight of the twelve photos in two rows of four, both outlines in each.
    assert picture.shape[:2] == (event.height, event.width)
    tiles = [half for row in np.split(picture, 2, 0) for half in np.split(row, 4, 1)]
    for tile in tiles:
        for colour in (TRUTH, PREDICTION):
            assert (abs(tile.astype(int) - colour).sum(-1) < 30).any()


def test_nothing_to_validate(tmp_path):
    Board(tmp_path, [], MASKS).write({"epoch": 1.0, "loss": 0.5, "seconds": 1.0})
    assert not (tmp_path / "validation").exists()
    assert read(tmp_path / "training").Scalars("loss")[0].value == 0.5
