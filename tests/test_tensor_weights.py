"""Encoder weights of torchvision and timm, by the names their libraries give the tensors.

Names and shapes were taken from the libraries by benchmarks/encoder_parity.py, which also
compares the features; here no PyTorch is needed.
"""

import csv
import json
import math
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from carvana_tf.data.dataset import find_photos
from carvana_tf.data.images import read_photo, resize
from carvana_tf.errors import UserError
from carvana_tf.models import registry
from carvana_tf.models.builders import feature
from carvana_tf.models.encoders import ENCODERS
from carvana_tf.models.options import ModelOptions
from carvana_tf.models.weights import load_into, tensors
from carvana_tf.tasks import MASKS
from carvana_tf.training import network
from carvana_tf.training.options import TrainingOptions

pytestmark = pytest.mark.usefixtures("undrawn_kernels")
LISTED = Path(__file__).parents[1] / "benchmarks" / "encoder_tensors.csv"
TYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64", "uint8": "U8"}


def published(library, model):
    """Random values under the library's names; large heads that nobody wants are cut."""
    random = np.random.default_rng(0)
    found = {}
    with LISTED.open() as file:
        for row in csv.DictReader(file):
            if (row["library"], row["model"]) != (library, model):
                continue
            shape = tuple(map(int, row["shape"].split("x"))) if row["shape"] else ()
            name = row["tensor"]
            if name.endswith("num_batches_tracked"):
                found[name] = np.zeros((), np.int64)
            elif name.startswith(("classifier", "fc", "head.fc")) and len(shape) > 1:
                found[name] = np.zeros((1,), np.float32)
            else:
                found[name] = random.uniform(0.1, 1, shape).astype(np.float32)
    assert found
    return found


