"""Pictures of what the network is trained on, for the eye to check."""

from pathlib import Path

from carvana_tf.data.images import write_photo, write_probability
from carvana_tf.data.loader import TrainingSet
from carvana_tf.files import make_folder, shortened
from carvana_tf.tasks.base import Task


def write_pictures(folder: Path, training: TrainingSet, task: Task, loss: str, count: int) -> None:
    """Writes the run's first samples, augmented and sized as the network gets them.

    Each picture of `task.debug_pictures` is `<number>_<stem>_<name>.png`.

    Args:
        folder: Where to; made where missing.
        training: The samples.
        task: What is predicted.
        loss: The run's loss, as `--loss_function` names it.
        count: How many samples; 0 writes nothing.

    Raises:
        UserError: A photo is unreadable, or the folder cannot be written to.
    """
    for g in range(count):
        photo, target = training.sample(g)
        stem = f"{g:03d}_{shortened(training.samples[training.pick(g)[1]].stem)}"
        make_folder(folder)
        for name, picture in task.debug_pictures(photo[..., :3], target, loss).items():
            write = write_photo if picture.ndim == 3 else write_probability
            write(folder / f"{stem}_{name}.png", picture)
