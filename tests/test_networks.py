import functools
import math
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.src.backend.common import global_state
from processes import run_apart

from carvana_tf import devices
from carvana_tf.errors import UserError
from carvana_tf.models import builders, classifier, model_file, registry
from carvana_tf.models.builders import feature
from carvana_tf.models.encoders import ENCODERS, NORMALISATIONS
from carvana_tf.models.inputs import normalise
from carvana_tf.models.networks import NETWORKS
from carvana_tf.models.options import ModelOptions
from carvana_tf.tasks.masks import losses
from carvana_tf.training import optimizers, trainer
from carvana_tf.training.options import OptimizerOptions

# Smallest width that filters are scaled to in these tests.
SMALL = 0.125
RECIPES = Path(__file__).parents[1] / "recipes"
NETWORKS_OF_RECIPES = {
    line.removeprefix("--network=")
    for path in RECIPES.glob("*.flags")
    for line in path.read_text().splitlines()
    if line.startswith("--network=")
}
"""Those that `test_recipes.py` trains in graph mode."""
LARGE = "sgd", 1.0
"""How a network of many variables learns: Adam has ten operations for each."""


def photos(height, width, channels=3, count=2):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 255, (count, height, width, channels)).astype("float32")


@functools.cache
def small(name):
    """A network to look at, not to change."""
    keras.utils.set_random_seed(0)
    return registry.build(ModelOptions(name), width=SMALL)


def unfilled(name, width=1.0):
    """A network whose weights have shapes and no values, which would take seconds to draw."""
    with keras.StatelessScope(initialize_variables=False):
        model = registry.build(ModelOptions(name), width=width)
    global_state.set_global_attribute("uninitialized_variables", [])
    return model


