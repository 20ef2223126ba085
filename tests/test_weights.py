import os
import re
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from carvana_tf.errors import UserError
from carvana_tf.models import model_file, networks, registry
from carvana_tf.models.cloning import clone, counted_names
from carvana_tf.models.options import ModelOptions
from carvana_tf.models.weights import LoadReport, load_into, read_layer_weights

X = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
VGG_SHAPES = {
    "block1_conv1": [(3, 3, 3, 8), (8,)],
    "block1_conv2": [(3, 3, 8, 8), (8,)],
    "block2_conv1": [(3, 3, 8, 16), (16,)],
}


def small(name, **arguments):
    return registry.build(ModelOptions(name, **arguments), width=0.125)


def weights_of(layers):
    return {layer.name: layer.get_weights() for layer in layers if layer.weights}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, arrays in expected.items():
        assert len(actual[name]) == len(arrays)
        for a, b in zip(actual[name], arrays, strict=True):
            np.testing.assert_array_equal(a, b)


def randomise(model, seed=0):
    """Gives every weight its own value: statistics of 0 and 1 would hide a mix-up."""
    rng = np.random.default_rng(seed)

    def draw(shape):  # kernels that keep the scale; variances must be above 0
        if len(shape) > 1:
            return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        return rng.uniform(0.1, 1, shape)

    model.set_weights([draw(w.shape) for w in model.weights])
    return model


def bottleneck(model, layer):
    return np.asarray(keras.Model(model.input, model.get_layer(layer).output)(X))


def write_legacy(path, entries, root=None):
    """A file as Keras 2 wrote it; `entries`: entry -> {array's path: array}."""
    with h5py.File(path, "w") as file:
        group = file.create_group(root) if root else file
        group.attrs["layer_names"] = [entry.encode() for entry in entries]
        for entry, arrays in entries.items():
            layer = group.create_group(entry)
            layer.attrs["weight_names"] = [name.encode() for name in arrays]
            for name, array in arrays.items():
                layer[name] = array


def legacy_entries(layers):
    """Layer name -> {"<layer>/<array>:0": array}, the usual naming."""
    return {
        layer.name: {f"{layer.name}/{w.name}:0": np.asarray(w) for w in layer.weights}
        for layer in layers
    }


@pytest.fixture(scope="module")
def mobilenet():
    return randomise(small("mobilenet"))


@pytest.fixture(scope="module")
def unet():
    return randomise(small("simple_unet"))


