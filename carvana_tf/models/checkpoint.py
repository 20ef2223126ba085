"""A file with a network: model files that describe themselves, weight files that need flags."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from carvana_tf import files
from carvana_tf.data.dataset import Naming, Sample
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError, absent
from carvana_tf.masks import manifest
from carvana_tf.models import encoders, interface, model_file, networks, registry, safety, weights
from carvana_tf.models.options import NetworkOptions


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A file with a network, before it is loaded.

    Attributes:
        path: The file.
        digest: SHA-256 of its bytes.
        resizer: How photos are brought to its input.
        stacked_channels: Grey channels it takes after RGB.
        photo_depth: Bits in use of the photos it was trained on, see `images.Reading`.
        fold: The fold it was not trained on, "none" where it was trained on all photos,
            or None if unknown.
        training_groups: The groups it was trained on, or None if unknown.
        lists_all_groups: Whether `training_groups` are all that its weights come from: not where
            training started from weights whose photos are unknown.
        naming: How photos were grouped in training, or None if unknown.
        build: How to make the network, for a file of bare weights; None for a model file.
        use: How the network of a model file is to be used.
        size: The only (height, width) it takes, or None for any.
        description: Of the model, for the manifest.
        task: What it predicts.
        metadata: Of a model file; {} for one of weights.
    """

    path: Path
    digest: str
    resizer: Resizer
    stacked_channels: int
    fold: int | str | None
    training_groups: frozenset[str] | None
    lists_all_groups: bool
    naming: Naming | None
    build: NetworkOptions | None
    description: dict[str, Any]
    photo_depth: int = 0
    use: interface.Use = dataclasses.field(default_factory=interface.Use)
    size: tuple[int, int] | None = None
    task: str = manifest.MASKS
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def groups_trained_on(self, samples: Sequence[Sample]) -> list[str]:
        """The groups of `samples` that this network was trained on, as far as is known.

        Photos are grouped by the pattern of its training, which may differ from today's.
        """
        groups = {self.naming.group(s.stem) if self.naming else s.group for s in samples}
        return sorted(groups & (self.training_groups or set()))


def read(path: Path, options: NetworkOptions) -> Checkpoint:
    """Describes a file, without loading the network.

    Args:
        path: A `.keras` file, or an `.h5` of weights.
        options: What a file of weights does not say.

    Raises:
        UserError: The file is missing or broken, or a flag does not suit it.
    """
    if not path.is_file():
        raise UserError(f"--weights '{path}' {absent(path)}")
    if path.suffix == model_file.SUFFIX:
        return _of_model_file(path, options)
    if path.suffix not in (".h5", ".hdf5"):
        raise UserError(
            f"--weights '{path}' must end in .keras, .weights.h5 or .h5; name such a file."
        )
    facts = {"network": options.network, "stride": networks.find(options.network).stride}
    checkpoint = _describe(path, facts, options, options)
    safety.check_weights(path)
    return checkpoint


def _refuse_contradictions(path: Path, facts: dict[str, Any], options: NetworkOptions) -> None:
    """Refuses flags that contradict the metadata of a model file of ours."""
    for field in dataclasses.fields(options):
        value, known = getattr(options, field.name), facts.get(field.name)
        # The last two have checks of their own.
        if value == field.default or field.name in ("preprocessing_function", "stacked_channels"):
            continue
        # Windows are cut in training only.
        whole = field.name == "size_policy" and {value, known} <= {"pad", "crop"}
        if known is not None and known != value and not whole:
            raise UserError(
                f"--{field.name}={value} has no effect on '{path}', which says {known}; drop the "
                "flag."
            )


def load_model(checkpoint: Checkpoint, device: str, dtype: str) -> keras.Model:
    """Loads a network onto a device.

    Args:
        checkpoint: From `read`.
        device: Name for `keras.device`.
        dtype: Keras dtype policy to compute in.

    Raises:
        UserError: The file is broken, or is of another network.
    """
    with keras.device(device):
        if checkpoint.build is not None:
            return model_file.with_policy(_fill(checkpoint.path, checkpoint.build), dtype)
        model, _ = model_file.load(checkpoint.path, dtype)
        return interface.adapt(model, interface.read(checkpoint.path), checkpoint.use)


