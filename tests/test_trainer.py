"""The trainer computes faster what the network's own layers compute, and nothing else."""

import gc

import keras
import numpy as np
import pytest
from processes import run_apart

from carvana_tf import devices
from carvana_tf.models import model_file, registry
from carvana_tf.models.options import ModelOptions
from carvana_tf.tasks.masks import losses
from carvana_tf.training import trainer

pytestmark = pytest.mark.skipif(
    not devices.has_fused_operations(), reason="the backend has no fused operations"
)
RANDOM = np.random.default_rng(0)
PHOTOS = RANDOM.integers(0, 256, (3, 64, 64, 3), np.uint8)
MASKS = (RANDOM.random((3, 64, 64, 1)) > 0.5).astype(np.float32)


def compiled(network, fuse, rate=0.05):
    model = trainer.build(network, fuse=fuse)
    loss = losses.get("bce_dice")
    model.compile(keras.optimizers.SGD(rate), loss=lambda t, p: loss(t, p))
    return model


def build(name, **settings):
    keras.utils.clear_session()
    keras.utils.set_random_seed(4)
    return registry.build(ModelOptions(name, **settings), width=0.125)


def normalised(inputs=(None, None, 4), dtype=None, **settings):
    """A network of one batch normalisation, and its layer."""
    photo = keras.Input(inputs)
    layer = keras.layers.BatchNormalization(dtype=dtype, **settings)
    return keras.Model(photo, layer(photo)), layer


def arrays(values):
    return [np.array(keras.ops.convert_to_numpy(value), np.float32) for value in values]


def has_fused(model):
    kinds = (trainer.FusedBatchNormalization, trainer.FusedUpSampling2D)
    return any(isinstance(layer, kinds) for layer in model.layers)