def write(path, values):
    """A safetensors file: the length of a header, the header, the bytes."""
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, value in values.items():
        end = start + value.nbytes
        header[name] = {
            "dtype": TYPES[value.dtype.name],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    content = (value.tobytes() for value in values.values())
    path.write_bytes(b"".join((len(text).to_bytes(8, "little"), text, *content)))
    return path


# Some tensors of each structure and the layers they belong to, by reading both networks.
PAIRS = {
    ("torchvision", "resnet34", "linknet34"): {
        "conv1.weight": "conv1_conv",
        "layer1.0.conv1.weight": "conv2_block1_1_conv",
        "layer2.0.downsample.0.weight": "conv3_block1_0_conv",
        "layer4.2.conv2.weight": "conv5_block3_2_conv",
        "layer4.2.bn2.running_var": "conv5_block3_2_bn",
    },
    ("torchvision", "vgg11", "vgg11v1"): {
        "features.0.weight": "encoder_stage1_conv1",
        "features.8.weight": "encoder_stage3_conv2",
        "features.18.weight": "encoder_stage5_conv2",
    },
    ("torchvision", "vgg11", "vgg11av2"): {"features.16.weight": "encoder_stage5_conv1"},
    ("torchvision", "vgg16", "vgg"): {
        "features.2.weight": "block1_conv2",
        "features.14.weight": "block3_conv3",
    },
    ("timm", "legacy_seresnet50", "seresnet50"): {
        "layer0.conv1.weight": "conv1_conv",
        "layer0.bn1.running_var": "conv1_bn",
        "layer1.0.downsample.0.weight": "conv2_block1_0_conv",
        "layer2.3.se_module.fc1.weight": "conv3_block4_se_reduce",
        "layer3.0.se_module.fc2.weight": "conv4_block1_se_expand",
        "layer4.2.conv3.weight": "conv5_block3_3_conv",
    },
    ("timm", "tf_efficientnet_lite0", "efficientnet_lite0"): {
        "conv_stem.weight": "stem_conv",
        "blocks.0.0.conv_dw.weight": "block1a_dwconv2",
        "blocks.0.0.conv_pw.weight": "block1a_project_conv",
        "blocks.4.2.conv_pw.weight": "block5c_expand_conv",
        "blocks.6.0.bn3.running_var": "block7a_project_bn",
    },
    ("timm", "tf_efficientnetv2_b0", "efficientnetv2b0"): {
        "blocks.0.0.conv.weight": "block1a_project_conv",
        "blocks.1.1.conv_exp.weight": "block2b_expand_conv",
        "blocks.5.7.se.conv_reduce.weight": "block6h_se_reduce",
        "bn2.running_var": "top_bn",
    },
    ("timm", "tf_mobilenetv3_large_100", "mobilenetv3large"): {
        "blocks.0.0.conv_pw.weight": "expanded_conv_project",
        "blocks.1.0.conv_dw.weight": "expanded_conv_1_depthwise",
        "blocks.2.2.se.conv_expand.weight": "expanded_conv_5_squeeze_excite_conv_1",
        "blocks.6.0.conv.weight": "conv_1",
        "blocks.6.0.bn1.running_var": "conv_1_bn",
    },
    ("timm", "convnext_tiny", "convnext_tiny"): {
        "stem.0.weight": "convnext_tiny_stem_conv",
        "stages.1.downsample.1.weight": "convnext_tiny_downsampling_conv_0",
        "stages.2.blocks.8.mlp.fc2.weight": "convnext_tiny_stage_2_block_8_pointwise_conv_2",
        "stages.3.blocks.0.gamma": "convnext_tiny_stage_3_block_0_layer_scale",
    },
    ("torchvision", "convnext_tiny", "convnext_tiny"): {
        "features.2.1.weight": "convnext_tiny_downsampling_conv_0",
        "features.5.8.block.5.weight": "convnext_tiny_stage_2_block_8_pointwise_conv_2",
        "features.7.0.layer_scale": "convnext_tiny_stage_3_block_0_layer_scale",
    },
}


@pytest.mark.parametrize("library, model, network", PAIRS)
def test_every_tensor_is_used_or_named(library, model, network, tmp_path):
    offered = published(library, model)
    built = registry.build(ModelOptions(network))
    report = load_into(built, write(tmp_path / "model.safetensors", offered))
    wanted = {layer.name for layer in registry.encoder_layers(built) if layer.weights}
    assert set(report.matched) == wanted
    assert report.unmatched_in_file == ()
    assert not wanted & set(report.unmatched_in_model)
    used = sum(len(built.get_layer(name).weights) for name in report.matched)
    assert used + len(report.unused) == len(offered)
    for tensor, layer in PAIRS[library, model, network].items():
        value = offered[tensor]
        if value.ndim == 4:
            depthwise = isinstance(built.get_layer(layer), keras.layers.DepthwiseConv2D)
            value = value.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
        value = value.T if value.ndim == 2 else value.squeeze() if value.ndim == 3 else value
        arrays = built.get_layer(layer).get_weights()
        found = arrays[3] if tensor.endswith("running_var") else arrays[0]
        np.testing.assert_array_equal(found, value)


def test_norms_of_vgg_are_folded_into_its_convolutions(tmp_path):
    offered = published("torchvision", "vgg11_bn")
    model = registry.build(ModelOptions("ternaus"))
    report = load_into(model, write(tmp_path / "model.safetensors", offered))
    assert len(report.matched) == 8
    kernel, bias = model.get_layer("encoder_stage1_conv1").get_weights()
    x = np.random.default_rng(1).random((27,), np.float32)
    before = offered["features.0.weight"].transpose(2, 3, 1, 0).reshape(27, 64).T @ x
    before += offered["features.0.bias"]
    scale = offered["features.1.weight"] / np.sqrt(offered["features.1.running_var"] + 1e-5)
    after = (before - offered["features.1.running_mean"]) * scale + offered["features.1.bias"]
    np.testing.assert_allclose(kernel.reshape(27, 64).T @ x + bias, after, rtol=1e-4)


def test_vgg16_fills_the_branch_as_it_was_trained(tmp_path):
    """The branch gets BGR less a mean, torchvision's VGG16 standardised RGB."""
    offered = published("torchvision", "vgg16")
    model = registry.build(ModelOptions("resnet50"), width=0.125)
    with pytest.raises(UserError, match="block1_conv1 3x3x3x64"):
        load_into(model, write(tmp_path / "model.safetensors", offered))
    model = registry.build(ModelOptions("resnet50"))
    report = load_into(model, tmp_path / "model.safetensors")
    assert report.matched == ("block1_conv1", "block1_conv2")
    assert not model.get_layer("block1_conv1").trainable
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    photo = np.random.default_rng(1).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    x = (photo / 255 - np.float32((0.485, 0.456, 0.406))) / np.float32((0.229, 0.224, 0.225))
    for n in (0, 2):
        kernel = offered[f"features.{n}.weight"].transpose(2, 3, 1, 0)
        x = keras.ops.relu(
            keras.ops.conv(x, kernel, padding="same") + offered[f"features.{n}.bias"]
        )
    branch = keras.Model(model.input, model.get_layer("block1_conv2").output)
    np.testing.assert_allclose(np.asarray(branch(photo)), np.asarray(x), rtol=1e-4, atol=1e-2)


def test_stacked_channels_start_blind(tmp_path):
    path = write(tmp_path / "model.safetensors", published("torchvision", "vgg11"))
    model = registry.build(ModelOptions("vgg11v2", stacked_channels=2))
    assert load_into(model, path).widened == ("encoder_stage1_conv1",)
    kernel = model.get_layer("encoder_stage1_conv1").get_weights()[0]
    assert kernel[:, :, :3].all()
    assert not kernel[:, :, 3:].any()


@pytest.mark.parametrize(
    ("library", "model", "network", "message"),
    [
        ("torchvision", "resnet50", "resnet50", "stride of a stage in its 3x3.*take Keras'"),
        ("torchvision", "resnet34", "vgg11v1", "it is torchvision's or timm's ResNet34"),
        ("timm", "tf_efficientnet_lite0", "efficientnet_lite2", "have other shapes"),
        ("timm", "legacy_seresnet50", "resnet50", "it is timm's legacy SE-ResNet, for --network"),
        ("torchvision", "vgg11", "simple_unet", "VGG11, for --network with the encoder vgg11v1"),
    ],
)
def test_other_structures_are_refused(tmp_path, library, model, network, message):
    path = write(tmp_path / "model.safetensors", published(library, model))
    built = registry.build(ModelOptions(network))
    before = built.get_weights()
    with pytest.raises(UserError, match=f"do not fit {network}.*{message}") as caught:
        load_into(built, path)
    assert "\n" not in str(caught.value)
    assert all(map(np.array_equal, built.get_weights(), before))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("layer1.0.se.fc1.weight", "layer1.0.conv3.weight"), "timm's SE-ResNet has the stride"),
        (("features.1.block.0.0.weight", "features.4.block.2.fc1.weight"), "MobileNetV3 pads"),
        (("features.0.0.weight", "features.1.0.block.0.0.weight"), "EfficientNet pads"),
        (("a.weight",), "'a.weight', are of no known network.*docs/weights.md"),
    ],
)
def test_structures_that_cannot_be_loaded_say_why(tmp_path, names, message):
    path = write(tmp_path / "x.safetensors", {name: np.ones(2, np.float32) for name in names})
    with pytest.raises(UserError, match=message):
        load_into(registry.build(ModelOptions("simple_unet"), width=0.125), path)


