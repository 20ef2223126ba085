"""The training loop: epochs of `fit`, validation, checkpoints, an exact restart."""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import pandas as pd

from carvana_tf.data.dataset import Sample
from carvana_tf.data.loader import TrainingSet
from carvana_tf.errors import UserError
from carvana_tf.files import write_text
from carvana_tf.progress import bar
from carvana_tf.training import state
from carvana_tf.training.losses import Loss, dice_coefficient
from carvana_tf.training.state import Progress
from carvana_tf.training.validation import validate

STATE = "state.npz"
LOG = "log.csv"
BEST = "best.keras"
LAST = "last.keras"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run is made of.

    Attributes:
        network: Uncompiled; its weights are trained in place.
        optimizer: Fresh.
        loss: Per photo, see `losses`.
        training: Batches.
        validation: Samples with masks; empty for none.
        epochs: How many.
        steps_per_epoch: Batches in each.
        validate_every: Epochs between validations; the last epoch always validates.
        monitor: "val_dice" (higher is better) or "val_loss".
        patience: Validations without improvement before the run ends; 0 is never.
        threads: That make batches and score validation photos.
        folder: Where the run's files go.
        save_model: Called with a file and the scores to write a model file.
        callbacks: Further Keras callbacks of `fit`.
    """

    network: keras.Model
    optimizer: keras.optimizers.Optimizer
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
        # A second model around the same layers is compiled, so that the network itself
        # stays free of losses and optimisers and saves as Keras' own layers alone.
        self.trainer = keras.Model(plan.network.inputs, plan.network.outputs)
        self.trainer.compile(
            optimizer=plan.optimizer,
            loss=_named_loss(plan.loss),
            metrics=[_dice],
        )
        # With float16 Keras has put a loss-scaling optimiser around ours.
        optimizer = self.trainer.optimizer
        optimizer.build(self.trainer.trainable_variables)
        self.variables = [*self.trainer.variables, *optimizer.variables]
        self.state_file = plan.folder / STATE
        self.progress = Progress()
        if self.state_file.is_file():
            self.progress = state.load_progress(self.state_file)
            state.load_variables(self.state_file, self.variables)
        self.interrupt = _Interrupt()

    def train(self) -> Progress:
        plan, progress = self.plan, self.progress
        total = plan.epochs * plan.steps_per_epoch
        with (
            self.interrupt,
            bar(total=total, initial=progress.step, desc="training", unit="step") as shown,
        ):
            while not progress.done:
                self._epoch(shown)
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
            self._save_state()
            raise
        means = {name: value / plan.steps_per_epoch for name, value in progress.partial.items()}
        progress.partial = {}
        row = {"epoch": float(epoch + 1), **means, **scores}
        progress.seconds += time.monotonic() - started
        row["seconds"] = round(progress.seconds, 1)
        progress.rows.append(row)
        improved = self._judge(row)
        progress.done = last or bool(plan.patience and progress.stale >= plan.patience)
        self._write_log()
        if improved:
            plan.save_model(plan.folder / BEST, row)
        plan.save_model(plan.folder / LAST, row)
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
        watch = _Watch(self.interrupt, shown)
        try:
            self.trainer.fit(
                batches,
                epochs=epoch + 1,
                initial_epoch=epoch,
                shuffle=False,
                verbose=0,
                callbacks=[watch, *plan.callbacks],
            )
        except Exception:
            if batches.error is not None:
                raise batches.error from None
            raise
        progress.step += watch.steps
        for name, mean in watch.means.items():
            progress.partial[name] = progress.partial.get(name, 0.0) + mean * watch.steps
        if self.interrupt.requested:
            raise KeyboardInterrupt

    def _validate(self) -> dict[str, float]:
        plan = self.plan
        with self.interrupt.at_once():
            scores = validate(
                plan.network,
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
        improved = progress.best is None or sign * value > sign * progress.best
        progress.best = value if improved else progress.best
        progress.stale = 0 if improved else progress.stale + 1
        return improved

    def _write_log(self) -> None:
        table = pd.DataFrame(self.progress.rows)
        table["epoch"] = table["epoch"].astype(int)
        write_text(self.plan.folder / LOG, table.to_csv(index=False, lineterminator="\n"))

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


class _Watch(keras.callbacks.Callback):
    """Moves the bar, ends the epoch on an interrupt, stops at a loss that is no number."""

    def __init__(self, interrupt: "_Interrupt", shown) -> None:
        super().__init__()
        self._interrupt = interrupt
        self._shown = shown
        self.steps = 0
        self.means: dict[str, float] = {}

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        self.means = {name: float(value) for name, value in (logs or {}).items()}
        loss = self.means.get("loss", 0.0)
        if loss != loss:
            raise UserError(
                f"the loss is not a number after {self.steps} steps of this epoch; lower "
                "--learning_rate or use --dtype=float32."
            )
        self._shown.update(1)
        self._shown.set_postfix({k: f"{v:.4f}" for k, v in self.means.items()}, refresh=False)
        if self._interrupt.requested:
            self.model.stop_training = True


class _Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a request; a second one acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Interrupt":
        # Signals can only be handled in the main thread; elsewhere there is nothing to do.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Where nothing is being changed, the first signal acts at once too."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _request(self, number, frame) -> None:
        if self.requested or self._at_once:
            raise KeyboardInterrupt
        self.requested = True


def _named_loss(loss: Loss) -> Loss:
    def value(y_true, y_pred):
        return loss(y_true, y_pred)

    return value


def _dice(y_true, y_pred):
    return dice_coefficient(y_true, y_pred)


_dice.__name__ = "dice"


def _line(row: dict[str, float], epochs: int, improved: bool) -> str:
    parts = [f"epoch {row['epoch']:.0f}/{epochs}", f"loss {row['loss']:.4f}"]
    parts.append(f"dice {row['dice']:.4f}")
    if "val_dice" in row:
        parts += [f"val_loss {row['val_loss']:.4f}", f"val_dice {row['val_dice']:.5f}"]
    parts.append(f"{row['seconds']:.0f} s")
    return "  ".join(parts) + ("  (best)" if improved else "")
