"""A dataset small enough that every script runs on it in seconds."""

import functools
import gc
import os
import signal

# Before anything imports Keras; children of the tests inherit it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from carvana_tf.data.images import write_photo

# A shell starts what it puts in the background with Ctrl-C ignored, and children inherit that; the
# tests send it on purpose.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = (
    *("test_recipes", "test_networks", "test_engines", "test_loop", "test_train", "test_labels"),
    *("test_weights", "test_losses", "test_train_and_predict", "test_environment"),
    *("test_end_to_end", "test_tensor_weights", "test_disturbed"),
)
"""Modules of more than half a minute of a core, the longest first."""


def pytest_collection_modifyitems(items):
    """Starts with the slowest modules, so that no worker is left alone with one at the end."""
    slow = {item.module for item in items if item.get_closest_marker("slow")}

    def place(item):
        name = item.module.__name__
        return LONGEST.index(name) if name in LONGEST else len(LONGEST) + (item.module not in slow)

    items.sort(key=place)


def pytest_collection_finish():
    """Exempts what the imports made from garbage collection.

    Those are a million objects that stay, and `keras.utils.clear_session` looks at each.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def eager(request):
    """Runs the steps of training and prediction without a graph, except in tests marked "graph".

    The few steps of such a test take less time than tracing one graph.
    """
    tensorflow = pytest.importorskip("tensorflow")
    tensorflow.config.run_functions_eagerly(not request.node.get_closest_marker("graph"))
    yield
    tensorflow.config.run_functions_eagerly(False)


@pytest.fixture
def undrawn(request, monkeypatch):
    """Draws no curves, which takes as long as an epoch, except in tests marked "graph"."""
    if not request.node.get_closest_marker("graph"):
        monkeypatch.setattr("carvana_tf.training.curves.draw", lambda *_, **__: None)


@pytest.fixture
def undrawn_kernels(monkeypatch):
    """Fills the kernels of new networks with one value, as millions of random ones take seconds."""
    keras = pytest.importorskip("keras")

    def fill(self, shape, dtype=None):
        return keras.ops.full(shape, 0.01, dtype)

    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", fill)


def draw_pair(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright ellipse on dark noise: `uint8[H, W, 3]` and its `bool[H, W]` mask."""
    random = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    centre = (int(width * random.uniform(0.4, 0.6)), int(height * random.uniform(0.4, 0.6)))
    axes = (int(width * random.uniform(0.2, 0.35)), int(height * random.uniform(0.2, 0.35)))
    cv2.ellipse(mask, centre, axes, 0, 0, 360, 1, -1)
    photo = random.normal(60, 12, (height, width, 3))
    photo[mask > 0] += (110, 90, 70)
    return np.clip(photo, 0, 255).astype(np.uint8), mask.astype(bool)


def write_palette_gif(path: Path, mask: np.ndarray) -> None:
    """A mask as the competition ships it: palette indices 0 and 1, black and white."""
    image = PIL.Image.fromarray(mask.astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, 255, 255, 255] + [0] * 762)
    image.save(path)


def write_dataset(
    root: Path, groups: int = 4, views: int = 2, height: int = 40, width: int = 56
) -> Path:
    """A dataset folder as the competition's, with two folds."""
    (root / "train").mkdir(parents=True)
    (root / "train_masks").mkdir()
    lines = ["id,fold,area"]
    for group in range(groups):
        area = 0
        for view in range(1, views + 1):
            photo, mask = draw_pair(height, width, 100 * group + view)
            stem = f"car{group:02d}_{view:02d}"
            write_photo(root / "train" / f"{stem}.jpg", photo)
            write_palette_gif(root / "train_masks" / f"{stem}_mask.gif", mask)
            area += int(mask.sum())
        lines.append(f"car{group:02d},{group % 2},{area}")
    (root / "folds.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def make_dataset(tmp_path):
    """Makes a dataset folder: `make(groups=4, views=2, height=40, width=56)`."""
    return functools.partial(write_dataset, tmp_path / "input")
