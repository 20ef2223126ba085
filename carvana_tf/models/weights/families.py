"""Which tensor of torchvision's and timm's networks is which of our layers.

One row of `FAMILIES` for each structure that both have. A row says how to recognise its files,
and gives a layer to each module (a tensor's name without its last part); what no network of
ours wants is named. Networks that look alike but compute something else are in `DIFFERENT`.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from carvana_tf.errors import UserError
from carvana_tf.models.encoders import NORMALISATIONS, NORMALISE
from carvana_tf.models.weights.tensors import Tensors

LayerOf = Callable[[Collection[str]], Mapping[str, str]]
"""From the modules of a file to the layers of those that a network has."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_EPSILON = 1e-5
"""Of PyTorch's BatchNorm2d, which VGG's has: folded into the convolution before it."""


@dataclasses.dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        name: As messages call it.
        encoders: Keys of `ENCODERS` of this structure; empty: the VGG branch's alone.
        layer_of: The layers of the modules.
        has: Tensors by which its files are known.
        lacks: Tensors that its files have not.
        unused: Modules that no network of ours has.
        normalisation: The key of `NORMALISATIONS` it was trained with, or None: as Keras'.
    """

    name: str
    encoders: tuple[str, ...]
    layer_of: LayerOf
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    unused: str = ""
    normalisation: str | None = None

    def recognises(self, names: Collection[str]) -> bool:
        """Whether a file with tensors of these names is of this family."""
        return set(self.has) <= set(names) and not set(self.lacks) & set(names)


@dataclasses.dataclass(frozen=True)
class Translated:
    """A file's tensors as layers.

    Attributes:
        family: What the file was recognised as.
        layers: Layer name -> its arrays, in the order of `layer.get_weights()`.
        unused: Tensors that are known and not wanted.
        unknown: Tensors that no rule is for.
    """

    family: Family
    layers: dict[str, list[np.ndarray]]
    unused: tuple[str, ...]
    unknown: tuple[str, ...]


def translate(path: Path, tensors: Tensors, model: keras.Model, encoder: str) -> Translated:
    """The tensors of a file as weights of a network's layers.

    Kernels are transposed to Keras' order of axes, and normalisations of VGG folded into the
    convolutions before them, which compute the same.

    Args:
        path: The file, for messages.
        tensors: All that it holds.
        model: The network; weights of a VGG16 are for its branch, if it has one.
        encoder: Key of the network's row in `ENCODERS`.

    Raises:
        UserError: The file's structure is unknown, or is not the network's.
    """
    family = _find(path, tensors, model, encoder)
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = value
    wanted = {layer.name: layer for layer in model.layers if layer.weights}
    layer_of = {m: x for m, x in family.layer_of(modules).items() if x in wanted}
    collected: dict[str, list[dict[str, np.ndarray]]] = {}
    for module, name in layer_of.items():
        collected.setdefault(name, []).append(modules[module])
    others = [name for name in tensors if name.rpartition(".")[0] not in layer_of]
    known = [name for name in others if re.fullmatch(family.unused, name.rpartition(".")[0])]
    counters = [name for name in tensors if name.endswith(".num_batches_tracked")]
    return Translated(
        family,
        {name: _arrays(wanted[name], parts) for name, parts in collected.items()},
        tuple(known) + tuple(name for name in counters if name not in known),
        tuple(name for name in others if name not in {*known, *counters}),
    )


def feed_branch(model: keras.Model, layers: Collection[str]) -> None:
    """Normalises the photo for the VGG branch as torchvision's VGG16 was trained.

    The branch's input is BGR, so its first kernel is turned round.

    Args:
        model: A network with the branch, whose weights are torchvision's.
        layers: The branch's layers that got them.
    """
    first = model.get_layer("block1_conv1")
    if first.name not in layers:
        return
    row = NORMALISATIONS["torch"]
    scaling = model.get_layer(f"{NORMALISE}_vgg")
    scaling.scale, scaling.offset = list(row.scale[::-1]), list(row.offset[::-1])
    kernel, bias = first.get_weights()
    first.set_weights([kernel[:, :, ::-1], bias])


def _find(path: Path, names: Collection[str], model: keras.Model, encoder: str) -> Family:
    found = [family for family in FAMILIES if family.recognises(names)]
    for family in found:
        branch = any(layer.name == f"{NORMALISE}_vgg" for layer in model.layers)
        if encoder in family.encoders or (branch and not family.encoders):
            return family
    fits = next((why for has, why in DIFFERENT if set(has) <= set(names)), None)
    if found:
        fits = f"it is {found[0].name}, for {_networks(found)}"
    reason = fits or f"its tensors, the first is '{next(iter(names))}', are of no known network"
    raise UserError(
        f"the weights '{path}' do not fit {model.name}: {reason}; docs/weights.md lists which file "
        "fits which network."
    )


def _networks(families: Sequence[Family]) -> str:
    encoders = [name for family in families for name in family.encoders]
    return f"--network with the encoder {' or '.join(encoders)}" if encoders else "the VGG branch"


def _arrays(
    layer: keras.layers.Layer, modules: Sequence[Mapping[str, np.ndarray]]
) -> list[np.ndarray]:
    """A layer's arrays of the tensors of its module, or of a convolution's and its norm's."""
    norms = [parts for parts in modules if "running_mean" in parts]
    parts = next((parts for parts in modules if parts not in norms), {}) if norms else modules[0]
    if isinstance(layer, keras.layers.BatchNormalization):
        names = ("weight", "bias", "running_mean", "running_var")
        return [norms[0][name] for name in names if name in norms[0]]
    if not {"weight"} <= parts.keys():  # ConvNeXt's scale of a block's output
        return [value.reshape(-1) for value in parts.values()]
    kernel = _transposed(layer, parts["weight"])
    biases = [parts["bias"]] if "bias" in parts else []
    if norms:
        scale = norms[0]["weight"] / np.sqrt(norms[0]["running_var"] + _EPSILON)
        before = biases[0] if biases else np.float32(0)
        biases = [(before - norms[0]["running_mean"]) * scale + norms[0]["bias"]]
        kernel = kernel * scale
    return [kernel, *biases]


