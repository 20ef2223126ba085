"""Models that are ready to predict: what the command and the Python API have in common."""

import dataclasses
import gc
from collections.abc import Callable, Sequence
from pathlib import Path

from carvana_tf import devices
from carvana_tf.data.dataset import Sample
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory
from carvana_tf.inference import tiling, tta
from carvana_tf.inference.engines import Engine, selection
from carvana_tf.inference.options import AUTO, PredictionOptions
from carvana_tf.inference.pipeline import DeviceFailure, Outcome, Output, run
from carvana_tf.inference.predictor import PipelineSettings, reduce_memory
from carvana_tf.masks.boxes import read_boxes
from carvana_tf.models.checkpoint import Checkpoint
from carvana_tf.tasks import TASKS, Task

_ON_GPU = 4  # photos per batch, unless the flag says otherwise


def task_of(members: Sequence[Checkpoint]) -> Task:
    """What the models predict.

    Raises:
        UserError: They do not agree.
    """
    first, *others = (TASKS[member.task].of_model(member.metadata) for member in members)
    for member, other in zip(members[1:], others, strict=True):
        if (other.name, other.metadata) != (first.name, first.metadata):
            raise UserError(
                f"'{members[0].path}' and '{member.path}' predict different things; average models "
                "of one task and the same classes."
            )
    return first


def depth_of(members: Sequence[Checkpoint]) -> int:
    """The depth of the photos that the models were trained on, see `images.Reading`.

    Raises:
        UserError: They do not agree.
    """
    depths = {member.photo_depth for member in members}
    if len(depths) > 1:
        raise UserError(
            "the models of --weights were trained with --photo_depth="
            f"{' and '.join(map(str, sorted(depths)))}; name the one of these photos."
        )
    return depths.pop()


@dataclasses.dataclass(frozen=True)
class Begun:
    """How a part of the photos was predicted before.

    Attributes:
        engine: What ran the models.
        exact: Whether it computed in float32.
        large: Which inputs were cut because memory was not enough for them, and how.
    """

    engine: str
    exact: bool
    large: tiling.LargeInputs | None = None


@dataclasses.dataclass(frozen=True)
class Session:
    """Loaded models, and how photos meet them.

    Attributes:
        members: The models.
        task: What they predict.
        engines: For each device the engines of all models.
        settings: How the pipeline runs.
        failed: The devices that failed, and are not used any more.
    """

    members: Sequence[Checkpoint]
    task: Task
    engines: Sequence[Sequence[Engine]]
    settings: PipelineSettings
    failed: set[str] = dataclasses.field(default_factory=set)

    def run(
        self,
        samples: Sequence[Sample],
        output: Output,
        on_photo: Callable[[], object] = lambda: None,
        report: Callable[[str], object] = print,
    ) -> Outcome:
        """Predicts photos; see `pipeline.run`.

        Args:
            samples: As there.
            output: As there.
            on_photo: As there.
            report: Gets a line for each device that fails.
        """

        def on_failure(failure: DeviceFailure) -> None:
            # With tiles its memory may do.
            if not failure.memory:
                self.failed.add(failure.device)
            report(f"{failure.device} failed: {failure.error}; going on without it")

        engines = [each for each in self.engines if each[0].device not in self.failed]
        return run(samples, engines, output, self.settings, on_photo, on_failure)

    def with_less_memory(self, error: OutOfMemory) -> tuple["Session", str]:
        """The same with smaller batches, fewer threads or tiles, and what that is in a few words.

        Raises:
            UserError: Nothing needs less memory.
        """
        strides = [member.resizer.stride for member in self.members]
        cuts = all(member.size is None for member in self.members)
        found = reduce_memory(self.settings, error.pixels, strides, cuts=cuts)
        if found is None:
            raise UserError(
                f"{error}, one by one and with one thread; use a machine with more of it, "
                "fewer models at once, or smaller photos."
            ) from error
        gc.collect()
        settings, meaning = found
        return dataclasses.replace(self, settings=settings), meaning


def prepare(
    samples: Sequence[Sample],
    members: Sequence[Checkpoint],
    options: PredictionOptions,
    names: Sequence[str],
    task: Task,
    *,
    engine: str = AUTO,
    calibration: Callable[[], Sequence[Sample]] = tuple,
    begun: Begun | None = None,
    report: Callable[[str], object] = print,
) -> Session:
    """Loads models for photos.

    Args:
        samples: The photos, with as many stacked channels as any model takes.
        members: The models.
        options: How to predict.
        names: Of `keras.device`, one per device to use.
        task: What is predicted.
        engine: What runs the models, one of `options.ENGINES`.
        calibration: Finds the photos that 8 bits are calibrated on.
        begun: How a part was predicted before, which decides where `engine` does not.
        report: Gets what the user should know, a line at a time.

    Raises:
        UserError: An option does not fit, or a model cannot be loaded.
    """
    if options.tta_average != tta.AVERAGES[0] and len(members) == 1 and options.pred_tta == "none":
        raise UserError(
            f"--tta_average={options.tta_average} has no effect with one model and without "
            "--pred_tta: there is nothing to average; drop it."
        )
    settings = _settings(samples, members, options, names)
    _refuse_views(members, settings, task)
    free = options.dtype == "auto"
    exact = free and begun is not None and begun.exact
    work = selection.Workload(
        members=members,
        devices=names,
        policy=devices.compute_dtype("float32" if exact else options.dtype),
        policy_is_free=free,
        samples=samples,
        calibration=calibration,
        begun_with=begun.engine if begun else None,
        side=options.tile_size or None,
        report=report,
    )
    if begun is not None:
        settings = dataclasses.replace(settings, large=begun.large)
    return Session(members, task, selection.make_engines(engine, work), settings)


def _settings(
    samples: Sequence[Sample],
    members: Sequence[Checkpoint],
    options: PredictionOptions,
    names: Sequence[str],
) -> PipelineSettings:
    table = options.use_bounding_boxes
    strides = [member.resizer.stride for member in members]
    return PipelineSettings(
        batch_size=options.pred_batch_size or (1 if names == ["cpu:0"] else _ON_GPU),
        tta=options.pred_tta,
        readers=options.threads,
        writers=options.threads,
        average=options.tta_average,
        tiling=tiling.from_flags(options.tile_size, options.tile_overlap, strides),
        boxes=read_boxes(Path(table), samples) if table else None,
    )


def _refuse_views(members: Sequence[Checkpoint], settings: PipelineSettings, task: Task) -> None:
    """Refuses views that do not suit the task, or a network that takes inputs of one size only."""
    views = tta.VIEWS[settings.tta]
    task.refuse_views(
        windows=bool(views.windows),
        tiles=settings.tiling is not None,
        boxes=settings.boxes is not None,
        logits=settings.average == "logit",
    )
    for member in members:
        crops = member.resizer.policy == "centre"
        if (views.windows and not crops) or (crops and views.scales != (1,)):
            raise UserError(
                f"--pred_tta={settings.tta} does not suit '{member.path}', which was trained with "
                f"--size_policy={'crop' if crops else member.resizer.policy}: ten_crop is for "
                "crop, scales are for the others."
            )
    if not settings.tiling and views.scales == (1,):
        return
    for member in members:
        if member.size is not None:
            height, width = member.size
            raise UserError(
                f"'{member.path}' takes only photos of {height} x {width}; leave out --tile_size "
                "and views of other scales in --pred_tta."
            )
