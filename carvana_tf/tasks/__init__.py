"""Tasks: what networks are trained to predict. `TASKS` has one row for each."""

from carvana_tf.tasks.base import Task as Task
from carvana_tf.tasks.labels import Labels
from carvana_tf.tasks.masks import Masks

TASKS: dict[str, Task] = {task.name: task for task in (Masks(), Labels())}

MASKS = TASKS[Masks.name]
