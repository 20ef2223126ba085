"""The task of masks: which pixels of a photo are the object."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from carvana_tf.data.dataset import Sample, find_samples
from carvana_tf.data.images import read_grey, read_mask, read_photo
from carvana_tf.data.loader import check_size, read_channels
from carvana_tf.data.mask_values import all_empty
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.evaluation import constant
from carvana_tf.evaluation.pictures import outlines
from carvana_tf.masks.manifest import MASKS
from carvana_tf.models.options import ModelOptions
from carvana_tf.options import DatasetOptions
from carvana_tf.progress import report
from carvana_tf.tasks.base import Loss, Task, Writers, loss_of, means
from carvana_tf.tasks.masks import losses, writers
from carvana_tf.tasks.masks.agreement import MaskVerdict
from carvana_tf.tasks.masks.metrics import photo_metrics

_OVERLAY = np.array((255, 0, 0), np.float32)


class Masks(Task):
    """A mask per photo. Targets are `bool[H, W]`, predictions `float32[H, W]` in 0..1."""

    name = MASKS
    targets = "mask_dir_name"
    product = "mask"
    default_loss = "bce_dice"
    monitors: ClassVar = {"val_dice": "max", "val_loss": "min"}
    # The training figures are of augmented batches while the weights change: not comparable with
    # those of validation, whose Dice is of whole photos at a threshold.
    figures: ClassVar = {
        "loss": ("batch loss", 4),
        "dice": ("batch soft Dice", 4),
        "val_loss": ("validation loss", 4),
        "val_dice": ("Dice", 5),
    }
    columns: ClassVar = ("loss", "dice", "learning_rate")
    verdict = MaskVerdict

    @property
    def writers(self) -> Writers:
        """See `Task.writers`."""
        return writers

    def existing_targets(self, dataset: DatasetOptions, name: str, flag: str) -> Path:
        """See `Task.existing_targets`: a folder of masks."""
        return dataset.existing_folder(name, flag)

    def find_samples(self, photos: Path, targets: Path, dataset: DatasetOptions) -> list[Sample]:
        """See `Task.find_samples`."""
        return find_samples(photos, targets, dataset.naming, dataset.reading)

    def read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """See `Task.read`."""
        return read_pair(sample)

    def read_planes(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """See `Task.read_planes`: 255 * mask, or the probabilities of a soft sample."""
        if not sample.soft or sample.mask is None:
            photo, mask = read_pair(sample)
            return photo, mask.view(np.uint8) * np.uint8(255)
        photo, plane = read_channels(sample), read_grey(sample.mask)
        check_size(sample.mask, plane.shape, photo.shape[:2])
        return photo, plane

    def target_files(self, sample: Sample) -> Sequence[tuple[Path, Callable[[Path], object]]]:
        """See `Task.target_files`."""
        if sample.mask is None:
            return ()
        if sample.soft:
            return ((sample.mask, read_grey),)
        return ((sample.mask, lambda path: read_mask(path, sample.reading)),)

    def target(self, sample: Sample, plane: np.ndarray | None) -> np.ndarray:
        """`float32[H, W, 1]` in 0..1, soft at the edge where it was resized or warped."""
        if plane is None:
            raise ValueError("a mask is a plane")
        return plane[..., None].astype(np.float32) / np.float32(255)

    def check_targets(self, samples: Sequence[Sample], what: str) -> None:
        """Refuses masks of which none has an object; usually one mask is read."""
        masks = (sample for sample in samples if sample.mask is not None and not sample.soft)
        if samples and not any(read_mask(s.mask, s.reading).any() for s in masks if s.mask):
            raise all_empty(len(samples), f"{what} masks")

    def build_network(self, options: ModelOptions, width: float) -> Any:
        """See `Task.build_network`: a mask is decoded from the encoder's features."""
        from carvana_tf.models import registry

        return registry.build(options, width)

    def loss(self, text: str) -> Loss:
        """See `Task.loss`."""
        return losses.parse(text)

    def check_loss(self, text: str) -> None:
        """See `Task.check_loss`."""
        losses.check(text)

    def metrics(self) -> list[Any]:
        """Soft Dice and accuracy, means over photos."""
        import keras

        from carvana_tf.tasks.masks.losses.overlap import dice_coefficient

        def accuracy(y_true, y_pred):
            right = keras.ops.equal(y_true >= 0.5, y_pred >= 0.5)
            return keras.ops.mean(keras.ops.cast(right, "float32"), axis=(1, 2, 3))

        return [
            keras.metrics.MeanMetricWrapper(dice_coefficient, name="dice"),
            keras.metrics.MeanMetricWrapper(accuracy, name="accuracy"),
        ]

    def debug_pictures(
        self, photo: np.ndarray, target: np.ndarray, loss: str
    ) -> dict[str, np.ndarray]:
        """The photo, its mask, the mask in red over it, and the pixel weights of the loss.

        Weights are scaled so that the highest is white.
        """
        from carvana_tf.tasks.masks.losses import weights

        mask = np.rint(255 * target).astype(np.uint8)
        share = mask.astype(np.float32) / 510
        overlay = np.rint(photo * (1 - share) + _OVERLAY * share).astype(np.uint8)
        pictures = {"photo": photo, "mask": mask[..., 0], "overlay": overlay}
        weigh = weights.pixel_weights(loss)
        if weigh is not None:
            import keras

            values = keras.ops.convert_to_numpy(weigh(target[None]))[0, ..., 0]
            grey = np.rint(255 * values / max(values.max(), 1e-6)).astype(np.uint8)
            pictures["weights"] = grey
        return pictures

    def tile(
        self, photo: Path, target: np.ndarray, prediction: np.ndarray, longest: int
    ) -> np.ndarray:
        """The photo with the outlines of both masks."""
        scale = longest / max(target.shape)
        size = [max(1, round(side * scale)) for side in target.shape]
        return outlines(read_photo(photo), target, prediction > 0.5, *size)

    def describe_best(
        self, rows: Sequence[Mapping[str, float]], monitor: str | None = None
    ) -> str | None:
        """See `Task.describe_best`: always Dice, that of the least loss where it decides."""
        monitor = monitor or "val_dice"
        best = self.best(rows, monitor)
        if best is None:
            return None
        label = "best" if monitor == "val_dice" else "least loss:"
        return f"{label} validation Dice {best['val_dice']:.5f} (epoch {best['epoch']:.0f})"

    def restore(self, output: np.ndarray, resizer: Resizer, size: tuple[int, int]) -> np.ndarray:
        """See `Task.restore`; `output` is `[H', W', 1]` or `[H', W']`."""
        return writers.restore(output, resizer, size)

    def score(self, target: np.ndarray, prediction: np.ndarray, loss: Loss) -> "_Row":
        """See `Task.score`."""
        import keras

        truth = keras.ops.cast(target[..., None], "float32")  # no copy in NumPy besides
        value = loss_of(loss, truth, prediction[..., None])
        del truth
        predicted = int(np.count_nonzero(prediction >= 0.5))
        return _Row(
            {"loss": value, **photo_metrics(target, prediction)},
            (predicted, int(np.count_nonzero(target)), target.size),
        )

    def summarize(self, rows: Iterable["_Row"]) -> dict[str, float]:
        """Means over photos of `photo_metrics` and the loss.

        A warning is printed where all photos are predicted as one class.
        """
        rows = list(rows)
        kind = constant.constant_prediction(*zip(*(row.counts for row in rows), strict=True))
        if kind is not None:
            report(constant.warning(kind, len(rows), "validation photos"))
        return means([row.scores for row in rows])


class _Row(NamedTuple):
    """Of one photo: its scores, and pixels that are predicted object, object, and all."""

    scores: dict[str, float]
    counts: tuple[int, int, int]


def read_pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a photo with its channels and its mask, `uint8[H, W, C]` and `bool[H, W]`.

    Raises:
        UserError: A file is unreadable, or the sizes differ.
    """
    if sample.mask is None:
        raise UserError(f"'{sample.photo}' has no mask.")
    photo, mask = read_channels(sample), read_mask(sample.mask, sample.reading)
    check_size(sample.mask, mask.shape, photo.shape[:2])
    return photo, mask