def test_a_tensor_without_a_rule_is_named(tmp_path):
    offered = published("torchvision", "vgg11") | {"extra.weight": np.ones(3, np.float32)}
    path = write(tmp_path / "model.safetensors", offered)
    with pytest.raises(UserError, match=r"1 are only in the file \(extra.weight\)"):
        load_into(registry.build(ModelOptions("vgg11v2")), path)
    assert (
        len(load_into(registry.build(ModelOptions("vgg11v2")), path, allow_partial=True).matched)
        == 8
    )


def test_numbers_of_all_kinds_are_read(tmp_path):
    values = np.float32([[1.5, -2.0], [0.0, 3.25]])
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    offered = {"a": values, "b": values.astype(np.float16), "c": upper, "d": np.arange(3)}
    found = tensors.read(write(tmp_path / "x.safetensors", offered))
    for name in "abc":
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values)
    np.testing.assert_array_equal(found["d"], [0, 1, 2])
    wrapped = {f"module.{name}.weight": values for name in "ab"}
    found = tensors.read(write(tmp_path / "x.safetensors", wrapped))
    assert list(found) == ["a.weight", "b.weight"]


def damage(path, kind):
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    if kind == "truncated":
        path.write_bytes(content[:-4])
    elif kind == "no JSON":
        path.write_bytes(content[:size].replace(b'"dtype"', b"'dtype'") + content[size:])
    elif kind == "eight bits":
        write(path, {"a": np.ones(4, np.uint8)})
    elif kind == "empty":
        write(path, {})
    elif kind == "not a number":
        write(path, {"a": np.float32([1, np.nan])})


@pytest.mark.parametrize("kind", ["truncated", "no JSON", "eight bits", "empty", "not a number"])
def test_a_damaged_file_is_one_line(tmp_path, kind):
    path = write(tmp_path / "x.safetensors", {"a": np.ones(4, np.float32)})
    damage(path, kind)
    with pytest.raises(
        UserError, match=r"x.safetensors'(: 'a' has| is a damaged| holds no)"
    ) as caught:
        load_into(registry.build(ModelOptions("simple_unet"), width=0.125), path)
    assert "\n" not in str(caught.value)


