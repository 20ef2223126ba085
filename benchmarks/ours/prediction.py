"""Prediction with one of the engines."""

from collections.abc import Sequence
from pathlib import Path

from carvana_tf import devices
from carvana_tf.data.dataset import Sample, find_photos
from carvana_tf.data.images import read_photo
from carvana_tf.files import make_folder
from carvana_tf.inference import pipeline
from carvana_tf.inference.engines import Engine, selection
from carvana_tf.inference.predictor import PipelineSettings
from carvana_tf.models import checkpoint
from carvana_tf.tasks.masks import writers
from carvana_tf.threads import ordered_map
from harness import Rounds

BARE, FOLDER = "bare", "folder"
"""The tasks of `predict`."""


def predict(rounds: Rounds, engine: str, model: str, photos: str, out: str) -> None:
    """Predicts a folder of photos into a folder of PNGs, or the same photos without files.

    Args:
        rounds: What to measure; `FOLDER` is the whole pipeline, `BARE` the engine alone on
            photos that were decoded and padded before.
        engine: A value of --engine.
        model: A `.keras` file.
        photos: Folder of photos; 8 bits are calibrated on them.
        out: Folder of PNGs.
    """
    samples = find_photos(Path(photos))
    loaded = _load(engine, Path(model), samples)
    batches = [loaded.resizer.whole(read_photo(sample.photo))[None] for sample in samples]
    target = make_folder(Path(out))
    bare = loaded.predict_uint8 or loaded.predict  # as the pipeline does
    for task in rounds:
        if task == FOLDER:
            with writers.create("probability", target, samples) as output:
                pipeline.run(samples, [[loaded]], output, PipelineSettings())
        else:
            for _ in ordered_map(bare, batches, loaded.streams):
                pass


def _load(engine: str, model: Path, samples: Sequence[Sample]) -> Engine:
    work = selection.Workload(
        members=[checkpoint.read(model, checkpoint.NetworkOptions())],
        devices=["cpu:0"],
        policy=devices.compute_dtype("auto"),
        samples=samples,
        calibration=lambda: samples,
    )
    return selection.make_engines(engine, work)[0][0]
