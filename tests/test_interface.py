"""Networks of other authors: used rightly, with the flag that says how, or refused in one line."""

import json

import keras
import numpy as np
import pytest

from carvana_tf.errors import UserError
from carvana_tf.models import checkpoint, interface, model_file

layers, ops = keras.layers, keras.ops
PHOTO = np.random.default_rng(0).uniform(0, 255, (2, 15, 9, 3)).astype("float32")


def save(path, make, shape=(None, None, 3), **arguments):
    photo = keras.Input(shape, **arguments)
    model = keras.Model(photo, make(photo))
    model.save(path / "other.keras")
    return path / "other.keras", model


def convolve(x, filters=1, activation="sigmoid", **arguments):
    return layers.Conv2D(filters, 1, activation=activation, **arguments)(x)


def predict(path, photo=PHOTO, **flags):
    source = checkpoint.read(path, checkpoint.NetworkOptions(**flags))
    return np.asarray(checkpoint.load_model(source, "cpu:0", "float32")(photo)), source


def test_the_object_of_several_channels_is_the_one_named(tmp_path):
    path, model = save(tmp_path, lambda x: convolve(x, 3, "softmax"))
    expected = np.asarray(model(PHOTO))
    for n in range(3):
        got, source = predict(path, object_class=n)
        np.testing.assert_allclose(got, expected[..., n : n + 1], atol=1e-6)
        assert source.description["object_class"] == n
        assert source.description["network"] is None  # it is not known


def test_logits_become_probabilities(tmp_path):
    path, model = save(tmp_path, lambda x: convolve(layers.Rescaling(1 / 99)(x), 1, "linear"))
    got, source = predict(path, logits=True)
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-np.asarray(model(PHOTO)))), atol=1e-6)
    assert source.description["logits"] is True

    path, model = save(tmp_path, lambda x: convolve(layers.Rescaling(1 / 99)(x), 3, "linear"))
    got, _ = predict(path, logits=True, object_class=2)
    powers = np.exp(np.asarray(model(PHOTO)))
    np.testing.assert_allclose(got[..., 0], powers[..., 2] / powers.sum(-1), atol=1e-6)


def test_a_network_of_one_size_gets_it(tmp_path):
    path, _ = save(tmp_path, convolve, (32, 48, 3))
    _, source = predict(
        path, np.zeros((1, 32, 48, 3)), size_policy="resize", input_height=32, input_width=48
    )
    assert source.resizer.whole(np.zeros((50, 40, 3), np.uint8)).shape == (32, 48, 3)


def test_the_stride_is_found(tmp_path):
    def unet(x):
        half = layers.MaxPooling2D(4)(convolve(x, 2, "relu"))
        return convolve(layers.Concatenate()([x, layers.UpSampling2D(4)(half)]))

    path, _ = save(tmp_path, unet)
    assert interface.read(path).stride == 4
    assert checkpoint.read(path, checkpoint.NetworkOptions()).resizer.stride == 4


def test_what_a_network_expects_instead_of_bytes_is_a_flag(tmp_path, capsys):
    path, model = save(tmp_path, convolve)
    predict(path)
    assert "note: " in capsys.readouterr().out
    got, source = predict(path, preprocessing_function="unit")
    assert "note: " not in capsys.readouterr().out
    np.testing.assert_allclose(got, np.asarray(model(PHOTO / 255)), atol=1e-6)
    assert source.description["preprocessing"] == "unit"


def test_a_network_for_grey_photos_gets_them(tmp_path):
    path, model = save(tmp_path, convolve, (None, None, 1))
    got, source = predict(path, photo_channels=1, preprocessing_function="unit")
    grey = PHOTO @ np.array([[0.299], [0.587], [0.114]])
    np.testing.assert_allclose(got, np.asarray(model(grey / 255)), atol=1e-5)
    assert source.description["photo_channels"] == 1
    with pytest.raises(UserError, match=r"takes 1 channels.*--photo_channels=1"):
        predict(path)