def _of_model_file(path: Path, options: NetworkOptions) -> Checkpoint:
    """A model file, ours or that of another program, whose network is looked at first."""
    metadata, found = model_file.read_metadata(path), interface.read(path)
    ours = "network" in metadata
    if ours:
        _refuse_contradictions(path, metadata, options)
    stacked = metadata.get("stacked_channels", options.stacked_channels)
    preprocessing = options.preprocessing_function
    if ours and preprocessing not in (None, metadata.get("preprocessing", preprocessing)):
        raise UserError(
            f"--preprocessing_function={preprocessing} contradicts '{path}', which was trained "
            f"with '{metadata['preprocessing']}' and scales photos itself; leave the flag out."
        )
    use = interface.Use(
        object_class=options.object_class if found.classes > 1 else options.object_class or None,
        logits=options.logits,
        photo_channels=1 if options.photo_channels == 1 and not ours else None,
        preprocessing=None if ours else preprocessing,
    )
    if found.vector and (use.object_class is not None or use.logits):
        raise UserError(
            f"'{path}' predicts {metadata['task']}: --object_class and --logits have no effect on "
            "it; drop them."
        )
    if not found.vector:
        interface.use(path, found, use, stacked)
    facts = metadata | {"stride": found.stride, "stacked_channels": stacked}
    if not ours and not found.normalises and use.preprocessing is None:
        print(
            f"note: '{path}' does not scale photos itself and gets 0..255; give "
            f"--preprocessing_function ({', '.join(encoders.NORMALISATIONS)}) if it was trained on "
            "others."
        )
    checkpoint = dataclasses.replace(
        _describe(path, facts, options, None),
        use=use,
        size=found.size,
        task=metadata.get("task", manifest.MASKS),
        metadata=metadata,
    )
    checkpoint.description.update(use.changes)
    _refuse_other_size(checkpoint)
    return checkpoint


def _refuse_other_size(checkpoint: Checkpoint) -> None:
    """Refuses to feed a network of one size another one."""
    resizer = checkpoint.resizer
    if checkpoint.size is None or (resizer.policy, resizer.height, resizer.width) == (
        "resize",
        *checkpoint.size,
    ):
        return
    height, width = checkpoint.size
    raise UserError(
        f"'{checkpoint.path}' takes only photos of {height} x {width}; give --size_policy=resize "
        f"--input_height={height} --input_width={width}."
    )


def _fill(path: Path, build: NetworkOptions) -> keras.Model:
    model = registry.build(build)
    report = weights.load_into(model, path)
    if report.unmatched_in_model:
        raise UserError(
            f"'{path}' holds only the encoder of {build.network} ({report}); train the network "
            "from it first."
        )
    return model


def _describe(
    path: Path, metadata: dict[str, Any], options: NetworkOptions, build: NetworkOptions | None
) -> Checkpoint:
    policy = metadata.get("size_policy", options.size_policy)
    resizer = _resizer(
        policy,
        metadata.get("input_height", options.input_height),
        metadata.get("input_width", options.input_width),
        metadata["stride"],
        whole=metadata.get("task", manifest.MASKS) == manifest.MASKS,
    )
    resizer = dataclasses.replace(resizer, clahe=metadata.get("clahe", options.clahe))
    groups, pattern = metadata.get("training_groups"), metadata.get("group_pattern")
    lists_all = groups is not None and not metadata.get(model_file.UNKNOWN_ORIGIN)
    # Differs between folds files, but not with the groups that pseudo labels have added.
    labelled = metadata.get("labelled_groups_digest", files.digest_of_lines(groups or []))
    digest = files.digest(path)
    description = {
        "file": path.name,
        "digest": digest,
        "network": metadata.get("network"),
        "fold": metadata.get("fold"),
        "training_groups": labelled if lists_all else None,
        "sizing": dataclasses.asdict(resizer),
    }
    if metadata.get("classes"):
        # Scores are averaged by name, so the order of the classes does not matter.
        description["classes"] = files.digest_of_lines(sorted(metadata["classes"]))
        description["scoring"] = metadata.get("scoring")
    if metadata.get(manifest.CHOSEN_BY):
        description[manifest.CHOSEN_BY] = metadata[manifest.CHOSEN_BY]
    if set(groups or ()) & set(metadata.get("val_groups", ())):
        description["knows_its_fold"] = True
    if build is not None:
        # A model file's digest covers these; a weight file's does not.
        description |= {
            "decoder": build.decoder,
            "alpha": build.alpha,
            "photo_channels": build.photo_channels,
            "preprocessing": build.preprocessing_function,
        }
    return Checkpoint(
        path=path,
        digest=digest,
        resizer=resizer,
        stacked_channels=metadata.get("stacked_channels", options.stacked_channels),
        fold=metadata.get("fold"),
        training_groups=None if groups is None else frozenset(groups),
        lists_all_groups=lists_all,
        naming=Naming(group_pattern=pattern) if pattern else None,
        build=build,
        description=description,
        photo_depth=metadata.get("photo_depth", 0),
    )


def _resizer(policy: str, height: int, width: int, stride: int, *, whole: bool) -> Resizer:
    """How photos are seen; `whole`: also by networks that were trained on windows."""
    if policy == "pad" or (whole and policy == "crop"):
        # Windows are cut in training only: networks of any window share their inputs here.
        return Resizer("pad", 0, 0, stride)
    if not height or not width:
        raise UserError(f"--size_policy={policy} needs --input_height and --input_width.")
    return Resizer(policy, height, width, stride).centred()
