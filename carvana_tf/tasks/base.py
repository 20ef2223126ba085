"""What a task is: one kind of target that networks are trained to predict from photos."""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from carvana_tf.data.dataset import (
    DEFAULT_GROUP_PATTERN,
    EACH_ITS_OWN,
    Sample,
    find_photos,
)
from carvana_tf.data.loader import read_channels
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError, unknown_name
from carvana_tf.flags import Configuration
from carvana_tf.masks.cutouts.options import CutoutOptions
from carvana_tf.models.options import ModelOptions
from carvana_tf.options import DatasetOptions

Loss = Callable[[Any, Any], Any]
"""Of targets and outputs `[B, …]`, one value per photo, `float32[B]`."""


class Watch(Protocol):
    """Looks at predictions while they are written."""

    def add(self, prediction: np.ndarray) -> None:
        """Takes a prediction, in any thread."""

    def warning(self, models: str) -> str | None:
        """What to report of the predictions of these models, if anything."""


class Writers(Protocol):
    """The forms in which predictions are written into a folder, the values of --output."""

    @property
    def KINDS(self) -> Sequence[str]:  # noqa: N802
        """The forms, the default first."""

    @property
    def THRESHOLDED(self) -> Collection[str]:  # noqa: N802
        """Those that keep a decision at --threshold, and no probabilities."""

    @property
    def TABLE(self) -> str:  # noqa: N802
        """The file of the forms that are one table."""

    @property
    def TABLES(self) -> Collection[str]:  # noqa: N802
        """Those forms."""

    def watch(self, threshold: int) -> Watch:
        """Something that has seen no prediction yet."""

    def encoding(self, kind: str, threshold: int, cutout: CutoutOptions) -> str:
        """What a manifest says of the values of one form; of cut-outs, what they are like."""

    def begun(self, folder: Path) -> set[str] | None:
        """The stems whose rows are in a table that was begun; None where there is none."""

    def discard(self, folder: Path) -> None:
        """Removes such a table."""

    def create(
        self,
        kind: str,
        folder: Path,
        samples: Sequence[Sample],
        threshold: int,
        on_mask: Callable[[np.ndarray], object],
        cutout: CutoutOptions,
    ) -> contextlib.AbstractContextManager[Any]:
        """An output of the prediction pipeline, to be filled inside the block."""


