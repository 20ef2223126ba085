"""The network that a training run starts from."""

from pathlib import Path
from typing import Any

import keras

from carvana_tf import replicas
from carvana_tf.errors import UserError
from carvana_tf.models import decoders, model_file, networks, registry, weights
from carvana_tf.models.encoders import IMAGENET
from carvana_tf.tasks import Task
from carvana_tf.training.options import TrainingOptions, WeightsOptions

_SMOKE_WIDTH = 0.125


def build(options: TrainingOptions, task: Task) -> tuple[keras.Model, weights.LoadReport]:
    """The network a run starts from: built, filled and frozen as the flags say.

    Returns:
        The network, and which of its layers got weights from a file.

    Raises:
        UserError: A name is unknown, or the weights do not fit.
    """
    start, smoke = options.start, options.run.smoke
    with replicas.shared_variables():
        network = task.build_network(options.model, _SMOKE_WIDTH if smoke else 1.0)
    report = weights.LoadReport()
    if start.loads_weights and smoke:
        # They cannot fit so narrow a network, but must be there for the run that is tried.
        if start.weights != IMAGENET:
            weights.read_layer_weights(Path(start.weights or ""))
        print(f"weights: none from {start.weights}, as --smoke makes a narrower network")
    elif start.loads_weights:
        report = weights.load_into(
            network, start.weights, allow_partial=start.allow_partial_weights
        )
        print(f"weights: {report} from {start.weights}")
        own = preprocessing(options)
        if report.normalisation not in (None, own):
            print(
                f"weights: trained on photos normalised as '{report.normalisation}', here they are "
                f"as '{own}'; --preprocessing_function={report.normalisation} gives what they know."
            )
    registry.freeze(network, start.freeze_till_layer)
    frozen = set(encoder(network, "freeze_encoder_bn") if start.freeze_encoder_bn else [])
    normalises = any(isinstance(x, keras.layers.BatchNormalization) for x in network.layers)
    if start.bn_momentum is not None and not normalises:
        raise UserError(
            f"--bn_momentum={start.bn_momentum}: {network.name} has no BatchNormalization; drop "
            "the flag."
        )
    for layer in frozen:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    if start.bn_momentum is not None:
        set_bn_momentum(network, start.bn_momentum)
    if options.run.show_summary:
        network.summary()
    return network, report


def has_unknown_origin(options: WeightsOptions, report: weights.LoadReport) -> bool:
    """Whether more than an encoder comes from a file that does not say what it was trained on."""
    if options.foreign_weights:
        return False
    path = Path(options.weights or "")
    metadata: dict[str, Any] = {}
    if report.matched and path.suffix == model_file.SUFFIX:
        metadata = model_file.read_metadata(path)
    if "training_groups" in metadata:
        return bool(metadata.get(model_file.UNKNOWN_ORIGIN))
    return any(name.startswith(decoders.PREFIXES) for name in report.matched)


def known_groups(options: TrainingOptions) -> set[str]:
    """The groups that the model of `--weights` was trained on, as far as its file says."""
    path = Path(options.start.weights or "")
    if path.suffix != model_file.SUFFIX or not path.is_file() or options.run.smoke:
        return set()
    return set(model_file.read_metadata(path).get("training_groups") or ())


def encoder(network: keras.Model, flag: str) -> list[keras.layers.Layer]:
    """The layers of the pretrained encoder, for a flag that freezes them."""
    layers = registry.encoder_layers(network)
    if not layers:
        raise UserError(f"--{flag}: {network.name} has no pretrained encoder; drop the flag.")
    return layers


def preprocessing(options: TrainingOptions) -> str:
    """The normalisation of the photos, key of `encoders.NORMALISATIONS`."""
    model = options.model
    return model.preprocessing_function or networks.find(model.network).preprocessing


def bn_momentum(steps_per_epoch: int) -> float:
    """Momentum of BatchNormalization's moving averages, where none is set: 0.8 to 0.99.

    They are averages over about `1 / (1 - momentum)` steps, here a quarter of an epoch, at least
    5 steps and at most the 100 of Keras' default. That default keeps `0.99 ** n` of the start
    after n steps: a third after 100, so that short runs are validated with statistics of no
    photo. The rule looks at the length of an epoch alone, so that a lengthened run stays equal
    to one that was so long from the beginning.
    """
    return 1 - 1 / min(max(steps_per_epoch / 4, 5), 100)


def set_bn_momentum(network: keras.Model, momentum: float) -> None:
    """Sets the momentum of all BatchNormalization layers."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
