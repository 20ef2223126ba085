"""Photos of different sizes, whole and one at a time, in training and validation."""

import dataclasses

import keras
import numpy as np
import pytest
from conftest import draw_pair, write_palette_gif

from carvana_tf.data.dataset import find_samples
from carvana_tf.data.images import write_photo
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.presets import PRESETS
from carvana_tf.data.resizing import Resizer
from carvana_tf.models import networks, registry
from carvana_tf.models.options import ModelOptions
from carvana_tf.tasks import MASKS
from carvana_tf.tasks.masks import losses, read_pair
from carvana_tf.tasks.masks.metrics import photo_metrics
from carvana_tf.training import optimizers, trainer
from carvana_tf.training.loop import TrainingPlan, train
from carvana_tf.training.options import OptimizerOptions
from carvana_tf.training.replay import EVERY
from carvana_tf.training.validation import validate

SIZES = [(40, 56), (40, 56), (56, 40), (33, 70), (64, 64), (20, 90)]
PAD = Resizer("pad", 0, 0, 8)


@pytest.fixture
def samples(tmp_path):
    """The first two are of equal size, as the two from which Keras takes sizes might be."""
    for number, size in enumerate(SIZES):
        photo, mask = draw_pair(*size, number)
        for folder in ("train", "train_masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        write_photo(tmp_path / "train" / f"car{number}_01.jpg", photo)
        write_palette_gif(tmp_path / "train_masks" / f"car{number}_01_mask.gif", mask)
    return find_samples(tmp_path / "train", tmp_path / "train_masks")


def bilinear_network():
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    photo = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(photo)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="tanh")(x)
    x = keras.layers.BatchNormalization(momentum=0.5)(x)
    x = keras.layers.UpSampling2D(2, interpolation="bilinear")(x)
    return keras.Model(photo, keras.layers.Conv2D(1, 1, activation="sigmoid")(x))


def training_set(samples):
    return TrainingSet(samples, PAD, PRESETS["default"], MASKS, batch_size=1, seed=1, cache="none")


@pytest.mark.parametrize("replay", [False, True])
def test_training_takes_each_photo_at_its_own_size(samples, tmp_path, replay):
    network, steps = bilinear_network(), 2 * EVERY
    (tmp_path / "run").mkdir()
    plan = TrainingPlan(
        network=network,
        optimizer=lambda start: optimizers.build(OptimizerOptions("sgd"), 0.1),
        task=MASKS,
        loss=losses.get("bce_dice"),
        training=training_set(samples),
        validation=samples,
        epochs=2,
        steps_per_epoch=EVERY,
        validate_every=1,
        monitor="val_dice",
        patience=0,
        threads=2,
        folder=tmp_path / "run",
        save_model=lambda path, scores: None,
        replay=replay,
    )
    progress = train(plan)

    expected, batches = bilinear_network(), training_set(samples)
    model = trainer.build(expected)
    model.compile(
        optimizers.build(OptimizerOptions("sgd"), 0.1),
        loss=lambda t, p: losses.get("bce_dice")(t, p),
    )
    values = []
    for step in range(steps):
        values.append(float(model.train_on_batch(*batches.batch(step))))
        model.reset_metrics()
        if replay and (step + 1) % EVERY == 0:
            worst = step + 1 - EVERY + int(np.argmax(values[-EVERY:]))
            model.train_on_batch(*batches.batch(worst))
            model.reset_metrics()
    assert len({batches.batch(step)[0].shape for step in range(steps)}) > 3
    mean = [row["loss"] for row in progress.rows]
    np.testing.assert_allclose(mean, np.reshape(values, (2, EVERY)).mean(1), rtol=1e-5)
    for weight, other in zip(network.weights, expected.weights, strict=True):
        np.testing.assert_allclose(np.array(weight), np.array(other), atol=1e-5)
    scores = [photo_scores(network, sample) for sample in samples]
    assert progress.rows[-1]["val_dice"] == pytest.approx(np.mean(scores), abs=1e-5)


def photo_scores(network, sample):
    """Dice of one photo by a call of the network, without a graph."""
    photo, mask = read_pair(sample)
    output = np.asarray(network(PAD.whole(photo)[None].astype(np.float32)))[0, ..., 0]
    return photo_metrics(mask, PAD.restore(output, *mask.shape))["dice"]


@pytest.mark.parametrize("name", ["vgg11v2", "unet_scratch"])
def test_networks_with_bilinear_upsampling_validate(samples, name):
    keras.utils.clear_session()
    network = registry.build(ModelOptions(name), width=0.03)
    resizer = dataclasses.replace(PAD, stride=networks.find(name).stride)
    scores = validate(trainer.build(network), samples, resizer, losses.get("bce_dice"), MASKS)
    assert np.isfinite(scores["loss"])


def test_equal_sizes_keep_their_graph(samples):
    assert not training_set(samples[:2]).mixed_sizes
    assert training_set(samples).mixed_sizes
    resized = Resizer("resize", 24, 32, 8)
    batches = TrainingSet(samples, resized, PRESETS["default"], MASKS, batch_size=2, seed=1)
    assert not batches.mixed_sizes
