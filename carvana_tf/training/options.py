"""The groups of flags of a training, and its whole configuration; none of it needs Keras."""

import dataclasses
from collections.abc import Callable, Collection
from typing import ClassVar

from carvana_tf import parallel
from carvana_tf.data.cache import CACHES
from carvana_tf.data.options import AugmentationOptions, InputOptions
from carvana_tf.errors import UserError, unknown_name
from carvana_tf.flags import Configuration, Needs, defaults, option
from carvana_tf.models.encoders import IMAGENET, RANDOM
from carvana_tf.models.networks import find
from carvana_tf.models.options import ModelOptions
from carvana_tf.options import DTYPES, DatasetOptions, ray_address, run_name
from carvana_tf.tasks import MASKS, TASKS, Task
from carvana_tf.tasks.labels import losses as label_losses
from carvana_tf.tasks.labels.options import LabelOptions
from carvana_tf.tasks.masks.losses import LOSSES
from carvana_tf.tasks.options import TaskOptions
from carvana_tf.training.rates import SCHEDULES, Clr, parse_rates

TRACKERS = ("none", "mlflow", "wandb")
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")
"""The values of --optimizer."""

MOMENTUM = {"sgd": 0.9, "rmsprop": 0.0}
"""The default of --momentum, of the optimizers that have one."""

_SMOKE_SIZE = 64
_NO_VALIDATION = (
    "with --fold=none, which validates nothing unless --val_data_dir_name names a folder of "
    "other photos"
)


def _by_task(describe: Callable[[Task], str]) -> str:
    """A text for each task, as "this (masks), that (labels)"."""
    return ", ".join(f"{describe(task)} ({name})" for name, task in TASKS.items())


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """The photos to train and to validate on."""

    fold: str = option("0", "Fold to validate on; 'all': one run for each; 'none': train on all.")
    n_folds: int | None = option(
        None,
        "How many folds the folds file must have; by default not checked.",
        lower=2,
        advanced=True,
    )
    train_data_dir_name: str = option("train", "Folder of the training photos.", key="photos")
    train_mask_dir_name: str = option(
        "train_masks", "Folder of the training masks.", alias="train_mask_dir", key="masks"
    )
    train_labels: str = option(
        "train_labels.csv",
        "With --task=labels: the table of the labels of the training photos, in --dataset_dir or "
        "anywhere. docs/labels.md has its forms.",
        key="labels",
    )
    val_data_dir_name: str = option(
        "train", "Folder of the validation photos.", advanced=True, key="photos"
    )
    val_mask_dir_name: str = option(
        "train_masks",
        "Folder of the validation masks.",
        alias="val_mask_dir",
        advanced=True,
        key="masks",
    )
    val_labels: str = option(
        "train_labels.csv", "The same of the validation photos.", advanced=True, key="labels"
    )
    train_pattern: str | None = option(
        None,
        "Train only on photos whose name (without its extension) has a match of this regular "
        "expression, as '_(01|09)$' for two views; by default on all.",
        advanced=True,
    )
    val_pattern: str | None = option(
        None,
        "The same for the photos that are validated on; by default all of the fold.",
        advanced=True,
    )
    stacked_channels_dir: str | None = option(
        None,
        "Folder with the subfolders 0, 1, … of grey PNGs named as the photos, or that many mask "
        "folders, comma-separated; '{fold}' in it becomes the fold. The masks must be out of fold.",
        advanced=True,
    )

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(("n_folds",), lambda o: o.fold != "none", "with --fold=none"),
        Needs(("val_pattern",), lambda o: not o.validates_nothing, _NO_VALIDATION),
    )

    def forgets(self, given: Collection[str]) -> tuple[str, ...]:
        """Flags whose remembered values do not count, as others decide: see `flags.Values`.

        With --fold=none photos are validated on only where a flag names them.
        """
        named = ("val_data_dir_name", "val_mask_dir_name", "val_labels")
        return named if self.fold == "none" and not {*named} & {*given} else ()

    @property
    def validates_nothing(self) -> bool:
        """Whether the run trains on all photos there are."""
        named, trained, usual = (
            [
                getattr(each, f"{kind}_{name}")
                for name in ("data_dir_name", "mask_dir_name", "labels")
            ]
            for each, kind in ((self, "val"), (self, "train"), (SplitOptions, "val"))
        )
        return self.fold == "none" and named in (trained, usual)


@dataclasses.dataclass(frozen=True)
class PseudoOptions:
    """Predicted masks of unlabelled photos as further training samples."""

    pseudo_mask_dir: str | None = option(
        None,
        "Folder of predicted masks of unlabelled photos to train on too; '{fold}' in it becomes "
        "the fold.",
    )
    pseudo_data_dir: str = option(
        "test", "Folder of the photos of --pseudo_mask_dir.", advanced=True, key="test_photos"
    )
    pseudo_confidence: float = option(
        0.0,
        "Take predicted masks with at least this share of pixels below 0.1 or above 0.9.",
        lower=0.0,
        upper=1.0,
        advanced=True,
    )
    pseudo_weight: float | None = option(
        None,
        "Share of the training samples that come from --pseudo_mask_dir; by default as many as "
        "there are.",
        lower=0.01,
        upper=0.99,
        advanced=True,
    )

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("pseudo_data_dir", "pseudo_confidence", "pseudo_weight"),
            lambda o: o.pseudo_mask_dir,
            "without --pseudo_mask_dir",
        ),
    )


@dataclasses.dataclass(frozen=True)
class WeightsOptions:
    """The weights to start from, and which layers are trained."""

    weights: str | None = option(
        None,
        "Weights to start from: 'imagenet' (downloaded), a .keras model, a .weights.h5 of an "
        "encoder, a Keras 2 .h5, a .safetensors or .pth of torchvision or timm (see "
        "docs/weights.md), or 'none'; '{fold}' in it becomes the fold. By default 'imagenet' where "
        "Keras has such weights of the network's encoder, else 'none'. --smoke downloads nothing.",
    )
    allow_partial_weights: bool = option(
        False, "Start even when only a part of --weights fits the network.", advanced=True
    )
    foreign_weights: bool = option(
        False,
        "The network of --weights was trained on other photos than these: it knows no fold.",
        advanced=True,
    )
    freeze_till_layer: str = option(
        "input_1",
        "Freeze all layers before this one; ALL freezes every layer, input_1 none.",
        advanced=True,
    )
    freeze_encoder_epochs: int = option(
        0,
        "Freeze the pretrained encoder, BatchNormalization included, for the first so many "
        "epochs; then a fresh optimizer trains all.",
        lower=0,
        advanced=True,
    )
    freeze_encoder_bn: bool = option(
        False, "Keep the encoder's BatchNormalization layers in inference mode.", advanced=True
    )
    bn_momentum: float | None = option(
        None,
        "Momentum of the trained BatchNormalization layers' moving averages; by default 0.8 to "
        "0.99, by the number of steps in an epoch: Keras' 0.99 needs several hundred of them.",
        lower=0.0,
        upper=1.0,
        advanced=True,
    )

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("allow_partial_weights", "foreign_weights"),
            lambda o: o.loads_weights,
            "without --weights",
        ),
    )

    @property
    def loads_weights(self) -> bool:
        """Whether `--weights` names some; `TrainingOptions.resolved` replaces None."""
        return self.weights not in (None, "", RANDOM)


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """The loss."""

    loss_function: str | None = option(
        None,
        f"Loss, per photo, of masks: {', '.join(LOSSES)}; of labels: "
        f"{', '.join(label_losses.LOSSES)}; with parameters as "
        f"bce_dice:bce_weight=1,dice_weight=1. By default {_by_task(lambda t: t.default_loss)}.",
    )


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer."""

    optimizer: str = option("adam", "What makes updates of gradients.", choices=OPTIMIZERS)
    momentum: float | None = option(
        None,
        "Momentum of sgd (by default 0.9) or rmsprop (0).",
        lower=0.0,
        upper=1.0,
        advanced=True,
    )
    nesterov: bool = option(False, "Nesterov's momentum, with --optimizer=sgd.", advanced=True)
    weight_decay: float | None = option(
        None,
        "Share of each weight, times the learning rate, that an update takes off; by default "
        "adamw's is 0.004, else 0. The L2 penalty d of other programs' SGD with momentum m is "
        "about d / (1 - m) here.",
        lower=0.0,
        advanced=True,
    )
    clipnorm: float | None = option(
        None,
        "Scale the gradient of all weights together down to this norm.",
        lower=0.0,
        advanced=True,
    )
    gradient_accumulation: int = option(
        1, "Batches whose mean gradient makes one update; they run on over epochs.", lower=1
    )
    ema: float = option(
        0.0,
        "Momentum, as 0.999, of an average of the weights over the batches, which is validated "
        "and saved in their place; 0: no average.",
        lower=0.0,
        upper=0.999999,
        advanced=True,
    )

    def __post_init__(self) -> None:
        name, momentum = self.optimizer, self.momentum
        if name not in OPTIMIZERS:
            raise unknown_name("--optimizer", name, OPTIMIZERS)
        if momentum is not None and name not in MOMENTUM:
            raise UserError(f"--momentum={momentum} does not suit --optimizer={name}; drop it.")
        if self.nesterov and (name != "sgd" or momentum == 0):
            raise UserError("--nesterov needs --optimizer=sgd and a --momentum above 0.")


@dataclasses.dataclass(frozen=True)
class ScheduleOptions:
    """The learning rate."""

    lr_schedule: str = option(
        "cosine",
        f"How the rate goes over the run: {', '.join(SCHEDULES)}, or rates from epochs on, as "
        "0:1e-4,12:1e-5.",
    )
    learning_rate: float | None = option(
        None, "Highest learning rate; by default 0.001, for vgg and vgg11v1 0.0003.", lower=0.0
    )
    warmup_steps: int = option(
        0, "Steps of a linear rise, with --lr_schedule=cosine.", lower=0, advanced=True
    )
    decay_every: int = option(
        100, "Epochs between decays of --lr_schedule=step.", lower=1, advanced=True
    )
    decay_factor: float = option(
        0.5, "What each of them multiplies the rate by.", lower=0.0, upper=1.0, advanced=True
    )
    clr: str | None = option(
        None,
        "Cyclical learning rate base,max,step,mode; mode: triangular, triangular2, exp_range.",
        advanced=True,
    )

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("warmup_steps",),
            lambda o: o.clr is None and o.lr_schedule == "cosine",
            "without --lr_schedule=cosine",
        ),
        Needs(
            ("decay_every", "decay_factor"),
            lambda o: o.clr is None and o.lr_schedule == "step",
            "without --lr_schedule=step",
        ),
        Needs(("lr_schedule",), lambda o: o.clr is None, "with --clr, which sets all rates"),
        Needs(
            ("learning_rate",),
            lambda o: not o.sets_all_rates,
            "with --clr or an --lr_schedule of rates, which set all rates",
        ),
    )

    def __post_init__(self) -> None:
        if self.clr is not None:
            Clr.parse(self.clr)
        elif self.sets_all_rates:
            parse_rates(self.lr_schedule, epochs=1)
        elif self.lr_schedule not in SCHEDULES:
            raise unknown_name("--lr_schedule", self.lr_schedule, (*SCHEDULES, "epoch:rate,…"))

    @property
    def sets_all_rates(self) -> bool:
        """Whether `--clr` or the pairs of `--lr_schedule` set all rates."""
        return self.clr is not None or ":" in self.lr_schedule


@dataclasses.dataclass(frozen=True)
class EpochOptions:
    """The length of the run, and which model is the best."""

    epochs: int = option(30, "Epochs.", lower=1)
    batch_size: int = option(4, "Photos per batch.", lower=1)
    patience: int = option(
        45, "Stop after so many validations without a better --monitor; 0 never stops.", lower=0
    )
    steps_per_epoch: int | None = option(
        None, "Batches in an epoch; by default every photo is seen once.", lower=1, advanced=True
    )
    validate_every: int = option(1, "Validate after every so many epochs.", lower=1, advanced=True)
    monitor: str | None = option(
        None,
        f"What makes a model the best: {_by_task(lambda t: ' or '.join(t.monitors))}; by default "
        "the first.",
        advanced=True,
    )
    min_delta: float = option(
        0.0,
        "By how much --monitor must be better to count for --patience.",
        lower=0.0,
        advanced=True,
    )
    fresh_optimizer_epoch: int = option(
        0,
        "Go on with a fresh optimizer after so many epochs, as the 1st-place solution; 0: never.",
        lower=0,
        advanced=True,
    )
    hard_example_replay: bool = option(
        False,
        "Train once more on the worst of each ten batches, as in a part of the 1st-place solution.",
        advanced=True,
    )

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(("min_delta",), lambda o: o.patience > 0, "with --patience=0"),
    )


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Folder, devices and files of the run."""

    net_alias: str = option("", "A word of your own in the run's name.")
    models_dir: str = option("models", "Folder in which each run gets a folder of its own.")
    restart: bool = option(
        False,
        "Train from the beginning where a run of the same name exists, and remove that.",
        alias="overwrite",
    )
    smoke: bool = option(False, "Shrink sizes, steps and widths: a run that takes seconds.")
    gpu: str = option("0", "GPUs to use, by number, comma-separated; empty means none.")
    parallel: str = option(
        parallel.NONE,
        "Train the folds of --fold=all at the same time, one on each device of --gpu.",
        choices=parallel.CHOICES,
    )
    ray_address: str = ray_address("Train the folds of --fold=all")
    dtype: str = option(
        "auto", "Compute type; auto is bfloat16 where the hardware has it.", choices=DTYPES
    )
    tensorboard: bool = option(False, "Write TensorBoard logs into the run's folder.")
    tracker: str = option(
        "none",
        "Also send the figures of each epoch to MLflow or Weights & Biases; where these write, "
        "their own environment variables say.",
        choices=TRACKERS,
    )
    force: bool = option(
        False,
        "Take predicted masks and weights although they may know the validation fold, and stacked "
        "masks although they may not be out of fold.",
        advanced=True,
    )
    seed: int = option(80, "Seed of every random draw.", lower=0, advanced=True)
    deterministic: bool = option(
        True, "Same flags, same machine, same weights; off may be faster on a GPU.", advanced=True
    )
    threads: int = option(4, "Threads that make batches.", lower=1, advanced=True)
    cache: str = option(
        "auto",
        "Keep decoded photos in memory (auto: as many as fit into 30 % of what is free, the others "
        "in --cache_dir, if it is set) or, for later runs too, all on disk, in --cache_dir.",
        choices=CACHES,
        advanced=True,
    )
    cache_dir: str | None = option(
        None,
        "Folder of --cache=disk or auto: 4 bytes per pixel; may be removed after the training.",
        advanced=True,
    )
    keep_every: int = option(
        0,
        "Also keep the model of every so many epochs, as epoch_010.keras, and the run's state "
        "there, about three times as large, for --from_epoch; 0: of none.",
        lower=0,
        advanced=True,
    )
    save_minutes: float = option(
        10.0,
        "Save the state of the run after so many minutes within an epoch, too; 0: after each "
        "epoch alone.",
        lower=0.0,
        advanced=True,
    )
    from_epoch: int = option(
        0,
        "Take the run back to the end of an epoch that --keep_every kept, and go on from there; "
        "what came after it is removed. 0: go on from the last state.",
        lower=0,
        advanced=True,
    )
    debug_pictures: int = option(
        0,
        "Write the first so many training samples, as the network sees them.",
        lower=0,
        advanced=True,
    )
    show_summary: bool = option(False, "Print the network's layers.", advanced=True)

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(("from_epoch",), lambda o: not o.restart, "with --restart"),
    )

    def __post_init__(self) -> None:
        if "/" in self.net_alias or "\\" in self.net_alias:
            raise UserError(
                f"--net_alias='{self.net_alias}' must be a part of a folder's name, without "
                "slashes; the folder above it is --models_dir."
            )
        if self.cache_dir and self.cache not in ("disk", "auto"):
            raise UserError(
                f"--cache_dir='{self.cache_dir}' needs --cache=disk or auto, received "
                f"'{self.cache}'."
            )


