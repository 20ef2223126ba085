"""Encoders with weights of torchvision and timm: are our features theirs?

python benchmarks/encoder_parity.py

Every network is made by its library with random weights and statistics, saved as
`.safetensors`, and loaded into ours. Both get the same photo, and the feature maps of all
strides are compared. Also writes the names and shapes of some networks' tensors, which the tests
read. Needs the environment of requirements-peers.txt.
"""

import dataclasses
import tempfile
from importlib import metadata
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from carvana_tf.files import write_text
from carvana_tf.models import networks, registry
from carvana_tf.models.builders import feature
from carvana_tf.models.encoders import ENCODERS, NORMALISATIONS
from carvana_tf.models.options import ModelOptions
from carvana_tf.models.weights import load_into
from peers.importing import import_without_operators
from results import print_table, replace_rows

OUT = Path(__file__).with_name("encoder_parity.csv")
TENSORS = OUT.with_name("encoder_tensors.csv")
LIMIT = 1e-4
"""Of the largest difference, as a share of the largest value of the same feature map."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One network of a library and ours.

    Attributes:
        library: "timm" or "torchvision".
        name: What the library calls the network.
        network: Key of `NETWORKS`.
        modules: The library's modules whose outputs are our skips, from stride to stride.
        normalisation: Key of `NORMALISATIONS`.
    """

    library: str
    name: str
    network: str
    modules: tuple[str, ...]
    normalisation: str = "torch"


_RESNET = ("relu", "layer1", "layer2", "layer3", "layer4")
_LITE = ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6")
_V2 = ("blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2")
_VGG11, _VGG11_BN = ("1", "4", "9", "14", "19"), ("2", "6", "13", "20", "27")

CASES = (
    Case("torchvision", "resnet34", "linknet34", _RESNET),
    Case("timm", "resnet34", "linknet34", ("act1", *_RESNET[1:])),
    *(
        Case(library, name, network, tuple(f"features.{n}" for n in modules))
        for library in ("torchvision", "timm")
        for network in ("vgg11v1", "ternaus")
        for name, modules in (("vgg11", _VGG11), ("vgg11_bn", _VGG11_BN))
    ),
    Case("torchvision", "vgg16", "vgg", ("features.3", "features.8", "features.15")),
    Case("torchvision", "vgg16_bn", "vgg", ("features.5", "features.12", "features.22")),
    Case("torchvision", "vgg16", "resnet50", ("features.3",), "caffe"),
    *(
        Case("timm", f"tf_efficientnet_lite{n}", f"efficientnet_lite{n}", _LITE, "lite")
        for n in range(5)
    ),
    *(
        Case("timm", f"legacy_seresnet{n}", f"seresnet{n}", ("layer0", *_RESNET[1:]))
        for n in (50, 101)
    ),
    Case("timm", "tf_efficientnetv2_b0", "efficientnetv2b0", _V2),
    Case("timm", "tf_efficientnetv2_s", "efficientnetv2s", _V2, "tf128"),
    Case("timm", "tf_mobilenetv3_large_100", "mobilenetv3large", _LITE, "tf"),
    Case("timm", "convnext_tiny", "convnext_tiny", tuple(f"stages.{n}" for n in range(4))),
    Case(
        "torchvision",
        "convnext_tiny",
        "convnext_tiny",
        tuple(f"features.{n}" for n in (1, 3, 5, 7)),
    ),
)


# One of each structure, and one that is refused.
NAMED = {
    "torchvision": ("resnet34", "vgg11", "vgg11_bn", "vgg16", "convnext_tiny", "resnet50"),
    "timm": (
        *("tf_efficientnet_lite0", "tf_efficientnetv2_b0"),
        *("tf_mobilenetv3_large_100", "convnext_tiny", "legacy_seresnet50"),
    ),
}


