"""Every engine against Keras in float32."""

import dataclasses
import functools
import importlib.util
import io
import logging
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import to_uint8, write_photo
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.inference.engines import (
    Engine,
    agreement,
    cache,
    keras_engine,
    selection,
)
from carvana_tf.inference.engines import conversion as conversions
from carvana_tf.inference.engines import keras as keras_engines
from carvana_tf.inference.engines import openvino as openvino_engines
from carvana_tf.inference.engines.base import NotANumber
from carvana_tf.inference.engines.conversion import Conversion
from carvana_tf.inference.engines.selection import Workload, make_engines
from carvana_tf.models import checkpoint, model_file, registry
from carvana_tf.models.options import ModelOptions
from carvana_tf.tasks.masks.agreement import MaskVerdict
from carvana_tf.threads import ordered_map

PAD = Resizer("pad", 0, 0, 32)
# One of each kind of upsampling, and both orders of channels.
NETWORKS = {
    "mobilenet": {"alpha": 0.25},  # nearest
    "simple_unet": {},  # nearest, without an encoder's batch normalisation
    "vgg11v2": {},  # bilinear
    "unet_classic": {},  # transposed, of 2 x 2
    "linknet34": {},  # transposed, of 3 x 3; BGR
    "unet_bn": {"photo_channels": 1},  # grey, as one channel
    "ternaus": {"photo_channels": 1},  # grey, as three
    "efficientnetv2b0": {},  # operations with a gradient of their own
}


