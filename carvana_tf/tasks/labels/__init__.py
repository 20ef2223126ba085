"""The task of labels: which kinds of things a photo shows."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from carvana_tf.data import labels as label_tables
from carvana_tf.data.dataset import Sample, find_photos
from carvana_tf.errors import UserError
from carvana_tf.failures import first_few
from carvana_tf.flags import Configuration
from carvana_tf.masks.manifest import LABELS
from carvana_tf.models.networks import check_pooling
from carvana_tf.models.options import ModelOptions
from carvana_tf.options import DatasetOptions
from carvana_tf.progress import report
from carvana_tf.tasks.base import Loss, VectorTask, Writers, loss_of
from carvana_tf.tasks.labels import losses, scores
from carvana_tf.tasks.labels.agreement import LabelVerdict
from carvana_tf.tasks.labels.metrics import GlobalAveragePrecision, MeanF2
from carvana_tf.tasks.labels.table import Scores
from carvana_tf.tasks.labels.writers import LabelWriters

RANKING, SIGMOID = "ranking", "sigmoid"
"""How logits become scores: as the loss of the training wants it."""


class Labels(VectorTask):
    """Any number of labels per photo. Targets are `float32[K]` of 0 and 1, predictions logits.

    Args:
        classes: Names; the place of each is its id. None before they are known.
        scoring: `RANKING` or `SIGMOID`.
        pooling: Of the network, see `models.classifier.build`.
        top_k: How many classes of a photo get a score.
        on_unknown: What becomes of labels of other classes, see `data.labels.read`.
    """

    name = LABELS
    targets = "labels"
    product = "row"
    default_loss = "ranking"
    monitors: ClassVar = {"val_gap": "max", "val_f2": "max", "val_loss": "min"}
    figures: ClassVar = {
        "loss": ("batch loss", 4),
        "val_loss": ("validation loss", 4),
        "val_gap": ("GAP", 5),
        "val_f2": ("mean F2", 5),
        "val_f2_threshold": ("at", 2),
    }
    verdict = LabelVerdict

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        scoring: str = RANKING,
        pooling: str = "average",
        top_k: int = scores.TOP_K,
        on_unknown: str = "error",
    ) -> None:
        self.classes = None if classes is None else tuple(classes)
        self._scoring = scoring
        self._pooling = pooling
        self._top_k = top_k
        self._on_unknown = on_unknown

    @property
    def writers(self) -> Writers:
        """See `Task.writers`."""
        return LabelWriters(self.classes or (), self.score_of)

    @property
    def score_of(self) -> Scores:
        """What makes scores of logits."""
        function = scores.ranking_scores if self._scoring == RANKING else scores.sigmoid_scores
        return functools.partial(function, top_k=self._top_k)

    @property
    def metadata(self) -> dict[str, Any]:
        """See `Task.metadata`."""
        return {
            **super().metadata,
            "classes": list(self.classes or ()),
            "scoring": self._scoring,
            "top_k": self._top_k,
        }

    def of_training(self, options: Configuration) -> "Labels":
        """See `Task.of_training`: classes are those of the model it starts from, else the table's.

        So the ids of classes survive the change of stage.
        """
        flags = options.flat()
        loss = flags["loss_function"] or self.default_loss
        losses.check(loss)
        height, width = flags["input_height"], flags["input_width"]
        known = height is not None and width is not None
        check_pooling(flags["network"], flags["pooling"], (height, width) if known else None)
        classes: Sequence[str] | None = _classes_of_model(flags["weights"] or "", flags["fold"])
        if classes is None:
            dataset = DatasetOptions(dataset_dir=flags["dataset_dir"])
            path = self.existing_targets(dataset, flags["train_labels"], "train_labels")
            classes = label_tables.read(path).classes
        if len(classes) < 2 and loss.partition(":")[0] == RANKING:
            raise UserError(
                f"--loss_function={loss} compares labels with one another, but there is only "
                f"{first_few(classes)}; give --loss_function=bce, and name photos without it "
                "in the table, too."
            )
        return Labels(
            classes,
            RANKING if loss.partition(":")[0] == RANKING else SIGMOID,
            flags["pooling"],
            flags["top_k"],
            flags["unknown_labels"],
        )

    def shrunk(self) -> "Labels":
        """See `Task.shrunk`: the published pooling takes large photos."""
        return Labels(self.classes, self._scoring, top_k=self._top_k, on_unknown=self._on_unknown)

    def of_model(self, metadata: Mapping[str, Any]) -> "Labels":
        """See `Task.of_model`."""
        scoring, top_k = metadata.get("scoring", RANKING), metadata.get("top_k", scores.TOP_K)
        return Labels(metadata.get("classes", ()), scoring, top_k=top_k)

    def find_samples(self, photos: Path, targets: Path, dataset: DatasetOptions) -> list[Sample]:
        """See `Task.find_samples`: those that the table names, with the ids of their classes."""
        found = find_photos(photos, dataset.naming, dataset.reading)
        table = label_tables.read(targets, self.classes, self._on_unknown)
        matched = label_tables.match(table, [s.photo.name for s in found], f"'{targets}'")
        samples = [
            dataclasses.replace(sample, target=matched.labels[sample.photo.name])
            for sample in found
            if sample.photo.name in matched.labels
        ]
        if not samples:
            raise UserError(
                f"'{targets}' names no photo of '{photos}' (its first is "
                f"'{next(iter(table.labels))}', the first photo '{found[0].photo.name}'); name the "
                "table of these photos."
            )
        # While flags are checked, classes are not known yet, and nothing is done.
        for sentence in (
            ()
            if self.classes is None
            else (
                *table.notes.sentences(),
                *_unmatched(matched.without_photo, f"photos of '{targets}' are not in '{photos}'"),
                *_unmatched(matched.without_labels, f"photos of '{photos}' are not in '{targets}'"),
            )
        ):
            report(f"note: '{targets}': {sentence}")
        return samples

    def fingerprint(self, sample: Sample) -> list[str]:
        """See `Task.fingerprint`."""
        return [f"{sample.stem} {' '.join(map(str, sample.target or ()))}"]

    def values(self, sample: Sample) -> np.ndarray:
        """See `VectorTask.values`."""
        target = np.zeros(len(self.classes or ()), np.float32)
        target[list(sample.target or ())] = 1
        return target

    def check_targets(self, samples: Sequence[Sample], what: str) -> None:
        """Refuses photos of which none has a label."""
        if samples and not any(sample.target for sample in samples):
            raise UserError(
                f"none of the {len(samples)} {what} photos has a label; look at their table."
            )

    def build_network(self, options: ModelOptions, width: float) -> Any:
        """See `Task.build_network`: the encoder, pooled, with a logit for each class."""
        from carvana_tf.models import classifier

        return classifier.build(
            options, len(self.classes or ()), pooling=self._pooling, width=width
        )

    def loss(self, text: str) -> Loss:
        """See `Task.loss`."""
        return losses.parse(text)

    def check_loss(self, text: str) -> None:
        """See `Task.check_loss`."""
        losses.check(text)

    def score(self, target: np.ndarray, prediction: np.ndarray, loss: Loss) -> "_Row":
        """See `Task.score`."""
        ids, values = self.score_of(prediction)
        return _Row(loss_of(loss, target, prediction), ids, values, np.flatnonzero(target))

    def summarize(self, rows: Iterable["_Row"]) -> dict[str, float]:
        """GAP, and the best mean F2 with its threshold; memory does not grow with photos."""
        gap, f2, total = GlobalAveragePrecision(), MeanF2(), 0.0
        for row in rows:
            gap.update(row.ids, row.scores, row.positives)
            f2.update(row.ids, row.scores, row.positives)
            total += row.loss
        best = f2.result()
        return {
            "loss": total / f2.photos,
            "gap": gap.result(),
            "f2": best.f2,
            "f2_threshold": best.threshold,
        }


class _Row(NamedTuple):
    """Of one photo: its loss, its best classes and their scores, and the classes it has."""

    loss: float
    ids: np.ndarray
    scores: np.ndarray
    positives: np.ndarray


def _classes_of_model(weights: str, fold: str) -> list[str] | None:
    """The classes that a model file knows; None where it is no such file."""
    path = Path(weights.replace("{fold}", fold if fold.isdecimal() else "0"))
    if path.suffix != ".keras" or not path.is_file():
        return None
    # Of a table alone the classes are found without Keras.
    from carvana_tf import devices  # noqa: F401  (starts the backend without its messages)
    from carvana_tf.models.model_file import read_metadata

    return read_metadata(path).get("classes")


def _unmatched(found: Sequence[str], what: str) -> list[str]:
    return [f"{len(found)} {what}: {first_few(found)}"] if found else []