def _transposed(layer: keras.layers.Layer, weight: np.ndarray) -> np.ndarray:
    """A kernel in Keras' order of axes; what is no kernel as it is."""
    if weight.ndim == 4:
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        return weight.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    return weight.T if weight.ndim == 2 else weight


def _by_rules(*rules: tuple[str, str | Callable[..., str]]) -> LayerOf:
    """Rules (regular expression of a module, its layer or a function of the groups)."""

    def layers(modules: Iterable[str]) -> dict[str, str]:
        found = {}
        for module in modules:
            for pattern, layer in rules:
                if match := re.fullmatch(pattern, module):
                    found[module] = layer if isinstance(layer, str) else layer(*match.groups())
                    break
        return found

    return layers


def _vgg(layers: Sequence[Sequence[str]], *, norms: bool) -> LayerOf:
    """VGG's numbered modules: convolution, norm, ReLU, and a pooling after each level."""
    found, number = {}, 0
    for level in layers:
        for name in level:
            found[f"features.{number}"] = name
            if norms:
                found[f"features.{number + 1}"] = name
            number += 3 if norms else 2
        number += 1
    return lambda modules: {module: name for module, name in found.items() if module in modules}


_VGG11 = [
    ["encoder_stage1_conv1"],
    ["encoder_stage2_conv1"],
    *([f"encoder_stage{n}_conv1", f"encoder_stage{n}_conv2"] for n in (3, 4, 5)),
]
_VGG16 = [
    [f"block{n}_conv{i}" for i in range(1, count + 1)] for n, count in ((1, 2), (2, 2), (3, 3))
]