def needs(engine):
    for package in conversions.PACKAGES[engine]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def photos(height, width, count=1, channels=3, seed=0):
    """Smooth noise, as photos are."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (count, height // 8, width // 8, channels), np.uint8)
    return small.repeat(8, 1).repeat(8, 2)


def settle(model):
    """Spreads the logits around 0, as training does, whatever the network."""
    logits = keras.Model(model.input, model.get_layer("logits").output)
    values = np.asarray(logits(photos(64, 96, 2, model.input_shape[-1]).astype("float32")))
    kernel, bias = model.get_layer("logits").get_weights()
    scale = 4.0 / values.std()
    model.get_layer("logits").set_weights([kernel * scale, (bias - np.median(values)) * scale])
    return model


@functools.cache
def small(name, stacked):
    keras.utils.set_random_seed(0)
    return settle(
        registry.build(
            ModelOptions(name, stacked_channels=stacked, **NETWORKS.get(name, {})), width=0.125
        )
    )


@pytest.fixture
def member(tmp_path):
    """Makes a model file and finds it, as prediction does."""

    def make(name="simple_unet", stacked=0):
        metadata = {
            "network": name,
            "stride": PAD.stride,
            "size_policy": "pad",
            "stacked_channels": stacked,
        }
        path = model_file.save(small(name, stacked), tmp_path / "best.keras", metadata)
        return checkpoint.read(path, checkpoint.NetworkOptions())

    return make


@functools.cache
def graph_of(convert, name, stacked):
    return convert(small(name, stacked))


@pytest.fixture
def converted_once(monkeypatch):
    """Converts each network of `member` for OpenVINO once, which takes seconds.

    `test_openvino` tests the conversion. What is done with a converted network is done each time.
    """
    needs("openvino")
    convert = conversions.openvino.to_openvino
    monkeypatch.setattr(
        conversions.openvino,
        "to_openvino",
        lambda model: graph_of(convert, model.name, model.input_shape[-1] - 3).clone(),
    )


@pytest.fixture
def samples(tmp_path):
    found = []
    for i in range(3):
        path = tmp_path / "photos" / f"p{i}.png"
        write_photo(path, photos(64, 96, seed=i)[0])
        found.append(Sample(path.stem, path.stem, path))
    return found


def reference(name, batch):
    return np.asarray(small(name, 0)(batch.astype("float32")))[..., 0]


def assert_same_masks(engine, name, limit):
    """At two sizes and batches: every engine takes any."""
    for batch in (photos(64, 96, 2), photos(96, 64, 1)):
        expected = reference(name, batch)
        assert 0.2 < (expected > 0.5).mean() < 0.8
        found = engine.predict(batch)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < limit
        if engine.predict_uint8 is not None:
            grey = engine.predict_uint8(batch)
            assert grey.dtype == np.uint8
            np.testing.assert_array_equal(grey, to_uint8(found))


@pytest.mark.parametrize("name", ["mobilenet", "vgg11v2"])
def test_keras(name):
    assert_same_masks(keras_engine(small(name, 0), PAD, "cpu:0"), name, 1e-5)


def assert_converts(member, name, engine):
    needs(engine)
    made = Conversion(member(name), engine, "float32").load()
    assert (made.name, made.dtype, made.resizer, made.channels) == (engine, "float32", PAD, 3)
    assert_same_masks(made, name, 1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_openvino(name, member):
    assert_converts(member, name, conversions.OPENVINO)


@pytest.mark.parametrize("name", ["mobilenet", "vgg11v2", "unet_classic", "unet_bn"])
def test_onnx(name, member):
    assert_converts(member, name, conversions.ONNX)


def test_bfloat16_and_stacked_channels(member):
    needs("openvino")
    engine = Conversion(member("mobilenet", 1), "openvino", "mixed_bfloat16").load()
    assert (engine.dtype, engine.channels) == ("bfloat16", 4)
    batch = photos(64, 96, channels=4)
    expected = np.asarray(small("mobilenet", 1)(batch.astype("float32")))[..., 0]
    assert np.abs(engine.predict(batch) - expected).max() < 0.2
    assert np.mean((engine.predict(batch) > 0.5) != (expected > 0.5)) < 0.02


def test_streams_do_not_mix_photos(converted_once, member):
    engine = Conversion(member("mobilenet"), "openvino", "float32").load()
    assert engine.streams == min(2, os.cpu_count())
    batches = [photos(64, 96 + 32 * (seed % 3), seed=seed) for seed in range(12)]
    alone = [engine.predict_uint8(batch) for batch in batches]
    for found, expected in zip(ordered_map(engine.predict_uint8, batches, 4), alone, strict=True):
        np.testing.assert_array_equal(found, expected)


# A process whose first predictions these are. Imports are slow, so that the initialiser
# which needs one of NumPy is met by both.
BOTH_AT_ONCE = """
import builtins, os, threading, time
import numpy as np
import openvino
from openvino import opset13 as ops
from carvana_tf.inference.engines.openvino import openvino_engine
os.cpu_count = lambda: 2
photo = ops.parameter([-1, -1, -1, 3], np.uint8)
grey = ops.reduce_mean(ops.convert(photo, "f32"), np.array([3]), False)
graph = openvino.Model([ops.result(ops.relu(grey))], [photo])
engine = openvino_engine(graph, None, "openvino", "float32", 2)
start, found, importing = threading.Barrier(2), [], builtins.__import__
def predict():
    start.wait()
    found.append(engine.predict_uint8(np.zeros((1, 8, 8, 3), np.uint8)).shape)
def slowly(*arguments, **named):
    time.sleep(0.05)
    return importing(*arguments, **named)