def test_a_network_that_scales_by_itself_is_taken_as_it_is(tmp_path, capsys):
    path, model = save(tmp_path, lambda x: convolve(layers.Rescaling(1 / 255)(x)))
    got, _ = predict(path)
    assert capsys.readouterr().out == ""
    np.testing.assert_allclose(got, np.asarray(model(PHOTO)), atol=1e-6)


def test_sixteen_bits_of_a_network_become_thirty_two(tmp_path):
    path, _ = save(tmp_path, lambda x: convolve(x, dtype="float16"), dtype="float16")
    got, _ = predict(path, preprocessing_function="unit")
    assert got.dtype == np.float32


@pytest.mark.parametrize("form", ["dictionary", "list"])
def test_one_input_and_one_output_may_have_names(tmp_path, form):
    photo = keras.Input((None, None, 3), name="image")
    mask = convolve(layers.Rescaling(1 / 255)(photo))
    parts = ({"image": photo}, {"mask": mask}) if form == "dictionary" else ([photo], [mask])
    model = keras.Model(*parts)
    model.save(tmp_path / "other.keras")
    got, _ = predict(tmp_path / "other.keras")
    np.testing.assert_allclose(got, np.asarray(keras.Model(photo, mask)(PHOTO)), atol=1e-6)


def test_a_sequence_of_layers_is_taken_as_it_is(tmp_path):
    parts = [layers.Rescaling(1 / 255), layers.Conv2D(1, 1, activation="sigmoid")]
    model = keras.Sequential([keras.Input((None, None, 3)), *parts])
    model.save(tmp_path / "other.keras")
    got, _ = predict(tmp_path / "other.keras")
    np.testing.assert_allclose(got, np.asarray(model(PHOTO)), atol=1e-6)