def smooth_unet():
    """Without ReLU and maxima, where a rounding error decides which way a gradient goes."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(4)
    photo = keras.Input((None, None, 3))
    full = x = keras.layers.Rescaling(1 / 127.5, -1.0)(photo)
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same")(x)
        x = keras.layers.BatchNormalization(scale=filters == 8)(x)
        x = keras.layers.Activation("tanh")(x)
    x = keras.layers.SpatialDropout2D(0.2)(x)
    for filters in (8, 4):
        x = keras.layers.UpSampling2D(2)(x)
        x = keras.layers.Conv2D(filters, 3, padding="same")(x)
        x = keras.layers.BatchNormalization(momentum=0.8)(x)
        x = keras.layers.Activation("tanh")(x)
    x = keras.layers.Concatenate()([x, full])
    return keras.Model(photo, keras.layers.Conv2D(1, 1, activation="sigmoid")(x))


def trained(network, fuse, rate):
    model = compiled(network, fuse, rate)
    assert has_fused(model) == fuse
    values = [float(model.train_on_batch(PHOTOS, MASKS)) for _ in range(5)]
    return values, arrays(network.weights)


def test_training_is_the_same():
    first = arrays(smooth_unet().weights)
    plain, weights = trained(smooth_unet(), False, 0.5)
    fused, fused_weights = trained(smooth_unet(), True, 0.5)
    assert fused == pytest.approx(plain, rel=1e-5)
    for start, expected, value in zip(first, weights, fused_weights, strict=True):
        moved = np.abs(expected - start).max()
        np.testing.assert_allclose(value, expected, atol=1e-4 * moved + 1e-6)
    assert max(np.abs(a - b).max() for a, b in zip(first, weights, strict=True)) > 0.05


def test_it_has_the_networks_own_variables():
    network = build("mobilenet")
    model = trainer.build(network)
    assert [id(v) for v in model.variables] == [id(v) for v in network.variables]
    assert [id(v) for v in model.trainable_variables] == [
        id(v) for v in network.trainable_variables
    ]


def test_what_is_saved_is_keras_own(tmp_path):
    """Also after a second trainer was built, as when frozen layers are released."""
    network = build("simple_unet", stacked_channels=1)
    trainer.build(network)
    photos = np.concatenate([PHOTOS, PHOTOS[..., :1]], -1)
    before = arrays(network.weights)
    compiled(network, True).train_on_batch(photos, MASKS)
    assert all((a != b).any() for a, b in zip(before, arrays(network.weights), strict=True))
    path = model_file.save(network, tmp_path / "net.keras", {})
    loaded = keras.saving.load_model(path)
    assert not has_fused(loaded)
    np.testing.assert_array_equal(loaded.predict_on_batch(photos), network.predict_on_batch(photos))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": False, "momentum": 0.9},
        {"center": False, "epsilon": 1e-5},
        {"axis": 3, "momentum": 0.5},
    ],
)
@pytest.mark.parametrize("shape", [(2, 5, 7, 4), (1, 1, 1, 4), (1, 1, 2, 4)])
def test_statistics_and_outputs_are_those_of_keras(settings, shape):
    inputs = RANDOM.normal(3, 5, shape).astype(np.float32)
    results = []
    for fuse in (False, True):
        network, layer = normalised(**settings)
        outputs = trainer.build(network, fuse=fuse)(inputs, training=True)
        results.append(arrays([outputs, layer.moving_mean, layer.moving_variance]))
    for expected, value in zip(*results, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_statistics_are_float32_under_mixed_precision(dtype):
    inputs = RANDOM.normal(3, 5, (4, 16, 16, 4)).astype(np.float32)
    results = []
    for fuse in (False, True):
        network, layer = normalised(dtype=dtype, momentum=0.0)
        outputs = trainer.build(network, fuse=fuse)(inputs, training=True)
        assert outputs.dtype == dtype.removeprefix("mixed_")
        results.append(arrays([outputs, layer.moving_mean, layer.moving_variance]))
    (plain, *averages), (fused, *fused_averages) = results
    for expected, value in zip(averages, fused_averages, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(fused, plain, atol=0.02)


def test_frozen_layers_use_their_averages_and_keep_them():
    network, layer = normalised()
    layer.set_weights([np.full(4, n, np.float32) for n in (2, 1, 3, 4)])
    layer.trainable = False
    before = arrays(layer.weights)
    model = trainer.build(network)
    inputs = RANDOM.normal(3, 5, (2, 8, 8, 4)).astype(np.float32)
    expected = 2 * (inputs - 3) / np.sqrt(4 + layer.epsilon) + 1
    for training in (True, False):
        np.testing.assert_allclose(model(inputs, training=training), expected, atol=1e-5)
    assert not model.trainable_variables
    for a, b in zip(before, arrays(layer.weights), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_training_the_averages_are_used():
    network, layer = normalised()
    before = arrays(layer.weights)
    inputs = RANDOM.normal(3, 5, (2, 8, 8, 4)).astype(np.float32)
    model = trainer.build(network)
    for outputs in (model(inputs), model(inputs, training=False)):
        np.testing.assert_allclose(outputs, network(inputs, training=False), atol=1e-6)
    for a, b in zip(before, arrays(layer.weights), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.UpSampling2D(3),
        keras.layers.UpSampling2D(2, interpolation="bilinear"),
        keras.layers.BatchNormalization(axis=1),
        keras.layers.BatchNormalization(renorm=True),
        keras.layers.BatchNormalization(activity_regularizer="l2"),
    ],
)
def test_other_layers_stay_as_they_are(layer):
    photo = keras.Input((8, 8, 4))
    assert not has_fused(trainer.build(keras.Model(photo, layer(photo))))


def test_batch_normalisation_of_vectors_stays_as_it_is():
    network, _ = normalised((4,))
    assert not has_fused(trainer.build(network))


def test_without_fused_operations_the_layers_are_kerass(monkeypatch):
    monkeypatch.setattr(devices, "has_fused_operations", lambda: False)
    network = build("simple_unet")
    assert trainer.build(network).layers[1:] == network.layers[1:]  # the first is the input


def narrow_network(channels=8, **settings):
    """A strided 1x1 convolution, as in the shortcuts of a ResNet."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(4)
    photo = keras.Input((None, None, channels))
    return keras.Model(photo, keras.layers.Conv2D(16, 1, **settings)(photo))


@pytest.mark.parametrize("height, width", [(8, 12), (7, 9), (1, 2)])
@pytest.mark.parametrize(
    "settings",
    [
        {"strides": 2},
        {"strides": (1, 3), "padding": "same", "use_bias": False},
        {"strides": (3, 2), "padding": "same", "activation": "relu", "dtype": "mixed_bfloat16"},
    ],
)
def test_narrow_strided_convolutions_compute_the_same(settings, height, width):
    photos = RANDOM.normal(0, 1, (2, height, width, 8)).astype(np.float32)
    network = narrow_network(**settings)
    model = trainer.build(network)
    assert isinstance(model.layers[-1], trainer.SubsampledConv2D)
    expected = np.asarray(network(photos), np.float32)
    outputs = model(photos)
    assert outputs.shape == expected.shape
    assert outputs.dtype == network.output.dtype
    np.testing.assert_allclose(np.asarray(outputs, np.float32), expected, rtol=1e-2, atol=1e-5)


def test_other_convolutions_stay_as_they_are():
    for settings in ({"channels": 16, "strides": 2}, {"strides": 1}):
        network = narrow_network(**settings)
        assert trainer.build(network).layers[-1] is network.layers[-1]