builtins.__import__ = slowly
threads = [threading.Thread(target=predict) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(found)
"""


def test_streams_may_begin_at_once():
    needs("openvino")
    command = [sys.executable, "-c", BOTH_AT_ONCE]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120, check=True
    )
    assert done.stdout == "[(1, 8, 8), (1, 8, 8)]\n"


def test_one_photo_gets_all_cores(converted_once, member, samples):
    for few, streams in ((samples[:1], 1), (samples, min(2, os.cpu_count()))):
        ((engine,),) = make_engines(
            "openvino", Workload([member("mobilenet")], ["cpu:0"], "float32", few)
        )
        assert engine.streams == streams


def test_eight_bits(converted_once, member, samples):
    needs("openvino-int8")
    conversion = Conversion(member("mobilenet"), "openvino-int8", "float32", samples)
    engine = conversion.load()
    assert (engine.name, engine.dtype) == ("openvino-int8", "int8+float32")
    batch = photos(64, 96)
    found, expected = engine.predict(batch), reference("mobilenet", batch)
    assert np.abs(found - expected).max() > 0
    assert np.mean((found > 0.5) != (expected > 0.5)) < 0.1
    np.testing.assert_array_equal(engine.predict_uint8(batch), to_uint8(found))
    fewer = dataclasses.replace(conversion, calibration=samples[:2])
    assert fewer.archive != conversion.archive
    # So do the manifests of masks, which must not be mixed.
    assert engine.conversion == conversion.archive.stem


def test_first_and_last_convolutions_are_not_of_eight_bits(samples):
    needs("openvino-int8")
    photo = keras.Input((None, None, 3))
    # A photo enters most U-Nets twice: at the encoder's stem and next to the last stage.
    x = keras.layers.Conv2D(4, 3, 2, "same", activation="relu", name="stem")(photo)
    x = keras.layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    x = keras.layers.Concatenate()([keras.layers.UpSampling2D()(x), photo])
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="stage")(x)
    model = keras.Model(photo, keras.layers.Conv2D(1, 1, activation="sigmoid", name="logits")(x))
    graph = openvino_engines.to_openvino(model)
    graph = openvino_engines.quantize(graph, PAD, 3, samples)
    quantized = [
        op.input_value(1).get_node().get_type_name() != "Constant"  # of its kernel
        for op in graph.get_ordered_ops()
        if op.get_type_name() in ("Convolution", "GroupConvolution")
    ]
    assert quantized == [False, True, True, False]


def test_greys_round_to_even_and_nan_is_refused():
    photo = keras.Input((None, None, 3))
    model = keras.Model(photo, photo[..., :1] / 510.0)
    engine = keras_engine(model, PAD, "cpu:0")
    batch = np.zeros((1, 32, 32, 3), np.uint8)
    batch[0, 0, :5, 0] = [1, 3, 5, 7, 255]
    assert engine.predict_uint8(batch)[0, 0, :5].tolist() == [0, 2, 2, 4, 128]
    broken = keras_engine(keras.Model(photo, photo[..., :1] * np.nan), PAD, "cpu:0")
    with pytest.raises(NotANumber):
        broken.predict_uint8(batch)


def test_many_networks_are_no_reason_to_warn(monkeypatch):
    heard = []
    logger = logging.getLogger("tensorflow")
    monkeypatch.setattr(logger, "handle", lambda r: heard.append(r) if logger.filter(r) else None)
    photo = keras.Input((None, None, 3))
    for _ in range(8):
        engine = keras_engine(keras.Model(photo, photo[..., :1] / 510.0), PAD, "cpu:0")
        engine.predict(photos(32, 32))
        engine.predict(photos(64, 32))
    assert heard == []
    logger.warning("something else")
    assert len(heard) == 1


@pytest.mark.parametrize("side, stride, expected", [
    (1280, 32, 1280), (1920, 32, 1920), (64, 32, 64), (96, 32, 96), (1312, 32, 1408),
    (992, 32, 1024), (264, 8, 288), (200, 8, 208), (1300, 20, 1400),
])  # fmt: skip
def test_buckets(side, stride, expected):
    batch = np.random.default_rng(0).integers(0, 256, (1, side, stride, 1), np.uint8)
    padded = keras_engines.to_bucket(batch, stride)
    np.testing.assert_array_equal(padded[:, :side, :stride], batch)
    assert padded.shape[1] == expected
    np.testing.assert_array_equal(
        padded[0, side:, 0, 0], batch[0, side - 2 : 2 * side - expected - 2 : -1, 0, 0]
    )


def test_buckets_are_few():
    assert len({keras_engines._bucket(side, 8) for side in range(1024, 2048, 8)}) == 9


def test_a_second_load_does_not_convert_again(member, monkeypatch):
    needs("openvino")
    conversion = Conversion(member(), "openvino", "float32")
    before = conversion.load().predict(photos(32, 32))
    assert conversion.archive.parent.name == "best.engines"
    monkeypatch.setattr(conversions.openvino, "to_openvino", None)
    again = conversion.load().predict(photos(32, 32))
    np.testing.assert_array_equal(again, before)


def test_a_damaged_conversion_is_made_again(converted_once, member):
    conversion = Conversion(member(), "openvino", "float32")
    before = conversion.load().predict(photos(32, 32))
    whole = conversion.archive.read_bytes()
    half = len(whole) // 2
    for damaged in (b"", whole[:half], whole[:half] + b"????" + whole[half + 4 :]):
        conversion.archive.write_bytes(damaged)
        reported: list[str] = []
        again = (
            dataclasses.replace(conversion, report=reported.append).load().predict(photos(32, 32))
        )
        np.testing.assert_array_equal(again, before)
        assert len(reported) == 2 and "is made again" in reported[0] and "converting" in reported[1]


def test_parts_of_another_network_are_made_again(converted_once, member):
    source = member()
    source = dataclasses.replace(
        source, path=source.path.rename(source.path.with_name("ours.keras"))
    )
    ours = Conversion(source, "openvino", "float32")
    other = Conversion(member("mobilenet"), "openvino", "float32")
    before = ours.load().predict(photos(32, 32))
    assert not np.array_equal(other.load().predict(photos(32, 32)), before)
    whole = [conversion.archive.read_bytes() for conversion in (ours, other)]
    parts = [cache._read(conversion.archive) for conversion in (ours, other)]
    with zipfile.ZipFile(ours.archive) as archive:
        contents = archive.read("contents.json")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("contents.json", contents)
        for name, data in parts[1].items():
            archive.writestr(name, data)
    for exchanged in (whole[1], stream.getvalue()):
        ours.archive.write_bytes(exchanged)
        reported: list[str] = []
        again = dataclasses.replace(ours, report=reported.append).load().predict(photos(32, 32))
        np.testing.assert_array_equal(again, before)
        assert "is made again" in reported[0]
        assert cache._read(ours.archive).keys() == parts[0].keys()


def test_a_damaged_archive_is_no_traceback(tmp_path):
    path, parts, reported = (
        tmp_path / "openvino-0.zip",
        {"model.xml": b"x" * 999, "model.bin": b"y" * 999},
        [],
    )
    cache.fetch(path, lambda: parts, reported.append)
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(300):
        start = chance.randrange(len(whole))
        noise = chance.randbytes(chance.randint(1, 40))
        path.write_bytes(whole[:start] + noise + whole[start + chance.choice([0, len(noise)]) :])
        assert cache.fetch(path, lambda: parts, reported.append) == parts
    assert reported


@pytest.mark.parametrize("note", ["[]", "null", "{", '{"of": 1}', '{"of": "x"}', "[" * 99999])
def test_a_damaged_note_counts_for_none(tmp_path, note):
    (tmp_path / "a.json").write_text(note)
    assert cache.read_note(tmp_path / "a.json") == {}


def test_a_folder_that_cannot_be_written_to_is_reported(converted_once, member):
    source, reported = member(), []
    source.path.with_name("best.engines").write_text("a file in the way")
    engine = Conversion(source, "openvino", "float32", report=reported.append).load()
    assert engine.predict(photos(32, 32)).shape == (1, 32, 32)
    assert "not kept" in reported[-1]


def test_other_weights_have_another_conversion(member):
    needs("openvino")
    first = Conversion(member(), "openvino", "float32").archive
    assert Conversion(member("mobilenet"), "openvino", "float32").archive != first


@pytest.mark.parametrize("engine", conversions.PACKAGES)
def test_a_missing_package_names_the_install_line(member, monkeypatch, engine):
    package = conversions.PACKAGES[engine][-1]
    monkeypatch.setitem(conversions.PACKAGES, engine, (f"no_{package}",))
    with pytest.raises(UserError, match=rf"no_{package}.*pip install -e '\.\[{engine}\]'"):
        Conversion(member(), engine, "float32").load()


def test_the_check_counts_flips_and_expected_dice(samples):
    truth = np.zeros((64, 96), np.float32)
    truth[:32] = 0.9
    flipped = truth.copy()
    flipped[0, :48] = 0.1

    def fake(values):
        return Engine(PAD, 3, lambda batch: values[None])

    def compare(engine, reference):
        return MaskVerdict.of(agreement.outputs(engine, reference, samples))

    assert compare(fake(truth), fake(truth)) == MaskVerdict(3, 0.0, 0.0)
    verdict = compare(fake(flipped), fake(truth))
    area, lost = 32 * 96, 48
    was = 2 * 0.9 * area / (area + 0.9 * area)
    now = 2 * 0.9 * (area - lost) / (area - lost + 0.9 * area)
    assert verdict.flips == pytest.approx(lost / truth.size)
    assert verdict.dice == pytest.approx(was - now, rel=1e-5)
    assert not verdict.passed
    assert MaskVerdict(16, 0.0002, 0.00009).passed
    assert not MaskVerdict(16, 0.0, 0.0001).passed


def test_unreadable_photos_are_not_checked(samples):
    samples[1].photo.write_bytes(b"")
    engine = Engine(PAD, 3, lambda batch: batch[..., 0] / np.float32(255))
    assert MaskVerdict.of(agreement.outputs(engine, engine, samples)).photos == 2


def test_large_photos_are_checked_in_their_middle(samples):
    shapes = []

    def predict(batch):
        shapes.append(batch.shape)
        return batch[..., 0] / np.float32(255)

    engine = Engine(PAD, 3, predict)
    list(agreement.outputs(engine, engine, samples[:1], side=64))
    list(agreement.outputs(engine, engine, samples[:1], side=32))
    list(agreement.outputs(engine, engine, samples[:1], side=128))
    assert shapes[::2] == [(1, 64, 64, 3), (1, 32, 32, 3), (1, 64, 96, 3)]
    columns = np.arange(96)[None, :, None].repeat(64, 0)
    assert agreement._middle(columns, 32)[0, :, 0].tolist() == list(range(32, 64))


def test_photos_to_check_are_spread():
    assert agreement.choose_photos(list(range(100)), 4) == [0, 33, 66, 99]
    assert agreement.choose_photos([1, 2], 16) == [1, 2]


class TestChoice:
    @pytest.fixture
    def work(self, member, samples, converted_once):
        self.reported = []
        return Workload([member()], ["cpu:0"], "float32", samples * 32, report=self.reported.append)

    def names(self, name, work):
        return [[engine.name for engine in engines] for engines in make_engines(name, work)]

    def plant(self, monkeypatch, change):
        """An engine whose probabilities are changed on their way out."""
        real = conversions.openvino.openvino_engine

        def bad(*arguments):
            engine = real(*arguments)
            return dataclasses.replace(engine, predict=lambda x: change(engine.predict(x)))

        monkeypatch.setattr(conversions.openvino, "openvino_engine", bad)

    def test_auto_takes_what_passes_and_asks_once(self, work, monkeypatch):
        assert self.names("auto", work) == [["openvino"]]
        monkeypatch.setattr(agreement, "outputs", None)
        assert self.names("auto", work) == [["openvino"]]
        few = dataclasses.replace(work, samples=work.samples[:3])
        assert self.names("auto", few) == [["openvino"]]

    def test_auto_falls_back(self, work, monkeypatch):
        self.plant(monkeypatch, lambda p: 1 - p)
        assert self.names("auto", work) == [["keras"]]
        assert "predicting with Keras" in self.reported[-1] and "flip" in self.reported[-1]
        monkeypatch.setattr(agreement, "outputs", None)
        assert self.names("auto", work) == [["keras"]]
        assert self.names("openvino", work) == [["openvino"]]
        assert "warning" in self.reported[-1] and "flip" in self.reported[-1]

    @pytest.mark.parametrize(
        ("policy", "free", "dtype"),
        [
            ("mixed_bfloat16", True, "float32"),
            ("mixed_bfloat16", False, "mixed_bfloat16"),
            ("float32", True, "float32"),
        ],
    )
    def test_auto_falls_back_to_float32_where_it_may(self, work, monkeypatch, policy, free, dtype):
        self.plant(monkeypatch, lambda p: 1 - p)
        wish = dataclasses.replace(work, policy=policy, policy_is_free=free)
        ((engine,),) = make_engines("auto", wish)
        assert (engine.name, engine.dtype) == ("keras", dtype)
        assert ("--dtype=bfloat16 is faster" in self.reported[-1]) == (policy != dtype)

    def test_a_fault_of_keras_is_none_of_openvino(self, work, monkeypatch):
        self.plant(monkeypatch, lambda p: 1 - p)
        make_engines("auto", work)  # the verdict is known from now on

        def fail(*_):
            raise UserError("broken")

        monkeypatch.setattr(selection, "load", fail)
        self.reported.clear()
        with pytest.raises(UserError, match="broken"):
            make_engines("auto", work)
        assert len(self.reported) == 1 and "flip" in self.reported[0]

    def test_auto_does_not_convert_for_a_few(self, work, monkeypatch):
        monkeypatch.setattr(Conversion, "load", None)
        few = dataclasses.replace(work, samples=work.samples[: selection.FEW - 1])
        assert self.names("auto", few) == [["keras"]]

    def test_auto_falls_back_where_nothing_can_be_converted(self, work, monkeypatch):
        monkeypatch.setattr(conversions.openvino, "to_openvino", lambda _: 1 / 0)
        assert self.names("auto", work) == [["keras"]]
        assert "division by zero" in self.reported[-1]
        with pytest.raises(UserError, match=r"division by zero.*--engine=keras"):
            make_engines("openvino", work)

    def test_auto_falls_back_where_a_package_is_broken(self, work, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)  # the import fails
        monkeypatch.setattr(selection, "_usable", lambda work: ("keras", "openvino"))
        assert self.names("auto", work) == [["keras"]]
        assert "predicting with Keras: --engine=openvino needs 'openvino'" in self.reported[-1]

    def test_auto_goes_on_as_begun(self, work, monkeypatch):
        begun = dataclasses.replace(work, begun_with="keras")
        assert self.names("auto", begun) == [["keras"]]
        few = dataclasses.replace(work, samples=work.samples[:3], begun_with="openvino")
        assert self.names("auto", few) == [["openvino"]]

    def test_gpus_run_keras(self, work):
        gpu = dataclasses.replace(work, devices=["gpu:0"])
        with pytest.raises(UserError, match=r"--engine=openvino.*processor"):
            make_engines("openvino", gpu)
        assert selection._usable(gpu) == ("keras",)

    def test_float16_is_for_keras(self, work):
        half = dataclasses.replace(work, policy="mixed_float16")
        assert self.names("auto", half) == [["keras"]]
        with pytest.raises(UserError, match=r"--engine=openvino.*float16.*--dtype"):
            make_engines("openvino", half)
        assert self.reported == []  # nothing was converted in vain

    def test_a_copy_of_a_folder_keeps_its_conversions(self, work, tmp_path, monkeypatch):
        make_engines("auto", work)
        shutil.copytree(tmp_path / "best.engines", tmp_path / "copy/best.engines")
        path = shutil.copy(work.members[0].path, tmp_path / "copy/best.keras")
        moved = checkpoint.read(tmp_path / "copy" / path.name, checkpoint.NetworkOptions())
        monkeypatch.setattr(conversions.openvino, "to_openvino", None)
        assert self.names("auto", dataclasses.replace(work, members=[moved])) == [["openvino"]]