def main() -> None:
    """Compares every case and writes the table."""
    libraries = {name: import_without_operators(name) for name in ("torchvision", "timm")}
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("keras", "torch", *libraries)
    )
    rows = [compare(case, libraries[case.library]) | {"software": versions} for case in CASES]
    print_table(rows)
    replace_rows(OUT, rows, {})
    names = pd.DataFrame(
        (library, name, tensor, "x".join(map(str, value.shape)))
        for library, models in NAMED.items()
        for name in models
        for tensor, value in make(libraries[library], library, name).state_dict().items()
    )
    text = names.to_csv(
        index=False, header=["library", "model", "tensor", "shape"], lineterminator="\n"
    )
    write_text(TENSORS, text)


def make(package, library: str, name: str) -> torch.nn.Module:
    """A network of a library with random weights."""
    if library == "timm":
        return package.create_model(name, pretrained=False)
    return getattr(package.models, name)(weights=None)


def compare(case: Case, library) -> dict[str, object]:
    """The largest difference of any of the case's feature maps, as a share of the map's largest."""
    torch.manual_seed(0)
    theirs = make(library, case.library, case.name)
    photos = np.random.default_rng(0).integers(0, 256, (5, 128, 192, 3)).astype(np.float32)
    photo = photos[:1]
    randomise(theirs, their_input(case, photos[1:]))
    keras.utils.set_random_seed(0)
    ours = registry.build(ModelOptions(case.network, preprocessing_function=case.normalisation))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, path)
        report = load_into(ours, path)
    expected, actual = their_features(case, theirs, photo), our_features(case, ours, photo)
    shares = [np.abs(a - e).max() / np.abs(e).max() for a, e in zip(actual, expected, strict=True)]
    return {
        "library": case.library,
        "model": case.name,
        "network": case.network,
        "layers": len(report.matched),
        "feature_maps": len(shares),
        "largest_difference": float(f"{max(shares):.2g}"),
        "limit": LIMIT,
        "reached": "yes" if max(shares) < LIMIT else "no",
    }


def randomise(network: torch.nn.Module, photos: torch.Tensor) -> None:
    """Gives norms factors of their own and the statistics of some photos; ends in inference mode.

    With other statistics the values of a deep network would explode, and rounding with them.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    for name, parameter in network.named_parameters():
        if name.endswith(("gamma", "layer_scale")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    with torch.no_grad():
        network.train()(photos)
    network.eval()


def their_input(case: Case, photos: np.ndarray) -> torch.Tensor:
    """Photos [B, H, W, 3] in 0..255 as the library's network takes them."""
    row = NORMALISATIONS["torch" if case.normalisation == "caffe" else case.normalisation]
    x = photos * np.asarray(row.scale, np.float32) + np.asarray(row.offset, np.float32)
    return torch.from_numpy(x.transpose(0, 3, 1, 2))


def their_features(case: Case, network: torch.nn.Module, photo: np.ndarray) -> list[np.ndarray]:
    """Feature maps [1, H, W, C] of the case's modules."""
    found: dict[str, torch.Tensor] = {}
    for name in case.modules:
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.setdefault(name, output.clone())
        )
    with torch.inference_mode():
        network(their_input(case, photo))
        if case.network == "convnext_tiny":  # ours ends in the norm of the classifier's head
            last = case.modules[-1]
            norm = network.head.norm if case.library == "timm" else network.classifier[0]
            scaled = torch.nn.functional.layer_norm(
                found[last].permute(0, 2, 3, 1), norm.weight.shape, norm.weight, norm.bias, norm.eps
            )
            found[last] = scaled.permute(0, 3, 1, 2)
    return [found[name].numpy().transpose(0, 2, 3, 1) for name in case.modules]


def our_features(case: Case, network: keras.Model, photo: np.ndarray) -> list[np.ndarray]:
    """The same maps of ours: the skips of the encoder, or the VGG branch."""
    if case.network == "resnet50":
        names = ["block1_conv2"]
    else:
        row = ENCODERS[networks.find(case.network).encoder]
        names = [row.skips[stride] for stride in sorted(row.skips)][: len(case.modules)]
    outputs = [feature(network, name) for name in names]
    return [np.asarray(y) for y in keras.Model(network.input, outputs)(photo)]


if __name__ == "__main__":
    main()
