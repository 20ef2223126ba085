"""The test of what a task is: one that the toolkit does not know, a number per photo."""

import keras
import numpy as np
import pytest

from carvana_tf.data.dataset import find_photos
from carvana_tf.data.images import read_photo, write_photo
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.presets import PRESETS
from carvana_tf.data.sizing import Sizing
from carvana_tf.tasks import TASKS
from carvana_tf.tasks.base import VectorTask
from carvana_tf.training.loop import Plan, train
from carvana_tf.training.validation import validate


class Brightness(VectorTask):
    """How bright a photo is on average, 0..1."""

    name, monitors, figures = "brightness", {"val_error": "min"}, {"val_error": ("error", 4)}

    def values(self, sample):
        return np.float32([read_photo(sample.photo).mean() / 255])

    def loss(self, text):
        return lambda target, output: keras.ops.mean((target - output) ** 2, axis=-1)

    def scores_of(self, target, prediction):
        return {"error": float(abs(target - prediction)[0])}


BRIGHTNESS = Brightness()


def average_network():
    """Knows brightness but for a factor and a constant."""
    photo = keras.Input((None, None, 3))
    mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(photo))
    return keras.Model(photo, keras.layers.Dense(1, dtype="float32")(mean))


@pytest.fixture
def samples(tmp_path):
    random = np.random.default_rng(4)
    (tmp_path / "photos").mkdir()
    for number, level in enumerate(np.linspace(20, 200, 8)):
        noisy = random.integers(-15, 15, (32, 48, 3)) + int(level)
        write_photo(tmp_path / "photos" / f"{number}.png", noisy.astype(np.uint8))
    return find_photos(tmp_path / "photos")


@pytest.fixture
def trained(samples, tmp_path):
    keras.utils.set_random_seed(1)
    network, sizing = average_network(), Sizing("resize", 16, 24, 1)
    flips = PRESETS["none"]
    plan = Plan(
        network=network,
        optimizer=lambda start: keras.optimizers.Adam(0.05),
        task=BRIGHTNESS,
        loss=BRIGHTNESS.loss(""),
        training=TrainingSet(samples[::2], sizing, flips, BRIGHTNESS, batch_size=2, seed=1),
        validation=samples[1::2],
        epochs=4,
        steps_per_epoch=20,
        validate_every=1,
        monitor="val_error",
        patience=0,
        threads=2,
        folder=tmp_path,
        save_model=lambda path, scores: network.save(path),
    )
    return network, sizing, train(plan)


def test_the_loop_trains_it_and_judges_by_its_own_score(trained, samples, tmp_path):
    _, _, progress = trained
    errors = [row["val_error"] for row in progress.rows]
    truth = np.concatenate([BRIGHTNESS.values(sample) for sample in samples])
    assert min(errors) < 0.1 * np.abs(truth - truth.mean()).mean()
    assert progress.best == min(errors)
    assert progress.best_epoch == 1 + int(np.argmin(errors))
    assert set(progress.rows[0]) >= {"loss", "val_loss"} and "dice" not in progress.rows[0]
    best = keras.saving.load_model(tmp_path / "best.keras")
    assert best.output_shape == (None, 1)


def test_it_is_scored(trained, samples):
    network, sizing, _ = trained
    scores = validate(network, samples, sizing, BRIGHTNESS.loss(""), BRIGHTNESS, batch_size=2)
    photos = np.stack([sizing.whole(read_photo(sample.photo)) for sample in samples])
    truth = np.concatenate([BRIGHTNESS.values(sample) for sample in samples])
    expected = np.abs(network.predict(photos, verbose=0)[:, 0] - truth).mean()
    assert scores["error"] == pytest.approx(expected, abs=1e-6)


def test_every_row_has_its_name():
    assert all(name == task.name for name, task in TASKS.items())
