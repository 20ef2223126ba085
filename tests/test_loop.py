"""The training loop: an interrupted run ends as an undisturbed one."""

import csv
import os
import signal

import keras
import numpy as np
import pytest

from carvana_tf.data.augment import PRESETS
from carvana_tf.data.dataset import find_samples
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.sizing import Sizing
from carvana_tf.errors import UserError
from carvana_tf.training import losses, schedules
from carvana_tf.training.loop import BEST, LAST, LOG, STATE, Plan, train
from carvana_tf.training.validation import validate


def tiny_network():
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    photo = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(photo)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.SpatialDropout2D(0.2)(x)
    return keras.Model(photo, keras.layers.Conv2D(1, 1, activation="sigmoid")(x))


@pytest.fixture
def samples(make_dataset):
    root = make_dataset()
    return find_samples(root / "train", root / "train_masks")


@pytest.fixture
def make_plan(samples, tmp_path):
    def make(folder, *, epochs=3, callbacks=(), **changes):
        network = tiny_network()
        training = TrainingSet(
            samples[:6], Sizing("resize", 24, 32, 8), PRESETS["default"], batch_size=2, seed=1
        )
        (tmp_path / folder).mkdir(exist_ok=True)
        settings = {
            "network": network,
            "optimizer": keras.optimizers.Adam(schedules.build("cosine", 0.05, 12, 2, None)),
            "loss": losses.bce_dice,
            "training": training,
            "validation": samples[6:],
            "epochs": epochs,
            "steps_per_epoch": 4,
            "validate_every": 1,
            "monitor": "val_dice",
            "patience": 0,
            "threads": 2,
            "folder": tmp_path / folder,
            "save_model": lambda path, scores: network.save(path),
            "callbacks": callbacks,
        }
        return Plan(**settings | changes)

    return make


class SignalAt(keras.callbacks.Callback):
    """Sends this process a signal after so many steps, as Ctrl-C would."""

    def __init__(self, step, number=signal.SIGINT):
        super().__init__()
        self.left = step
        self.number = number

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def log_rows(folder):
    with (folder / LOG).open(newline="") as handle:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in csv.DictReader(handle)]


def weights_of(plan):
    return [np.array(keras.ops.convert_to_numpy(v)) for v in plan.network.weights]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [2, 4, 7])
def test_an_interrupted_run_ends_as_an_undisturbed_one(make_plan, tmp_path, step, number):
    whole = make_plan("whole")
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(make_plan("broken", callbacks=[SignalAt(step, number)]))
    assert (tmp_path / "broken" / STATE).is_file()
    resumed = make_plan("broken")
    progress = train(resumed)
    assert progress.done
    for expected, value in zip(weights_of(whole), weights_of(resumed), strict=True):
        np.testing.assert_array_equal(value, expected)
    rows, expected_rows = log_rows(resumed.folder), log_rows(whole.folder)
    assert len(rows) == 3
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row.keys() == expected_row.keys()
        for name in row:
            assert float(row[name]) == pytest.approx(float(expected_row[name]), rel=1e-5)


def test_training_learns_and_writes_its_files(make_plan):
    plan = make_plan("learns", epochs=6)
    progress = train(plan)
    assert progress.rows[-1]["loss"] < progress.rows[0]["loss"]
    assert progress.step == 24
    for name in (BEST, LAST, LOG, STATE):
        assert (plan.folder / name).is_file()
    assert not [path for path in plan.folder.iterdir() if path.name.startswith(".")]
    saved = keras.saving.load_model(plan.folder / LAST)
    assert not saved.compiled
    for a, b in zip(saved.weights, plan.network.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


def test_the_best_file_is_the_best_epoch(make_plan):
    plan = make_plan("best", epochs=4)
    progress = train(plan)
    best = keras.saving.load_model(plan.folder / BEST)
    scores = validate(best, plan.validation, plan.training.sizing, plan.loss)
    assert scores["dice"] == pytest.approx(max(row["val_dice"] for row in progress.rows), abs=1e-6)
    assert progress.best == max(row["val_dice"] for row in progress.rows)


def test_patience_ends_the_run(make_plan):
    plan = make_plan("patience", epochs=30, patience=2, optimizer=keras.optimizers.SGD(0.0))
    progress = train(plan)
    assert progress.done
    assert len(progress.rows) < 30


def test_without_validation_there_is_a_last_model_and_no_best(make_plan):
    plan = make_plan("none", epochs=1, validation=[])
    progress = train(plan)
    assert "val_dice" not in progress.rows[0]
    assert (plan.folder / LAST).is_file()
    assert not (plan.folder / BEST).exists()


def test_a_truncated_photo_is_named(make_plan, samples):
    data = samples[0].photo.read_bytes()
    samples[0].photo.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"car00_01\.jpg' is truncated"):
        train(make_plan("truncated"))


def test_a_loss_that_is_no_number_stops_the_run(make_plan):
    plan = make_plan("nan", loss=lambda t, p: losses.dice(t, p) * float("nan"))
    with pytest.raises(UserError, match="not a number"):
        train(plan)
    assert not (plan.folder / LAST).exists()


def test_validation_scores_photos_at_their_own_size(samples):
    """A network that knows the answer scores 1; the mean is over photos."""
    photo = keras.Input((None, None, 3))
    bright = keras.ops.mean(photo, -1, keepdims=True) - 110.0
    network = keras.Model(photo, keras.ops.sigmoid(bright))
    scores = validate(network, samples, Sizing("pad", 0, 0, 32), losses.bce_dice, batch_size=3)
    assert scores["dice"] > 0.97
    assert scores["dice_coef_clipped"] == pytest.approx(100 * scores["dice"])
