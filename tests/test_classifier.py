"""Classifiers, and what SE-ResNet computes, against NumPy."""

import math

import keras
import numpy as np
import pytest
from keras.src.backend.common import global_state

from carvana_tf.errors import UserError
from carvana_tf.models import classifier, model_file, registry
from carvana_tf.models.networks import check_pooling
from carvana_tf.models.options import ModelOptions
from carvana_tf.models.weights import load_into

SMALL = 0.125


def photos(height, width, channels=3, count=2):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (count, height, width, channels)).astype("float32")


def small(name="seresnet50", classes=3, pooling="average", **options):
    keras.utils.set_random_seed(0)
    return classifier.build(ModelOptions(name, **options), classes, pooling=pooling, width=SMALL)


@pytest.fixture(scope="module")
def published():
    """A network to look at, not to change."""
    return small(pooling="published")


@pytest.fixture(scope="module")
def padded():
    """A network to look at, not to change."""
    return small()


def values(model, names, x):
    """Outputs of some layers by name, as float64."""
    outputs = keras.Model(model.input, {name: model.get_layer(name).output for name in names})(x)
    return {name: np.asarray(outputs[name]).astype(np.float64) for name in names}


def test_seresnet101_has_the_published_number_of_parameters():
    with keras.StatelessScope(initialize_variables=False):
        model = classifier.build(ModelOptions("seresnet101"), 10)
    global_state.set_global_attribute("uninitialized_variables", [])
    head = model.get_layer("logits")
    assert head.kernel.shape == (2048, 10)
    trainable = sum(math.prod(v.shape) for x in model.layers for v in x.trainable_weights)
    assert trainable - sum(math.prod(v.shape) for v in head.weights) == 47_277_872


