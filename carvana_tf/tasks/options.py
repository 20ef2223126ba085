"""The flag that names the task; it needs no Keras."""

import dataclasses

from carvana_tf.flags import option
from carvana_tf.tasks import MASKS, TASKS


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """What is predicted."""

    task: str = option(
        MASKS.name,
        "What is predicted for each photo: its mask, or which labels it has.",
        choices=tuple(TASKS),
    )