class TestReading:
    @pytest.mark.parametrize("name", ["a.weights.h5", "a.keras", "a.h5", "b"])
    def test_every_format_of_keras(self, unet, tmp_path, name):
        written = tmp_path / (name if "." in name else "a.keras")
        (unet.save_weights if name.endswith("weights.h5") else unet.save)(written)
        written = written.rename(tmp_path / name)  # message by content, not by suffix
        assert_same(read_layer_weights(written), weights_of(unet.layers))

    def test_a_compiled_model_without_its_optimiser(self, tmp_path):
        model = small("simple_unet")
        model.compile("adam", "binary_crossentropy", run_eagerly=True)
        model.train_on_batch(X, np.ones((1, 64, 64, 1)))
        model.save(tmp_path / "a.keras")
        assert_same(read_layer_weights(tmp_path / "a.keras"), weights_of(model.layers))

    @pytest.mark.parametrize("suffix", ["h5", "weights.h5", "keras"])
    def test_nested_models(self, tmp_path, suffix):
        inner = keras.applications.MobileNet(include_top=False, weights=None, alpha=0.25)
        inputs = keras.Input((64, 64, 3))
        outputs = keras.layers.Conv2D(1, 1, name="head")(randomise(inner)(inputs))
        outer = keras.Model(inputs, outputs)
        path = tmp_path / f"a.{suffix}"
        (outer.save_weights if suffix == "weights.h5" else outer.save)(path)
        expected = weights_of([*inner.layers, outer.get_layer("head")])
        assert_same(read_layer_weights(path), expected)

    def test_a_whole_model_of_keras_2(self, tmp_path):
        rng = np.random.default_rng(0)
        kernel, bias, gamma = rng.random((3, 3, 3, 8)), rng.random(8), rng.random(8)
        entries = {
            "input_1": {},
            "encoder": {"conv1/kernel:0": kernel, "conv1/bias:0": bias, "bn/gamma:0": gamma},
            "old": {"old_W_1:0": kernel, "old_b_1:0": bias},
        }
        write_legacy(tmp_path / "a.h5", entries, root="model_weights")
        expected = {"conv1": [kernel, bias], "bn": [gamma], "old": [kernel, bias]}
        assert_same(read_layer_weights(tmp_path / "a.h5"), expected)

    def test_a_long_list_of_layers_comes_in_pieces(self, tmp_path):
        write_legacy(tmp_path / "a.h5", {"a": {"a/x:0": np.ones(1)}, "b": {"b/x:0": np.zeros(1)}})
        with h5py.File(tmp_path / "a.h5", "a") as file:
            names = file.attrs.pop("layer_names")
            file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:1], names[1:]
        assert_same(read_layer_weights(tmp_path / "a.h5"), {"a": [np.ones(1)], "b": [np.zeros(1)]})

    def test_a_keras_file_without_names(self, unet, tmp_path):
        unet.save(tmp_path / "a.keras")
        _drop_names(tmp_path / "a.keras")
        assert_same(read_layer_weights(tmp_path / "a.keras"), weights_of(unet.layers))

    def test_explains_a_missing_file(self, tmp_path):
        with pytest.raises(UserError, match=r"none.h5' do not exist"):
            read_layer_weights(tmp_path / "none.h5")

    @pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 no zip"])
    def test_explains_a_file_of_another_kind(self, tmp_path, content):
        (tmp_path / "a.h5").write_bytes(content)
        with pytest.raises(UserError, match=r"a.h5.*(whole|again)"):
            read_layer_weights(tmp_path / "a.h5")

    @pytest.mark.parametrize("suffix", ["h5", "weights.h5", "keras"])
    def test_explains_a_truncated_file(self, unet, tmp_path, suffix):
        path = tmp_path / f"a.{suffix}"
        (unet.save_weights if suffix == "weights.h5" else unet.save)(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=r"a\..*(truncated|cannot read)") as raised:
            read_layer_weights(path)
        assert "\n" not in str(raised.value)

    def test_explains_a_file_without_layers(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["data"] = np.ones(3)
        with pytest.raises(UserError, match="holds no weights under layer names"):
            read_layer_weights(tmp_path / "a.h5")


def _drop_names(path):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    inside = path.with_suffix(".h5")
    inside.write_bytes(members["model.weights.h5"])
    with h5py.File(inside, "a") as file:
        file.visititems(lambda _, item: item.attrs.pop("name", None))
    members["model.weights.h5"] = inside.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


class TestFit:
    def test_none_changes_nothing(self, unet):
        before = weights_of(unet.layers)
        assert load_into(unet, None) == LoadReport()
        assert_same(weights_of(unet.layers), before)

    def test_a_whole_network(self, unet, tmp_path):
        model_file.save(unet, tmp_path / "a.keras", {})
        fresh = small("simple_unet")
        report = load_into(fresh, tmp_path / "a.keras")
        assert_same(weights_of(fresh.layers), weights_of(unet.layers))
        assert set(report.matched) == weights_of(unet.layers).keys()
        assert not report.unmatched_in_file + report.unmatched_in_model + report.wrong_shape

    def test_an_encoder_with_a_classifier_on_top(self, mobilenet, tmp_path):
        top = keras.applications.MobileNet(weights=None, alpha=0.25, classes=7)
        randomise(top, seed=1).save_weights(tmp_path / "a.weights.h5")
        fresh = small("mobilenet")
        before = weights_of(fresh.layers)
        report = load_into(fresh, tmp_path / "a.weights.h5")
        assert report.unmatched_in_file == ("conv_preds",)
        encoder = weights_of(registry.encoder_layers(fresh))
        expected = weights_of(top.layers)
        assert_same(encoder, {name: expected[name] for name in encoder})
        decoder = before.keys() - encoder.keys()
        assert set(report.unmatched_in_model) == decoder
        after = weights_of(fresh.layers)
        assert_same({n: after[n] for n in decoder}, {n: before[n] for n in decoder})

    def test_another_alpha_is_refused_and_nothing_changed(self, tmp_path):
        other = keras.applications.MobileNet(include_top=False, weights=None, alpha=0.5)
        other.save_weights(tmp_path / "a.weights.h5")
        fresh = small("mobilenet")
        before = weights_of(fresh.layers)
        for allow in (False, True):
            with pytest.raises(UserError, match=r"mobilenet: 0 layers match, 54 have other shapes"):
                load_into(fresh, tmp_path / "a.weights.h5", allow_partial=allow)
        assert_same(weights_of(fresh.layers), before)

    def test_another_network_is_refused(self, unet, tmp_path):
        unet.save_weights(tmp_path / "a.weights.h5")
        with pytest.raises(UserError, match=r"do not fit mobilenet.*--allow_partial_weights"):
            load_into(small("mobilenet"), tmp_path / "a.weights.h5")

    def test_part_of_a_network_needs_leave(self, unet, tmp_path):
        layers = [layer for layer in unet.layers if layer.name.startswith("encoder_stage1")]
        write_legacy(tmp_path / "a.h5", legacy_entries(layers))
        fresh = small("simple_unet")
        with pytest.raises(UserError, match="4 layers match"):
            load_into(fresh, tmp_path / "a.h5")
        report = load_into(fresh, tmp_path / "a.h5", allow_partial=True)
        assert set(report.matched) == weights_of(layers).keys()
        assert_same(
            {n: fresh.get_layer(n).get_weights() for n in report.matched}, weights_of(layers)
        )

    def test_half_an_encoder_is_refused(self, mobilenet, tmp_path):
        half = registry.encoder_layers(mobilenet)[:40]
        write_legacy(tmp_path / "a.h5", legacy_entries(half))
        with pytest.raises(UserError, match="do not fit mobilenet"):
            load_into(small("mobilenet"), tmp_path / "a.h5")

    def test_an_encoder_among_strangers_needs_leave(self, mobilenet, tmp_path):
        entries = legacy_entries(registry.encoder_layers(mobilenet))
        entries["conv_up6_1"] = {"conv_up6_1/kernel:0": np.ones(3)}
        write_legacy(tmp_path / "a.h5", entries)
        with pytest.raises(UserError, match=r"1 are only in the file \(conv_up6_1\)"):
            load_into(small("mobilenet"), tmp_path / "a.h5")
        report = load_into(small("mobilenet"), tmp_path / "a.h5", allow_partial=True)
        assert len(report.matched) == 54

    def test_a_first_convolution_of_more_channels_is_named(self, unet, tmp_path):
        small("simple_unet", stacked_channels=2).save_weights(tmp_path / "a.weights.h5")
        report = load_into(small("simple_unet"), tmp_path / "a.weights.h5", allow_partial=True)
        assert report.wrong_shape == (
            "encoder_stage1_conv1 3x3x5x8 8 in the file, 3x3x3x8 8 in the network",
        )

    @pytest.mark.parametrize(
        "name", ["mobilenet", "vgg11v1", "convnext_tiny", "resnet50", "unet_bn_dense"]
    )
    def test_stacked_channels_start_unseen(self, tmp_path, name):
        model = randomise(small(name))
        model.save_weights(tmp_path / "a.weights.h5")
        stacked = small(name, stacked_channels=2)
        report = load_into(stacked, tmp_path / "a.weights.h5")
        joins = networks.NETWORKS[name].photo_skip
        assert len(report.widened) == 1 + joins + networks.NETWORKS[name].unet.dense
        assert set(report.widened) <= set(report.matched) == weights_of(stacked.layers).keys()
        expected = np.asarray(model(X))
        for value in (0, 200):
            extra = np.full((1, 64, 64, 2), value, "float32")
            actual = np.asarray(stacked(np.concatenate([X, extra], axis=-1)))
            np.testing.assert_allclose(actual, expected, atol=5e-4)

    def test_an_encoder_of_three_channels_fits_stacked_ones(self, mobilenet, tmp_path):
        write_legacy(tmp_path / "a.h5", legacy_entries(registry.encoder_layers(mobilenet)))
        model = small("mobilenet", stacked_channels=3)
        report = load_into(model, tmp_path / "a.h5")
        assert report.widened == ("conv1",)
        assert "1 of them start blind to the stacked channels (conv1)" in str(report)
        kernel = np.asarray(model.get_layer("conv1").kernel)
        np.testing.assert_array_equal(
            kernel[:, :, :3], np.asarray(mobilenet.get_layer("conv1").kernel)
        )
        assert not kernel[:, :, 3:].any()


def test_automatic_names_are_counted_by_their_numbers():
    names = ["conv2d_10", "conv2d_9", "conv_7b", "activation", "activation_1"]
    assert counted_names(names) == {
        "conv2d_9": "conv2d_1",
        "conv2d_10": "conv2d_2",
        "activation": "activation_1",
        "activation_1": "activation_2",
    }


class TestResNet50:
    def test_vgg_weights_fill_and_freeze_the_branch(self, tmp_path):
        rng = np.random.default_rng(0)
        arrays = {n: [rng.random(s) for s in shapes] for n, shapes in VGG_SHAPES.items()}
        entries = {
            name: {f"{name}/kernel:0": kernel, f"{name}/bias:0": bias}
            for name, (kernel, bias) in arrays.items()
        }
        write_legacy(tmp_path / "vgg.h5", entries)
        model = small("resnet50")
        trained = len(model.trainable_weights)
        report = load_into(model, tmp_path / "vgg.h5")
        assert report.matched == registry.VGG_BRANCH
        for name in registry.VGG_BRANCH:
            np.testing.assert_allclose(model.get_layer(name).get_weights()[0], arrays[name][0])
        assert len(model.trainable_weights) == trained - 4
        registry.freeze(model, "input_1")
        assert len(model.trainable_weights) == trained - 4

    def test_old_names_bring_their_epsilon(self, tmp_path):
        source = randomise(small("resnet50"), seed=2)
        encoder = registry.encoder_layers(source)
        old = {layer.name: _old_name(layer.name) for layer in encoder}
        assert old["conv4_block6_2_bn"] == "bn4f_branch2b"
        assert old["conv2_block1_0_conv"] == "res2a_branch1"
        entries = legacy_entries(encoder)
        write_legacy(tmp_path / "old.h5", {old[name]: entries[name] for name in entries})

        model = small("resnet50")
        load_into(model, tmp_path / "old.h5")
        norms = {x.name for x in encoder if isinstance(x, keras.layers.BatchNormalization)}

        def widen(layer, config):
            if layer.name in norms:
                config["epsilon"] = 1e-3

        expected = clone(source, widen)
        expected.set_weights(source.get_weights())
        last = "conv5_block3_out"
        value = bottleneck(model, last)
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(value, bottleneck(expected, last))
        assert not np.allclose(value, bottleneck(source, last), rtol=1e-6)
        assert model.get_layer("decoder_stage1_bn1").epsilon == 1e-3  # Keras' default
        path = model_file.save(model, tmp_path / "new.keras", {})
        loaded = keras.saving.load_model(path)
        assert {loaded.get_layer(name).epsilon for name in norms} == {1e-3}
        np.testing.assert_array_equal(bottleneck(loaded, last), value)

    def test_modern_names_keep_theirs(self, tmp_path):
        source = small("resnet50")
        write_legacy(tmp_path / "a.h5", legacy_entries(registry.encoder_layers(source)))
        model = small("resnet50")
        assert len(load_into(model, tmp_path / "a.h5").matched) == 106
        assert model.get_layer("conv1_bn").epsilon == pytest.approx(1.001e-5)
        assert model.get_layer("block1_conv1").trainable


def _old_name(name):
    if name in ("conv1_conv", "conv1_bn"):
        return {"conv1_conv": "conv1", "conv1_bn": "bn_conv1"}[name]
    if not name.endswith(("_conv", "_bn")):
        return name
    stage, block, step, kind = name.split("_")
    branch = "branch1" if step == "0" else "branch2" + " abc"[int(step)]
    letter = " abcdef"[int(block.removeprefix("block"))]
    return f"{'res' if kind == 'conv' else 'bn'}{stage.removeprefix('conv')}{letter}_{branch}"


class TestImagenet:
    """Only the download itself is replaced."""

    @pytest.fixture
    def asked(self, monkeypatch, tmp_path):
        names = []

        def get_file(fname, origin=None, **_):
            names.append(fname)
            if "vgg16" in fname:
                model = keras.applications.VGG16(include_top=False, weights=None)
            elif "resnet50" in fname:
                model = keras.applications.ResNet50(include_top=False, weights=None)
            else:
                model = keras.applications.MobileNet(include_top=False, weights=None, alpha=0.25)
            path = tmp_path / f"{fname}.weights.h5"
            randomise(model, seed=3).save_weights(path)
            return str(path)

        monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
        return names

    def test_mobilenet_asks_for_its_alpha(self, asked):
        model = small("mobilenet", alpha=0.25)
        report = load_into(model, "imagenet")
        assert asked == ["mobilenet_2_5_224_tf_no_top.h5"]
        assert len(report.matched) == 54
        assert model.get_layer("conv1_bn").get_weights()[2].min() > 0

    @pytest.mark.slow
    def test_resnet50_asks_for_vgg16_too(self, asked):
        model = registry.build(ModelOptions("resnet50"))
        report = load_into(model, "imagenet")
        assert len(asked) == 2
        assert len(report.matched) == 108
        assert not model.get_layer("block1_conv2").trainable

    def test_explains_a_failed_download(self, monkeypatch):
        def get_file(*_, **__):
            raise Exception("URL fetch failure on https://example.org: no network")

        monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
        with pytest.raises(UserError, match=r"cannot download .*mobilenet.*no network.*--weights"):
            load_into(small("mobilenet"), "imagenet")

    def test_explains_where_there_are_none(self, unet):
        with pytest.raises(UserError, match="no ImageNet weights for simple_unet"):
            load_into(unet, "imagenet")


@pytest.mark.skipif("ENCODER_WEIGHTS" not in os.environ, reason="ENCODER_WEIGHTS is not set")
@pytest.mark.parametrize(
    "name, alpha",
    [
        ("mobilenet_1_0_imagenet_notop.weights.h5", 1.0),
        ("mobilenet_2_5_224_tf_no_top.h5", 0.25),
    ],
)
def test_published_weights_give_what_keras_gives(name, alpha):
    path = Path(os.environ["ENCODER_WEIGHTS"]) / name
    model = registry.build(ModelOptions("mobilenet", alpha=alpha))
    assert len(load_into(model, path).matched) == 54
    reference = keras.applications.MobileNet(include_top=False, weights=None, alpha=alpha)
    reference.load_weights(path)
    expected = np.asarray(reference(bottleneck(model, "normalise")))
    actual = bottleneck(model, "conv_pw_13_relu")
    assert expected.std() > 0.01
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    with pytest.raises(UserError, match="do not fit mobilenet"):
        load_into(registry.build(ModelOptions("mobilenet", alpha=0.5)), path)


def fourth_place_name(name, network):
    """What the 4th-place solution called a layer of ours, from its own list of stages."""
    last = name.rpartition("_")[2]  # conv1, bn2
    kind, number = re.fullmatch(r"([a-z]*)(\d*)", last).groups()
    if name == "logits":
        return "conv2d_27" if network == "vgg" else "prediction"
    if network == "vgg":
        place = {"encoder_stage4": 4, "encoder_stage5": 5, "encoder_stage6": 6, "bottleneck": 7}
        part = name.rpartition("_")[0]
        if part in place:
            return f"block{place[part]}_conv{number}"
        if name.startswith("decoder"):
            stage = int(name.split("_")[1].removeprefix("stage"))
            return f"conv2d_transpose_{stage + 6}" if last == "up" else f"conv2d_{stage + 20}"
        return name
    first = (
        {"encoder": 0, "bottleneck": 4, "decoder": 4}
        if network == "simple_unet"
        else {"decoder": 5}
    )
    part = name.split("_")[0]
    if part not in first or part == name:
        return name
    stage = name.split("_")[1].removeprefix("stage") if part != "bottleneck" else "0"
    return f"conv{first[part] + int(stage)}_{number}_{kind}"


class TestPublishedFiles:
    def write(self, path, source, rename):
        entries = legacy_entries(layer for layer in source.layers if layer.weights)
        renamed = {rename(name): arrays for name, arrays in entries.items()}
        assert len(renamed) == len(entries) and renamed.keys() != entries.keys()
        write_legacy(path, renamed, root="model_weights")
        return renamed

    @pytest.mark.parametrize("network", ["mobilenet", "simple_unet", "vgg"])
    def test_those_of_the_4th_place_load_whole(self, tmp_path, network):
        source = randomise(small(network))
        names = self.write(tmp_path / "a.h5", source, lambda name: fourth_place_name(name, network))
        example = {"mobilenet": "conv6_1_conv", "simple_unet": "conv4_3_bn", "vgg": "block7_conv2"}
        assert example[network] in names
        model = small(network)
        report = load_into(model, tmp_path / "a.h5")
        assert not (report.unmatched_in_file or report.unmatched_in_model or report.wrong_shape)
        assert_same(weights_of(model.layers), weights_of(source.layers))

    def test_its_resnet50_gets_the_padding_of_its_stem(self, tmp_path):
        source = randomise(small("resnet50"))
        self.write(tmp_path / "a.h5", source, lambda name: fourth_place_name(name, "resnet50"))
        model = small("resnet50")
        load_into(model, tmp_path / "a.h5")
        stem = model.get_layer("conv1_conv")
        inner = keras.Model(model.input, [model.get_layer("conv1_pad").input, stem.output])
        photo, found = inner(X)
        kernel, bias = stem.get_weights()
        same = keras.ops.conv(photo, kernel, strides=2, padding="same") + bias
        np.testing.assert_allclose(found, same, rtol=1e-4, atol=1e-2)
        pooled = keras.Model(
            model.input,
            [model.get_layer("conv1_relu").output, model.get_layer("pool1_pool").output],
        )
        before, after = pooled(X)
        np.testing.assert_array_equal(keras.ops.max_pool(before, 3, 2, padding="same"), after)
        model.save(tmp_path / "m.keras")
        again = keras.saving.load_model(tmp_path / "m.keras", compile=False)
        np.testing.assert_array_equal(again(X), model(X))
        load_into(other := small("resnet50"), None)
        assert other.get_layer("conv1_pad").padding == ((3, 3), (3, 3))

    @pytest.mark.parametrize("network", ["unet_bn", "unet_bn_simple"])
    def test_automatic_names_are_paired_by_order(self, tmp_path, network):
        source = randomise(small(network))
        kinds = {"Conv2D": "conv2d", "Conv2DTranspose": "conv2d_transpose"}
        kinds["BatchNormalization"] = "batch_normalization"
        counts, names = {}, {}
        for layer in source.layers:
            if layer.weights:
                kind = kinds[type(layer).__name__]
                counts[kind] = counts.get(kind, 7) + 1  # other networks were made before
                names[layer.name] = f"{kind}_{counts[kind]}"
        self.write(tmp_path / "a.h5", source, names.__getitem__)
        model = small(network)
        load_into(model, tmp_path / "a.h5")
        np.testing.assert_array_equal(model(X), source(X))
        with pytest.raises(UserError, match="do not fit"):
            load_into(small("unet_classic"), tmp_path / "a.h5")