# What timm calls the parts of a block, by its kind, and what they do.
_DEPTHWISE = {
    "conv_dw": "depthwise",
    "bn1": "depthwise_bn",
    "se.conv_reduce": "se_reduce",
    "se.conv_expand": "se_expand",
    "conv_pw": "project",
    "bn2": "project_bn",
}
_INVERTED = {
    "conv_pw": "expand",
    "bn1": "expand_bn",
    "conv_dw": "depthwise",
    "bn2": "depthwise_bn",
    "se.conv_reduce": "se_reduce",
    "se.conv_expand": "se_expand",
    "conv_pwl": "project",
    "bn3": "project_bn",
}
_FUSED = {"conv_exp": "expand", "bn1": "expand_bn", "conv_pwl": "project", "bn2": "project_bn"}
_PLAIN = {"conv": "project", "bn1": "project_bn"}

# What Keras calls them.
_EFFICIENTNET = {
    "expand": "expand_conv",
    "depthwise": "dwconv2",
    "depthwise_bn": "bn",
    "project": "project_conv",
}
_MOBILENET = {"se_reduce": "squeeze_excite_conv", "se_expand": "squeeze_excite_conv_1"}


def _blocks(modules: Collection[str]) -> list[tuple[int, int, dict[str, str]]]:
    """timm's blocks: stage, place in it, and the role of each of the block's modules."""
    parts: dict[tuple[int, int], list[str]] = {}
    for module in modules:
        if match := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", module):
            parts.setdefault((int(match[1]), int(match[2])), []).append(match[3])
    blocks = []
    for (stage, place), names in sorted(parts.items()):
        if "conv_exp" in names:
            roles = _FUSED
        elif "conv_pwl" in names:
            roles = _INVERTED
        else:
            roles = _DEPTHWISE if "conv_dw" in names else _PLAIN
        prefix = f"blocks.{stage}.{place}."
        blocks.append((stage, place, {prefix + n: roles[n] for n in names if n in roles}))
    return blocks


def _efficientnet(modules: Collection[str]) -> dict[str, str]:
    found = {"conv_stem": "stem_conv", "bn1": "stem_bn", "conv_head": "top_conv", "bn2": "top_bn"}
    for stage, place, roles in _blocks(modules):
        prefix = f"block{stage + 1}{_LETTERS[place]}_"
        found |= {m: prefix + _EFFICIENTNET.get(role, role) for m, role in roles.items()}
    return {module: layer for module, layer in found.items() if module in modules}


def _mobilenetv3(modules: Collection[str]) -> dict[str, str]:
    found = {"conv_stem": "conv", "bn1": "conv_bn"}
    *blocks, (_, _, last) = _blocks(modules)
    for number, (_, _, roles) in enumerate(blocks):
        prefix = f"expanded_conv_{number}_" if number else "expanded_conv_"
        found |= {m: prefix + _MOBILENET.get(role, role) for m, role in roles.items()}
    found |= {m: "conv_1_bn" if role == "project_bn" else "conv_1" for m, role in last.items()}
    return {module: layer for module, layer in found.items() if module in modules}


_CONVNEXT = "convnext_tiny_"


def _convnext_block(stage: int, block: str, part: str) -> str:
    return f"{_CONVNEXT}stage_{stage}_block_{block}_{part}"


def _resnet_block(stage: str, block: str) -> str:
    """From PyTorch's numbers, the stages from 1 and the blocks from 0, to Keras' name."""
    return f"conv{int(stage) + 1}_block{int(block) + 1}"