PROBABILITIES = {
    "sigmoid layer": lambda x: layers.Activation("sigmoid")(convolve(x, activation="linear")),
    "sigmoid operation": lambda x: ops.sigmoid(convolve(x, activation="linear")),
    "upsampled": lambda x: layers.UpSampling2D(2, interpolation="bilinear")(
        layers.AveragePooling2D(2)(convolve(x))
    ),
    "one of a softmax": lambda x: layers.Softmax()(convolve(x, 2, "linear"))[..., 1:],
    "mean of two": lambda x: layers.Average()([convolve(x), convolve(x)]),
    "cast": lambda x: ops.cast(convolve(ops.cast(x, "float32") / 255), "float32"),
    "nested": lambda x: keras.Sequential(
        [keras.Input((None, None, 3)), layers.Conv2D(1, 1, activation="sigmoid")]
    )(x),
    "wrapped dtype": lambda x: layers.Activation("linear", dtype="float32")(convolve(x)),
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_are_known_by_what_made_them(tmp_path, name):
    path, model = save(tmp_path, PROBABILITIES[name])
    photo = PHOTO[:, :8, :8]
    np.testing.assert_allclose(predict(path, photo)[0], np.asarray(model(photo)), atol=1e-6)


REFUSED = {
    "softmax": (
        lambda x: convolve(x, 2, "softmax"),
        {},
        r"2 channels by 'softmax'.*--object_class=0 to 1",
    ),
    "labels": (lambda x: convolve(x, 4), {"object_class": 4}, r"--object_class=4: .*4 channels"),
    "one channel": (convolve, {"object_class": 1}, r"--object_class=1: .*1 channels"),
    "softmax of one": (lambda x: convolve(x, 1, "softmax"), {}, "softmax of one channel"),
    "linear": (lambda x: convolve(x, 1, "linear"), {}, "--logits"),
    "resized logits": (
        lambda x: layers.UpSampling2D(2)(layers.MaxPooling2D(2)(convolve(x, 1, "linear"))),
        {},
        "--logits",
    ),
    "no logits": (convolve, {"logits": True}, "leave --logits out"),
    "tanh": (lambda x: convolve(x, 1, "tanh"), {}, "'tanh', expected probabilities"),
    "relu": (lambda x: layers.ReLU(max_value=1)(convolve(x, 1, "linear")), {}, "'ReLU', expected"),
    "overshooting": (
        lambda x: layers.UpSampling2D(2, interpolation="bicubic")(
            layers.MaxPooling2D(2)(convolve(x))
        ),
        {},
        "any numbers",
    ),
    "mixture": (
        lambda x: layers.Concatenate()([convolve(x), convolve(x, activation="relu")]),
        {},
        "a mixture",
    ),
    "softmax over rows": (lambda x: layers.Softmax(axis=1)(convolve(x)), {}, "another axis"),
    "two outputs": (
        lambda x: [convolve(x), convolve(x)],
        {},
        r"2 outputs \(\[any, any, any, 1\].*model\.outputs\[0\]",
    ),
    "two inputs": (None, {}, "2 inputs"),
    "flat": (lambda x: layers.Reshape((-1, 1))(convolve(x)), {}, "the output of .*expected"),
    "classifier": (
        lambda x: layers.Dense(1, activation="sigmoid")(layers.GlobalAveragePooling2D()(x)),
        {},
        "the output of",
    ),
    "smaller": (
        lambda x: layers.Conv2D(1, 3, activation="sigmoid")(x),
        {},
        "expected the same size",
    ),
    "half": (lambda x: layers.MaxPooling2D(2)(convolve(x)), {}, "expected the same size"),
    "video": (lambda x: layers.Reshape((-1, 4, 4, 3))(x), {}, "the output of"),
    "channels first": (lambda x: convolve(x, data_format="channels_first"), {}, "channels_first"),
    "of a size": (convolve, {}, "--size_policy=resize --input_height=32 --input_width=48"),
    "of a batch": (convolve, {}, "4 photos at once"),
    "two channels": (convolve, {}, "takes 2 channels"),
    "seven channels": (convolve, {}, "--stacked_channels=4"),
}
SHAPES = {
    "channels first": {"shape": (3, None, None)},
    "of a size": {"shape": (32, 48, 3)},
    "of a batch": {"batch_shape": (4, None, None, 3)},
    "two channels": {"shape": (None, None, 2)},
    "seven channels": {"shape": (None, None, 7)},
    "flat": {"shape": (32, 48, 3)},
    "video": {"shape": (32, 48, 3)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_is_refused_in_one_line(tmp_path, name):
    make, flags, message = REFUSED[name]
    inputs = [
        keras.Input(**SHAPES.get(name, {"shape": (None, None, 3)}))
        for _ in range(1 + (make is None))
    ]
    outputs = make(inputs[0]) if make else convolve(layers.Add()(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "other.keras")
    with pytest.raises(UserError, match=message) as caught:
        predict(tmp_path / "other.keras", **flags)
    assert "other.keras" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    path, model = save(tmp_path, convolve)
    kernel, bias = model.layers[-1].get_weights()
    kernel[0, 0, 1] = value
    model.layers[-1].set_weights([kernel, bias])
    model.save(path)
    with pytest.raises(UserError, match="NaN or infinite weights in 'conv2d"):
        predict(path, preprocessing_function="unit")


def test_large_weights_are_numbers(tmp_path):
    path, model = save(tmp_path, lambda x: convolve(x, 2, "softmax"))
    model.layers[-1].set_weights([np.full((1, 1, 3, 2), 3e38, "float32"), np.zeros(2)])
    model.save(path)
    model_file.load(path)


def test_our_own_file_is_not_given_another_preprocessing(tmp_path):
    _, model = save(tmp_path, lambda x: convolve(layers.Rescaling(1 / 255)(x)))
    metadata = {"network": "simple_unet", "stride": 8, "preprocessing": "unit"}
    path = model_file.save(model, tmp_path / "ours.keras", metadata)
    got, source = predict(path, preprocessing_function="unit")
    np.testing.assert_allclose(got, np.asarray(model(PHOTO)), atol=1e-6)
    assert source.resizer.stride == 8
    assert json.loads(json.dumps(source.description)) == source.description
    with pytest.raises(UserError, match="--preprocessing_function=caffe"):
        predict(path, preprocessing_function="caffe")
