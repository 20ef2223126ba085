"""The group of flags of the task of labels; none of it needs Keras."""

import dataclasses

from carvana_tf.data.labels import ON_UNKNOWN
from carvana_tf.errors import UserError
from carvana_tf.flags import option
from carvana_tf.models.networks import POOLINGS
from carvana_tf.tasks.labels.scores import LEAST, MOST, THRESHOLD, TOP_K, Rule


@dataclasses.dataclass(frozen=True)
class LabelOptions:
    """How labels are learned, with --task=labels."""

    unknown_labels: str = option(
        "error",
        "What becomes of labels that the model of --weights, or the table of the training photos, "
        "does not know: an error, or they are left out.",
        choices=tuple(choice for choice in ON_UNKNOWN if choice != "add"),
        advanced=True,
    )
    pooling: str = option(
        POOLINGS[0],
        "How the encoder's features become one vector: their mean, or as in the published "
        "SE-ResNet101, which takes crops of 224x224.",
        choices=POOLINGS,
        advanced=True,
    )
    top_k: int = option(
        TOP_K,
        "How many of a photo's classes get a score; those beyond are what scores of the ranking "
        "loss are measured against.",
        lower=1,
        advanced=True,
    )


@dataclasses.dataclass(frozen=True)
class AnswerOptions:
    """Which labels are answered."""

    threshold: float = option(
        THRESHOLD, "Labels of higher scores are answered.", lower=0.0, upper=1.0
    )
    min_labels: int = option(LEAST, "Answer the best so many labels at least.", lower=0)
    max_labels: int = option(MOST, "Answer the best so many labels at most.", lower=1)

    def __post_init__(self) -> None:
        if self.min_labels > self.max_labels:
            raise UserError(
                f"--min_labels={self.min_labels} is more than --max_labels={self.max_labels}; "
                "lower it."
            )

    @property
    def rule(self) -> Rule:
        """The same for library code."""
        return Rule(self.threshold, self.min_labels, self.max_labels)
