"""The training loop: epochs of `fit`, validation, checkpoints, an exact restart."""

import copy
import dataclasses
import gc
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import pandas as pd

from carvana_tf import devices, replicas
from carvana_tf.data.dataset import Sample
from carvana_tf.data.loader import TrainingSet
from carvana_tf.errors import UserError
from carvana_tf.failures import describe, is_out_of_memory, list_names
from carvana_tf.filenames import BEST, LAST, LOG
from carvana_tf.files import atomic_path, write_text
from carvana_tf.interrupt import Interrupt
from carvana_tf.progress import bar, report
from carvana_tf.tasks.base import Loss, Task
from carvana_tf.threads import ordered_map
from carvana_tf.training import optimizers, state, trainer
from carvana_tf.training.replay import Replay
from carvana_tf.training.state import STATE, Progress
from carvana_tf.training.validation import validate

KEPT = "epoch_{:03d}.keras"
KEPT_STATE = "epoch_{:03d}.npz"
# The best model before the last epoch, where a longer run would not have validated this.
ASIDE = "best_before_last.keras"


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """What a run is made of.

    Attributes:
        network: Uncompiled; its weights are trained in place.
        optimizer: Makes a fresh one for the batches from that number on.
        task: What is predicted.
        loss: Per photo.
        training: Batches.
        validation: Samples with targets; empty for none.
        epochs: How many.
        steps_per_epoch: Batches in each.
        validate_every: Epochs between validations; the last epoch always validates.
        monitor: One of `task.monitors`.
        patience: Validations without improvement before the run ends; 0 is never.
        min_delta: By how much `monitor` must improve to count for `patience`.
        keep_every: Epochs between models that are kept besides the best and the last, each
            with its state; 0 is none.
        threads: That make batches and score validation photos.
        folder: Where the run's files go.
        save_model: Called with a file and the scores to write a model file.
        callbacks: Further Keras callbacks of `fit`.
        on_epoch: Called after each epoch with the rows of the log so far.
        on_prediction: As `show` of `validation.validate`.
        frozen: Layers that the first `freeze_epochs` epochs leave as they are,
            BatchNormalization in inference mode.
        freeze_epochs: Then a fresh optimizer trains all: an Adam that goes on would know
            next to nothing of the released layers' gradients and step too far.
        replay: Whether the worst of each ten batches is trained on once more.
        save_minutes: Between states saved within an epoch; 0 saves none.
        accumulation: Batches whose gradients make one update, for messages.
        steps_given: Of --steps_per_epoch, for messages.
    """

    network: keras.Model
    optimizer: Callable[[int], keras.optimizers.Optimizer]
    task: Task
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
    on_prediction: Callable[[Sample, Any, Any], object] = lambda *_: None
    frozen: Sequence[keras.layers.Layer] = ()
    freeze_epochs: int = 0
    replay: bool = False
    min_delta: float = 0.0
    keep_every: int = 0
    save_minutes: float = 0.0
    accumulation: int = 1
    steps_given: int | None = None

    @property
    def length(self) -> dict[str, int]:
        """What decides where the run ends."""
        return {"epochs": self.epochs, "patience": self.patience}


def train(plan: TrainingPlan) -> Progress:
    """Trains from the beginning, or from where the run's state file says.

    The state is saved at the start, after each epoch, every `save_minutes`, and when the run is
    interrupted (Ctrl-C or SIGTERM) or fails between two steps: nothing is lost then, and the
    final weights are those of an undisturbed run. A run that has ended goes on where `plan`
    is longer, and ends as one of that length from the beginning.

    Raises:
        KeyboardInterrupt: The run was interrupted, after its state was saved.
        UserError: A photo or mask cannot be read, or the loss is not finite.
    """
    return _Run(plan).train()


