"""The groups of flags of prediction, and the names of the engines; none of it needs Keras."""

import dataclasses
from typing import ClassVar

from carvana_tf.data.threshold import DEFAULT_THRESHOLD, HIGHEST_THRESHOLD
from carvana_tf.filenames import SUBMISSION
from carvana_tf.flags import Configuration, Needs, defaults, option
from carvana_tf.inference import tta
from carvana_tf.masks.cutouts.options import CutoutOptions
from carvana_tf.options import DTYPES
from carvana_tf.tasks import TASKS

AUTO, KERAS, OPENVINO, INT8, ONNX = "auto", "keras", "openvino", "openvino-int8", "onnx"
ENGINES = (AUTO, KERAS, OPENVINO, INT8, ONNX)
"""The values of --engine."""
RLE_PARQUET = "rle-parquet"
"""Of --output: run lengths, in parts of a listing."""

SAVED_MODEL, LITERT = "tf_saved_model", "litert"
FORMATS = {ONNX: ".onnx", OPENVINO: ".xml", SAVED_MODEL: "", LITERT: ".tflite"}
"""The formats of an export, and how their files end; "" for a folder."""


@dataclasses.dataclass(frozen=True)
class PredictionOptions:
    """How photos become masks."""

    pred_batch_size: int = option(
        0, "Photos, or tiles, per batch; 0: 4 on a GPU, 1 on the processor.", lower=0
    )
    pred_tta: str = option(
        "none",
        "Average over views of each photo: none, with its mirror image, with all four flips, "
        "at 0.75, 1 and 1.25 times the size, or with flips at each size.",
        choices=tuple(tta.VIEWS),
    )
    tta_average: str = option(
        "probability",
        "What is averaged over views, and over models where there are several: probabilities, "
        "or their log odds.",
        choices=tta.AVERAGES,
        advanced=True,
    )
    tile_size: int = option(
        0,
        "Cut larger inputs into square tiles of this side; 0 predicts them whole.",
        lower=0,
        advanced=True,
    )
    tile_overlap: int | None = option(
        None,
        "Pixels that neighbouring tiles share; by default a quarter of a tile.",
        lower=0,
        advanced=True,
    )
    use_bounding_boxes: str | None = option(
        None,
        "Table of tools/find_bounding_boxes.py with a box for every photo: only the box is "
        "predicted, outside it is background.",
    )
    output: str | None = option(
        None,
        "What to write. Of masks: 8-bit probability PNGs (the default), binary mask PNGs, "
        "cut-outs of the object with a soft edge, run lengths as "
        f"'{SUBMISSION}', or run lengths in Parquet files of --photos_per_part photos. Other "
        "tasks have one form.",
        choices=tuple(kind for task in TASKS.values() for kind in task.writers.KINDS),
    )
    photos_per_part: int = option(
        10_000,
        "Photos of each Parquet file: a run that was interrupted goes on with the file that it was "
        "at.",
        lower=1,
    )
    threshold: int = option(
        DEFAULT_THRESHOLD,
        "Grey values above it are object, for --output=mask, rle and rle-parquet.",
        lower=0,
        upper=HIGHEST_THRESHOLD,
    )
    dtype: str = option(
        "auto",
        "Compute type of the network. auto: by hardware, but float32 where --engine=auto finds "
        "that to change the masks.",
        choices=DTYPES,
    )
    threads: int = option(2, "Threads that read photos, and as many that write masks.", lower=1)

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("threshold",),
            lambda o: o.output in ("mask", "rle", RLE_PARQUET),
            "without --output=mask, rle or rle-parquet: probabilities are written as they are",
        ),
        Needs(
            ("photos_per_part",),
            lambda o: o.output == RLE_PARQUET,
            f"without --output={RLE_PARQUET}",
        ),
        Needs(
            ("use_bounding_boxes",),
            lambda o: o.output != RLE_PARQUET,
            f"with --output={RLE_PARQUET}",
        ),
        Needs(("tile_overlap",), lambda o: o.tile_size > 0, "without --tile_size"),
    )


@dataclasses.dataclass(frozen=True)
class OutputOptions(Configuration):
    """How photos become masks, and masks cut-outs."""

    prediction: PredictionOptions
    cutout: CutoutOptions

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            tuple(defaults(CutoutOptions)),
            lambda o: o.prediction.output == "cutout",
            "without --output=cutout",
        ),
    )


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """What runs the networks."""

    engine: str = option(
        AUTO,
        "What runs the networks. auto: on the processor OpenVINO, where it is installed and its "
        "masks are those of Keras in float32, else Keras, in float32 itself where they are not; "
        "the others only when named.",
        choices=ENGINES,
    )
    calibration_dir: str | None = option(
        None,
        "Folder of photos that --engine=openvino-int8 takes its ranges from; by default "
        "'train' inside --dataset_dir.",
        advanced=True,
        key="photos",
        inside=True,
    )
    calibration_photos: int = option(64, "How many of them are used.", lower=1, advanced=True)

    NEEDS: ClassVar[tuple[Needs, ...]] = (
        Needs(
            ("calibration_dir", "calibration_photos"),
            lambda o: o.engine == INT8,
            f"without --engine={INT8}",
        ),
    )