FAMILIES = (
    Family(
        "torchvision's or timm's ResNet34",
        ("resnet34",),
        _by_rules(
            (r"(conv|bn)1", lambda kind: f"conv1_{kind}"),
            (
                r"layer(\d)\.(\d+)\.(conv|bn)(\d)",
                lambda stage, block, kind, n: f"{_resnet_block(stage, block)}_{n}_{kind}",
            ),
            (
                r"layer(\d)\.(\d+)\.downsample\.(\d)",
                lambda stage, block, n: f"{_resnet_block(stage, block)}_0_{('conv', 'bn')[int(n)]}",
            ),
        ),
        has=("layer1.2.conv2.weight", "layer3.5.conv2.weight"),
        lacks=("layer1.0.conv3.weight",),
        unused="fc",
        normalisation="torch",
    ),
    Family(
        "timm's legacy SE-ResNet",
        ("seresnet50", "seresnet101"),
        _by_rules(
            (r"layer0\.(conv|bn)1", lambda kind: f"conv1_{kind}"),
            (
                r"layer(\d)\.(\d+)\.(conv|bn)(\d)",
                lambda stage, block, kind, n: f"{_resnet_block(stage, block)}_{n}_{kind}",
            ),
            (
                r"layer(\d)\.(\d+)\.downsample\.(\d)",
                lambda stage, block, n: f"{_resnet_block(stage, block)}_0_{('conv', 'bn')[int(n)]}",
            ),
            (
                r"layer(\d)\.(\d+)\.se_module\.fc(\d)",
                lambda stage, block, n: (
                    f"{_resnet_block(stage, block)}_se_{('reduce', 'expand')[int(n) - 1]}"
                ),
            ),
        ),
        has=("layer0.conv1.weight", "layer1.0.conv3.weight", "layer1.0.se_module.fc1.weight"),
        lacks=("layer0.conv2.weight",),
        unused="last_linear",
        normalisation="torch",
    ),
    Family(
        "torchvision's or timm's VGG11",
        ("vgg11v1", "vgg11v2", "ternaus"),
        _vgg(_VGG11, norms=False),
        has=("features.3.weight", "features.6.weight", "features.18.weight"),
        lacks=("features.2.weight", "features.4.weight"),
        unused=r"classifier\..+|pre_logits\..+|head\..+",
        normalisation="torch",
    ),
    Family(
        "torchvision's or timm's VGG11 with batch normalisation",
        ("vgg11v1", "vgg11v2", "ternaus"),
        _vgg(_VGG11, norms=True),
        has=("features.1.running_mean", "features.4.weight", "features.25.weight"),
        lacks=("features.3.weight",),
        unused=r"classifier\..+|pre_logits\..+|head\..+",
        normalisation="torch",
    ),
    *(
        Family(
            f"torchvision's or timm's VGG16{words}",
            encoders,
            _vgg(_VGG16 if encoders else _VGG16[:1], norms=norms),
            has=has,
            lacks=lacks,
            unused=r"features\.\d+|classifier\..+|pre_logits\..+|head\..+",
            normalisation="torch",
        )
        for encoders in (("vgg7",), ())
        for words, norms, has, lacks in (
            ("", False, ("features.2.weight", "features.28.weight"), ("features.1.weight",)),
            (
                " with batch normalisation",
                True,
                ("features.1.running_mean", "features.3.weight", "features.40.weight"),
                ("features.2.weight",),
            ),
        )
    ),
    Family(
        "timm's EfficientNet-Lite",
        tuple(f"efficientnet_lite{n}" for n in range(5)),
        _efficientnet,
        has=("conv_stem.weight", "blocks.0.0.conv_dw.weight", "blocks.6.0.conv_pwl.weight"),
        lacks=("blocks.0.0.se.conv_reduce.weight",),
        unused="conv_head|bn2|classifier",
        normalisation="lite",
    ),
    Family(
        "timm's EfficientNetV2",
        ("efficientnetv2b0", "efficientnetv2s"),
        _efficientnet,
        has=("conv_stem.weight", "blocks.0.0.conv.weight", "blocks.1.0.conv_exp.weight"),
        unused="classifier",
    ),
    Family(
        "timm's MobileNetV3-Large",
        ("mobilenetv3large",),
        _mobilenetv3,
        has=("conv_stem.weight", "blocks.0.0.conv_dw.weight", "blocks.6.0.conv.weight"),
        unused="conv_head|norm_head|classifier",
    ),
    Family(
        "timm's ConvNeXt-Tiny",
        ("convnext_tiny",),
        _by_rules(
            (r"stem\.0", f"{_CONVNEXT}stem_conv"),
            (r"stem\.1", f"{_CONVNEXT}stem_layernorm"),
            (
                r"stages\.(\d)\.downsample\.0",
                lambda n: f"{_CONVNEXT}downsampling_layernorm_{int(n) - 1}",
            ),
            (
                r"stages\.(\d)\.downsample\.1",
                lambda n: f"{_CONVNEXT}downsampling_conv_{int(n) - 1}",
            ),
            (r"stages\.(\d)\.blocks\.(\d+)", lambda s, b: _convnext_block(s, b, "layer_scale")),
            (
                r"stages\.(\d)\.blocks\.(\d+)\.conv_dw",
                lambda s, b: _convnext_block(s, b, "depthwise_conv"),
            ),
            (r"stages\.(\d)\.blocks\.(\d+)\.norm", lambda s, b: _convnext_block(s, b, "layernorm")),
            (
                r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc(\d)",
                lambda s, b, n: _convnext_block(s, b, f"pointwise_conv_{n}"),
            ),
            (r"head\.norm", "layer_normalization_1"),
        ),
        has=("stem.0.weight", "stages.2.blocks.8.conv_dw.weight"),
        unused=r"head\.fc",
        normalisation="torch",
    ),
    Family(
        "torchvision's ConvNeXt-Tiny",
        ("convnext_tiny",),
        _by_rules(
            (r"features\.0\.0", f"{_CONVNEXT}stem_conv"),
            (r"features\.0\.1", f"{_CONVNEXT}stem_layernorm"),
            (
                r"features\.([246])\.0",
                lambda n: f"{_CONVNEXT}downsampling_layernorm_{int(n) // 2 - 1}",
            ),
            (r"features\.([246])\.1", lambda n: f"{_CONVNEXT}downsampling_conv_{int(n) // 2 - 1}"),
            (
                r"features\.([1357])\.(\d+)",
                lambda n, b: _convnext_block(int(n) // 2, b, "layer_scale"),
            ),
            (
                r"features\.([1357])\.(\d+)\.block\.([0235])",
                lambda n, b, part: _convnext_block(
                    int(n) // 2,
                    b,
                    {
                        "0": "depthwise_conv",
                        "2": "layernorm",
                        "3": "pointwise_conv_1",
                        "5": "pointwise_conv_2",
                    }[part],
                ),
            ),
            (r"classifier\.0", "layer_normalization_1"),
        ),
        has=("features.0.0.weight", "features.5.8.layer_scale"),
        unused=r"classifier\.2",
        normalisation="torch",
    ),
)

DIFFERENT: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("layer1.0.se.fc1.weight", "layer1.0.conv3.weight"),
        "timm's SE-ResNet has the stride of a stage in its 3x3 convolution, ours in the first 1x1 "
        "convolution; take timm's legacy_seresnet50 or legacy_seresnet101",
    ),
    (
        ("layer1.0.conv3.weight", "layer3.5.conv3.weight"),
        "torchvision's and timm's ResNet50 has the stride of a stage in its 3x3 convolution, "
        "Keras' and ours in the first 1x1 convolution; take Keras' weights",
    ),
    (
        ("features.1.block.0.0.weight", "features.4.block.2.fc1.weight"),
        "torchvision's MobileNetV3 pads on both sides, Keras' and ours as TensorFlow does; take "
        "timm's tf_mobilenetv3_large_100",
    ),
    (
        ("features.0.0.weight", "features.1.0.block.0.0.weight"),
        "torchvision's EfficientNet pads on both sides, Keras' and ours as TensorFlow does; take "
        "timm's tf_efficientnetv2_b0 or tf_efficientnetv2_s",
    ),
)
"""Structures that cannot be loaded: tensors they are known by, and why."""
