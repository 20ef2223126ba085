"""Keras as a user would write it by hand: float32, `predict_on_batch`, `fit`, Pillow.

Prediction works as the published 4th-place system did (killthekitten/kaggle-carvana-2017):
one thread decodes into a queue of ten, the other predicts and saves.
"""

import queue
import threading
from pathlib import Path

import numpy as np
import PIL.Image

import peers.tensorflow_defaults  # noqa: F401  # isort: skip
from carvana_tf import devices  # noqa: F401  (starts the backend quietly)
from harness import Rounds

import keras  # isort: skip

_STRIDE = 32


def predict(rounds: Rounds, model: str, photos: str, out: str) -> None:
    """Predicts a folder of photos into a folder of PNGs.

    Args:
        rounds: What to measure.
        model: A `.keras` file of a network that takes 0..255.
        photos: Folder of photos.
        out: Folder of PNGs.
    """
    keras.config.set_dtype_policy("float32")
    network = keras.saving.load_model(model, compile=False)
    paths = sorted(Path(photos).iterdir())
    Path(out).mkdir(parents=True, exist_ok=True)
    for _ in rounds:
        waiting: queue.Queue[tuple[Path, np.ndarray]] = queue.Queue(10)
        loader = threading.Thread(target=_load, args=(paths, waiting), daemon=True)
        loader.start()
        for _ in paths:
            path, photo = waiting.get()
            height, width = photo.shape[:2]
            padded = np.pad(photo, ((0, -height % _STRIDE), (0, -width % _STRIDE), (0, 0)))
            values = network.predict_on_batch(padded[None])[0, :height, :width, 0]
            image = PIL.Image.fromarray(np.round(values * 255).astype(np.uint8))
            image.save(Path(out) / f"{path.stem}.png")


def train(rounds: Rounds, network: str, size: int, batch_size: int, steps: int) -> None:
    """Trains in float32 with `fit` on batches that lie in memory.

    Args:
        rounds: What to measure: `steps` batches each.
        network: A name of `--network`.
        size: Height and width of the photos.
        batch_size: Photos per batch.
        steps: Batches per round.
    """
    from carvana_tf.models import registry
    from carvana_tf.models.options import ModelOptions
    from carvana_tf.tasks.masks import losses
    from inputs import random_batch

    keras.config.set_dtype_policy("float32")
    model = registry.build(ModelOptions(network))
    model.compile(keras.optimizers.Adam(1e-4), loss=losses.get("bce_dice"))
    photos, masks = random_batch(size, batch_size * steps)
    for _ in rounds:
        model.fit(photos, masks, batch_size=batch_size, epochs=1, shuffle=False, verbose=0)


def _load(paths: list[Path], waiting: queue.Queue) -> None:
    for path in paths:
        waiting.put((path, np.asarray(PIL.Image.open(path), np.float32)))
