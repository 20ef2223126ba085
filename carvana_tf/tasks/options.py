"""The flag that names the task, and a flag whose default it decides; none of it needs Keras."""

import dataclasses

from carvana_tf.flags import Values, option
from carvana_tf.options import DatasetOptions
from carvana_tf.tasks import MASKS, TASKS, Task


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """What is predicted."""

    task: str = option(
        MASKS.name,
        "What is predicted for each photo: its mask, or which labels it has.",
        choices=tuple(TASKS),
    )


def grouped(dataset: DatasetOptions, values: Values, task: Task) -> DatasetOptions:
    """A dataset whose photos are grouped as a task does, unless a flag or dataset.yaml says how."""
    if values.is_set("group_pattern") or "group_pattern" in values.remembered:
        return dataset
    return dataclasses.replace(dataset, group_pattern=task.group_pattern)