def take_narrow_steps():
    """At a size where oneDNN writes far past its buffer; see docs/upstream.md."""
    photos = RANDOM.normal(0, 1, (2, 160, 240, 8)).astype(np.float32)
    network = narrow_network(strides=2)
    model = trainer.build(network)
    model.compile("sgd", "mse")
    kernel = network.layers[-1].kernel.numpy()
    error = network(photos).numpy()
    model.train_on_batch(photos, np.zeros_like(error))
    gradient = np.einsum("bhwi,bhwo->io", photos[:, ::2, ::2], error) * 2 / error.size
    moved = (kernel - network.layers[-1].kernel.numpy())[0, 0]
    np.testing.assert_allclose(moved, 0.01 * gradient, rtol=1e-3, atol=1e-6)
    for _ in range(3):
        model.train_on_batch(photos, np.zeros_like(error))


def test_narrow_strided_convolutions_train(tmp_path):
    run_apart("a narrow convolution", tmp_path / "log", take_narrow_steps)


@pytest.fixture
def slow_gradients(monkeypatch):
    monkeypatch.setattr(devices, "has_slow_kernel_gradients", lambda: True)


def convolution(channels, filters=32, kernel_size=3, padding="same", **settings):
    keras.utils.clear_session()
    keras.utils.set_random_seed(4)
    photo = keras.Input((None, None, channels))
    layer = keras.layers.Conv2D(filters, kernel_size, padding=padding, **settings)
    return keras.Model(photo, layer(photo))


@pytest.mark.parametrize("size", [(9, 12), (1, 2), (2, 1)])
@pytest.mark.parametrize(
    "settings",
    [
        {"channels": 3},
        {"channels": 48, "filters": 5, "kernel_size": (3, 5)},
        {"channels": 32, "kernel_size": (5, 1), "use_bias": False, "activation": "tanh"},
    ],
)
def test_convolutions_by_matrix_products_compute_the_same(slow_gradients, settings, size):
    import tensorflow as tf

    network = convolution(**settings)
    photos = tf.constant(RANDOM.normal(0, 1, (2, *size, settings["channels"])), tf.float32)
    targets = tf.constant(RANDOM.normal(0, 1, network(photos).shape), tf.float32)
    results = []
    for fuse in (False, True):
        model = trainer.build(network, fuse=fuse)
        assert isinstance(model.layers[-1], trainer.MatmulGradientConv2D) == fuse
        with tf.GradientTape() as tape:
            tape.watch(photos)
            outputs = model(photos)
            loss = tf.reduce_sum(outputs * targets)
        gradients = tape.gradient(loss, [photos, *model.trainable_variables])
        results.append([outputs, *gradients])
    for expected, value in zip(*map(arrays, results), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"channels": 16, "filters": 16},
        {"channels": 32, "kernel_size": 1},
        {"channels": 32, "kernel_size": (2, 3)},
        {"channels": 32, "strides": 2},
        {"channels": 32, "dilation_rate": 2},
        {"channels": 32, "groups": 2},
        {"channels": 32, "padding": "valid"},
        {"channels": 32, "dtype": "mixed_bfloat16"},
        {"channels": 32, "activity_regularizer": "l2"},
    ],
)
def test_convolutions_that_gain_nothing_stay_as_they_are(slow_gradients, settings):
    network = convolution(**settings)
    assert trainer.build(network).layers[-1] is network.layers[-1]


def test_frozen_convolutions_by_matrix_products_are_not_trained(slow_gradients):
    network = convolution(32)
    network.layers[-1].trainable = False
    assert not trainer.build(network).trainable_variables


@pytest.mark.parametrize(
    "flags, slow", [({"avx2"}, True), ({"avx2", "avx512f"}, False), (set(), False)]
)
def test_which_processors_have_slow_gradients(monkeypatch, flags, slow):
    monkeypatch.setattr(devices, "processor_flags", lambda: flags)
    assert devices.has_slow_kernel_gradients() == slow
    monkeypatch.setattr(devices, "has_fused_operations", lambda: False)
    assert not devices.has_slow_kernel_gradients()


def test_a_finished_training_keeps_no_variables():
    import tensorflow as tf

    def handles():
        keras.utils.clear_session()
        gc.collect()
        found = [x for x in gc.get_objects() if type(x).__name__ == "EagerTensor"]
        return sum(tensor.dtype == tf.resource for tensor in found)

    before = handles()
    with devices.forgotten_gradients():
        network = build("simple_unet")
        compiled(network, True).train_on_batch(PHOTOS, MASKS)
        assert handles() > before
    del network
    assert handles() <= before


def test_doubling_and_its_gradient():
    import tensorflow as tf

    inputs = tf.constant(RANDOM.normal(0, 1, (2, 5, 7, 3)).astype(np.float32))
    weights = RANDOM.normal(0, 1, (2, 10, 14, 3)).astype(np.float32)
    results = []
    for double in (keras.layers.UpSampling2D(2), devices.double_size):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = double(inputs)
            total = tf.reduce_sum(outputs * weights)
        results.append((outputs, tape.gradient(total, inputs)))
    np.testing.assert_array_equal(results[1][0], results[0][0])
    np.testing.assert_allclose(results[1][1], results[0][1], atol=1e-6)
