"""The training loop: epochs of `fit`, validation, checkpoints, an exact restart."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import pandas as pd

from carvana_tf import devices
from carvana_tf.data.dataset import Sample
from carvana_tf.data.loader import TrainingSet
from carvana_tf.errors import UserError
from carvana_tf.files import write_text
from carvana_tf.interrupt import Interrupt
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map
from carvana_tf.training import optimizers, state, trainer
from carvana_tf.training.losses import Loss, dice_coefficient
from carvana_tf.training.replay import Replay
from carvana_tf.training.state import Progress
from carvana_tf.training.validation import validate

STATE = "state.npz"
LOG = "log.csv"
BEST = "best.keras"
LAST = "last.keras"
KEPT = "epoch_{:03d}.keras"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run is made of.

    Attributes:
        network: Uncompiled; its weights are trained in place.
        optimizer: Makes a fresh one for the batches from that number on.
        loss: Per photo, see `losses`.
        training: Batches.
        validation: Samples with masks; empty for none.
        epochs: How many.
        steps_per_epoch: Batches in each.
        validate_every: Epochs between validations; the last epoch always validates.
        monitor: "val_dice" (higher is better) or "val_loss".
        patience: Validations without improvement before the run ends; 0 is never.
        min_delta: By how much `monitor` must improve to count for `patience`.
        keep_every: Epochs between models that are kept beside the best and the last; 0 is none.
        threads: That make batches and score validation photos.
        folder: Where the run's files go.
        save_model: Called with a file and the scores to write a model file.
        callbacks: Further Keras callbacks of `fit`.
        on_epoch: Called after each epoch with the rows of the log so far.
        frozen: Layers that the first `freeze_epochs` epochs leave as they are,
            BatchNormalization in inference mode.
        freeze_epochs: Then a fresh optimiser trains all: an Adam that goes on would know
            next to nothing of the released layers' gradients and step too far.
        replay: Whether the worst of each ten batches is trained on once more.
    """

    network: keras.Model
    optimizer: Callable[[int], keras.optimizers.Optimizer]
    loss: Loss
    training: TrainingSet
    validation: Sequence[Sample]
    epochs: int
    steps_per_epoch: int
    validate_every: int
    monitor: str
    patience: int
    threads: int
    folder: Path
    save_model: Callable[[Path, dict[str, float]], object]
    callbacks: Sequence[keras.callbacks.Callback] = ()
    on_epoch: Callable[[Sequence[dict[str, float]]], object] = lambda rows: None
    frozen: Sequence[keras.layers.Layer] = ()
    freeze_epochs: int = 0
    replay: bool = False
    min_delta: float = 0.0
    keep_every: int = 0


def train(plan: Plan) -> Progress:
    """Trains from the beginning, or from where the run's state file says.

    The state is saved after each epoch and when the run is interrupted (Ctrl-C or
    SIGTERM): the current step is finished first, so nothing is lost and the final
    weights are those of an undisturbed run.

    Raises:
        KeyboardInterrupt: The run was interrupted, after its state was saved.
        UserError: A photo or mask cannot be read, or the loss is not finite.
    """
    return _Run(plan).train()


