"""Each export run by its own runtime, as docs/export.md says it, next to Keras in float32."""

import importlib.util
import json
import re
import sys
import types
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from carvana_tf import commands, files
from carvana_tf.data.images import write_photo
from carvana_tf.errors import UserError
from carvana_tf.inference import engines
from carvana_tf.inference.engines import exporting
from carvana_tf.inference.options import FORMATS
from carvana_tf.models import checkpoint, model_file, registry
from carvana_tf.models.options import ModelOptions, NetworkOptions
from carvana_tf.tasks.labels.agreement import LabelVerdict
from carvana_tf.tasks.masks.agreement import MaskVerdict

PAGE = (Path(__file__).parents[1] / "docs/export.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
RUNTIMES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "tf_saved_model": "tensorflow",
    "litert": "ai_edge_litert",
}
OUTPUTS = {
    "onnx": "car.onnx",
    "openvino": "car.xml",
    "tf_saved_model": "car_saved_model",
    "litert": "car.tflite",
}
STRIDE = 32


def call(*arguments):
    return commands.find("export_model").call(arguments)


def needs(form):
    for package in exporting.PACKAGES[form]:
        pytest.importorskip(package)


def noise(height, width, seed=0):
    """Smooth noise, as photos are."""
    small = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    return small.repeat(8, 0).repeat(8, 1)[:height, :width]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose mask is neither empty nor full, and its exports, all in one folder."""
    folder = tmp_path_factory.mktemp("export")
    keras.utils.set_random_seed(0)
    model = registry.build(ModelOptions("simple_unet"), width=0.125)
    logits = keras.Model(model.input, model.get_layer("logits").output)
    values = np.asarray(logits(noise(96, 128)[None].astype("float32")))
    kernel, bias = model.get_layer("logits").get_weights()
    scale = 4.0 / values.std()
    model.get_layer("logits").set_weights([kernel * scale, (bias - np.median(values)) * scale])
    facts = {"network": "simple_unet", "stride": STRIDE, "size_policy": "pad", "fold": 2}
    model_file.save(model, folder / "best.keras", facts)
    for form, name in OUTPUTS.items():
        if all(map(importlib.util.find_spec, exporting.PACKAGES[form])):
            flags = (f"--format={form}", f"--output={folder / name}")
            assert call(f"--weights={folder / 'best.keras'}", *flags) == 0
    return folder


def with_runtime(form, monkeypatch):
    """LiteRT is in TensorFlow, too."""
    if form == "litert" and importlib.util.find_spec("ai_edge_litert") is None:
        import tensorflow as tf

        interpreter = types.SimpleNamespace(Interpreter=tf.lite.Interpreter)
        monkeypatch.setitem(sys.modules, "ai_edge_litert", types.SimpleNamespace())
        monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", interpreter)
    else:
        pytest.importorskip(RUNTIMES[form])


def test_every_format_has_an_example():
    assert [*RUNTIMES] == [*OUTPUTS] == [*FORMATS] == [*exporting.PACKAGES]
    assert [re.findall(r"^(?:import|from) (\w+)", block, re.M) for block in BLOCKS[1:-1]] == [
        [package] for package in RUNTIMES.values()
    ]


@pytest.mark.parametrize("form", OUTPUTS)
def test_the_examples_give_the_masks_of_keras(folder, form, monkeypatch, tmp_path):
    needs(form)
    with_runtime(form, monkeypatch)
    for name in (OUTPUTS[form], "car.bin"):
        if (folder / name).exists():
            (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "car.onnx.json").symlink_to(folder / f"{OUTPUTS[form]}.json")
    monkeypatch.chdir(tmp_path)
    found = checkpoint.read(folder / "best.keras", NetworkOptions())
    reference = engines.keras.load(found, "cpu:0", "float32")
    pairs = []
    for height, width in ((61, 90), (96, 64)):  # every size, and what has to be padded
        photo = noise(height, width)
        write_photo(Path("photo.png"), photo)
        of_runtime = BLOCKS[1 + [*OUTPUTS].index(form)]
        names: dict = {}
        exec(BLOCKS[0] + of_runtime + BLOCKS[-1], names)
        whole = reference.predict(found.resizer.whole(photo)[None])
        pairs.append((whole[0], names["probability"][0]))
        expected = found.resizer.restore(whole[0], height, width) >= 0.5
        assert 0.2 < expected.mean() < 0.8
        assert names["mask"].shape == (height, width)
        assert (names["mask"] != expected).mean() <= 0.0002
        batch = names["batch"]
        assert batch.dtype == np.uint8
        assert np.abs(names["probability"] - whole).max() < 1e-4
    verdict = MaskVerdict.of(pairs)
    assert verdict.photos == 2 and verdict.passed, verdict


def inside(form, path):
    """The metadata in a file, by the means of its format."""
    if form == "onnx":
        import onnx

        return {p.key: p.value for p in onnx.load(path).metadata_props}["carvana_tf"]
    if form == "openvino":
        import openvino

        return openvino.Core().read_model(path).get_rt_info("carvana_tf").value
    if form == "tf_saved_model":
        return (path / "assets.extra/carvana_tf.json").read_text()
    with zipfile.ZipFile(path) as archive:
        return archive.read("carvana_tf.json").decode()


@pytest.mark.parametrize("form", OUTPUTS)
def test_the_metadata_is_inside_and_beside(folder, form):
    needs(form)
    path = folder / OUTPUTS[form]
    facts = files.read_json(folder / f"{OUTPUTS[form]}.json")
    assert json.loads(inside(form, path)) == facts
    assert facts["format"] == form
    assert facts["source"] == {
        "file": "best.keras",
        "sha256": files.digest(folder / "best.keras"),
    }
    assert facts["input"]["shape"] == [None, None, None, 3]
    assert (facts["network"], facts["task"], facts["fold"]) == ("simple_unet", "masks", 2)
    assert (facts["stride"], facts["sizing"]["policy"]) == (STRIDE, "pad")
    assert facts["threshold"] == 0.5


def test_onnx_has_nothing_of_old_versions(folder):
    needs("onnx")
    import onnx

    network = onnx.load(folder / "car.onnx")
    onnx.checker.check_model(network, full_check=True)
    resizes = [node for node in network.graph.node if node.op_type == "Resize"]
    modes = {a.s for node in resizes for a in node.attribute if a.name.startswith("coordinate")}
    assert resizes and modes == {b"half_pixel"}


def test_a_fixed_size_is_fixed_and_said(folder, tmp_path, capsys, caplog):
    out = tmp_path / "car.tflite"
    flags = ("--format=litert", f"--output={out}", "--height=64", "--width=96")
    with caplog.at_level("INFO", "absl"), caplog.at_level("INFO", "tensorflow"):
        assert call(f"--weights={folder / 'best.keras'}", *flags) == 0
    assert caplog.messages == []
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "64 x 96 alone" in printed
    import tensorflow as tf

    (photo,) = tf.lite.Interpreter(str(out)).get_input_details()
    assert photo["shape_signature"].tolist() == [-1, 64, 96, 3]
    assert files.read_json(tmp_path / "car.tflite.json")["output"]["shape"] == [None, 64, 96]


def save_labels(path):
    """A model of labels that takes photos of 64 x 96 alone."""
    photo = keras.Input((64, 96, 3))
    x = keras.layers.Rescaling(1 / 255)(photo)
    x = keras.layers.Conv2D(4, 3, 2, padding="same", activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    metadata = {
        "network": "seresnet50",
        "stride": 32,
        "size_policy": "resize",
        "input_height": 64,
        "input_width": 96,
        "task": "labels",
        "classes": ["car", "bus"],
        "scoring": "sigmoid",
        "top_k": 2,
    }
    logits = keras.layers.Dense(2, kernel_initializer=keras.initializers.RandomNormal(stddev=20))
    return model_file.save(keras.Model(photo, logits(x)), path, metadata)


@pytest.mark.parametrize("form", OUTPUTS)
def test_labels_give_logits(tmp_path, form, monkeypatch):
    needs(form)
    with_runtime(form, monkeypatch)
    keras.utils.set_random_seed(1)
    path = save_labels(tmp_path / "labels.keras")
    assert (
        call(f"--weights={path}", f"--format={form}", f"--output={tmp_path / OUTPUTS[form]}") == 0
    )
    facts = files.read_json(tmp_path / f"{OUTPUTS[form]}.json")
    assert facts["input"]["shape"] == [None, 64, 96, 3]
    assert facts["output"] == {
        "name": "logits",
        "dtype": "float32",
        "axes": ["photo", "class"],
        "shape": [None, 2],
    }
    assert facts["classes"] == ["car", "bus"] and facts["scoring"] == "sigmoid"
    assert "threshold" not in facts
    batch = np.stack([noise(64, 96, seed) for seed in range(3)])
    monkeypatch.chdir(tmp_path)
    names = {"batch": batch}
    example = BLOCKS[1 + [*OUTPUTS].index(form)].replace('"probability"', '"logits"')
    exec(example, names)
    model, _ = model_file.load(path)
    expected = np.asarray(model(batch.astype("float32")))
    assert expected.std() > 0.01
    np.testing.assert_allclose(names["probability"], expected, atol=1e-4)
    assert LabelVerdict.of(zip(expected, names["probability"], strict=True)).passed


@pytest.fixture
def quick(folder, monkeypatch):
    """Converts to LiteRT in no time."""
    monkeypatch.setattr(exporting, "to_litert", lambda model, size: b"network" * 9)
    return f"--weights={folder / 'best.keras'}", "--format=litert"


def test_what_is_there_stays_without_overwrite(quick, tmp_path, monkeypatch):
    out = tmp_path / "car.tflite"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"car\.tflite' exists; use --overwrite"):
        call(*quick, f"--output={out}")
    assert out.read_text() == "mine" and [*tmp_path.iterdir()] == [out]
    assert call(*quick, f"--output={out}", "--overwrite") == 0
    assert out.read_bytes().startswith(b"networknetwork")
    assert {path.name for path in tmp_path.iterdir()} == {"car.tflite", "car.tflite.json"}

    def fail(model, size):
        raise ValueError("no such operation\nand a page of it")

    before = out.read_bytes()
    monkeypatch.setattr(exporting, "to_litert", fail)
    with pytest.raises(UserError, match=r"cannot convert .*best\.keras.*\(no such operation\)"):
        call(*quick, f"--output={out}", "--overwrite")
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"car.tflite", "car.tflite.json"}


def test_a_folder_of_other_files_is_never_replaced(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "to_saved_model", lambda model, folder, size: None)
    models = tmp_path / "models"
    models.mkdir()
    (models / "best.keras").write_text("weeks of work")
    flags = (f"--weights={folder / 'best.keras'}", "--format=tf_saved_model")
    with pytest.raises(UserError, match=r"models' is not what an earlier export has made"):
        call(*flags, f"--output={models}", "--overwrite")
    assert (models / "best.keras").read_text() == "weeks of work"
    for more in ((), ("--overwrite",)):
        assert call(*flags, f"--output={tmp_path / 'ours'}", *more) == 0
    assert (tmp_path / "ours/assets.extra/carvana_tf.json").is_file()


@pytest.mark.parametrize("flags, message", [
    ((), r"3 mistakes: .*--weights is missing.*--format is missing.*--output is missing"),
    (("--weights=none.keras", "--format=onnx", "--output=a.onnx"), r"none\.keras' does not exist"),
    (("--format=caffe",), r"--format=caffe: value should be one of <onnx\|openvino\|"),
    (("--format=onnx", "--output=a.pb"), r"--output='a\.pb' must end in \.onnx"),
    (("--height=64",), r"--height and --width belong together"),
])  # fmt: skip
def test_mistakes_are_one_line(flags, message):
    with pytest.raises(UserError, match=message) as caught:
        call(*flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flags, message", [
    (("--height=64", "--width=100"), r"--width=100 is no multiple of 32, .*; use 128\.$"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(quick, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        call(*quick, f"--output={tmp_path / 'car.tflite'}", *flags)
    assert [*tmp_path.iterdir()] == []


def test_a_network_of_one_size_takes_no_other(tmp_path):
    path = save_labels(tmp_path / "labels.keras")
    flags = ("--format=litert", f"--output={tmp_path / 'a.tflite'}", "--height=64", "--width=64")
    with pytest.raises(UserError, match=r"--width=64: .*labels\.keras' takes 96 alone"):
        call(f"--weights={path}", *flags)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_missing_package_names_the_install_line(folder, tmp_path, form, monkeypatch):
    monkeypatch.setitem(exporting.PACKAGES, form, ("no_such_package",))
    out = tmp_path / OUTPUTS[form]
    with pytest.raises(UserError, match=rf"--format={form} needs .*pip install -e '\.\[{form}\]'"):
        call(f"--weights={folder / 'best.keras'}", f"--format={form}", f"--output={out}")
    assert [*tmp_path.iterdir()] == []
