import functools

import keras
import numpy as np
import pytest

from carvana_tf.errors import UserError
from carvana_tf.models import registry
from carvana_tf.models.encoders import ENCODERS, NORMALISATIONS, normalise
from carvana_tf.models.registry import NETWORKS

# Smallest width that filters are scaled to in these tests.
SMALL = 0.125


def photos(height, width, channels=3, count=2):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (count, height, width, channels)).astype("float32")


@functools.cache
def small(name):
    """A network to look at, not to change."""
    keras.utils.set_random_seed(0)
    return registry.build(name, width=SMALL)


@pytest.fixture
def policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


class Networks:
    """What every network must do; a subclass names one."""

    name: str
    parameters: int
    stride: int

    @pytest.fixture
    def model(self):
        return small(self.name)

    def test_has_the_published_number_of_parameters(self):
        model = registry.build(self.name)
        assert model.count_params() == self.parameters
        assert model.name == self.name

    @pytest.mark.parametrize("rows, columns", [(1, 2), (3, 1)])
    def test_masks_any_multiple_of_the_stride(self, model, rows, columns):
        assert NETWORKS[self.name].stride == self.stride
        size = (rows * 32, columns * 32)
        mask = np.asarray(model(photos(*size)))
        assert mask.shape == (2, *size, 1)
        assert mask.dtype == np.float32
        assert mask.min() >= 0 and mask.max() <= 1
        assert mask.std() > 0

    def test_plain_keras_loads_it(self, model, tmp_path):
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        x = photos(32, 64)
        np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(model(x)))
        names = [layer.name for layer in model.layers]
        assert [layer.name for layer in loaded.layers] == names

    def test_ends_in_float32_under_half_precision(self, policy):
        policy("mixed_bfloat16")
        model = registry.build(self.name, width=SMALL)
        assert model.get_layer("logits").compute_dtype == "bfloat16"
        assert model.get_layer("mask").compute_dtype == "float32"
        assert all(v.dtype == "float32" for v in model.weights)
        mask = np.asarray(model(photos(32, 32)))
        assert mask.dtype == np.float32
        assert mask.min() >= 0 and mask.max() <= 1

    def test_learns_four_photos(self):
        keras.utils.set_random_seed(0)
        model = registry.build(self.name, width=SMALL)
        x = photos(32, 32, count=4)
        y = np.zeros((4, 32, 32, 1), "float32")
        y[:, 8:24, 8:24] = 1
        x[:, 8:24, 8:24] *= 0.2
        # Eager: six steps take less time than compiling one.
        adam = keras.optimizers.Adam(0.01)
        model.compile(adam, "binary_crossentropy", run_eagerly=True)
        losses = [float(model.train_on_batch(x, y)) for _ in range(6)]
        assert losses[-1] < 0.8 * losses[0]

    def test_freezes_what_lies_before_a_layer(self, model):
        fresh = registry.clone(model, lambda layer, config: None)
        registry.freeze(fresh, "input_1")
        assert all(layer.trainable for layer in fresh.layers)
        registry.freeze(fresh, "decoder_stage1_conv1")
        frozen = {layer.name for layer in fresh.layers if not layer.trainable}
        encoder = fresh.get_layer(ENCODERS[NETWORKS[self.name].encoder].skips[self.stride])
        assert encoder.name in frozen
        assert {layer.name for layer in registry.encoder_layers(fresh)} <= frozen
        assert not any(
            name.startswith(("decoder_stage1_conv", "decoder_stage2")) for name in frozen
        )
        registry.freeze(fresh, "ALL")
        assert not fresh.trainable_weights


class TestResNet50(Networks):
    name, parameters, stride = "resnet50", 33_817_729, 32


class TestMobileNet(Networks):
    name, parameters, stride = "mobilenet", 10_283_745, 32


class TestSimpleUnet(Networks):
    name, parameters, stride = "simple_unet", 2_543_617, 8


def test_every_network_is_tested():
    assert {test.name for test in Networks.__subclasses__()} == set(NETWORKS)


def test_simple_unet_takes_stacked_channels(tmp_path):
    assert registry.build("simple_unet", stacked_channels=10).count_params() == 2_546_497
    model = registry.build("simple_unet", stacked_channels=2, preprocessing="caffe", width=SMALL)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = photos(16, 8, channels=5)
    mask = np.asarray(model(x))
    np.testing.assert_array_equal(np.asarray(loaded(x)), mask)
    x[..., 4] = 0
    assert not np.array_equal(np.asarray(model(x)), mask)