def test_the_stride_is_in_the_first_1x1_convolution(padded):
    strided = {x.name for x in padded.layers if getattr(x, "strides", (1, 1)) == (2, 2)}
    firsts = {f"conv{stage}_block1_{n}_conv" for stage in (3, 4, 5) for n in (0, 1)}
    assert strided == {"conv1_conv", "pool1_pool"} | firsts
    convolutions = [x for x in padded.layers if x.name.endswith("_conv")]
    assert not any(layer.use_bias for layer in convolutions)
    assert padded.get_layer("conv3_block1_1_conv").kernel_size == (1, 1)
    norms = [x for x in padded.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {layer.epsilon for layer in norms} == {1e-5}


def test_channels_are_weighted_before_the_addition(padded):
    block = "conv3_block2"
    parts = ("3_bn", "se_excite", "add", "out")
    names = ["conv3_block1_out", *(f"{block}_{part}" for part in parts)]
    found = values(padded, names, photos(64, 96))
    shortcut, inner, excited, added, out = found.values()
    reduce, expand = (padded.get_layer(f"{block}_se_{part}") for part in ("reduce", "expand"))
    assert reduce.kernel.shape == (1, 1, 64, 4)
    (k1, b1), (k2, b2) = ([v.squeeze() for v in x.get_weights()] for x in (reduce, expand))
    hidden = np.maximum(inner.mean((1, 2)) @ k1 + b1, 0)
    share = 1 / (1 + np.exp(-(hidden @ k2 + b2)))
    assert share.std() > 0
    np.testing.assert_allclose(excited, inner * share[:, None, None], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(added, shortcut + excited, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out, np.maximum(added, 0), atol=1e-6)


def test_kernels_are_drawn_by_fan_out():
    keras.utils.set_random_seed(0)
    model = classifier.build(ModelOptions("seresnet50"), 3, width=0.5)
    for name, fan in (("conv1_conv", 49 * 32), ("conv4_block1_2_conv", 9 * 128)):
        kernel = np.asarray(model.get_layer(name).kernel)
        assert kernel.std() == pytest.approx(math.sqrt(2 / fan), rel=0.05)


def test_the_published_pooling_sees_the_upper_left_of_the_last_map(published):
    assert published.get_layer("pool1_pool").output.shape[1:] == (None, None, 8)
    x = photos(224, 224)
    names = ["pool1_pool", "conv2_block3_out", "conv5_block3_out", "pooling", "logits"]
    stem, second, last, vector, logits = values(published, names, x).values()
    assert stem.shape[1:3] == second.shape[1:3] == (55, 55)
    assert last.shape[1:3] == (7, 7)
    np.testing.assert_allclose(vector, last[:, :5, :5].mean((1, 2)), rtol=1e-4, atol=1e-6)
    kernel, bias = published.get_layer("logits").get_weights()
    np.testing.assert_allclose(logits, vector @ kernel + bias, rtol=1e-4, atol=1e-4)


def test_the_average_sees_the_whole_of_it(padded):
    names = ["pool1_pool", "conv5_block3_out", "pooling"]
    stem, last, vector = values(padded, names, photos(224, 96)).values()
    assert stem.shape[1:3] == (56, 24)
    np.testing.assert_allclose(vector, last.mean((1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", [128, 160, 288, 320])
def test_sizes_of_the_published_pooling_are_those_of_one_window(published, side):
    """One of 5x5, one every 5 pixels; all else is refused."""
    name = "conv5_block3_out"
    last = values(published, [name], photos(side, 64, count=1))[name]
    if last.shape[1] // 5 == 1:
        check_pooling("seresnet50", "published", (side, 224))
        return
    with pytest.raises(UserError, match=f"from 160 to 288 .* not of 224x{side}; change --input_"):
        check_pooling("seresnet50", "published", (224, side))


@pytest.mark.parametrize(
    ("network", "pooling", "options", "message"),
    [
        ("resnet50", "published", {}, "is of --network=seresnet50 and seresnet101, not of resnet5"),
        ("seresnet50", "publish", {}, "--pooling 'publish' is unknown. Did you mean 'published'"),
        (
            "mobilenet",
            "average",
            {"decoder": "unet"},
            "--decoder=unet: classifiers have none|no de",
        ),
        ("mobilenet", "average", {"alpha": 0.3}, "--alpha=0.3 .* 0.25, 0.5, 0.75, 1.0"),
    ],
)
def test_mistakes_are_explained(network, pooling, options, message):
    with pytest.raises(UserError, match=message):
        classifier.build(ModelOptions(network, **options), 3, pooling=pooling)


def test_model_files_hold_it(published, tmp_path):
    path = model_file.save(published, tmp_path / "model", {"stride": 32, "task": "labels"})
    x = photos(224, 160, count=1)
    loaded, _ = model_file.load(path)  # by plain Keras
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(published(x)))


# Every network's encoder gets a head in test_networks.py.
@pytest.mark.parametrize(
    ("name", "channels", "options"),
    [
        ("mobilenet", 5, {"stacked_channels": 2}),
        ("simple_unet", 4, {"photo_channels": 1, "stacked_channels": 1}),
    ],
)
def test_learns_labels(name, channels, options):
    keras.utils.set_random_seed(0)
    model = classifier.build(ModelOptions(name, **options), 3, dropout=0.1, width=SMALL)
    assert model.name == name
    assert model.input_shape == (None, None, None, channels)
    assert model.get_layer("dropout").rate == 0.1
    x, y = photos(32, 32, channels, count=4), np.float32([[1, 0, 0], [0, 1, 1]] * 2)
    x[::2] *= 0.3
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    # Eager: these steps take less time than compiling one.
    model.compile(keras.optimizers.Adam(0.003), loss, run_eagerly=True)
    losses = [float(model.train_on_batch(x, y)) for _ in range(5)]
    assert losses[-1] < losses[0], losses


def test_logits_are_float32_under_half_precision(padded):
    half = model_file.with_policy(padded, "mixed_bfloat16")
    assert half.get_layer("conv5_block3_out").compute_dtype == "bfloat16"
    x = photos(64, 64)
    logits = np.asarray(half(x))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, np.asarray(padded(x)), atol=0.2)


def test_an_encoder_of_a_file_fits_and_the_rest_is_named(tmp_path):
    network = registry.build(ModelOptions("mobilenet"), width=SMALL)
    encoder = keras.Model(network.input, network.get_layer("conv_pw_13_relu").output)
    encoder.save_weights(tmp_path / "encoder.weights.h5")
    model = small("mobilenet")
    report = load_into(model, tmp_path / "encoder.weights.h5")
    assert report.unmatched_in_model == ("logits",)
    assert "1 only in the network (logits)" in str(report)
    assert set(report.matched) == {x.name for x in registry.encoder_layers(model) if x.weights}
    for name in report.matched:
        for found, expected in zip(
            model.get_layer(name).get_weights(), network.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    # A whole network, or a classifier of other labels, is taken in part where that is allowed.
    network.save_weights(tmp_path / "network.weights.h5")
    small("mobilenet", classes=4).save_weights(tmp_path / "labels.weights.h5")
    for source, reason in (
        ("network", "logits 1x1x8x1 1 in the file, 256x3 3 in the network"),
        ("labels", "logits 256x4 4 in the file, 256x3 3 in the network"),
    ):
        with pytest.raises(UserError, match=f"have other shapes .{reason}.*--allow_partial_weigh"):
            load_into(model, tmp_path / f"{source}.weights.h5")
        partial = load_into(model, tmp_path / f"{source}.weights.h5", allow_partial=True)
        assert partial.matched == report.matched
