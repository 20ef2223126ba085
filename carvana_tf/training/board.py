"""A run's curves and validation photos for TensorBoard."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from carvana_tf.data.dataset import Sample
from carvana_tf.errors import UserError
from carvana_tf.tasks.base import Task

PHOTOS = "photos: target green, prediction purple"
_SHOWN = 8
_COLUMNS = 4
_TILE = 320  # pixels of its longer side
_VALIDATION = "val_"


class Board:
    """Writes event files, one stream for training and one for validation.

    Figures of the same kind have the same name in both, so that TensorBoard draws them in one
    picture. Nothing but the package `tensorboard` is needed, whatever the backend.
    """

    def __init__(self, folder: Path, validation: Sequence[Sample], task: Task) -> None:
        """Chooses the photos to show, evenly from all.

        Args:
            folder: Where to; event files of earlier parts of the run stay.
            validation: The photos that are validated on.
            task: What is predicted.

        Raises:
            UserError: The package is missing.
        """
        try:
            import tensorboard.summary.writer.event_file_writer  # noqa: F401
        except ImportError as error:
            raise UserError(
                "--tensorboard needs a package that is not installed: pip install "
                "'carvana_tf[tensorboard]'."
            ) from error
        self._folder = folder
        self._task = task
        chosen = np.linspace(0, len(validation) - 1, min(_SHOWN, len(validation))).astype(int)
        self._order = [validation[i].stem for i in chosen]
        self._tiles: dict[str, np.ndarray] = {}

    def show(self, sample: Sample, target: Any, prediction: Any) -> None:
        """Takes what the network gives for a validation photo; from any thread.

        Args:
            sample: Which.
            target: Its target.
            prediction: Its prediction.
        """
        if sample.stem not in self._order:
            return
        tile = self._task.tile(sample.photo, target, prediction, _TILE)
        if tile is not None:
            self._tiles[sample.stem] = tile

    def write(self, row: Mapping[str, float]) -> None:
        """Adds an epoch's row of the log, and the photos shown since the last one."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        figures = {name: value for name, value in row.items() if name not in ("epoch", "seconds")}
        values: dict[str, list[Any]] = {"training": [], "validation": []}
        for name, value in figures.items():
            kind = "validation" if name.startswith(_VALIDATION) else "training"
            tag = name.removeprefix(_VALIDATION)
            if name == "dice":  # not that of validation
                tag = "soft_dice"
            values[kind].append(Summary.Value(tag=tag, simple_value=value))
        tiles = [self._tiles[stem] for stem in self._order if stem in self._tiles]
        self._tiles = {}
        if tiles:
            sheet = _grid(tiles)
            png = cv2.imencode(".png", sheet[..., ::-1])[1].tobytes()
            image = Summary.Image(
                height=sheet.shape[0], width=sheet.shape[1], colorspace=3, encoded_image_string=png
            )
            values["validation"].append(Summary.Value(tag=PHOTOS, image=image))
        for kind, summary in values.items():
            if summary:
                _add(self._folder / kind, int(row["epoch"]), Summary(value=summary))


def _add(folder: Path, epoch: int, summary: Any) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    # A file for each epoch: a writer that stays open has a thread, and loses its end to a kill.
    writer = EventFileWriter(str(folder), filename_suffix=f".epoch_{epoch:03d}")
    writer.add_event(Event(wall_time=time.time(), step=epoch, summary=summary))
    writer.close()


def _grid(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles of any size in rows, on white, `uint8[height, width, 3]`."""
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet
