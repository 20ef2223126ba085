"""What a training run can be told."""

import dataclasses
from typing import ClassVar

from carvana_tf.data import amounts
from carvana_tf.data.cache import CACHES
from carvana_tf.data.sizing import POLICIES
from carvana_tf.errors import UserError
from carvana_tf.flags import Needs, option
from carvana_tf.models.encoders import IMAGENET, NORMALISATIONS, RANDOM
from carvana_tf.models.networks import DECODERS, NETWORKS, find
from carvana_tf.options import DTYPES, TrainingPlaces, run_name
from carvana_tf.training.losses import LOSSES
from carvana_tf.training.rates import SCHEDULES

OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")
"""The values of --optimizer."""

_NOTHING = (
    "with --fold=none, which validates nothing unless --val_data_dir_name names a folder of "
    "other photos"
)


@dataclasses.dataclass(frozen=True)
class TrainingOptions(TrainingPlaces):
    """What `train.py` can be told, beside the dataset's own flags."""

    network: str = option("mobilenet", f"Network: {', '.join(NETWORKS)}.")
    net_alias: str = option("", "A word of your own in the run's name.")
    decoder: str | None = option(None, "Decoder; by default the network's own.", choices=DECODERS)
    alpha: float = option(1.0, "Width multiplier of the mobilenet encoder.", lower=0.25, upper=1.0)
    allow_partial_weights: bool = option(
        False, "Start even when only a part of --weights fits the network."
    )
    foreign_weights: bool = option(
        False, "The network of --weights was trained on other photos than these: it knows no fold."
    )
    preprocessing_function: str | None = option(
        None,
        "Normalisation of the photo; by default the one the encoder was pretrained with.",
        choices=tuple(NORMALISATIONS),
    )
    freeze_till_layer: str = option(
        "input_1", "Freeze all layers before this one; ALL freezes every layer, input_1 none."
    )
    freeze_encoder_epochs: int = option(
        0,
        "Freeze the pretrained encoder, BatchNormalization included, for the first so many "
        "epochs; then a fresh optimiser trains all.",
        lower=0,
    )
    freeze_encoder_bn: bool = option(
        False, "Keep the encoder's BatchNormalization layers in inference mode."
    )
    bn_momentum: float | None = option(
        None,
        "Momentum of the trained BatchNormalization layers' moving averages; by default 0.8 to "
        "0.99, by the number of steps in an epoch: Keras' 0.99 needs several hundred of them.",
        lower=0.0,
        upper=1.0,
    )
    photo_channels: int = option(
        3,
        "1: the network takes the colour from the photo first; 3: it sees RGB. Encoders that "
        "ImageNet weights exist for see the grey channel three times, others once.",
        lower=1,
        upper=3,
    )

    pseudo_confidence: float = option(
        0.0,
        "Take predicted masks with at least this share of pixels below 0.1 or above 0.9.",
        lower=0.0,
        upper=1.0,
    )
    pseudo_weight: float | None = option(
        None,
        "Share of the training samples that come from --pseudo_mask_dir; by default as many as "
        "there are.",
        lower=0.01,
        upper=0.99,
    )
    force: bool = option(
        False,
        "Take predicted masks and weights although they may know the validation fold, and stacked "
        "masks although they may not be out of fold.",
    )
    models_dir: str = option("models", "Folder in which each run gets a folder of its own.")

    size_policy: str | None = option(
        None,
        "crop: random full-resolution windows; resize: the whole photo resized; pad: the whole "
        "photo at full resolution. By default resize; crop with --use_crop, pad with "
        "--nouse_crop.",
        choices=POLICIES,
    )
    use_crop: bool | None = option(None, "The published flag for --size_policy=crop or pad.")
    input_width: int | None = option(
        None,
        "Width of the crop or of the resized photo. By default a crop is of 1024, less where "
        "photos are smaller; a resized photo has the photos' median shape and as many pixels as "
        "384x384, or less where they have less.",
        lower=1,
    )
    input_height: int | None = option(
        None, "Height of the crop or of the resized photo; by default as the width.", lower=1
    )
    clahe: bool = option(
        False,
        "Equalise every photo's contrast (CLAHE of the luma: clip limit 2, 8x8 tiles), in "
        "training, validation and prediction.",
    )
    augmentation: str = option("default", amounts.HELP)

    loss_function: str = option(
        "bce_dice",
        f"Loss, per photo: {', '.join(LOSSES)}; with parameters as "
        "bce_dice:bce_weight=1,dice_weight=1.",
    )
    optimizer: str = option("adam", "What makes updates of gradients.", choices=OPTIMIZERS)
    momentum: float | None = option(
        None, "Momentum of sgd (by default 0.9) or rmsprop (0).", lower=0.0, upper=1.0
    )
    nesterov: bool = option(False, "Nesterov's momentum, with --optimizer=sgd.")
    weight_decay: float | None = option(
        None,
        "Share of each weight, times the learning rate, that an update takes off; by default "
        "adamw's is 0.004, else 0. The L2 penalty d of other programs' SGD with momentum m is "
        "about d / (1 - m) here.",
        lower=0.0,
    )
    clipnorm: float | None = option(
        None, "Scale the gradient of all weights together down to this norm.", lower=0.0
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
    )
    hard_example_replay: bool = option(
        False, "Train once more on the worst of each ten batches, as system 000's albu part."
    )
    learning_rate: float | None = option(
        None, "Highest learning rate; by default 0.001.", lower=0.0
    )
    lr_schedule: str = option(
        "cosine",
        f"How the rate goes over the run: {', '.join(SCHEDULES)}, or rates from epochs on, as "
        "0:1e-4,12:1e-5.",
    )
    warmup_steps: int = option(0, "Steps of a linear rise, with --lr_schedule=cosine.", lower=0)
    decay_every: int = option(100, "Epochs between decays of --lr_schedule=step.", lower=1)
    decay_factor: float = option(
        0.5, "What each of them multiplies the rate by.", lower=0.0, upper=1.0
    )
    clr: str | None = option(
        None,
        "Cyclical learning rate base,max,step,mode; mode: triangular, triangular2, exp_range.",
    )
    fresh_optimizer_epoch: int = option(
        0, "Go on with a fresh optimiser after so many epochs, as system 000; 0: never.", lower=0
    )
    epochs: int = option(30, "Epochs.", lower=1)
    steps_per_epoch: int | None = option(
        None, "Batches in an epoch; by default every photo is seen once.", lower=1
    )
    batch_size: int = option(4, "Photos per batch.", lower=1)
    validate_every: int = option(1, "Validate after every so many epochs.", lower=1)
    monitor: str = option(
        "val_dice", "What makes a model the best.", choices=("val_dice", "val_loss")
    )
    patience: int = option(
        45, "Stop after so many validations without a better --monitor; 0 never stops.", lower=0
    )
    min_delta: float = option(
        0.0, "By how much --monitor must be better to count for --patience.", lower=0.0
    )
    keep_every: int = option(
        0,
        "Also keep the model of every so many epochs, as epoch_010.keras, and the run's state "
        "there, about three times as large, for --from_epoch; 0: of none.",
        lower=0,
    )

    gpu: str = option("0", "GPUs to use, by number, comma-separated; empty means none.")
    dtype: str = option(
        "auto", "Compute type; auto is bfloat16 where the hardware has it.", choices=DTYPES
    )
    seed: int = option(80, "Seed of every random draw.", lower=0)
    deterministic: bool = option(
        True, "Same flags, same machine, same weights; off may be faster on a GPU."
    )
    threads: int = option(4, "Threads that make batches.", lower=1)
    cache: str = option(
        "auto",
        "Keep decoded photos in memory (auto: as many as fit into 30 % of what is free, the others "
        "in --cache_dir, if it is given) or, for later runs too, all on disk, in --cache_dir.",
        choices=CACHES,
    )
    cache_dir: str | None = option(
        None,
        "Folder of --cache=disk or auto: 4 bytes per pixel; may be removed after the training.",
    )
    tensorboard: bool = option(False, "Write TensorBoard logs into the run's folder.")
    debug_pictures: int = option(
        0, "Write the first so many training samples, as the network sees them.", lower=0
    )
    show_summary: bool = option(False, "Print the network's layers.")
    smoke: bool = option(False, "Shrink sizes, steps and widths: a run that takes seconds.")
    save_minutes: float = option(
        10.0,
        "Save the state of the run after so many minutes within an epoch, too; 0: after each "
        "epoch alone.",
        lower=0.0,
    )
    from_epoch: int = option(
        0,
        "Take the run back to the end of an epoch that --keep_every kept, and go on from there; "
        "what came after it is removed. 0: go on from the last state.",
        lower=0,
    )
    restart: bool = option(
        False,
        "Train from the beginning where a run of the same name exists, and remove that.",
        alias="overwrite",
    )

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("allow_partial_weights", "foreign_weights"),
            lambda o: o.loads_weights,
            "without --weights",
        ),
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
            lambda o: not o.rates_elsewhere,
            "with --clr or an --lr_schedule of rates, which set all rates",
        ),
        Needs(("n_folds",), lambda o: o.fold != "none", "with --fold=none"),
        Needs(
            ("validate_every", "monitor", "min_delta", "val_pattern"),
            lambda o: not o.validates_nothing,
            _NOTHING,
        ),
        Needs(("patience",), lambda o: not o.validates_nothing or not o.patience, _NOTHING),
        Needs(("min_delta",), lambda o: o.patience > 0, "with --patience=0"),
        Needs(
            ("pseudo_data_dir", "pseudo_confidence", "pseudo_weight"),
            lambda o: o.pseudo_mask_dir,
            "without --pseudo_mask_dir",
        ),
        Needs(
            ("use_crop",),
            lambda o: o.size_policy is None or (o.size_policy == "crop") == o.use_crop,
            "with --size_policy",
        ),
        Needs(
            ("input_width", "input_height"),
            lambda o: o.policy != "pad",
            "with --size_policy=pad or --nouse_crop, where photos keep their size",
        ),
        Needs(
            ("fresh_optimizer_epoch",),
            lambda o: o.smoke or o.fresh_optimizer_epoch < o.epochs,
            "in a run of no more --epochs",
        ),
        Needs(
            ("keep_every",),
            lambda o: o.smoke or o.keep_every <= o.epochs,
            "in a run of fewer --epochs",
        ),
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

    @property
    def policy(self) -> str:
        """The size policy, from `--size_policy` or else `--use_crop`."""
        by_crop = {None: "resize", True: "crop", False: "pad"}
        return self.size_policy or by_crop[self.use_crop]

    @property
    def loads_weights(self) -> bool:
        """Whether `--weights` names some; where it is left out, `resolved` says what it means."""
        return self.weights not in (None, "", RANDOM)

    @property
    def rates_elsewhere(self) -> bool:
        """Whether `--clr` or the pairs of `--lr_schedule` set all rates."""
        return self.clr is not None or ":" in self.lr_schedule

    def run_name(self, fold: str) -> str:
        """The name of a run's folder; a trial has one of its own."""
        return run_name(self.network, self.net_alias, fold, smoke=self.smoke)

    def of_fold(self, fold: str) -> "TrainingOptions":
        """The options of one run of several: `{fold}` in paths becomes the fold's name."""
        paths = ("weights", "stacked_channels_dir", "pseudo_mask_dir")
        given = {name: getattr(self, name) for name in paths}
        return dataclasses.replace(
            self, **{k: path.replace("{fold}", fold) for k, path in given.items() if path}
        )

    def resolved(self) -> "TrainingOptions":
        """These options with the values that flags which were not given stand for.

        What is left None has no effect, or follows from the photos. docs/training.md says what
        the choices rest on.

        Raises:
            UserError: There is no such network.
        """
        network = find(self.network)
        weights = IMAGENET if network.source == "keras" and not self.smoke else RANDOM
        rate = network.learning_rate if self.learning_rate is None else self.learning_rate
        return dataclasses.replace(
            self,
            weights=weights if self.weights is None else self.weights or RANDOM,
            size_policy=self.policy,
            use_crop=None,
            learning_rate=None if self.rates_elsewhere else rate,
        )

    def shrunk(self) -> "TrainingOptions":
        """The same run in seconds, for `--smoke`."""
        return dataclasses.replace(
            self,
            input_width=64,
            input_height=64,
            batch_size=min(self.batch_size, 2),
            steps_per_epoch=2,
            epochs=min(self.epochs, 2),
        )
