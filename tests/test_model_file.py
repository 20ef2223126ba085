import json
import time
import zipfile

import keras
import numpy as np
import pytest

from carvana_tf.errors import UserError
from carvana_tf.models import model_file, registry
from carvana_tf.models.options import ModelOptions

X = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype("float32")
METADATA = {"network": "simple_unet", "fold": 0, "scores": {"dice": 0.5}, "note": "größer"}


@pytest.fixture(scope="module")
def model():
    return registry.build(ModelOptions("simple_unet"), width=0.125)


def run(model):
    return np.asarray(model(X))


def test_brings_network_and_metadata_back(model, tmp_path):
    path = model_file.save(model, tmp_path / "fold_0-0.9971.keras", METADATA)
    loaded, metadata = model_file.load(path)
    assert metadata == METADATA
    np.testing.assert_array_equal(run(loaded), run(model))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fold_0-0.9971.json", path.name]
    assert json.loads((tmp_path / "fold_0-0.9971.json").read_text()) == METADATA
    assert model_file.read_metadata(path) == METADATA


def test_the_suffix_is_appended_to_a_name_with_dots(model, tmp_path):
    path = model_file.save(model, tmp_path / "dice-0.9971", {})
    assert path == tmp_path / "dice-0.9971.keras"
    assert (tmp_path / "dice-0.9971.json").is_file()


def test_the_file_alone_is_enough(model, tmp_path):
    path = model_file.save(model, tmp_path / "a.keras", METADATA)
    (tmp_path / "a.json").unlink()
    assert model_file.load(path)[1] == METADATA


def test_bytes_depend_on_network_and_metadata_alone(model, tmp_path, monkeypatch):
    first = model_file.save(model, tmp_path / "a.keras", METADATA).read_bytes()
    later = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: later)
    assert model_file.save(model, tmp_path / "b.keras", METADATA).read_bytes() == first
    assert model_file.save(model, tmp_path / "b.keras", {}).read_bytes() != first
    with zipfile.ZipFile(tmp_path / "a.keras") as archive:
        assert {member.date_time[0] for member in archive.infolist()} == {1980}
        assert "date_saved" not in json.loads(archive.read("metadata.json"))


def test_equal_networks_make_equal_bytes(tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    kept, files = [], []
    try:
        for name in "ab":
            keras.utils.clear_session()
            keras.utils.set_random_seed(3)
            kept.append(
                registry.build(ModelOptions("simple_unet"), width=0.125)
            )  # so addresses differ
            files.append(model_file.save(kept[-1], tmp_path / f"{name}.keras", METADATA))
    finally:
        keras.config.set_dtype_policy(before)
    assert files[0].read_bytes() == files[1].read_bytes()
    np.testing.assert_array_equal(run(model_file.load(files[0])[0]), run(kept[0]))


def test_plain_keras_loads_a_compiled_model_without_its_optimiser(tmp_path):
    model = registry.build(ModelOptions("simple_unet"), width=0.125)
    model.compile("adam", "binary_crossentropy", run_eagerly=True)
    model.train_on_batch(X, np.ones((1, 32, 32, 1)))
    path = model_file.save(model, tmp_path / "a.keras", {})
    assert model.compiled and model.optimizer.iterations == 1
    loaded = keras.saving.load_model(path)
    assert not loaded.compiled
    assert loaded.name == "simple_unet"
    np.testing.assert_array_equal(run(loaded), run(model))


def test_frozen_layers_stay_frozen(tmp_path):
    model = registry.build(ModelOptions("simple_unet"), width=0.125)
    registry.freeze(model, "bottleneck_conv1")
    loaded, _ = model_file.load(model_file.save(model, tmp_path / "a.keras", {}))
    frozen, expected = (
        {layer.name for layer in m.layers if layer.weights and not layer.trainable}
        for m in (loaded, model)
    )
    assert frozen == expected
    assert "encoder_stage1_conv1" in frozen and "bottleneck_conv1" not in frozen


def test_without_metadata_it_is_empty(model, tmp_path):
    model.save(tmp_path / "plain.keras")
    loaded, metadata = model_file.load(tmp_path / "plain.keras")
    assert metadata == {}
    np.testing.assert_array_equal(run(loaded), run(model))


def test_computes_in_another_type(model, tmp_path):
    path = model_file.save(model, tmp_path / "a.keras", {})
    half, _ = model_file.load(path, dtype="mixed_bfloat16")
    assert half.get_layer("decoder_stage1_conv1").compute_dtype == "bfloat16"
    assert half.get_layer("normalise").compute_dtype == "float32"
    assert half.get_layer("mask").compute_dtype == "float32"
    assert {v.dtype for v in half.weights} == {"float32"}
    assert half.name == model.name
    assert run(half).dtype == np.float32
    np.testing.assert_allclose(run(half), run(model), atol=0.05)
    assert not np.array_equal(run(half), run(model))
    back = model_file.with_policy(half, "float32")
    np.testing.assert_array_equal(run(back), run(model))
    assert model_file.with_policy(back, "float32") is back


def test_a_failed_save_keeps_the_old_file(model, tmp_path):
    path = model_file.save(model, tmp_path / "a.keras", METADATA)
    with pytest.raises(TypeError):
        model_file.save(model, path, {"bad": object()})
    assert model_file.load(path)[1] == METADATA
    assert len(list(tmp_path.iterdir())) == 2


def test_explains_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the model '.*none.keras': No such file"):
        model_file.load(tmp_path / "none.keras")


def test_explains_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "a.keras"
    path.write_text("not a zip")
    with pytest.raises(UserError, match=r"a.keras' is no .keras file"):
        model_file.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"no config\.json"):
        model_file.load(path)


def test_explains_a_truncated_file(model, tmp_path):
    path = model_file.save(model, tmp_path / "a.keras", {})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="truncated"):
        model_file.load(path)


def test_explains_broken_content(model, tmp_path):
    path = model_file.save(model, tmp_path / "a.keras", {})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["model.weights.h5"] = b"nonsense"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="cannot read the weights"):
        model_file.load(path)


def test_runs_no_code_from_a_file(tmp_path):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Lambda(lambda x: x * 2)(inputs)
    keras.Model(inputs, outputs).save(tmp_path / "a.keras")
    with pytest.raises(UserError, match=r"a.keras' holds Python code \(a Lambda layer 'lambda'\)"):
        model_file.load(tmp_path / "a.keras")