class _Run:
    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan
        # Others may be frozen for good.
        self.frozen = [layer for layer in plan.frozen if layer.trainable]
        self.interrupt = Interrupt()
        # Whether weights and progress belong together: not so within a step.
        self.whole = True
        self._tail: _Tail | None = None
        self._saved_step = 0
        self._clock = time.monotonic()
        saved = state.load(plan.folder)
        self.progress = saved.progress if saved else Progress()
        if saved is not None and saved.has_ended(plan.length):
            self.progress = cast(Progress, saved.end)
            return
        self._compile()
        if saved is not None:
            state.restore(plan.folder / STATE, saved.values, self.variables)
        _restore_best(plan.folder, self.progress)

    def _compile(self) -> None:
        """Makes the optimizer of the coming epoch, and what it trains."""
        plan = self.plan
        freezes = len(self.progress.rows) < plan.freeze_epochs
        for layer in self.frozen:
            layer.trainable = not freezes
        start = 0 if freezes else plan.freeze_epochs * plan.steps_per_epoch
        self.trainer = trainer.build(plan.network)
        # What has no variables yet would make them within the first step, and TensorFlow traces a
        # step that makes variables twice: hence metrics, not functions, and the `build` below.
        self.trainer.compile(
            optimizer=plan.optimizer(start),
            loss=_named_loss(plan.loss),
            metrics=plan.task.metrics(),
        )
        # JAX compiles for each size anyway.
        self._mixes = plan.training.mixed_sizes and not _is_jax()
        # With float16 Keras has put a loss-scaling optimizer around ours.
        self.optimizer = self.trainer.optimizer
        self.optimizer.build(self.trainer.trainable_variables)
        self.variables = [*self.trainer.variables, *self.optimizer.variables]
        self._unbuilt = _is_jax()
        counts = keras.backend.backend() == "tensorflow"
        small = (v for v in self.variables if math.prod(v.shape) <= _MOST_OF_COUNTERS)
        self._counting = list(small) if counts else []

    def train(self) -> Progress:
        plan, progress = self.plan, self.progress
        if progress.done:
            return progress
        self._clock = time.monotonic()
        total = plan.epochs * plan.steps_per_epoch
        with (
            self.interrupt,
            bar(total=total, initial=progress.step, desc="training", unit="step") as shown,
        ):
            self.save_state()
            while not progress.done:
                self._epoch(shown)
        if self.interrupt.requested:  # asked for while the last files were being written
            raise KeyboardInterrupt
        return progress

    def _epoch(self, shown) -> None:
        try:
            self._fit(shown)
            self._finish_epoch(shown)
        except BaseException:
            if self.whole:
                self.save_state()
            raise
        self._tail = None
        if self.progress.done:
            return
        if len(self.progress.rows) == self.plan.freeze_epochs:
            self._compile()
        self.save_state()

    def _finish_epoch(self, shown) -> None:
        """What comes after an epoch's last step.

        Until it is over, the state is that after this step: where the run goes on as a longer
        one, all of this is done again, as that run does it.
        """
        plan, progress = self.plan, self.progress
        self._refuse_nan()
        self._tail = tail = _Tail(copy.deepcopy(progress))
        epoch = len(progress.rows) + 1
        last = epoch == plan.epochs
        if epoch in (plan.freeze_epochs, plan.epochs):
            self._apply_remainder(tail)
        in_turn = epoch % plan.validate_every == 0
        scores = self._validate() if plan.validation and (in_turn or last) else {}
        means = {name: value / plan.steps_per_epoch for name, value in progress.partial.items()}
        progress.partial = {}
        row = {"epoch": float(epoch), **means, **scores}
        row["learning_rate"] = optimizers.last_rate(self.optimizer)
        self._read_clock()
        row["seconds"] = round(progress.seconds, 1)
        progress.rows.append(row)
        improved = self._judge(row)
        # Other processors may round scores differently, so that one of two sees a gain.
        progress.done = last or (
            plan.patience > 0 and replicas.asked_of_any(progress.stale >= plan.patience)
        )
        self._write_log()
        # Without the clock: equal runs leave equal model files.
        scores = {name: value for name, value in row.items() if name != "seconds"}
        names = [BEST] * improved
        if plan.keep_every and epoch % plan.keep_every == 0:
            names.append(KEPT.format(epoch))
            with atomic_path(plan.folder / KEPT_STATE.format(epoch)) as path:
                state.write(path, tail.saved(self.variables))
        if improved and last and (tail.values is not None or not in_turn):
            _set_best_aside(plan.folder)
        with optimizers.averaged(self.optimizer):
            for name in (*names, LAST):
                plan.save_model(plan.folder / name, scores)
        stops_early = progress.done and epoch not in (plan.freeze_epochs, plan.epochs)
        if stops_early and self._apply_remainder(tail):
            # This last model is none that was validated.
            scores = {k: v for k, v in scores.items() if not k.startswith("val_")}
            with optimizers.averaged(self.optimizer):
                plan.save_model(plan.folder / LAST, scores)
        if progress.done:
            state.save(plan.folder, tail.saved(self.variables, progress, plan.length))
        shown.write(_line(row, plan, improved))

    def _apply_remainder(self, tail: "_Tail") -> bool:
        """Updates by the gradients that wait, after a copy of all values was taken."""
        if not optimizers.waiting(self.optimizer):
            return False
        tail.values = state.snapshot(self.variables)
        optimizers.apply_remainder(self.optimizer)
        return True

    def _fit(self, shown) -> None:
        """Runs the rest of an epoch, adding to the sums in `progress.partial`.

        Raises:
            KeyboardInterrupt: Asked for, between two steps.
        """
        plan, progress = self.plan, self.progress
        epoch = len(progress.rows)
        steps = (epoch + 1) * plan.steps_per_epoch - progress.step
        if steps == 0:  # interrupted after this epoch's last step
            return
        if self._unbuilt:
            # `fit` would take the first batch for this, and train on it after all others.
            self.trainer._symbolic_build(data_batch=plan.training.batch(progress.step))
            self._unbuilt = False
        batches = _Batches(plan.training, progress.step, steps, plan.threads)
        callbacks: list[keras.callbacks.Callback] = [_Watch(self, shown)]
        if plan.replay:
            callbacks.append(Replay(plan.training, progress.losses, progress.step))
        callbacks.append(_Saver(self))
        first = progress.step
        self.note_counters()
        # JAX takes the values out of the variables before the first batch comes.
        before = [variable.value for variable in self.variables] if _is_jax() else []
        try:
            self.trainer.fit(
                batches.mixed(plan.network) if self._mixes else batches,
                epochs=epoch + 1,
                initial_epoch=epoch,
                shuffle=False,
                verbose=0,
                callbacks=[*callbacks, *plan.callbacks],
            )
        except Exception as error_of_step:
            at, error = batches.failure
            # On a GPU JAX asks for the batch after the one of the step.
            ahead = _is_jax() and error_of_step is error
            if error is not None and (ahead or at == progress.step - first):
                # The step has not begun. The backend has wrapped the error in one of its own.
                self._restore_counters()
                if progress.step == first:
                    for variable, value in zip(self.variables, before, strict=False):
                        variable.assign(value)
                self.whole = True
                raise error from None
            if self.whole or isinstance(error_of_step, UserError):
                raise
            raise self._failed_step(error_of_step) from error_of_step
        if replicas.asked_of_any(self.interrupt.requested):
            raise KeyboardInterrupt

    def note_counters(self) -> None:
        """Keeps what a step may change although its batch never came.

        TensorFlow counts the step, and draws seeds, while it waits for the batch.
        """
        self._counters = [(v, np.array(keras.ops.convert_to_numpy(v))) for v in self._counting]

    def _restore_counters(self) -> None:
        for variable, value in self._counters:
            variable.assign(value)

    def _failed_step(self, error: Exception) -> UserError:
        """What is to be said of a step that failed, whose weights may be half updated."""
        plan, step = self.plan, self.progress.step
        names = list_names(plan.training.photos(step))
        saved = f"the same command goes on after step {self._saved_step}, whose state is saved"
        if not is_out_of_memory(error):
            return UserError(f"step {step + 1} fails on {names}: {describe(error)}; {saved}.")
        # They hold what the step computed with.
        traceback.clear_frames(error.__traceback__)
        size = plan.training.batch_size
        message = f"out of memory in step {step + 1}, on {names}"
        elsewhere = f"with more memory {saved}" if self._saved_step else "nothing was trained yet"
        if replicas.is_joined():  # the others do not try with this one
            return UserError(f"{message}, in batches of {size}: use smaller ones; {elsewhere}.")
        report(f"out of memory in step {step + 1} with batches of {size}; trying smaller ones")
        fits = self._batch_that_fits(step)
        if not fits:
            return UserError(
                f"{message}, and one photo at a time is too much, too: use smaller --input_width "
                f"and --input_height, --dtype=bfloat16 or a smaller --network; {elsewhere}."
            )
        every = plan.accumulation * size // fits
        given = [f"--batch_size={fits}", f"--gradient_accumulation={every}"]
        if plan.steps_given is not None:
            given.append(f"--steps_per_epoch={plan.steps_given * size // fits}")
        if self._saved_step:
            given.append("--restart")
        return UserError(
            f"{message}: a batch of {fits} fits; {' '.join(given)} makes updates of "
            f"{every * fits} photos as before; {elsewhere}."
        )

    def _batch_that_fits(self, step: int) -> int:
        """The largest smaller batch of the same photos that a step can be made of; 0 if none.

        It must divide the batch, or no accumulation would make the same updates. The weights
        that these steps change are not used any more.
        """
        photos, targets = self.plan.training.batch(step)
        sizes = [n for n in range(len(photos) // 2, 0, -1) if len(photos) % n == 0]
        sizes = [n for n in sizes if n % replicas.count() == 0]
        for size in sizes:
            gc.collect()
            self._fill_variables()
            try:
                self.trainer.train_on_batch(photos[:size], targets[:size])
            except Exception as error:
                if not is_out_of_memory(error):
                    return 0
                traceback.clear_frames(error.__traceback__)
            else:
                return size
        return 0

    def _fill_variables(self) -> None:
        """Gives all variables some values where a failed step has left them without any.

        JAX takes the values out of the variables, and gives their memory to the step's results.
        """
        if not _is_jax():
            return
        for variable in [*self.variables, *self.trainer.metrics_variables]:
            variable.assign(np.zeros(variable.shape, variable.dtype))

    def _validate(self) -> dict[str, float]:
        plan = self.plan
        with optimizers.averaged(self.optimizer), self.interrupt.at_once():
            scores = validate(
                self.trainer,
                plan.validation,
                plan.task.whole(plan.training.resizer),
                plan.loss,
                plan.task,
                batch_size=plan.training.batch_size,
                threads=plan.threads,
                show=plan.on_prediction,
            )
        return {f"val_{name}": value for name, value in scores.items()}

    def _judge(self, row: dict[str, float]) -> bool:
        """Notes whether this epoch is the best so far."""
        progress = self.progress
        value = row.get(self.plan.monitor)
        if value is None:
            return False
        sign = 1.0 if self.plan.task.monitors[self.plan.monitor] == "max" else -1.0

        def better(before: float | None, by: float) -> bool:
            return before is None or sign * (value - before) > by

        improved = better(progress.best, 0.0)
        if improved:
            progress.best, progress.best_epoch = value, int(row["epoch"])
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

    def save_state(self) -> None:
        """Writes the state file; weights and progress must belong together."""
        self._refuse_nan()
        self._read_clock()
        tail = self._tail or _Tail(self.progress)
        state.save(self.plan.folder, tail.saved(self.variables))
        self._saved_step = self.progress.step

    def _read_clock(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self._clock
        self._clock = now
        if self._tail is not None:
            self._tail.progress.seconds = self.progress.seconds

    def _refuse_nan(self) -> None:
        """Keeps weights that are no numbers from being saved: nothing can go on from them.

        BatchNormalization's averages are among them, which no loss of the training depends on.
        """
        for variable in self.trainer.weights:
            if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
                self.whole = False
                raise UserError(self.diagnosis(self.progress.step - 1, f"weight {variable.path}"))

    def diagnosis(self, step: int, what: str = "loss") -> str:
        """Why the run ends at a step, numbered from 0, whose outcome is not a finite number."""
        plan = self.plan
        names = list_names(plan.training.photos(max(step, 0)))
        return (
            f"the {what} is not a finite number at step {step + 1} of the run (epoch "
            f"{step // plan.steps_per_epoch + 1}, learning rate "
            f"{optimizers.last_rate(self.optimizer):.3g}), whose batch is {names}; look at "
            "these photos and masks, lower --learning_rate, or use --dtype=float32 (as another "
            "run, with --net_alias, or with --restart)."
        )


@dataclasses.dataclass
class _Tail:
    """The state to be saved: where a run stands, and all values then, if no longer these."""

    progress: Progress
    values: list[np.ndarray] | None = None

    def saved(
        self,
        variables: Sequence[keras.Variable],
        end: Progress | None = None,
        length: Mapping[str, int] | None = None,
    ) -> state.Saved:
        values = state.snapshot(variables) if self.values is None else self.values
        return state.Saved(self.progress, values, end, length)


def _files_of(folder: Path, model: str) -> list[Path]:
    """A model file, and the description next to it."""
    return [(folder / model).with_suffix(suffix) for suffix in (".json", ".keras")]


def _set_best_aside(folder: Path) -> None:
    """Keeps the best model before one that a longer run would not have validated."""
    for path, aside in zip(_files_of(folder, BEST), _files_of(folder, ASIDE), strict=True):
        if path.is_file() and not aside.is_file():
            path.replace(aside)


def _restore_best(folder: Path, progress: Progress) -> None:
    """Makes the best model again that of `progress`, where one beyond it was written."""
    for path, aside in zip(_files_of(folder, BEST), _files_of(folder, ASIDE), strict=True):
        if progress.best is None:
            path.unlink(missing_ok=True)
            aside.unlink(missing_ok=True)
        elif aside.is_file():
            aside.replace(path)


class _Batches(keras.utils.PyDataset):
    """A stretch of a training set's batches; Keras' workers make them ahead of time.

    Attributes:
        failure: The number of the first batch that could not be made, from 0, and why.
    """

    def __init__(self, training: TrainingSet, first: int, steps: int, threads: int) -> None:
        super().__init__(workers=threads, use_multiprocessing=False, max_queue_size=2 * threads)
        self._training = training
        self._first = first
        self._steps = steps
        self._lock = threading.Lock()
        self.failure: tuple[int, Exception | None] = (steps, None)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        try:
            return self._training.batch(self._first + index)
        except Exception as error:
            with self._lock:
                if index < self.failure[0]:
                    self.failure = (index, error)
            raise

    def mixed(self, network: keras.Model) -> Any:
        """The same for `fit`, where batches differ in size."""

        def batches() -> Iterator[Any]:
            return ordered_map(self.__getitem__, range(len(self)), self.workers)

        return devices.mixed_sizes(batches, len(self), network.input_shape, network.output_shape)


class _Watch(keras.callbacks.Callback):
    """Counts and sums up, moves the bar, ends the epoch on an interrupt, stops at NaN."""

    def __init__(self, run: _Run, shown) -> None:
        super().__init__()
        self._run = run
        self._shown = shown
        self._means: dict[str, float] = {}
        self._steps = 0

    def on_train_batch_begin(self, batch, logs=None):
        self._run.whole = False
        # Keras would report means since the start of this `fit`, which an interruption
        # moves; each batch by itself adds up to the same whatever happens.
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        progress = self._run.progress
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise UserError(self._run.diagnosis(progress.step))
        self._steps += 1
        progress.step += 1
        for name, value in (logs or {}).items():
            progress.partial[name] = progress.partial.get(name, 0.0) + float(value)
            mean = self._means.get(name, 0.0)
            self._means[name] = mean + (float(value) - mean) / self._steps
        self._shown.update(1)
        figures = self._run.plan.task.figures
        self._shown.set_postfix(
            {figures.get(k, (k,))[0]: f"{v:.4f}" for k, v in self._means.items()}, refresh=False
        )
        if replicas.asked_of_any(self._run.interrupt.requested):
            self._run.interrupt.requested = True
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        # For the callbacks that come after.
        if logs is not None:
            logs.update(self._means)


class _Saver(keras.callbacks.Callback):
    """Ends each step: from here on weights and progress belong together. Saves at times."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self._run = run
        self._saved = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        run = self._run
        run.whole = True
        run.note_counters()
        minutes = run.plan.save_minutes
        if minutes and time.monotonic() - self._saved >= 60 * minutes:
            # JAX trains copies, which go into the variables at the end of an epoch.
            getattr(self.model, "jax_state_sync", lambda: None)()
            run.save_state()
            self._saved = time.monotonic()


def _named_loss(loss: Loss) -> Loss:
    def value(y_true, y_pred):
        return loss(y_true, y_pred)

    return value


def _is_jax() -> bool:
    return keras.backend.backend() == "jax"


_MOST_OF_COUNTERS = 2  # numbers: a seed has two


def _line(row: dict[str, float], plan: TrainingPlan, improved: bool) -> str:
    parts = [f"epoch {row['epoch']:.0f}/{plan.epochs}"]
    for name, (label, decimals) in plan.task.figures.items():
        if name in row:
            parts.append(f"{label} {row[name]:.{decimals}f}")
    parts.append(f"{row['seconds']:.0f} s")
    return "  ".join(parts) + ("  (best)" if improved else "")
