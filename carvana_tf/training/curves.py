"""The learning curves of a run as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carvana_tf.files import atomic_path

# Blue and vermilion of the Okabe-Ito palette, which colour-blind readers tell apart.
_TRAINING, _VALIDATION = "#0072B2", "#D55E00"


def draw(rows: Sequence[dict[str, float]], path: Path, title: str = "") -> None:
    """Draws loss, Dice and learning rate over the epochs as a PNG, whole or not at all.

    Args:
        rows: One per epoch, as in the log; validation figures may be missing.
        path: The file.
        title: Over the picture.

    Raises:
        UserError: The folder cannot be written to.
    """
    figure = Figure(figsize=(8, 9), layout="constrained")
    axes = figure.subplots(3, sharex=True, height_ratios=(2, 2, 1))
    figure.suptitle(title)
    for axis, name, label in zip(axes, ("loss", "dice"), ("loss", "Dice"), strict=False):
        _line(axis, rows, name, "training", _TRAINING)
        _line(axis, rows, f"val_{name}", "validation", _VALIDATION)
        axis.set_ylabel(label)
        axis.legend()
    _line(axes[2], rows, "learning_rate", "", _TRAINING)
    axes[2].set_ylabel("learning rate")
    axes[2].set_xlabel("epoch")
    axes[2].xaxis.get_major_locator().set_params(integer=True)
    for axis in axes:
        axis.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _line(axis: Axes, rows: Sequence[dict[str, float]], name: str, label: str, colour: str) -> None:
    points = [(row["epoch"], row[name]) for row in rows if name in row]
    if points:
        axis.plot(*zip(*points, strict=True), label=label, color=colour, marker=".")