@pytest.fixture(params=["zip", "pickle"])
def pth(request, tmp_path):
    """A file as `torch.save` writes it, today or before."""
    path = tmp_path / "model.pth"
    if request.param == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"")
    else:
        path.write_bytes(pickle.dumps({}, protocol=2))
    return path


def test_files_of_pytorch_need_it(pth, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"model.pth' is a file of PyTorch, which is not installed"):
        load_into(registry.build(ModelOptions("vgg11v2"), width=0.125), pth)


def test_files_of_pytorch_are_read_by_it_without_running_them(pth, monkeypatch):
    class Tensor:
        def __init__(self, values):
            self.values = values

        def is_floating_point(self):
            return self.values.dtype.kind == "f"

        def float(self):
            return Tensor(self.values.astype(np.float32))

        def numpy(self):
            return self.values

    offered = published("torchvision", "vgg11")

    def load(path, map_location, weights_only):
        assert (Path(path), map_location, weights_only) == (pth, "cpu", True)
        return {"state_dict": {name: Tensor(value) for name, value in offered.items()}}

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    model = registry.build(ModelOptions("vgg11v2"))
    assert len(load_into(model, pth).matched) == 8
    found = model.get_layer("encoder_stage5_conv2").get_weights()[1]
    np.testing.assert_array_equal(found, offered["features.18.bias"])

    def refuse(*_, **__):
        raise pickle.UnpicklingError("Weights only load failed.\nmore")

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=refuse))
    with pytest.raises(UserError, match=r"tensors of '.*' \(Weights only load failed.\)"):
        load_into(model, pth)


def test_a_run_says_which_normalisation_the_weights_know(tmp_path, capsys):
    path = write(tmp_path / "model.safetensors", published("torchvision", "resnet34"))
    for normalisation, noted in ((None, True), ("torch", False)):
        options = TrainingOptions.of(
            network="linknet34", weights=str(path), preprocessing_function=normalisation
        )
        network.build(options, MASKS)
        out = capsys.readouterr().out
        assert ("--preprocessing_function=torch gives what they know" in out) == noted


def test_networks_whose_weights_others_have_say_so():
    with pytest.raises(UserError, match="download those of torchvision and give --weights"):
        load_into(registry.build(ModelOptions("linknet34"), width=0.125), "imagenet")


def test_lite_encoders_have_the_published_number_of_parameters():
    """Published with the head's convolution and the classifier of 1000 classes."""
    counts = (4_652_008, 5_416_680, 6_092_072, 8_197_096, 13_006_568)
    for number, count in enumerate(counts):
        layers = registry.encoder_layers(registry.build(ModelOptions(f"efficientnet_lite{number}")))
        trainable = sum(math.prod(v.shape) for x in layers for v in x.trainable_weights)
        filters = layers[-1].output.shape[-1]
        assert trainable == count - (filters + 2) * 1280 - 1281 * 1000


@pytest.mark.skipif(
    not {"ENCODER_WEIGHTS", "CARVANA_DIR"} <= os.environ.keys(),
    reason="ENCODER_WEIGHTS and CARVANA_DIR are not set",
)
@pytest.mark.parametrize("number", [0, 2])
def test_real_lite_weights_know_one_car_from_another(number):
    """Features of two photos of one car are nearer than those of two cars from one side."""
    model = registry.build(ModelOptions(f"efficientnet_lite{number}"))
    path = Path(os.environ["ENCODER_WEIGHTS"]) / f"tf_efficientnet_lite{number}.safetensors"
    report = load_into(model, path)
    assert report.unmatched_in_file == ()
    row = ENCODERS[f"efficientnet_lite{number}"]
    output = keras.ops.mean(feature(model, row.skips[32]), axis=(1, 2))
    encoder = keras.Model(model.input, output)
    chosen = find_photos(Path(os.environ["CARVANA_DIR"]) / "train")
    groups = sorted({sample.group for sample in chosen})[:12]
    pairs = []
    for group in groups:
        views = [sample for sample in chosen if sample.group == group]
        # Neighbouring views.
        pairs.append(np.stack([resize(read_photo(views[i].photo), 224, 336) for i in (3, 4)]))
    found = [np.asarray(encoder(pair.astype(np.float32))) for pair in pairs]
    first, second = (np.stack([x[i] / np.linalg.norm(x[i]) for x in found]) for i in (0, 1))
    likeness = first @ second.T
    nearest = likeness.argmax(axis=1)
    assert (nearest == np.arange(len(groups))).mean() > 0.8