class _Run:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        # Others may be frozen for good.
        self.frozen = [layer for layer in plan.frozen if layer.trainable]
        self.state_file = plan.folder / STATE
        self.progress = Progress()
        self.interrupt = Interrupt()
        # Whether weights and progress belong together: not so amid a step.
        self.whole = True
        # The last epoch of each optimiser.
        self._ends = (plan.freeze_epochs, plan.epochs)
        resumes = self.state_file.is_file()
        if resumes:
            self.progress = state.load_progress(self.state_file)
        self._compile()
        if resumes:
            state.load_variables(self.state_file, self.variables)

    def _compile(self) -> None:
        """Makes the optimiser of the coming epoch, and what it trains."""
        plan = self.plan
        freezes = len(self.progress.rows) < plan.freeze_epochs
        for layer in self.frozen:
            layer.trainable = not freezes
        start = 0 if freezes else plan.freeze_epochs * plan.steps_per_epoch
        self.trainer = trainer.build(plan.network)
        self.trainer.compile(
            optimizer=plan.optimizer(start), loss=_named_loss(plan.loss), metrics=[_dice, _accuracy]
        )
        # With float16 Keras has put a loss-scaling optimiser around ours.
        self.optimizer = self.trainer.optimizer
        self.optimizer.build(self.trainer.trainable_variables)
        self.variables = [*self.trainer.variables, *self.optimizer.variables]

    def train(self) -> Progress:
        plan, progress = self.plan, self.progress
        total = plan.epochs * plan.steps_per_epoch
        with (
            self.interrupt,
            bar(total=total, initial=progress.step, desc="training", unit="step") as shown,
        ):
            while not progress.done:
                self._epoch(shown)
        if self.interrupt.requested:  # asked for while the last files were being written
            raise KeyboardInterrupt
        return progress

    def _epoch(self, shown) -> None:
        plan, progress = self.plan, self.progress
        started = time.monotonic()
        epoch = len(progress.rows)
        last = epoch + 1 == plan.epochs
        validates = plan.validation and (last or (epoch + 1) % plan.validate_every == 0)
        try:
            self._fit(epoch, shown)
            scores = self._validate() if validates else {}
        except KeyboardInterrupt:
            progress.seconds += time.monotonic() - started
            if self.whole:
                self._save_state()
            raise
        means = {name: value / plan.steps_per_epoch for name, value in progress.partial.items()}
        progress.partial = {}
        row = {"epoch": float(epoch + 1), **means, **scores}
        row["learning_rate"] = optimizers.last_rate(self.optimizer)
        progress.seconds += time.monotonic() - started
        row["seconds"] = round(progress.seconds, 1)
        progress.rows.append(row)
        improved = self._judge(row)
        progress.done = last or bool(plan.patience and progress.stale >= plan.patience)
        self._write_log()
        # Without the clock: equal runs leave equal model files.
        scores = {name: value for name, value in row.items() if name != "seconds"}
        names = [BEST] * improved
        if plan.keep_every and (epoch + 1) % plan.keep_every == 0:
            names.append(KEPT.format(epoch + 1))
        with optimizers.averaged(self.optimizer):
            for name in (*names, LAST):
                plan.save_model(plan.folder / name, scores)
        stops_early = progress.done and epoch + 1 not in self._ends
        if stops_early and optimizers.apply_remainder(self.optimizer):
            # This last model is none that was validated.
            scores = {k: v for k, v in scores.items() if not k.startswith("val_")}
            with optimizers.averaged(self.optimizer):
                plan.save_model(plan.folder / LAST, scores)
        if epoch + 1 == plan.freeze_epochs and not progress.done:
            self._compile()
        self._save_state()
        shown.write(_line(row, plan.epochs, improved))

    def _fit(self, epoch: int, shown) -> None:
        """Runs the rest of an epoch, adding to the sums in `progress.partial`.

        Raises:
            KeyboardInterrupt: Asked for, between two steps.
        """
        plan, progress = self.plan, self.progress
        steps = (epoch + 1) * plan.steps_per_epoch - progress.step
        if steps == 0:  # interrupted during this epoch's validation
            return
        batches = _Batches(plan.training, progress.step, steps, plan.threads)
        watch = _Watch(self.interrupt, shown, progress.partial)
        callbacks: list[keras.callbacks.Callback] = [watch]
        if plan.replay:
            callbacks.append(Replay(plan.training, progress.losses, progress.step))
        channels = plan.network.input_shape[-1]
        self.whole = False
        try:
            self.trainer.fit(
                batches.mixed(channels) if plan.training.mixed_sizes else batches,
                epochs=epoch + 1,
                initial_epoch=epoch,
                shuffle=False,
                verbose=0,
                callbacks=[*callbacks, *plan.callbacks],
            )
        except Exception:
            if batches.error is not None:
                raise batches.error from None
            raise
        progress.step += watch.steps
        if watch.steps == steps and epoch + 1 in self._ends:
            optimizers.apply_remainder(self.optimizer)
        self.whole = True
        if self.interrupt.requested:
            raise KeyboardInterrupt

    def _validate(self) -> dict[str, float]:
        plan = self.plan
        with optimizers.averaged(self.optimizer), self.interrupt.at_once():
            scores = validate(
                self.trainer,
                plan.validation,
                plan.training.sizing,
                plan.loss,
                batch_size=plan.training.batch_size,
                threads=plan.threads,
            )
        return {f"val_{name}": value for name, value in scores.items()}

    def _judge(self, row: dict[str, float]) -> bool:
        """Notes whether this epoch is the best so far."""
        progress = self.progress
        value = row.get(self.plan.monitor)
        if value is None:
            return False
        sign = 1.0 if self.plan.monitor == "val_dice" else -1.0

        def better(before: float | None, by: float) -> bool:
            return before is None or sign * (value - before) > by

        improved = better(progress.best, 0.0)
        progress.best = value if improved else progress.best
        # As Keras' EarlyStopping: what counts is the gain since the last that counted.
        counts = better(progress.counted, self.plan.min_delta)
        progress.counted = value if counts else progress.counted
        progress.stale = 0 if counts else progress.stale + 1
        return improved

    def _write_log(self) -> None:
        table = pd.DataFrame(self.progress.rows)
        table["epoch"] = table["epoch"].astype(int)
        write_text(self.plan.folder / LOG, table.to_csv(index=False, lineterminator="\n"))
        self.plan.on_epoch(self.progress.rows)

    def _save_state(self) -> None:
        state.save(self.state_file, self.variables, self.progress)