@dataclasses.dataclass(frozen=True)
class TrainingOptions(Configuration):
    """The whole configuration of a training run."""

    task: TaskOptions
    model: ModelOptions
    start: WeightsOptions
    dataset: DatasetOptions
    split: SplitOptions
    pseudo: PseudoOptions
    input: InputOptions
    augmentation: AugmentationOptions
    loss: LossOptions
    labels: LabelOptions
    length: EpochOptions
    schedule: ScheduleOptions
    optimizer: OptimizerOptions
    run: RunOptions

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("validate_every", "monitor", "min_delta"),
            lambda o: not o.split.validates_nothing,
            _NO_VALIDATION,
        ),
        Needs(
            ("patience",),
            lambda o: not o.split.validates_nothing or not o.length.patience,
            _NO_VALIDATION,
        ),
        Needs(
            ("fresh_optimizer_epoch",),
            lambda o: o.run.smoke or o.length.fresh_optimizer_epoch < o.length.epochs,
            "in a run of no more --epochs",
        ),
        Needs(
            ("parallel",),
            lambda o: o.split.fold == "all" or o.run.parallel == parallel.NONE,
            "without --fold=all",
        ),
        Needs(("ray_address",), lambda o: o.split.fold == "all", "without --fold=all"),
        Needs(
            ("parallel",),
            lambda o: not o.run.ray_address,
            "with --ray_address, which places the trainings",
        ),
        Needs(
            ("keep_every",),
            lambda o: o.run.smoke or o.run.keep_every <= o.length.epochs,
            "in a run of fewer --epochs",
        ),
        Needs(
            (*defaults(LabelOptions), "train_labels", "val_labels"),
            lambda o: TASKS[o.task.task].targets == "labels",
            "without --task=labels",
        ),
        Needs(
            ("train_mask_dir_name", "val_mask_dir_name", "pseudo_mask_dir", "decoder"),
            lambda o: TASKS[o.task.task].targets == "mask_dir_name",
            "with a --task that has no masks",
        ),
    )

    def __post_init__(self) -> None:
        if self.start.freeze_encoder_epochs and self.length.fresh_optimizer_epoch:
            raise UserError(
                "--freeze_encoder_epochs and --fresh_optimizer_epoch both start a fresh optimizer; "
                "give one of the two."
            )

    def run_name(self, fold: str) -> str:
        """The name of a run's folder; a trial has one of its own."""
        return run_name(self.model.network, self.run.net_alias, fold, smoke=self.run.smoke)

    def of_fold(self, fold: str) -> "TrainingOptions":
        """The options of one run of several: `{fold}` in paths becomes the fold's name."""
        paths = {
            "weights": self.start.weights,
            "stacked_channels_dir": self.split.stacked_channels_dir,
            "pseudo_mask_dir": self.pseudo.pseudo_mask_dir,
        }
        return self.replace(**{k: v.replace("{fold}", fold) for k, v in paths.items() if v})

    def resolved(self, task: Task = MASKS) -> "TrainingOptions":
        """These options with the values that flags which are not set stand for.

        What is left None has no effect, or follows from the photos. docs/training.md says what
        the choices rest on.

        Args:
            task: What is predicted.

        Raises:
            UserError: There is no such network.
        """
        network = find(self.model.network)
        weights, rate = self.start.weights, self.schedule.learning_rate
        pretrained = IMAGENET if network.source == "keras" and not self.run.smoke else RANDOM
        if self.schedule.sets_all_rates:
            rate = None
        elif rate is None:
            rate = network.learning_rate
        return self.replace(
            weights=pretrained if weights is None else weights or RANDOM,
            size_policy=self.input.policy,
            use_crop=None,
            learning_rate=rate,
            loss_function=self.loss.loss_function or task.default_loss,
            monitor=self.length.monitor or next(iter(task.monitors)),
        )

    def shrunk(self) -> "TrainingOptions":
        """The same run in seconds, for `--smoke`."""
        return self.replace(
            input_width=min(self.input.input_width or _SMOKE_SIZE, _SMOKE_SIZE),
            input_height=min(self.input.input_height or _SMOKE_SIZE, _SMOKE_SIZE),
            batch_size=min(self.length.batch_size, 2),
            steps_per_epoch=2,
            epochs=min(self.length.epochs, 2),
        )
