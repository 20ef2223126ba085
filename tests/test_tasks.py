"""The test of what a task is: one that the toolkit does not know, a number per photo."""

import keras
import numpy as np
import pytest

from carvana_tf.data.dataset import find_photos
from carvana_tf.data.images import read_photo, write_photo
from carvana_tf.data.resizing import Resizer
from carvana_tf.inference import pipeline
from carvana_tf.inference.engines import keras_engine
from carvana_tf.inference.predictor import PipelineSettings
from carvana_tf.tasks import TASKS
from carvana_tf.tasks.base import VectorTask
from carvana_tf.training.options import TrainingOptions
from carvana_tf.training.run import train_split
from carvana_tf.training.splits import Split
from carvana_tf.training.validation import validate


class Brightness(VectorTask):
    """How bright a photo is on average, 0..1."""

    name, monitors, figures = "brightness", {"val_error": "min"}, {"val_error": ("error", 4)}
    writers = None  # nothing is written into a folder here

    def values(self, sample):
        return np.float32([read_photo(sample.photo).mean() / 255])

    def build_network(self, options, width):
        photo = keras.Input((None, None, 3), name="input_1")
        mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(photo))
        return keras.Model(photo, keras.layers.Dense(1, dtype="float32")(mean))

    def loss(self, text):
        return lambda target, output: keras.ops.mean((target - output) ** 2, axis=-1)

    def scores_of(self, target, prediction):
        return {"error": float(abs(target - prediction)[0])}


BRIGHTNESS = Brightness()
RESIZE = Resizer("resize", 16, 24, 8)


@pytest.fixture
def samples(tmp_path):
    random = np.random.default_rng(4)
    (tmp_path / "photos").mkdir()
    for number, level in enumerate(np.linspace(20, 200, 8)):
        noisy = random.integers(-15, 15, (32, 48, 3)) + int(level)
        write_photo(tmp_path / "photos" / f"{number}.png", noisy.astype(np.uint8))
    return find_photos(tmp_path / "photos")


@pytest.fixture
def options(tmp_path):
    return TrainingOptions.of(
        network="simple_unet",
        weights="none",
        dtype="float32",
        input_height=16,
        input_width=24,
        batch_size=2,
        steps_per_epoch=20,
        epochs=4,
        learning_rate=0.05,
        augmentation="none",
        monitor="val_error",
        models_dir=str(tmp_path / "models"),
    )


@pytest.fixture
def trained(options, samples):
    return train_split(options, Split(0, samples[::2], samples[1::2]), BRIGHTNESS)


def test_it_trains_and_is_judged_by_its_own_score(trained, options, samples, capsys):
    rows = trained["rows"]
    errors = [row["val_error"] for row in rows]
    truth = np.concatenate([BRIGHTNESS.values(sample) for sample in samples])
    assert min(errors) < 0.1 * np.abs(truth - truth.mean()).mean()
    assert set(rows[0]) >= {"loss", "val_loss"} and "dice" not in rows[0]
    best, last = (
        keras.saving.load_model(trained["folder"] / f"{n}.keras") for n in ("best", "last")
    )
    assert best.output_shape == (None, 1)
    for model, row in ((best, BRIGHTNESS.best(rows, "val_error")), (last, rows[-1])):
        scores = validate(model, samples[1::2], RESIZE, BRIGHTNESS.loss(""), BRIGHTNESS)
        assert scores["error"] == pytest.approx(row["val_error"], abs=1e-6)
    again = train_split(options, Split(0, samples[::2], samples[1::2]), BRIGHTNESS)
    assert not again["trained"] and again["rows"] == rows


def test_its_scores_are_those_of_numpy(trained, samples):
    network = keras.saving.load_model(trained["folder"] / "last.keras")
    scores = validate(network, samples, RESIZE, BRIGHTNESS.loss(""), BRIGHTNESS, batch_size=2)
    photos = np.stack([RESIZE.whole(read_photo(sample.photo)) for sample in samples])
    truth = np.concatenate([BRIGHTNESS.values(sample) for sample in samples])
    expected = np.abs(network.predict(photos, verbose=0)[:, 0] - truth).mean()
    assert scores["error"] == pytest.approx(expected, abs=1e-6)


class Collected:
    """An output of the prediction pipeline that keeps what it gets."""

    shows_photo = takes_uint8 = False

    def __init__(self):
        self.found = {}

    def restore(self, output, resizer, size):
        return BRIGHTNESS.restore(output, resizer, size)

    def encode(self, prediction, photo, path=None):
        return prediction.tobytes()

    def write(self, sample, data):
        self.found[sample.stem] = np.frombuffer(data, np.float32)

    def skip(self, sample, problem):
        raise AssertionError(sample)


def test_it_is_predicted_and_scored(trained, samples):
    network = keras.saving.load_model(trained["folder"] / "last.keras")
    output = Collected()
    pipeline.run(samples, [[keras_engine(network, RESIZE, "cpu:0")]], output, PipelineSettings(2))
    rows = [
        BRIGHTNESS.score(BRIGHTNESS.values(s), output.found[s.stem], BRIGHTNESS.loss(""))
        for s in samples
    ]
    validated = validate(network, samples, RESIZE, BRIGHTNESS.loss(""), BRIGHTNESS)
    assert BRIGHTNESS.summarize(rows) == pytest.approx(validated, abs=1e-6)


def test_every_row_has_its_name():
    assert all(name == task.name for name, task in TASKS.items())