def test_other_networks_refuse_stacked_channels():
    with pytest.raises(
        UserError, match=r"--stacked_channels=2: mobilenet .* --network=simple_unet"
    ):
        registry.build("mobilenet", stacked_channels=2)


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_normalises_as_keras_does(mode):
    x = photos(4, 5)
    expected = keras.applications.imagenet_utils.preprocess_input(
        x.copy(), mode=mode, data_format="channels_last"
    )
    np.testing.assert_allclose(np.asarray(_normalised(x, mode)), expected, atol=1e-4)


@pytest.mark.parametrize("mode", NORMALISATIONS)
def test_stacked_channels_are_scaled_apart(mode):
    x = photos(4, 5, channels=6)
    y = np.asarray(_normalised(x, mode))
    np.testing.assert_allclose(y[..., 3:], x[..., 3:] / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(y[..., :3], np.asarray(_normalised(x[..., :3], mode)))


def test_unit_is_zero_to_one():
    x = photos(4, 5)
    np.testing.assert_allclose(np.asarray(_normalised(x, "unit")), x / 255, atol=1e-6)


def test_normalises_in_float32_under_half_precision(policy):
    policy("mixed_bfloat16")
    x = photos(4, 5)
    y = np.asarray(_normalised(x, "tf"))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, x / 127.5 - 1, atol=1e-6)


def _normalised(x, mode):
    inputs = keras.Input((None, None, x.shape[-1]))
    outputs = normalise(inputs, mode, stacked_channels=x.shape[-1] - 3)
    return keras.Model(inputs, outputs)(x)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "mobilnet"}, "--network 'mobilnet' is unknown. Did you mean 'mobilenet'"),
        ({"name": "mobilenet", "preprocessing": "cafe"}, "Did you mean 'caffe'"),
        ({"name": "mobilenet", "alpha": 0.3}, "--alpha=0.3 .* 0.25, 0.5, 0.75, 1.0"),
        ({"name": "resnet50", "alpha": 0.5}, "--alpha=0.5 .* resnet50; it comes in 1.0 only"),
    ],
)
def test_build_explains_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        registry.build(**arguments)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_alpha_narrows_the_encoder_alone(alpha):
    model = registry.build("mobilenet", alpha=alpha)
    expected = keras.applications.MobileNet(include_top=False, weights=None, alpha=alpha)
    counted = sum(layer.count_params() for layer in registry.encoder_layers(model))
    assert counted == expected.count_params()
    assert model.get_layer("decoder_stage1_conv1").filters == 256


def test_width_spares_an_encoder_whose_alpha_was_given():
    model = registry.build("mobilenet", alpha=0.5, width=SMALL)
    assert model.get_layer("conv_pw_13").filters == 512
    assert model.get_layer("decoder_stage1_conv1").filters == 32
    assert model.get_layer("decoder_stage5_conv2").filters == 8
    assert registry.build("mobilenet", width=SMALL).get_layer("conv_pw_13").filters == 256


@pytest.mark.parametrize("name", ["mobilenet", "resnet50"])
def test_features_have_their_strides(name):
    model = small(name)
    skips = ENCODERS[name].skips
    features = keras.Model(
        model.input, {str(s): model.get_layer(n).output for s, n in skips.items()}
    )
    for stride, value in features(photos(64, 96)).items():
        assert value.shape[1:3] == (64 // int(stride), 96 // int(stride))


def test_encoder_layers_survive_a_reload(tmp_path):
    model = small("resnet50")
    names = [layer.name for layer in registry.encoder_layers(model)]
    reference = keras.applications.ResNet50(include_top=False, weights=None)
    assert set(names) == {layer.name for layer in reference.layers[1:]}
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [layer.name for layer in registry.encoder_layers(loaded)] == names
    assert [layer.name for layer in registry.branch_layers(loaded)] == [
        "block1_conv1",
        "block1_conv2",
    ]


def test_a_network_from_scratch_has_no_pretrained_layers():
    model = small("simple_unet")
    assert registry.encoder_layers(model) == []
    assert registry.branch_layers(model) == []


def test_freeze_suggests_a_layer():
    model = small("simple_unet")
    with pytest.raises(UserError, match=r"'botleneck_conv1'.*Did you mean 'bottleneck_conv1'"):
        registry.freeze(model, "botleneck_conv1")
    assert all(layer.trainable for layer in model.layers)


def test_a_foreign_model_has_no_row():
    inputs = keras.Input((8, 8, 3))
    with pytest.raises(UserError, match="'mine' is unknown"):
        registry.encoder_layers(keras.Model(inputs, inputs, name="mine"))