@dataclasses.dataclass(frozen=True)
class Verdict(abc.ABC):
    """How far an engine's outputs are from those of Keras in float32; all fields are numbers.

    Attributes:
        photos: How many were compared.
    """

    photos: int

    @property
    @abc.abstractmethod
    def passed(self) -> bool:
        """Whether the engine may stand in for Keras."""

    @classmethod
    @abc.abstractmethod
    def of(cls, outputs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Self:
        """The verdict on photos.

        Args:
            outputs: For each photo what Keras and what the engine gave.
        """

    @classmethod
    def recall(cls, figures: Mapping[str, Any]) -> Self:
        """The verdict whose fields were written down.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: They are no such fields.
        """
        names = (field.name for field in dataclasses.fields(cls) if field.name != "photos")
        return cls(int(figures["photos"]), *(float(figures[name]) for name in names))


class Task(abc.ABC):
    """Everything that depends on what is predicted; one row of `TASKS`.

    The training loop, the loader, the augmentation, the engines and the pipeline call these
    methods and know no task. Methods take and give NumPy arrays; those that need Keras import
    it themselves, so that the names of tasks are known without it.

    A *target* is what a photo's prediction is compared with, at the photo's own size where it
    is an image. A *plane* is a target, or a part of one, that is resized and warped as the
    photo is. A *prediction* is a network's output brought to the photo's own size.

    Attributes:
        name: Of the task in `TASKS`.
        targets: What its ground truth is called in the flag that names it: of
            "mask_dir_name" `--train_mask_dir_name` and `--val_mask_dir_name`.
        product: What a prediction is called.
        default_loss: The default of `--loss_function`.
        group_pattern: The default of `--group_pattern`.
        monitors: What `--monitor` may name, and whether "max" or "min" is best.
        figures: How the training reports each column of its log: a label and decimals.
        columns: What the curves of a run show, each with its validation.
        verdict: How engines are compared.
    """

    name: ClassVar[str]
    targets: ClassVar[str]
    product: ClassVar[str] = "prediction"
    default_loss: ClassVar[str] = ""
    group_pattern: ClassVar[str] = DEFAULT_GROUP_PATTERN
    monitors: ClassVar[Mapping[str, str]]
    figures: ClassVar[Mapping[str, tuple[str, int]]]
    columns: ClassVar[Sequence[str]] = ("loss", "learning_rate")
    verdict: ClassVar[type[Verdict]]

    @property
    @abc.abstractmethod
    def writers(self) -> Writers:
        """How predictions are written."""

    @property
    def metadata(self) -> dict[str, Any]:
        """What model files must say for `of_model`, as JSON has it; nothing by default."""
        return {}

    def of_training(self, options: Configuration) -> "Task":
        """The task of a training, as its options describe it; by default this one.

        Args:
            options: Of all its groups; `flat` has them.

        Raises:
            UserError: What they name cannot be read, or does not fit.
        """
        return self

    def shrunk(self) -> "Task":
        """The task of a trial (--smoke), whose photos are small; by default this one."""
        return self

    def of_model(self, metadata: Mapping[str, Any]) -> "Task":
        """The task of a model file, as its metadata describe it; by default this one."""
        return self

    # Reading.

    @abc.abstractmethod
    def existing_targets(self, dataset: DatasetOptions, name: str, flag: str) -> Path:
        """Where the ground truth is that a flag names.

        Raises:
            UserError: It does not exist.
        """

    @abc.abstractmethod
    def find_samples(self, photos: Path, targets: Path, dataset: DatasetOptions) -> list[Sample]:
        """Every photo of a folder that has a target, sorted by stem.

        Args:
            photos: The folder.
            targets: Of `existing_targets`.
            dataset: How files are named and read.

        Raises:
            UserError: The folder is missing, or no photo has a target.
        """

    @abc.abstractmethod
    def read(self, sample: Sample) -> tuple[np.ndarray, Any]:
        """A photo with its stacked channels, `uint8[H, W, C]`, and its target.

        Raises:
            UserError: A file is unreadable, or photo and target do not fit.
        """

    @abc.abstractmethod
    def read_planes(self, sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
        """A photo as of `read` and its plane for training, `uint8[H, W]`; None without one.

        Raises:
            UserError: As of `read`.
        """

    def target_files(self, sample: Sample) -> Sequence[tuple[Path, Callable[[Path], object]]]:
        """The files that only the target of a sample is read from, each with its reader."""
        return ()

    def fingerprint(self, sample: Sample) -> list[str]:
        """What changes with a sample's target, for the digest of the data."""
        return [f"{sample.stem} {path.stat().st_size}" for path, _ in self.target_files(sample)]

    @abc.abstractmethod
    def target(self, sample: Sample, plane: np.ndarray | None) -> np.ndarray:
        """What the loss compares an output with, `float32[…]` of one photo.

        Args:
            sample: The photo.
            plane: `uint8[H', W']`, resized and warped as the photo; None without one.
        """

    def check_targets(self, samples: Sequence[Sample], what: str) -> None:  # noqa: B027
        """Refuses samples that nothing can be learned from, or scored on; by default none.

        Args:
            samples: All of a training or of a validation.
            what: Which they are, "training" or "validation", for the message.

        Raises:
            UserError: They are such.
        """

    # Training.

    @abc.abstractmethod
    def build_network(self, options: ModelOptions, width: float) -> Any:
        """A network with the task's head and fresh weights; arguments as of `registry.build`."""

    @abc.abstractmethod
    def loss(self, text: str) -> Loss:
        """The loss that `--loss_function` describes.

        Raises:
            UserError: There is no such loss.
        """

    def check(self, loss: str | None, monitor: str | None) -> None:
        """Refuses a loss or a score that the task has not; None is the default.

        Raises:
            UserError: There is no such loss or score.
        """
        if loss is not None:
            self.check_loss(loss)
        if monitor is not None and monitor not in self.monitors:
            raise unknown_name("--monitor", monitor, self.monitors)

    def check_loss(self, text: str) -> None:
        """Refuses what `loss` refuses; a task whose losses are many does so without Keras.

        Raises:
            UserError: There is no such loss.
        """
        self.loss(text)

    @abc.abstractmethod
    def metrics(self) -> list[Any]:
        """New Keras metrics of training batches; their names are columns of the log."""

    def debug_pictures(
        self, photo: np.ndarray, target: np.ndarray, loss: str
    ) -> dict[str, np.ndarray]:
        """Pictures of a training sample by name, for --debug_pictures; by default the photo.

        Args:
            photo: `uint8[H, W, 3]`, as the network gets it.
            target: Of `target`.
            loss: As of `loss`.
        """
        return {"photo": photo}

    def tile(self, photo: Path, target: Any, prediction: Any, longest: int) -> np.ndarray | None:
        """A validation photo with its prediction, `uint8[h, w, 3]`; by default None.

        Args:
            photo: Its file.
            target: Of `read`.
            prediction: Of `restore`.
            longest: Pixels of the picture's longer side.
        """
        return None

    def describe_best(
        self, rows: Sequence[Mapping[str, float]], monitor: str | None = None
    ) -> str | None:
        """What to report of the best epoch of a run; None where none was validated.

        Args:
            rows: Of the log.
            monitor: One of `monitors`; None is the first.
        """
        monitor = monitor or next(iter(self.monitors))
        best = self.best(rows, monitor)
        if best is None:
            return None
        label, decimals = self.figures.get(monitor, (monitor, 5))
        return f"best {label} {best[monitor]:.{decimals}f} (epoch {best['epoch']:.0f})"

    def best(self, rows: Sequence[Mapping[str, float]], monitor: str) -> Mapping[str, float] | None:
        """The row of the best epoch, of equal ones the first; None where none was validated."""
        choose = max if self.monitors[monitor] == "max" else min
        return choose(
            (row for row in rows if monitor in row), key=lambda row: row[monitor], default=None
        )

    # Validation and prediction.

    def whole(self, resizer: Resizer) -> Resizer:
        """How a network that was trained with a resizer sees whole photos; by default with it."""
        return resizer

    def refuse_views(self, *, windows: bool, tiles: bool, boxes: bool, logits: bool) -> None:
        """Refuses ways to see a photo that do not suit the task; by default windows.

        Args:
            windows: Whether parts of each photo stand for it, as in ten crops.
            tiles: Whether predictions of parts are put together (--tile_size).
            boxes: Whether a prediction is put into a larger one (--use_bounding_boxes).
            logits: Whether log odds of outputs are averaged (--tta_average=logit).

        Raises:
            UserError: One of them is asked for.
        """
        if windows:
            raise UserError(
                f"--pred_tta of crops gives no {self.name}: each view must show the whole photo; "
                "choose other views."
            )

    @abc.abstractmethod
    def restore(self, output: np.ndarray, resizer: Resizer, size: tuple[int, int]) -> Any:
        """The prediction for one photo.

        Args:
            output: `float32[…]` of the network for it.
            resizer: How the photo was brought to the network's input.
            size: Its own (height, width).
        """

    @abc.abstractmethod
    def score(self, target: Any, prediction: Any, loss: Loss) -> Any:
        """What `summarize` needs of one photo; runs in any thread."""

    @abc.abstractmethod
    def summarize(self, rows: Iterable[Any]) -> dict[str, float]:
        """Scores of all photos by name, with "loss" among them.

        Args:
            rows: What `score` gave for each, at least one, as it comes.
        """


class VectorTask(Task):
    """A task whose target is a few numbers for each photo, as labels are.

    Targets, outputs and predictions are `float32[K]`. A task of this kind says what the numbers
    are, and how they are compared. Each photo is its own group, as in the split of
    `prepare_dataset`: names of photos from anywhere, as IMG_0001, say nothing of groups.
    """

    group_pattern = EACH_ITS_OWN

    @property
    def metadata(self) -> dict[str, Any]:
        """See `Task.metadata`."""
        return {"task": self.name}

    def existing_targets(self, dataset: DatasetOptions, name: str, flag: str) -> Path:
        """See `Task.existing_targets`: a table, in the dataset's folder or anywhere."""
        inside = Path(dataset.dataset_dir) / name
        found = inside if inside.is_file() else Path(name)
        if not found.is_file():
            raise UserError(
                f"--{flag}='{name}' is neither in '{dataset.dataset_dir}' nor a file of its own; "
                "name the table of the ground truth."
            )
        return found

    def find_samples(self, photos: Path, targets: Path, dataset: DatasetOptions) -> list[Sample]:
        """See `Task.find_samples`: by default every photo of the folder."""
        return find_photos(photos, dataset.naming, dataset.reading)

    def whole(self, resizer: Resizer) -> Resizer:
        """The middle of a photo where windows were trained on, and all of it else."""
        return resizer.centred()

    def refuse_views(self, *, windows: bool, tiles: bool, boxes: bool, logits: bool) -> None:
        """See `Task.refuse_views`: only images are put together again."""
        for flag, asked in (
            ("--tile_size", tiles),
            ("--use_bounding_boxes", boxes),
            ("--tta_average=logit", logits),
        ):
            if asked:
                raise UserError(f"{flag} has no effect with --task={self.name}; drop it.")

    @abc.abstractmethod
    def values(self, sample: Sample) -> np.ndarray:
        """The numbers of a photo, `float32[K]`."""

    def scores_of(self, target: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
        """The scores of one photo by name, besides its loss; by default none."""
        return {}

    def read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """See `Task.read`."""
        return read_channels(sample), self.values(sample)

    def read_planes(self, sample: Sample) -> tuple[np.ndarray, None]:
        """See `Task.read_planes`."""
        return read_channels(sample), None

    def target(self, sample: Sample, plane: np.ndarray | None) -> np.ndarray:
        """See `Task.target`: the numbers do not change where the photo is warped."""
        return self.values(sample)

    def metrics(self) -> list[Any]:
        """None but the loss."""
        return []

    def restore(self, output: np.ndarray, resizer: Resizer, size: tuple[int, int]) -> np.ndarray:
        """See `Task.restore`: numbers have no size."""
        return output

    def score(self, target: np.ndarray, prediction: np.ndarray, loss: Loss) -> Any:
        """The loss and `scores_of`."""
        return {"loss": loss_of(loss, target, prediction), **self.scores_of(target, prediction)}

    def summarize(self, rows: Iterable[Any]) -> dict[str, float]:
        """Means over photos."""
        return means(list(rows))


def loss_of(loss: Loss, target: np.ndarray, prediction: np.ndarray) -> float:
    """The loss of one photo, whose target and prediction have the shape of an output."""
    import keras

    return float(keras.ops.convert_to_numpy(loss(target[None], prediction[None]))[0])


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score over photos, at least one."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
