"""Starts a network from weights made elsewhere, layer by layer, by the layers' names.

Reads every format in which Keras weights are found: `.weights.h5` and `.keras` of Keras 3,
legacy `.h5` of weights or of a whole model, and the downloads of `keras.applications`; and the
`.safetensors` and `.pth` of torchvision and timm (see `families`).
"""

import contextlib
import dataclasses
import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import keras
import numpy as np
from keras.src.backend import config

from carvana_tf import environment
from carvana_tf.errors import UserError
from carvana_tf.models import builders, model_file, networks, registry, safety
from carvana_tf.models.cloning import counted_names
from carvana_tf.models.encoders import ENCODERS, IMAGENET
from carvana_tf.models.weights import families, published, tensors

LayerWeights = dict[str, list[np.ndarray]]
"""Layer name -> its arrays, in the order of `layer.get_weights()`."""

# Heads of classifiers and the rest of VGG16: what encoder files hold and no network wants.
_UNUSED = re.compile(r"predictions|fc\d*|conv_preds|block[2-5]_conv\d|\w+_head_\w+")
# ResNet50's names before Keras 2.3 (res2a_branch2a, bn2a_branch1); its batch
# normalisations had Keras' default epsilon then, today's have 1.001e-5.
_OLD_RESNET = re.compile(r"(res|bn)([2-5])([a-f])_branch(1|2[abc])")
_OLD_RESNET_STEM = {"conv1": "conv1_conv", "bn_conv1": "conv1_bn"}
_OLD_RESNET_EPSILON = 1e-3


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Which layers met: their names, in the network's or the file's order.

    Attributes:
        matched: Layers that got weights.
        unmatched_in_file: Layers of the file that the network does not have.
        unmatched_in_model: Layers of the network that the file does not have.
        wrong_shape: Layers that both have in different shapes, with the shapes.
        widened: Those matched layers whose kernels got zeros for the stacked channels.
        unused: Tensors of the file that are known and that no network of ours has.
        normalisation: The key of `NORMALISATIONS` that the file's encoder was trained with,
            or None where it is the network's own.
    """

    matched: tuple[str, ...] = ()
    unmatched_in_file: tuple[str, ...] = ()
    unmatched_in_model: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    normalisation: str | None = None

    def __str__(self) -> str:
        parts = [f"{_count(self.matched, 'layers match')}"]
        if self.widened:
            parts.append(_count(self.widened, "of them start blind to the stacked channels"))
        if self.wrong_shape:
            parts.append(_count(self.wrong_shape, "have other shapes"))
        if self.unmatched_in_file:
            parts.append(_count(self.unmatched_in_file, "are only in the file"))
        if self.unmatched_in_model:
            parts.append(_count(self.unmatched_in_model, "only in the network"))
        if self.unused:
            parts.append(_count(self.unused, "tensors are not needed"))
        return ", ".join(parts)


def load_into(
    model: keras.Model, source: str | Path | None, *, allow_partial: bool = False
) -> LoadReport:
    """Copies weights into the layers of the same names; all that fit, or none.

    A source fits when it holds the whole network, or all of its encoder, its VGG branch
    or both; the head of a classifier is skipped. A VGG branch that got weights is
    frozen. Weights of three channels fit a network with stacked channels, too: the kernels
    that see these get zeros for them, so that the network starts as the one of three
    channels. Call it before `model.compile`.

    Args:
        model: One of `networks.NETWORKS`.
        source: A file of Keras, torchvision or timm, "imagenet" to download the encoder's (and
            VGG16's) weights, or None to leave the network as it is.
        allow_partial: Take whatever matches from a file that does not fit.

    Raises:
        UserError: The source cannot be read, or does not fit.
    """
    if source is None:
        return LoadReport()
    if str(source) != IMAGENET and _holds_tensors(Path(source)):
        return _load_tensors(model, Path(source), allow_partial=allow_partial)
    weights = _download(model) if str(source) == IMAGENET else read_layer_weights(Path(source))
    weights, fourth = published.rename(weights, model)
    weights, old = _modern_resnet_names(_counted(weights, model), model)
    report = _fill(model, weights, source, allow_partial=allow_partial)
    if fourth:
        published.pad_stem(model)
    for name in old & set(report.matched):
        model.get_layer(name).epsilon = _OLD_RESNET_EPSILON
    return report


def _holds_tensors(path: Path) -> bool:
    return path.is_file() and (tensors.is_safetensors(path) or tensors.is_torch(path))


def _load_tensors(model: keras.Model, path: Path, *, allow_partial: bool) -> LoadReport:
    """As `load_into`, from a file of torchvision or timm."""
    encoder = networks.find(model.name).encoder
    translated = families.translate(path, tensors.read(path), model, encoder)
    extra = LoadReport(unmatched_in_file=translated.unknown, unused=translated.unused)
    report = _fill(model, translated.layers, path, allow_partial=allow_partial, extra=extra)
    family = translated.family
    if not family.encoders:
        families.feed_branch(model, report.matched)
        return report
    own = family.normalisation == ENCODERS[encoder].normalisation
    return dataclasses.replace(report, normalisation=None if own else family.normalisation)


def _fill(
    model: keras.Model,
    weights: LayerWeights,
    source: str | Path,
    *,
    allow_partial: bool,
    extra: LoadReport | None = None,
) -> LoadReport:
    """Sets the weights of the layers of these names, if they fit; all of them or none.

    Args:
        model: The network.
        weights: By layers' names.
        source: For messages.
        allow_partial: Take whatever matches.
        extra: What the file holds besides.

    Raises:
        UserError: They do not fit.
    """
    weights, widened = _widened(weights, model)
    report = dataclasses.replace(_compare(model, weights), widened=widened)
    if extra is not None:
        only_in_file = (*report.unmatched_in_file, *extra.unmatched_in_file)
        report = dataclasses.replace(report, unmatched_in_file=only_in_file, unused=extra.unused)
    if not report.matched or not (allow_partial or _fits(model, report)):
        raise UserError(
            f"the weights '{source}' do not fit {model.name}: {report}; give the right --network "
            "and --alpha, or --allow_partial_weights to take what matches."
        )
    for name in report.matched:
        model.get_layer(name).set_weights(weights[name])
    for layer in registry.branch_layers(model):
        layer.trainable &= layer.name not in report.matched
    return report


def read_layer_weights(path: Path) -> LayerWeights:
    """The weights in a file, by the names of the layers they belong to.

    Layers of nested models are found under their own names. The kind of file is recognised by
    its content, not by its name.

    Args:
        path: A `.keras` or `.weights.h5` of Keras 3, or a legacy `.h5` of weights or of a
            whole model.

    Raises:
        UserError: The file is missing, truncated or none of these, holds what weights
            need not, or numbers that are none.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"the weights '{path}' do not exist; check the path.")
    is_zip = safety.check_weights(path)
    try:
        weights = _read_keras(path) if is_zip else _read_hdf5(path)
    except (OSError, KeyError, TypeError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise UserError(
            f"cannot read the weights '{path}' ({reason}); give a whole .keras, .weights.h5 or .h5."
        ) from error
    if not weights:
        raise UserError(
            f"'{path}' holds no weights under layer names; load it where it was made and save it "
            "again as .weights.h5."
        )
    for name, arrays in weights.items():
        for array in arrays:
            model_file.refuse_nan(path, name, np.asarray(array))
    return weights


def _read_keras(path: Path) -> LayerWeights:
    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    weights = _read_hdf5(content)
    if not weights:  # the first Keras 3 wrote no names; only the model itself knows them
        model, _ = model_file.load(path)
        weights = {layer.name: layer.get_weights() for layer in _leaves(model)}
    return {name: arrays for name, arrays in weights.items() if arrays}


def _read_hdf5(source: Path | io.BytesIO) -> LayerWeights:
    with h5py.File(source, "r") as file:
        root = file.get("model_weights", file)
        if "layer_names" in root.attrs or "layer_names0" in root.attrs:
            return _read_legacy(root)
        return _read_groups(file)


def _read_groups(file: h5py.File) -> LayerWeights:
    """Keras 3: `…/layers/<class>_<n>/vars/<i>`, where `vars` bears the layer's name.

    Optimisers and random states have `vars` too, but are no children of `layers`.
    """
    weights: LayerWeights = {}

    def visit(path: str, item: h5py.Group | h5py.Dataset) -> None:
        parts = path.split("/")
        if len(parts) < 3 or (parts[-3], parts[-1]) != ("layers", "vars"):
            return
        if "name" in item.attrs and len(item):
            weights[item.attrs["name"]] = [item[i][()] for i in sorted(item, key=int)]

    file.visititems(visit)
    return weights


def _read_legacy(root: h5py.Group) -> LayerWeights:
    """Keras 1 and 2: the attributes list the layers and the arrays of each.

    A nested model is one entry whose arrays are named `<layer>/<array>`, a layer's own
    may be named so or not.
    """
    weights: LayerWeights = {}
    for entry in _texts(root, "layer_names"):
        group = root[entry]
        paths = _texts(group, "weight_names")
        owners = [path.rpartition("/")[0].rpartition("/")[2] for path in paths]
        nested = len(set(owners)) > 1
        for path, owner in zip(paths, owners, strict=True):
            weights.setdefault(owner if nested else entry, []).append(group[path][()])
    return weights


def _texts(group: h5py.Group, name: str) -> list[str]:
    """A list of texts from an attribute, which Keras cuts into `name0`, `name1`, … if long."""
    pieces = [group.attrs[name]] if name in group.attrs else []
    while f"{name}{len(pieces)}" in group.attrs:
        pieces.append(group.attrs[f"{name}{len(pieces)}"])
    return [t.decode() if isinstance(t, bytes) else str(t) for piece in pieces for t in piece]


def _leaves(model: keras.Model) -> list[keras.layers.Layer]:
    return [
        leaf
        for layer in model.layers
        for leaf in (_leaves(layer) if isinstance(layer, keras.Model) else [layer])
    ]


def _download(model: keras.Model) -> LayerWeights:
    """ImageNet's weights of the model's encoder, and of VGG16 where it has the branch."""
    network = networks.find(model.name)
    encoder = ENCODERS[network.encoder]
    if not encoder.source:
        raise UserError(f"there are no ImageNet weights for {model.name}; leave --weights out.")
    if encoder.source != "keras":
        raise UserError(
            f"Keras has no ImageNet weights for {model.name}; download those of {encoder.source} "
            "and give --weights the .safetensors file, see docs/weights.md."
        )
    # The size ImageNet's weights were trained at; Keras warns about any other.
    common = {"weights": IMAGENET, "input_shape": (224, 224, 3)}
    width = {}
    if encoder.first is not None:
        layer, filters = encoder.first
        width["alpha"] = model.get_layer(layer).kernel.shape[-1] / filters
    try:
        with _downloads_kept():
            sources = [builders.make(encoder, **common, **width)]
            if registry.branch_layers(model):
                sources.append(keras.applications.VGG16(include_top=False, **common))
    except Exception as error:  # Keras raises a bare Exception when a download fails
        raise UserError(
            f"cannot download the ImageNet weights of {model.name} ({error}); give a file of them "
            "with --weights=FILE, see docs/weights.md, or start at random with --weights=none."
        ) from error
    return {
        layer.name: layer.get_weights()
        for source in sources
        for layer in _leaves(source)
        if layer.weights and not layer.name.startswith(encoder.scratch)
    }


@contextlib.contextmanager
def _downloads_kept() -> Iterator[None]:
    """Lets Keras find and keep its downloads where the user has them.

    Keras takes the folder from the environment once, when it is imported, and from there its
    settings, too; `environment` hides it then.
    """
    before, config._KERAS_DIR = config._KERAS_DIR, environment.keras_home()
    try:
        yield
    finally:
        config._KERAS_DIR = before


def _counted(weights: LayerWeights, model: keras.Model) -> LayerWeights:
    """Counts automatic names from 1, as the network does, where they are as many."""
    names = counted_names(weights)
    wanted = counted_names(layer.name for layer in model.layers if layer.weights)
    if set(names.values()) != set(wanted.values()):
        return weights
    return {names.get(name, name): arrays for name, arrays in weights.items()}


def _widened(weights: LayerWeights, model: keras.Model) -> tuple[LayerWeights, tuple[str, ...]]:
    """Appends zeros for the stacked channels to kernels made without them.

    Returns:
        The weights, and the names of the layers whose kernels grew.
    """
    stacked = model.input_shape[-1] - 3
    grown: LayerWeights = {}
    for layer in model.layers:
        if not stacked or type(layer) is not keras.layers.Conv2D or layer.name not in weights:
            continue
        kernel, *rest = weights[layer.name]
        rows, columns, channels, filters = layer.kernel.shape
        if kernel.shape == (rows, columns, channels - stacked, filters):
            blind = np.pad(kernel, ((0, 0), (0, 0), (0, stacked), (0, 0)))
            grown[layer.name] = [blind, *rest]
    return weights | grown, tuple(grown)


def _modern_resnet_names(
    weights: LayerWeights, model: keras.Model
) -> tuple[LayerWeights, set[str]]:
    """Renames the layers of an old ResNet50.

    Returns:
        The weights, and the new names of the old batch normalisations.
    """
    is_resnet = any(layer.name == "conv1_conv" for layer in model.layers)
    if not is_resnet or not any(map(_OLD_RESNET.fullmatch, weights)):
        return weights, set()
    names = {name: _modern_resnet_name(name) for name in weights}
    renamed = {new for old, new in names.items() if new != old and new.endswith("_bn")}
    return {names[name]: arrays for name, arrays in weights.items()}, renamed


def _modern_resnet_name(name: str) -> str:
    """`res2a_branch2b` -> `conv2_block1_2_conv`; the shortcut `branch1` -> `…_0_…`."""
    match = _OLD_RESNET.fullmatch(name)
    if not match:
        return _OLD_RESNET_STEM.get(name, name)
    kind, stage, block, branch = match.groups()
    step = 0 if branch == "1" else "abc".index(branch[1]) + 1
    suffix = "conv" if kind == "res" else "bn"
    return f"conv{stage}_block{'abcdef'.index(block) + 1}_{step}_{suffix}"


def _compare(model: keras.Model, weights: LayerWeights) -> LoadReport:
    wanted = {x.name: [tuple(w.shape) for w in x.weights] for x in model.layers if x.weights}
    offered = {name: [array.shape for array in arrays] for name, arrays in weights.items()}
    both = [name for name in wanted if name in offered]
    return LoadReport(
        matched=tuple(name for name in both if wanted[name] == offered[name]),
        unmatched_in_file=tuple(name for name in offered if name not in wanted),
        unmatched_in_model=tuple(name for name in wanted if name not in offered),
        wrong_shape=tuple(
            f"{name} {_shapes(offered[name])} in the file, {_shapes(wanted[name])} in the network"
            for name in both
            if wanted[name] != offered[name]
        ),
    )


def _fits(model: keras.Model, report: LoadReport) -> bool:
    encoder = {x.name for x in registry.encoder_layers(model) if x.weights}
    branch = {x.name for x in registry.branch_layers(model)}
    network = {x.name for x in model.layers if x.weights}
    foreign = [name for name in report.unmatched_in_file if not _UNUSED.fullmatch(name)]
    wholes = (network, encoder, branch, encoder | branch)
    return not foreign and not report.wrong_shape and set(report.matched) in wholes


def _shapes(shapes: Iterable[tuple[int, ...]]) -> str:
    return " ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)


def _count(names: tuple[str, ...], what: str) -> str:
    few = "; ".join(names[:3]) + ("; …" if len(names) > 3 else "")
    return f"{len(names)} {what}" + (f" ({few})" if names else "")
