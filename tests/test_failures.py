"""Errors of the libraries below: want of memory is met, all else is one line with the photo."""

import errno
import json
import os
import re

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from carvana_tf.data.dataset import find_photos, find_samples
from carvana_tf.data.images import read_grey, read_photo, write_photo
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.presets import PRESETS
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory, is_device_error, is_out_of_memory, named
from carvana_tf.inference import tiling
from carvana_tf.inference.predict_folder import OutputOptions, predict_folder
from carvana_tf.models import checkpoint, model_file
from carvana_tf.tasks import MASKS
from carvana_tf.tasks.masks import losses
from carvana_tf.training import state
from carvana_tf.training.loop import TrainingPlan, train
from carvana_tf.training.validation import validate


def raised(function):
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


def opencv():
    return cv2.resize(np.zeros((2, 2), np.uint8), (1 << 30, 1 << 16))  # 64 TiB


@pytest.mark.parametrize(
    "error",
    [
        raised(lambda: np.zeros(1 << 60, np.uint8)),
        raised(opencv),
        MemoryError(),
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[1]"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes."),
        RuntimeError("Exception from src/inference/src/cpp/core.cpp:\nstd::bad_alloc"),
        RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer"),
        # Of ONNX Runtime and OpenVINO 2026.4.1, where their memory was limited.
        RuntimeError(
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Tile "
            "node. Name:'' Status Message: bfc_arena.cc:360 void* "
            "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed "
            "to allocate memory for requested buffer of size 4000000000"
        ),
        RuntimeError(
            "Exception from src/inference/src/cpp/infer_request.cpp:224:\n[CPU] Tile node with "
            "name 'Tile_3' Check 'ptr' failed at src/plugins/intel_cpu/src/cpu_memory.cpp:257:\n"
            "Failed to allocate 4000000000 bytes of memory"
        ),
        RuntimeError("could not create a memory object"),
        OSError(12, os.strerror(12)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_want_of_memory_is_recognised(error):
    assert is_out_of_memory(error)
    with (
        pytest.raises(OutOfMemory, match=r"out of memory while reading 'a\.jpg'$"),
        named("reading", "a.jpg"),
    ):
        raise error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (tf.errors.InternalError(None, None, "Blas GEMM launch failed"), True),
        (tf.errors.UnavailableError(None, None, "socket closed"), True),
        (tf.errors.UnknownError(None, None, "Failed to get convolution algorithm"), True),
        (tf.errors.InvalidArgumentError(None, None, "CUDA error in the name"), False),
        (tf.errors.ResourceExhaustedError(None, None, "OOM"), False),
        (RuntimeError("INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access"), True),
        (RuntimeError("INVALID_ARGUMENT: shapes differ"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (RuntimeError("shapes differ"), False),
        (UserError("the network of 'a.keras' gives NaN"), False),
        (OSError(5, "INTERNAL: input/output error"), False),
    ],
    ids=repr,
)
def test_errors_of_devices_are_told_from_those_of_programs_and_files(error, expected):
    assert is_device_error(error) == expected
    with pytest.raises(UserError) as caught, named("predicting", "a.jpg"):
        raise error
    assert is_device_error(caught.value) == expected


@pytest.mark.parametrize(
    "error", [OSError(5, os.strerror(5)), RuntimeError("boom\nat x.cc:1"), ValueError()]
)
def test_other_errors_are_one_line_with_the_files(error):
    assert not is_out_of_memory(error)
    with pytest.raises(UserError) as caught, named("reading", *"abcdef"):
        raise error
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("reading 'a', 'b', 'c', 'd' and 2 more failed: ")


def test_a_full_disk_stays_what_it_is():
    with pytest.raises(OSError, match="full"), named("writing", "a"):
        raise OSError(28, "full")


SIZE = (160, 192)


@pytest.fixture
def photos(tmp_path):
    """Six photos of noise, lossless; the last is twice as wide."""
    random = np.random.default_rng(1)
    for i in range(6):
        small = random.integers(0, 256, (6, 8, 3), np.uint8)
        size = (SIZE[1] * (2 if i == 5 else 1), SIZE[0])
        write_photo(tmp_path / f"photos/car{i}_01.png", cv2.resize(small, size))
    return find_photos(tmp_path / "photos")


def make_network(weights=(0.05, 0, 0), bias=-6.0):
    """sigmoid of the photo's red channel: one convolution."""
    photo = keras.Input((None, None, 3))
    convolution = keras.layers.Conv2D(1, 1, activation="sigmoid")
    network = keras.Model(photo, convolution(photo))
    convolution.set_weights([np.array(weights).reshape(1, 1, 3, 1), np.array([bias])])
    return network


@pytest.fixture
def predict(tmp_path, photos):
    """Predicts the photos by Keras into a folder; returns the outcome."""
    path = tmp_path / "red.keras"

    def run(folder, network=None, **options):
        if network is not None or not path.is_file():
            model_file.save(
                network or make_network(), path, {"network": "simple_unet", "stride": 8}
            )
        settings = OutputOptions.of(**{"dtype": "float32", "threads": 2} | options)
        member = checkpoint.read(path, checkpoint.NetworkOptions())
        return predict_folder(
            photos, [member], tmp_path / folder, settings, ["cpu:0"], engine="keras"
        )

    return run


def limit_memory(monkeypatch, pixels):
    """Lets TensorFlow's convolutions run out of memory for more than so many pixels at once."""
    original = keras.layers.Conv2D.call

    def check(shape):
        if np.prod(shape[:3]) > pixels:
            raise MemoryError  # of which TensorFlow makes its ResourceExhaustedError
        return np.float32(0)

    def call(self, inputs):
        nothing = tf.numpy_function(check, [tf.shape(inputs)], tf.float32)
        nothing.set_shape(())
        return original(self, inputs) + tf.cast(nothing, self.compute_dtype)

    monkeypatch.setattr(keras.layers.Conv2D, "call", call)


def read_masks(folder):
    return {path.name: read_grey(path) for path in folder.glob("*.png")}


@pytest.mark.parametrize(
    ("pixels", "options", "said", "cut"),
    [
        (2, {"pred_batch_size": 4}, "going on with batches of 2", None),
        (2, {"pred_tta": "flips"}, "going on with 2 views of a photo at once", None),
        (0.5, {}, "going on with inputs of 30,720 pixels or more in tiles of 80 overlap 24", 30720),
    ],
)
def test_prediction_goes_on_with_less(
    tmp_path, capsys, monkeypatch, predict, pixels, options, said, cut
):
    whole = predict("whole", **options)
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        limit_memory(patch, pixels * SIZE[0] * SIZE[1])
        outcome = predict("less", **options)
        heard = capsys.readouterr().err
        assert (outcome.written, outcome.unreadable) == (whole.written, [])
        assert heard.count("out of memory while predicting '") >= 1
        assert said in heard
        made = json.loads((tmp_path / "less/manifest.json").read_text())["cut_for_memory"]
        assert (made and made[0]["pixels"]) == cut
        # What was found out is remembered.
        (tmp_path / "less/car0_01.png").unlink()
        predict("less", **options)
        if cut:
            assert "out of memory" not in capsys.readouterr().err
    expected, found = (read_masks(tmp_path / name) for name in ("whole", "less"))
    assert expected.keys() == found.keys()
    for name, mask in expected.items():
        np.testing.assert_allclose(found[name], mask, atol=1 if cut else 0)


def test_too_little_memory_for_anything_is_one_line(monkeypatch, predict):
    limit_memory(monkeypatch, 10)
    with pytest.raises(UserError, match=r"while predicting '.*car\d_01.png', one by one.*smaller"):
        predict("none")


def injected(error, function, wanted):
    """The function, which fails for the arguments that are wanted."""

    def call(*arguments, **further):
        if wanted(*arguments):
            raise error
        return function(*arguments, **further)

    return call


ERRORS = [OSError(5, os.strerror(5)), MemoryError(), RuntimeError("boom")]
kinds = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


@kinds
@pytest.mark.parametrize("where", ["imdecode", "open", "cvtColor"])
def test_errors_while_reading_are_of_the_system_unless_a_decoder_raised_them(
    tmp_path, monkeypatch, predict, photos, where, error
):
    bad = photos[2].photo
    if where == "imdecode":
        data = bad.read_bytes()
        wanted = lambda array, *_: array.tobytes()[: len(data)] == data  # noqa: E731
        monkeypatch.setattr(cv2, "imdecode", injected(error, cv2.imdecode, wanted))
    elif where == "open":
        wanted = lambda path, *_: str(path) == str(bad)  # noqa: E731
        monkeypatch.setattr(os, "open", injected(error, os.open, wanted))
    else:
        grey = read_photo(bad)[..., 0]
        cv2.imwrite(str(bad), grey)
        wanted = lambda array, *_: array.shape == grey.shape  # noqa: E731
        monkeypatch.setattr(cv2, "cvtColor", injected(error, cv2.cvtColor, wanted))
    if where == "imdecode" and isinstance(error, RuntimeError):
        ((file, problem),) = predict("out").unreadable
        assert file == str(bad) and bad.name in problem
        return
    with pytest.raises(UserError, match=bad.name) as caught:
        predict("out")
    assert not (tmp_path / "out/bad_files.csv").exists()
    if isinstance(error, MemoryError):  # one photo may be too large, which stops no other
        assert "one by one and with one thread" in str(caught.value)
        assert len(list((tmp_path / "out").glob("*.png"))) == 5


@kinds
@pytest.mark.parametrize("where", ["imencode", "fsync", "network"])
def test_errors_of_networks_and_writers_name_the_photo(monkeypatch, predict, where, error):
    predict("whole")
    if where == "imencode":
        monkeypatch.setattr(cv2, "imencode", injected(error, cv2.imencode, lambda *_: True))
    elif where == "fsync":
        wanted = lambda handle: os.readlink(f"/proc/self/fd/{handle}").endswith(".png")  # noqa: E731
        monkeypatch.setattr(os, "fsync", injected(error, os.fsync, wanted))
    else:
        convolve = keras.layers.Conv2D.call

        def call(self, inputs):
            def fail(_):
                raise error

            nothing = tf.numpy_function(fail, [tf.shape(inputs)], tf.float32)
            nothing.set_shape(())
            return convolve(self, inputs) + nothing

        monkeypatch.setattr(keras.layers.Conv2D, "call", call)
    with pytest.raises(UserError, match="out'" if where == "fsync" else r"car\d_01\.png") as caught:
        predict("out")
    assert "\n" not in str(caught.value)


@pytest.fixture
def train_tiny(make_dataset, tmp_path):
    """Trains a convolution for two epochs of three steps; returns the run's folder."""
    root = make_dataset(groups=3, views=2)
    samples = find_samples(root / "train", root / "train_masks")

    def run(folder, batch_size=2, validation=(), **changes):
        keras.utils.set_random_seed(3)
        network = make_network(bias=0.0)
        (tmp_path / folder).mkdir(exist_ok=True)
        resizer, augmentation = Resizer("resize", 24, 32, 8), PRESETS["default"]
        plan = TrainingPlan(
            network=network,
            optimizer=lambda start: keras.optimizers.Adam(0.01),
            task=MASKS,
            loss=losses.get("bce_dice"),
            training=TrainingSet(
                samples, resizer, augmentation, MASKS, batch_size=batch_size, seed=1
            ),
            validation=validation,
            epochs=2,
            steps_per_epoch=3,
            validate_every=1,
            monitor="val_dice",
            patience=0,
            threads=2,
            folder=tmp_path / folder,
            save_model=lambda path, scores: network.save(path),
            **changes,
        )
        train(plan)
        return [np.array(weight) for weight in network.weights]

    run.samples = samples
    return run


def test_out_of_memory_in_training_names_what_fits(monkeypatch, train_tiny):
    limit_memory(monkeypatch, 2 * 24 * 32)
    with pytest.raises(
        UserError,
        match=r"in step 1, on '.*car.*: a batch of 2 fits; --batch_size=2 "
        r"--gradient_accumulation=6 makes updates of 12 photos",
    ):
        train_tiny("run", batch_size=4, accumulation=3)


def test_out_of_memory_with_one_photo_says_so(monkeypatch, train_tiny):
    limit_memory(monkeypatch, 100)
    with pytest.raises(UserError, match="one photo at a time is too much"):
        train_tiny("run", batch_size=2)


@kinds
@pytest.mark.parametrize("where", ["loader", "step"])
def test_a_failed_training_names_the_photos_and_goes_on(
    tmp_path, monkeypatch, train_tiny, where, error
):
    expected = train_tiny("whole")
    with monkeypatch.context() as patch:
        calls = []

        def late(*_):
            calls.append(0)
            return len(calls) > (14 if where == "loader" else 3)

        if where == "loader":
            patch.setattr(cv2, "warpAffine", injected(error, cv2.warpAffine, late))
        else:
            convolve = keras.layers.Conv2D.call

            def fail(_):
                if late():
                    raise error
                return np.float32(0)

            def call(self, inputs):
                nothing = tf.numpy_function(fail, [tf.shape(inputs)], tf.float32)
                nothing.set_shape(())
                return convolve(self, inputs) + nothing

            patch.setattr(keras.layers.Conv2D, "call", call)
        with pytest.raises(UserError, match=r"car\d\d_\d\d\.jpg'") as caught:
            train_tiny("cut")
    assert "\n" not in str(caught.value)
    assert state.load(tmp_path / "cut").progress.step > 0
    for found, weight in zip(train_tiny("cut"), expected, strict=True):
        np.testing.assert_array_equal(found, weight)


def test_validation_takes_smaller_batches_and_tiles_or_names_the_photo(
    monkeypatch, train_tiny, capsys
):
    network, loss, resizer = make_network(), losses.get("bce_dice"), Resizer("pad", 0, 0, 8)
    whole = validate(network, train_tiny.samples, resizer, loss, MASKS, batch_size=6)
    monkeypatch.setattr(tiling, "_LEAST_SIDE", 16)
    for pixels, fits in ((2 * 40 * 56, True), (30 * 30, "in tiles"), (10, False)):
        with monkeypatch.context() as patch:
            limit_memory(patch, pixels)
            network = make_network()
            if fits:
                scores = validate(network, train_tiny.samples, resizer, loss, MASKS, batch_size=6)
                said = capsys.readouterr().err
                if fits == "in tiles":
                    assert re.search(r"validating '.*jpg'; going on with inputs of .* tiles", said)
                    assert scores == pytest.approx(whole, rel=1e-4)
                else:
                    assert scores == whole
                continue
            with pytest.raises(UserError, match=r"validating '.*jpg', one by one"):
                validate(network, train_tiny.samples, resizer, loss, MASKS, batch_size=6)


@pytest.mark.parametrize(("bias", "kind"), [(50.0, "object"), (-50.0, "background")])
def test_masks_that_show_nothing_are_reported(capsys, predict, bias, kind):
    predict("out", make_network(bias=bias))
    heard = capsys.readouterr().err
    assert f"red.keras' predicts 100% of the 6 photos as {kind} all over" in heard


@pytest.mark.parametrize("views", ["none", "flips"])
def test_a_network_that_gives_nan_is_named_with_the_photo(predict, views):
    photo = keras.Input((None, None, 3))
    infinite = keras.layers.Rescaling(1e38)(keras.layers.Rescaling(1e38)(photo))
    output = keras.layers.Conv2D(1, 1, activation="sigmoid", kernel_initializer="zeros")(infinite)
    with pytest.raises(UserError, match=r"network of '.*red.keras' gives NaN for '.*car\d_01.png'"):
        predict("out", keras.Model(photo, output), pred_tta=views)


def test_pillow_has_words_of_its_own_for_want_of_memory():
    assert is_out_of_memory(OSError("out of memory when reading image file"))
    assert not is_out_of_memory(OSError(errno.EIO, "out of memory"))