class _Batches(keras.utils.PyDataset):
    """A stretch of a training set's batches; Keras' workers make them ahead of time."""

    def __init__(self, training: TrainingSet, first: int, steps: int, threads: int) -> None:
        super().__init__(workers=threads, use_multiprocessing=False, max_queue_size=2 * threads)
        self._training = training
        self._first = first
        self._steps = steps
        self.error: UserError | None = None

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        try:
            return self._training.batch(self._first + index)
        except UserError as error:
            # The backend would wrap it in an exception of its own.
            self.error = error
            raise

    def mixed(self, channels: int) -> Any:
        """The same for `fit`, where batches differ in size."""

        def batches() -> Iterator[Any]:
            return ordered_map(self.__getitem__, range(len(self)), self.workers)

        return devices.mixed_sizes(batches, len(self), channels)


class _Watch(keras.callbacks.Callback):
    """Sums up, moves the bar, ends the epoch on an interrupt, stops at a loss of NaN.

    Attributes:
        steps: Batches done.
    """

    def __init__(self, interrupt: Interrupt, shown, sums: dict[str, float]) -> None:
        super().__init__()
        self._interrupt = interrupt
        self._shown = shown
        self._sums = sums
        self._means: dict[str, float] = {}
        self.steps = 0

    def on_train_batch_begin(self, batch, logs=None):
        # Keras would report means since the start of this `fit`, which an interruption
        # moves; each batch by itself adds up to the same whatever happens.
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        for name, value in (logs or {}).items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
            mean = self._means.get(name, 0.0)
            self._means[name] = mean + (float(value) - mean) / self.steps
        loss = self._sums.get("loss", 0.0)
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is not a finite number after {self.steps} steps of this epoch; lower "
                "--learning_rate or use --dtype=float32."
            )
        self._shown.update(1)
        self._shown.set_postfix({k: f"{v:.4f}" for k, v in self._means.items()}, refresh=False)
        if self._interrupt.requested:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        # For the callbacks that come after, as TensorBoard.
        if logs is not None:
            logs.update(self._means)


def _named_loss(loss: Loss) -> Loss:
    def value(y_true, y_pred):
        return loss(y_true, y_pred)

    return value


def _dice(y_true, y_pred):
    return dice_coefficient(y_true, y_pred)


_dice.__name__ = "dice"


def _accuracy(y_true, y_pred):
    right = keras.ops.equal(y_true >= 0.5, y_pred >= 0.5)
    return keras.ops.mean(keras.ops.cast(right, "float32"), axis=(1, 2, 3))


_accuracy.__name__ = "accuracy"


def _line(row: dict[str, float], epochs: int, improved: bool) -> str:
    parts = [f"epoch {row['epoch']:.0f}/{epochs}", f"loss {row['loss']:.4f}"]
    parts.append(f"dice {row['dice']:.4f}")
    if "val_dice" in row:
        parts += [f"val_loss {row['val_loss']:.4f}", f"val_dice {row['val_dice']:.5f}"]
    parts.append(f"{row['seconds']:.0f} s")
    return "  ".join(parts) + ("  (best)" if improved else "")