@pytest.fixture
def policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def dark_squares(count, height, width, channels):
    """Noise with a darker square in the middle, and the masks of the squares."""
    x = photos(height, width, channels, count)
    y = np.zeros((count, height, width, 1), "float32")
    square = np.s_[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    y[square] = 1
    x[square] *= 0.2
    return x, y


def learn(name, optimizer, rate, steps):
    """Takes steps without a graph, and fails where the loss does not fall."""
    keras.utils.set_random_seed(0)
    model = registry.build(ModelOptions(name), width=SMALL)
    side = smallest(NETWORKS[name].stride)
    x, y = dark_squares(4, side, side, model.input_shape[-1])
    model.compile(
        optimizers.build(OptimizerOptions(optimizer), rate),
        loss="binary_crossentropy",
        run_eagerly=True,
    )
    values = [float(model.train_on_batch(x, y)) for _ in range(steps)]
    assert values[-1] < 0.8 * values[0], values


def learn_in_graph_mode(name, optimizer, rate):
    """Takes steps as `train.py` does, and fails where the loss does not fall.

    The photos are large enough for damaged memory to show.
    """
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(devices.compute_dtype("auto"))
    network = registry.build(ModelOptions(name), width=SMALL)
    stride = NETWORKS[name].stride
    x, y = dark_squares(2, max(128, 2 * stride), max(192, 3 * stride), network.input_shape[-1])
    model = trainer.build(network)
    model.compile(
        optimizers.build(OptimizerOptions(optimizer), rate),
        loss=lambda t, p: losses.get("crossentropy")(t, p),
    )
    model.optimizer.build(model.trainable_variables)  # as the loop does: else it is traced twice
    values = [float(model.train_on_batch(x, y)) for _ in range(6)]
    assert values[-1] < 0.8 * values[0], values


def smallest(stride):
    """A small height that every network of this stride takes."""
    return max(32, stride)


class Networks:
    """What every network must do; a subclass names one.

    `parameters` counts all, `trainable` what training changes: moving averages are none.
    """

    name: str
    parameters: int
    trainable: int
    stride: int
    learning = "adam", 0.01
    eager_steps = 6

    @pytest.fixture
    def model(self):
        model = small(self.name)
        yield model
        for layer in model.layers:
            layer.trainable = True

    @property
    def side(self):
        return smallest(self.stride)

    def test_has_the_published_number_of_parameters(self):
        model = unfilled(self.name)
        assert model.name == self.name
        if hasattr(self, "parameters"):
            assert model.count_params() == self.parameters
        if hasattr(self, "trainable"):
            assert sum(math.prod(v.shape) for v in model.trainable_weights) == self.trainable
        assert hasattr(self, "parameters") or hasattr(self, "trainable")

    @pytest.mark.parametrize("rows, columns", [(1, 2), (3, 1)])
    def test_masks_any_multiple_of_the_stride(self, model, rows, columns):
        assert NETWORKS[self.name].stride == self.stride
        size = (rows * self.side, columns * self.side)
        mask = np.asarray(model(photos(*size)))
        assert mask.shape == (2, *size, 1)
        assert mask.dtype == np.float32
        assert mask.min() >= 0 and mask.max() <= 1
        assert mask.std() > 0

    def test_skips_have_their_strides(self, model):
        skips = ENCODERS[NETWORKS[self.name].encoder].skips
        features = keras.Model(
            model.input, {str(s): feature(model, skip) for s, skip in skips.items()}
        )
        height, width = self.side, 3 * self.side
        for stride, value in features(photos(height, width, count=1)).items():
            assert value.shape[1:3] == (height // int(stride), width // int(stride))

    def test_plain_keras_loads_it(self, model, tmp_path):
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        x = photos(self.side, 2 * self.side, count=1)
        np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(model(x)))
        names = [layer.name for layer in model.layers]
        assert [layer.name for layer in loaded.layers] == names

    def test_ends_in_float32_under_half_precision(self, model):
        half = model_file.with_policy(model, "mixed_bfloat16")
        assert half.get_layer("logits").compute_dtype == "bfloat16"
        assert half.get_layer("mask").compute_dtype == "float32"
        assert all(v.dtype == "float32" for v in half.weights)
        mask = np.asarray(half(photos(self.side, self.side)))
        assert mask.dtype == np.float32
        assert mask.min() >= 0 and mask.max() <= 1

    def test_learns(self, tmp_path):
        """In a process of its own: a crash names the network, and ends no worker."""
        if self.name in NETWORKS_OF_RECIPES:  # which test_recipes.py trains in graph mode
            run_apart(
                self.name, tmp_path / "log", learn, self.name, *self.learning, self.eager_steps
            )
        else:
            run_apart(self.name, tmp_path / "log", learn_in_graph_mode, self.name, *self.learning)

    def test_its_encoder_makes_a_classifier(self, model, monkeypatch):
        # The encoder at hand: to build each once more would take a minute in all.
        monkeypatch.setattr(builders, "build", lambda *_: model)
        made = classifier.build(ModelOptions(self.name), 5)
        assert made.output_shape == (None, 5)
        deepest = feature(model, ENCODERS[NETWORKS[self.name].encoder].skips[self.stride])
        assert made.get_layer("logits").kernel.shape == (deepest.shape[-1], 5)
        assert registry.encoder_layers(made) == registry.encoder_layers(model)
        assert not any(layer.name.startswith("decoder") for layer in made.layers)

    def test_freezes_what_lies_before_a_layer(self, model):
        registry.freeze(model, "input_1")
        assert all(layer.trainable for layer in model.layers)
        registry.freeze(model, "decoder_stage1_conv1")
        frozen = {layer.name for layer in model.layers if not layer.trainable}
        encoder = model.get_layer(ENCODERS[NETWORKS[self.name].encoder].skips[self.stride])
        assert encoder.name in frozen
        assert {layer.name for layer in registry.encoder_layers(model)} <= frozen
        assert not any(
            name.startswith(("decoder_stage1_conv", "decoder_stage2")) for name in frozen
        )
        registry.freeze(model, "ALL")
        assert not model.trainable_weights


class TestResNet50(Networks):
    name, parameters, stride = "resnet50", 33_817_729, 32
    learning = LARGE
    eager_steps = 2


class TestMobileNet(Networks):
    name, parameters, stride = "mobilenet", 10_283_745, 32
    learning = LARGE
    eager_steps = 2


class TestInceptionResNetV2(Networks):
    name, parameters, stride = "inception_resnet_v2", 63_750_433, 32
    learning = LARGE
    eager_steps = 2


class TestVgg(Networks):
    name, parameters, stride = "vgg", 27_371_169, 64


class TestSimpleUnet(Networks):
    name, parameters, stride = "simple_unet", 2_543_617, 8


class TestLinkNet34(Networks):
    name, trainable, stride = "linknet34", 21_642_401, 32
    learning = LARGE


class TestVgg11v1(Networks):
    name, parameters, stride = "vgg11v1", 33_554_753, 32


class TestVgg11v2(Networks):
    name, parameters, stride = "vgg11v2", 33_554_753, 32
    learning = "adam", 0.001


class TestTernaus(Networks):
    name, parameters, stride = "ternaus", 22_927_393, 32


class TestVgg11av2(Networks):
    # As many as with the transposed convolutions of `ternaus`: both have 3x3 kernels.
    name, parameters, stride = "vgg11av2", 22_927_393, 32
    learning = "adam", 0.001


class TestUnetScratch(Networks):
    name, trainable, stride = "unet_scratch", 91_238_817, 64
    learning = LARGE
    eager_steps = 2


class TestUNarrow(Networks):
    name, trainable, stride = "unarrow", 28_166_529, 64  # published as 28.2 million


class TestUnet4(Networks):
    name, trainable, stride = "unet4", 8_611_657, 16  # 8.6 million


class TestUnet5(Networks):
    name, trainable, stride = "unet5", 34_600_353, 32  # 34.6 million


class TestUnet7(Networks):
    name, trainable, stride = "unet7", 240_251_953, 128  # 240 million


class TestUnetClassic(Networks):
    name, parameters, stride = "unet_classic", 7_775_601, 32


class TestUnetTiny(Networks):
    # 116,753 for grey photos, by the author of `unet_bn`; colours are 2 channels x 9 x 16 more.
    name, parameters, stride = "unet_tiny", 116_753 + 288, 4


class TestUnetBn(Networks):
    name, trainable, stride = "unet_bn", 4_577_265, 16


class TestUnetBnSimple(Networks):
    name, trainable, stride = "unet_bn_simple", 2_599_377, 16


class TestUnetNoBn(Networks):
    # Two for each feature map less: 16 to 256 on the way down, 256 to 16 on the way up.
    name, trainable, stride = "unet_no_bn", 4_577_265 - 2 * (368 + 432), 16


class TestUnetNoBnSimple(Networks):
    name, trainable, stride = "unet_no_bn_simple", 2_599_377 - 2 * (368 + 432), 16


class Autoencoder(Networks):
    """Of filters f, g, h: three convolutions down, a transposed and a usual one for each up."""

    stride = 4
    filters: tuple[int, int, int]

    @property
    def parameters(self):
        f, g, h = self.filters
        kernels = 9 * (3 * f + f * g + g * h) + 4 * h * g + 9 * g * g + 4 * g * f + 9 * f * f
        return kernels + (f + g + h) + 2 * g + 2 * f + f + 1

    def test_nothing_of_the_encoder_joins_the_decoder(self, model):
        assert not any(isinstance(layer, keras.layers.Concatenate) for layer in model.layers)
        assert model.get_layer(ENCODERS[self.name].skips[4]).output.shape[-1] == 8
        deepest = unfilled(self.name).get_layer(ENCODERS[self.name].skips[4])
        assert deepest.output.shape[-1] == self.filters[-1]


class TestAutoencoder4(Autoencoder):
    name, filters = "autoencoder4", (16, 8, 4)


class TestAutoencoder64(Autoencoder):
    name, filters = "autoencoder64", (16, 32, 64)


class TestUnetBnDense(Networks):
    name, stride = "unet_bn_dense", 16

    @property
    def trainable(self):
        """Those of `unet_bn`, and for each second convolution the block's input more."""
        encoder = (3, 16), (16, 32), (32, 64), (64, 256), (256, 256)
        decoder = (512, 256), (192, 128), (64, 32), (32, 16)
        return TestUnetBn.trainable + sum(9 * a * b for a, b in (*encoder, *decoder))


class TestEfficientNetV2B0(Networks):
    name, parameters, stride = "efficientnetv2b0", 11_132_625, 32
    learning = LARGE


class TestEfficientNetV2S(Networks):
    name, parameters, stride = "efficientnetv2s", 25_705_953, 32
    learning = LARGE


class TestConvNeXtTiny(Networks):
    name, parameters, stride = "convnext_tiny", 32_793_825, 32
    learning = LARGE


class TestMobileNetV3Large(Networks):
    name, parameters, stride = "mobilenetv3large", 7_449_345, 32
    learning = LARGE


class TestSEResNet50(Networks):
    name, parameters, stride = "seresnet50", 36_263_665, 32
    learning = LARGE


class TestSEResNet101(Networks):
    name, parameters, stride = "seresnet101", 57_554_737, 32
    # `seresnet50` is made of the same layers, and takes less time.
    test_learns = test_plain_keras_loads_it = test_ends_in_float32_under_half_precision = None


# Their encoders' parameters are checked in tests/test_tensor_weights.py.
class TestEfficientNetLite0(Networks):
    name, parameters, stride = "efficientnet_lite0", 5_239_905, 32
    learning = LARGE


class TestEfficientNetLite1(Networks):
    name, parameters, stride = "efficientnet_lite1", 6_016_225, 32
    learning = LARGE


class TestEfficientNetLite2(Networks):
    name, parameters, stride = "efficientnet_lite2", 6_756_465, 32
    learning = LARGE


class TestEfficientNetLite3(Networks):
    name, parameters, stride = "efficientnet_lite3", 8_956_609, 32
    learning = LARGE


class TestEfficientNetLite4(Networks):
    name, parameters, stride = "efficientnet_lite4", 13_931_825, 32
    learning = LARGE


def test_every_network_is_tested():
    tests = [*Networks.__subclasses__(), *Autoencoder.__subclasses__()]
    assert {test.name for test in tests if hasattr(test, "name")} == set(NETWORKS)


def test_simple_unet_takes_stacked_channels(tmp_path):
    assert (
        registry.build(ModelOptions("simple_unet", stacked_channels=10)).count_params() == 2_546_497
    )
    model = registry.build(
        ModelOptions("simple_unet", stacked_channels=2, preprocessing_function="caffe"), width=SMALL
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = photos(16, 8, channels=5)
    mask = np.asarray(model(x))
    np.testing.assert_array_equal(np.asarray(loaded(x)), mask)
    x[..., 4] = 0
    assert not np.array_equal(np.asarray(model(x)), mask)


@pytest.mark.parametrize(("name", "trainable"), [("unet_tiny", 116_753), ("unet_bn", 4_576_977)])
def test_grey_networks_have_the_published_number_of_parameters(name, trainable):
    model = registry.build(ModelOptions(name, photo_channels=1))
    assert sum(math.prod(v.shape) for v in model.trainable_weights) == trainable


@pytest.mark.parametrize(
    ("name", "channels"),
    [("unet_tiny", 1), ("simple_unet", 1), ("resnet50", 3), ("linknet34", 3), ("ternaus", 3)],
)
@pytest.mark.parametrize("stacked", [0, 2])
def test_a_grey_network_does_not_see_colours(name, channels, stacked, tmp_path):
    keras.utils.set_random_seed(0)
    model = registry.build(
        ModelOptions(name, photo_channels=1, stacked_channels=stacked), width=SMALL
    )
    # The photo is RGB all the same, so that all that reads and predicts photos stays as it is.
    assert model.input_shape == (None, None, None, 3 + stacked)
    first = next(x for x in model.layers if isinstance(x, keras.layers.Conv2D))
    assert first.kernel.shape[2] == channels + stacked
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = photos(64, 64, channels=3 + stacked, count=1)
    mask = np.asarray(model(x))
    np.testing.assert_array_equal(np.asarray(loaded(x)), mask)
    grey = x.copy()
    grey[..., :3] = (x[..., :3] @ np.float32([0.299, 0.587, 0.114]))[..., None]
    others = np.repeat(x, 3 + stacked, axis=0)
    for channel, other in enumerate(others):
        other[..., channel] = 255 - other[..., channel]
    of_grey, *of_others = np.asarray(model(np.concatenate([grey, others])))
    np.testing.assert_allclose(of_grey, mask[0], atol=1e-5)
    for found in of_others:
        assert np.abs(found - mask[0]).max() > 1e-5


def test_a_grey_photo_means_the_same_to_a_pretrained_encoder():
    """Its kernels are those of colour, so ImageNet weights fit; only the colour is gone."""
    colour, grey = (
        registry.build(ModelOptions("resnet50", photo_channels=n), width=SMALL) for n in (3, 1)
    )
    grey.set_weights(colour.get_weights())
    x = np.repeat(photos(64, 64, channels=1), 3, axis=-1)
    np.testing.assert_allclose(np.asarray(grey(x)), np.asarray(colour(x)), atol=1e-4)


# The other networks differ in nothing that the stacked channels meet.
@pytest.mark.parametrize("name", ["resnet50", "linknet34", "mobilenetv3large", "vgg"])
def test_every_stacked_channel_reaches_the_mask(name, tmp_path):
    keras.utils.set_random_seed(0)  # so narrow a network can be born dead
    model = registry.build(ModelOptions(name, stacked_channels=2), width=SMALL)
    assert model.input_shape == (None, None, None, 5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = photos(64, 64, channels=5, count=1)
    mask = np.asarray(model(x))
    np.testing.assert_array_equal(np.asarray(loaded(x)), mask)
    for channel in (3, 4):
        other = x.copy()
        other[..., channel] = 255 - x[..., channel]
        assert not np.array_equal(np.asarray(model(other)), mask)


@pytest.mark.parametrize(
    "name", ["resnet50", "mobilenet", "convnext_tiny", "simple_unet", "vgg", "mobilenetv3large"]
)
def test_linknet_goes_with_any_encoder(name, tmp_path):
    model = registry.build(ModelOptions(name, decoder="linknet"), width=SMALL)
    side = max(32, NETWORKS[name].stride)
    mask = np.asarray(model(photos(side, 2 * side)))
    assert mask.shape == (2, side, 2 * side, 1)
    assert mask.std() > 0
    assert registry.branch_layers(model) == []
    assert not any(isinstance(layer, keras.layers.Concatenate) for layer in model.layers)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(photos(side, 2 * side))), mask)


def test_linknet_adds_skips_of_their_own_channels():
    model = unfilled("linknet34")
    adds = {layer.name: layer.output.shape[-1] for layer in model.layers if "add" in layer.name}
    assert {k: v for k, v in adds.items() if k.startswith("decoder")} == {
        "decoder_stage1_add": 256,
        "decoder_stage2_add": 128,
        "decoder_stage3_add": 64,
    }


def test_resnet34_goes_with_a_unet():
    model = registry.build(ModelOptions("linknet34", decoder="unet"), width=SMALL)
    assert np.asarray(model(photos(32, 64))).shape == (2, 32, 64, 1)
    assert model.get_layer("decoder_stage4_concat").output.shape[-1] == 16 + 8


def test_biases_that_do_nothing_are_where_a_published_count_has_them():
    def count(name):
        layers = unfilled(name).layers
        convolutions = [x for x in layers if x.name.startswith("decoder_stage1_conv")]
        return sum(layer.use_bias for layer in convolutions)

    assert (count("resnet50"), count("unet_bn")) == (2, 2)
    assert (count("efficientnetv2b0"), count("convnext_tiny")) == (0, 0)


def test_skips_join_before_or_after_as_published():
    def first_input(name):
        concat = unfilled(name).get_layer("decoder_stage1_concat")
        return concat._inbound_nodes[0].input_tensors[0]._keras_history.operation.name

    assert first_input("unet4") == "encoder_stage4_relu2"
    assert first_input("unet_bn") == "decoder_stage1_up"
    assert first_input("vgg11v2") == "decoder_stage1_relu2"


def test_inception_resnet_v2_bears_the_published_names():
    """Convolutions are counted from 1 in the order of the paper, whatever was made before."""
    keras.layers.Conv2D(1, 1)
    model = unfilled("inception_resnet_v2", SMALL)
    named = {layer.name: layer for layer in registry.encoder_layers(model)}
    assert named["conv2d_1"].kernel.shape == (3, 3, 3, 8)
    assert named["conv2d_4"].kernel.shape == (1, 1, 8, 10)
    assert named["conv2d_203"].kernel.shape == (3, 1, 28, 32)
    assert "conv2d_204" not in named
    assert all(layer.padding == "same" for layer in named.values() if hasattr(layer, "padding"))


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_normalises_as_keras_does(mode):
    x = photos(4, 5)
    expected = keras.applications.imagenet_utils.preprocess_input(
        x.copy(), mode=mode, data_format="channels_last"
    )
    np.testing.assert_allclose(np.asarray(_normalised(x, mode)), expected, atol=1e-4)


@pytest.mark.parametrize("mode", NORMALISATIONS)
def test_one_channel_gets_the_mean_of_the_three(mode):
    x = photos(4, 5, channels=1)
    expected = np.asarray(_normalised(np.repeat(x, 3, -1), mode)).mean(-1, keepdims=True)
    inputs = keras.Input((None, None, 1))
    normalised = keras.Model(inputs, normalise(inputs, mode))(x)
    np.testing.assert_allclose(np.asarray(normalised), expected, atol=1e-4)


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
        ({"network": "mobilnet"}, "--network 'mobilnet' is unknown. Did you mean 'mobilenet'"),
        ({"network": "mobilenet", "decoder": "linkent"}, "--decoder.*Did you mean 'linknet'"),
        ({"network": "mobilenet", "preprocessing_function": "cafe"}, "Did you mean 'caffe'"),
        ({"network": "unet_bn", "photo_channels": 2}, "--photo_channels=2 must be 3 .RGB. or 1"),
        ({"network": "mobilenet", "alpha": 0.3}, "--alpha=0.3 .* 0.25, 0.5, 0.75, 1.0"),
        ({"network": "resnet50", "alpha": 0.5}, "--alpha=0.5 .* resnet50; it comes in 1.0 only"),
    ],
)
def test_build_explains_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        registry.build(ModelOptions(**arguments))


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_alpha_narrows_the_encoder_alone(alpha):
    model = registry.build(ModelOptions("mobilenet", alpha=alpha))
    expected = keras.applications.MobileNet(include_top=False, weights=None, alpha=alpha)
    counted = sum(layer.count_params() for layer in registry.encoder_layers(model))
    assert counted == expected.count_params()
    assert model.get_layer("decoder_stage1_conv1").filters == 256


def test_a_narrow_network_has_the_narrowest_encoder():
    model = registry.build(ModelOptions("mobilenet"), width=SMALL)
    assert model.get_layer("conv_pw_13").filters == 256
    assert model.get_layer("decoder_stage1_conv1").filters == 32
    assert model.get_layer("decoder_stage5_conv2").filters == 8


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
