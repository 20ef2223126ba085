"""The training loop: an interrupted run ends as an undisturbed one."""

import csv
import dataclasses
import signal

import keras
import numpy as np
import pytest

from carvana_tf import replicas
from carvana_tf.data.dataset import find_samples
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.presets import PRESETS
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.tasks import MASKS
from carvana_tf.tasks.masks import losses
from carvana_tf.training import optimizers, schedules, state
from carvana_tf.training.loop import BEST, LAST, LOG, TrainingPlan, train
from carvana_tf.training.options import OptimizerOptions, ScheduleOptions
from carvana_tf.training.replay import EVERY
from carvana_tf.training.state import STATE, Progress
from carvana_tf.training.validation import validate

pytestmark = pytest.mark.usefixtures("eager")


def tiny_network():
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    photo = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(photo)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="encoder")(x)
    x = keras.layers.BatchNormalization(name="encoder_bn")(x)
    x = keras.layers.SpatialDropout2D(0.2)(x)
    return keras.Model(photo, keras.layers.Conv2D(1, 1, activation="sigmoid")(x))


COSINE = schedules.build(
    ScheduleOptions("cosine", 0.05, warmup_steps=2), epochs=3, steps_per_epoch=4
)


def optimiser(name, rate, replay=False, **settings):
    """As `TrainingPlan.optimizer` wants it."""

    def make(start):
        continued = schedules.continued(rate, start, EVERY if replay else 0)
        return optimizers.build(OptimizerOptions(name, **settings), continued)

    return make


def encoder_of(network):
    return [layer for layer in network.layers if layer.name.startswith("encoder")]


@pytest.fixture
def samples(make_dataset):
    root = make_dataset()
    return find_samples(root / "train", root / "train_masks")


@pytest.fixture
def make_plan(samples, tmp_path):
    def make(folder, *, epochs=3, callbacks=(), **changes):
        network = tiny_network()
        training = TrainingSet(
            samples[:6],
            Resizer("resize", 24, 32, 8),
            PRESETS["default"],
            MASKS,
            batch_size=2,
            seed=1,
        )
        (tmp_path / folder).mkdir(exist_ok=True)
        settings = {
            "network": network,
            "optimizer": optimiser("adam", COSINE),
            "task": MASKS,
            "loss": losses.get("bce_dice"),
            "training": training,
            "validation": samples[6:],
            "epochs": epochs,
            "steps_per_epoch": 4,
            "validate_every": 1,
            "monitor": "val_dice",
            "patience": 0,
            "threads": 2,
            "folder": tmp_path / folder,
            "save_model": lambda path, scores: network.save(path),
            "callbacks": callbacks,
        }
        settings |= changes
        if "freeze_epochs" in settings:
            settings["frozen"] = encoder_of(network)
        return TrainingPlan(**settings)

    return make


class SignalAt(keras.callbacks.Callback):
    """Does after so many steps what Python does when a signal comes.

    A real SIGTERM would end the test runner wherever the loop failed to install its handler;
    scripts in processes of their own get it in the tests of `train_and_predict.py`.
    """

    def __init__(self, step, number=signal.SIGINT):
        super().__init__()
        self.left = step
        self.number = number

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            signal.getsignal(self.number)(self.number, None)


def log_rows(folder):
    with (folder / LOG).open(newline="") as handle:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in csv.DictReader(handle)]


def weights_of(plan):
    return [np.array(keras.ops.convert_to_numpy(v)) for v in plan.network.weights]


@pytest.mark.parametrize(
    ("step", "number"), [(2, signal.SIGINT), (4, signal.SIGTERM), (7, signal.SIGINT)]
)
def test_an_interrupted_run_ends_as_an_undisturbed_one(make_plan, tmp_path, step, number):
    whole = make_plan("whole")
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(make_plan("broken", callbacks=[SignalAt(step, number)]))
    assert (tmp_path / "broken" / STATE).is_file()
    resumed = make_plan("broken")
    progress = train(resumed)
    assert progress.done
    assert_same_run(resumed, whole)


def assert_same_run(resumed, whole):
    for expected, value in zip(weights_of(whole), weights_of(resumed), strict=True):
        np.testing.assert_array_equal(value, expected)
    for name in (BEST, LAST):
        saved = [keras.saving.load_model(plan.folder / name) for plan in (whole, resumed)]
        for expected, value in zip(saved[0].get_weights(), saved[1].get_weights(), strict=True):
            np.testing.assert_array_equal(value, expected)
    rows, expected_rows = log_rows(resumed.folder), log_rows(whole.folder)
    assert len(rows) == len(expected_rows)
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row.keys() == expected_row.keys()
        for name in row:
            expected = float(expected_row[name] or "nan")  # not validated
            assert float(row[name] or "nan") == pytest.approx(expected, rel=1e-12, nan_ok=True)


CYCLES = schedules.build(ScheduleOptions("0:0.05,1:0.02,2:0.01", 0.0), epochs=3, steps_per_epoch=4)
FEATURES = {
    # 12 batches by 5: an update across epochs, and a remainder.
    "accumulation": {
        "optimizer": optimiser("sgd", CYCLES, nesterov=True, gradient_accumulation=5, clipnorm=1.0)
    },
    "ema": {"optimizer": optimiser("adamw", COSINE, ema=0.8, weight_decay=0.1)},
    "replay": {"optimizer": optimiser("rmsprop", CYCLES, replay=True), "replay": True},
    "all": {
        "optimizer": optimiser(
            "adam", COSINE, replay=True, gradient_accumulation=3, clipnorm=1.0, ema=0.8
        ),
        "replay": True,
        "freeze_epochs": 2,
    },
}


@pytest.mark.graph
@pytest.mark.slow
@pytest.mark.parametrize(
    ("feature", "steps"),
    # The last three batches of "all": when the encoder has been released.
    [("accumulation", [7]), ("ema", [4]), ("replay", [8]), ("all", [3, 6])],
)
def test_no_feature_minds_interruptions(make_plan, feature, steps):
    changes = FEATURES[feature]
    whole = make_plan("whole", **changes)
    train(whole)
    for step in steps:
        with pytest.raises(KeyboardInterrupt):
            train(make_plan("broken", callbacks=[SignalAt(step)], **changes))
    resumed = make_plan("broken", **changes)
    train(resumed)
    assert_same_run(resumed, whole)


STEPS = schedules.build(ScheduleOptions("0:0.05,1:0.02", 0.0), epochs=5, steps_per_epoch=4)
LONGER = {
    "plain": ({}, 1, 2),
    # The first epoch is validated only because it is the last, and its model is the best.
    "out of turn": ({"validate_every": 2, "monitor": "val_loss"}, 1, 3),
    # A best model of epoch 2 before that of epoch 3.
    "best aside": ({"validate_every": 2, "monitor": "val_loss"}, 3, 4),
    "remainder": ({"optimizer": optimiser("adam", STEPS, gradient_accumulation=3, ema=0.8)}, 1, 2),
    "replay": ({"optimizer": optimiser("sgd", STEPS, replay=True), "replay": True}, 1, 3),
    "released": (
        {"freeze_epochs": 1, "optimizer": optimiser("adam", 0.01, gradient_accumulation=3)},
        1,
        2,
    ),
    "frozen": ({"freeze_epochs": 2}, 1, 3),
    "stopped": ({"patience": 1, "min_delta": 2.0, "keep_every": 1}, 3, 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LONGER)
def test_a_longer_run_goes_on_as_one_of_that_length(make_plan, case):
    changes, short, long = LONGER[case]
    changes = {"optimizer": optimiser("adam", 0.01)} | changes
    later = changes | ({"patience": 2} if case == "stopped" else {})
    whole = make_plan("whole", epochs=long, **later)
    train(whole)
    first = make_plan("longer", epochs=short, **changes)
    assert train(first).done
    resumed = make_plan("longer", epochs=long, **later)
    progress = train(resumed)
    assert_same_run(resumed, whole)
    # An equal run that is over is left alone.
    assert train(make_plan("longer", epochs=long, **later)) == progress


def test_a_run_is_saved_within_an_epoch_and_after_a_failure(make_plan, tmp_path):
    """A kill loses what came after the last save; an exception between steps nothing."""
    settings = {"optimizer": optimiser("adam", 0.01), "epochs": 1, "steps_per_epoch": 6}
    whole = make_plan("whole", **settings)
    train(whole)
    steps = []

    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(state.load(tmp_path / "broken").progress.step)
            if batch == 3:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(make_plan("broken", callbacks=[Fail()], save_minutes=1e-9, **settings))
    assert steps == [1, 2, 3, 4]
    resumed = make_plan("broken", **settings)
    train(resumed)
    assert_same_run(resumed, whole)


def test_a_failure_amid_a_step_leaves_the_state_before(make_plan, tmp_path):
    plan = make_plan("amid")

    class Fail(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 2:
                raise RuntimeError("boom")

    with pytest.raises(UserError, match=r"step 3 fails on '.*boom.*after step 0"):
        train(dataclasses.replace(plan, callbacks=[Fail()]))
    assert state.load(tmp_path / "amid").progress.step == 0


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, capsys, damage):
    network = tiny_network()
    for step in (1, 2):
        values = [value + step for value in network.get_weights()]
        state.save(tmp_path, state.Saved(Progress(step=step), values))
    path = tmp_path / STATE
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 3] ^= 4
    path.write_bytes(data[: {"truncate": len(data) // 2, "empty": 0}.get(damage, len(data))])
    if damage == "remove":
        path.unlink()
    saved = state.load(tmp_path)
    assert saved.progress.step == 1
    for value, expected in zip(saved.values, network.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected + 1)
    assert f"{STATE}' is damaged or missing" in capsys.readouterr().err
    # The damaged one may not become the older generation.
    assert state.load(tmp_path).progress.step == 1
    (tmp_path / STATE).write_bytes(b"")
    with pytest.raises(UserError, match="--restart"):
        state.load(tmp_path)


def test_every_flipped_bit_of_a_state_is_noticed_or_harmless(tmp_path):
    """One in every 7 bytes; the archive holds bytes that mean nothing, as dates."""
    values = [np.arange(5, dtype=np.float32), np.array(3, np.int32)]
    state.save(tmp_path, state.Saved(Progress(step=4), values))
    path = tmp_path / STATE
    whole = path.read_bytes()
    damaged = 0
    for place in range(0, len(whole), 7):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            saved = state.read(path)
        except UserError:
            damaged += 1
            continue
        assert saved.progress == Progress(step=4)
        for value, expected in zip(saved.values, values, strict=True):
            np.testing.assert_array_equal(value, expected)
    assert damaged > len(whole) // 7 / 2


@pytest.mark.graph
def test_a_frozen_encoder_is_released(make_plan):
    plan = make_plan("frozen", freeze_epochs=2)
    encoder = [w for layer in encoder_of(plan.network) for w in layer.weights]
    first = [np.array(w) for w in encoder]
    at_epochs = []
    plan = make_plan(
        "frozen", freeze_epochs=2, on_epoch=lambda rows: at_epochs.append(last_encoder())
    )

    def last_encoder():
        return [np.array(w) for layer in encoder_of(plan.network) for w in layer.weights]

    train(plan)
    for epoch in (0, 1):
        for expected, value in zip(first, at_epochs[epoch], strict=True):
            np.testing.assert_array_equal(value, expected)
    # All six of them: kernel, bias, gamma, beta, moving mean and variance.
    assert len(first) == 6
    assert all((a != b).any() for a, b in zip(first, at_epochs[2], strict=True))
    assert all(layer.trainable for layer in encoder_of(plan.network))


def test_a_fresh_optimiser_goes_on_at_the_rates_of_the_run(make_plan):
    starts = []
    make = optimiser(
        "adam", schedules.build(ScheduleOptions("0:0.1,1:0.01", 1.0), epochs=2, steps_per_epoch=4)
    )

    def spy(start):
        starts.append(start)
        return make(start)

    plan = make_plan("fresh", epochs=2, optimizer=spy, freeze_epochs=1)
    rows = train(dataclasses.replace(plan, frozen=())).rows
    assert starts == [0, 4]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.1, 0.01])


def test_layers_frozen_for_good_stay_so(make_plan):
    plan = make_plan("good", freeze_epochs=1)
    layer = plan.network.get_layer("encoder")
    layer.trainable = False
    kernel = np.array(layer.kernel)
    train(plan)
    assert not layer.trainable
    np.testing.assert_array_equal(layer.kernel, kernel)


@pytest.mark.graph
def test_the_average_is_what_is_validated_and_saved(make_plan):
    """Its weights lie between those of training, which go on without it."""
    plain = make_plan("plain", optimizer=optimiser("sgd", 0.1))
    train(plain)
    plan = make_plan("ema", optimizer=optimiser("sgd", 0.1, ema=0.9))
    progress = train(plan)
    for expected, value in zip(weights_of(plain), weights_of(plan), strict=True):
        np.testing.assert_array_equal(value, expected)
    last = keras.saving.load_model(plan.folder / LAST)
    kernels = [np.array(m.get_layer("encoder").kernel) for m in (last, plan.network)]
    assert (kernels[0] != kernels[1]).any()
    scores = validate(last, plan.validation, plan.training.resizer, plan.loss, MASKS)
    assert scores["loss"] == pytest.approx(progress.rows[-1]["val_loss"], rel=1e-5)


def test_the_worst_of_ten_batches_comes_again(make_plan):
    """The loss names the batch: each has its own number in its mask's corner."""
    trained = []
    plan = make_plan("replay", replay=True, epochs=1, steps_per_epoch=23)
    batch = plan.training.batch
    numbers = {}

    def recorded(step):
        photos, masks = batch(step)
        numbers[masks.tobytes()] = step
        return photos, masks

    def loss(truth, prediction):
        return losses.get("bce_dice")(truth, prediction) * keras.ops.mean(truth)

    plan.training.batch = recorded
    plan = dataclasses.replace(plan, loss=loss)
    train_on_batch = keras.Model.train_on_batch

    def spy(model, photos, masks):
        trained.append(numbers[masks.tobytes()])
        return train_on_batch(model, photos, masks)

    values = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda number, logs: values.append(float(logs["loss"]))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "train_on_batch", spy)
        progress = train(dataclasses.replace(plan, callbacks=[record]))
    assert trained == [int(np.argmax(values[:10])), 10 + int(np.argmax(values[10:20]))]
    assert progress.losses == values[20:]
    # The log is of the batches in their turn.
    assert progress.rows[0]["loss"] == pytest.approx(np.mean(values))


def test_a_remainder_is_applied_once(make_plan):
    """Interrupted in the last validation, when all batches are done."""
    settings = {"optimizer": optimiser("sgd", 0.1, gradient_accumulation=5), "epochs": 1}
    whole = make_plan("whole", **settings)
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(make_plan("broken", callbacks=[SignalAt(4)], **settings))
    resumed = make_plan("broken", **settings)
    train(resumed)
    for expected, value in zip(weights_of(whole), weights_of(resumed), strict=True):
        np.testing.assert_array_equal(value, expected)
    first = tiny_network().get_weights()
    assert any((a != b).any() for a, b in zip(first, whole.network.get_weights(), strict=True))


def test_a_second_signal_leaves_the_last_whole_state(make_plan, tmp_path):
    whole = make_plan("whole")
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(make_plan("broken", callbacks=[SignalAt(6), SignalAt(6)]))
    resumed = make_plan("broken")
    train(resumed)
    assert_same_run(resumed, whole)


def signal_here():
    signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)


def test_a_signal_while_other_processes_are_asked_is_kept(make_plan, monkeypatch):
    def asked(here):
        if asked.left:
            asked.left -= 1
            signal_here()
            return False
        return here

    asked.left = 1
    monkeypatch.setattr(replicas, "asked_of_any", asked)
    plan = make_plan("broken")
    with pytest.raises(KeyboardInterrupt):
        train(plan)
    assert state.load(plan.folder).progress.step == 2


def test_a_signal_after_that_of_another_process_does_not_end_the_saving(make_plan, monkeypatch):
    def save(folder, saved):
        if saved.progress.step:
            signal_here()
        real(folder, saved)

    real = state.save
    monkeypatch.setattr(state, "save", save)
    monkeypatch.setattr(replicas, "asked_of_any", lambda here: True)
    plan = make_plan("broken")
    with pytest.raises(KeyboardInterrupt):
        train(plan)
    assert state.load(plan.folder).progress.step == 1


def test_the_log_has_the_rate_of_each_epoch(make_plan):
    progress = train(make_plan("rates", optimizer=optimiser("sgd", CYCLES)))
    rates = [row["learning_rate"] for row in progress.rows]
    assert rates == pytest.approx([0.05, 0.02, 0.01])


@pytest.mark.graph
def test_training_learns_and_writes_its_files(make_plan):
    plan = make_plan("learns", epochs=6)
    progress = train(plan)
    assert progress.rows[-1]["loss"] < progress.rows[0]["loss"]
    assert progress.step == 24
    for name in (BEST, LAST, LOG, STATE):
        assert (plan.folder / name).is_file()
    assert not [path for path in plan.folder.iterdir() if path.name.startswith(".")]
    saved = keras.saving.load_model(plan.folder / LAST)
    assert not saved.compiled
    for a, b in zip(saved.weights, plan.network.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


def test_the_best_file_is_the_best_epoch(make_plan):
    plan = make_plan("best", epochs=4)
    progress = train(plan)
    best = keras.saving.load_model(plan.folder / BEST)
    scores = validate(best, plan.validation, plan.training.resizer, plan.loss, MASKS)
    assert scores["dice"] == pytest.approx(max(row["val_dice"] for row in progress.rows), abs=1e-6)
    assert progress.best == max(row["val_dice"] for row in progress.rows)


def test_patience_ends_the_run(make_plan):
    plan = make_plan("patience", epochs=30, patience=2, optimizer=optimiser("sgd", 0.0))
    progress = train(plan)
    assert progress.done
    assert len(progress.rows) < 30


def test_gradients_that_wait_at_an_early_stop_are_not_lost(make_plan):
    made = optimiser("sgd", 0.5, gradient_accumulation=100)
    plan = make_plan("early", epochs=30, patience=1, min_delta=2.0, optimizer=made)

    def trained():
        return np.concatenate([np.ravel(v) for v in plan.network.trainable_variables])

    before = trained()
    progress = train(plan)
    assert len(progress.rows) == 2
    assert np.abs(trained() - before).max() > 1e-3


def test_the_best_model_is_the_one_that_was_scored(make_plan):
    """Also where it is the last epoch before an early stop, with gradients that wait."""
    saved = []
    made = optimiser("sgd", 0.5, gradient_accumulation=100)
    plan = make_plan(
        "scored", epochs=30, patience=1, min_delta=2.0, monitor="val_loss", optimizer=made
    )
    network = plan.network

    def save(path, scores):
        saved.append((path.name, scores, np.ravel(network.trainable_variables[0]).copy()))

    progress = train(dataclasses.replace(plan, save_model=save))
    bests = [entry for entry in saved if entry[0] == BEST]
    _, scores, kernel = bests[-1]
    assert scores["val_loss"] == progress.best
    np.testing.assert_array_equal(kernel, bests[0][2])  # no update before the end
    name, scores, kernel = saved[-1]
    assert name == LAST and "val_loss" not in scores
    assert np.abs(kernel - bests[0][2]).max() > 0


def test_small_gains_do_not_count_for_patience(make_plan):
    plan = make_plan("delta", epochs=30, patience=2, min_delta=2.0)
    progress = train(plan)
    assert len(progress.rows) == 3
    # The best model is the best all the same.
    assert progress.best == max(row["val_dice"] for row in progress.rows)


def test_models_of_every_second_epoch_are_kept(make_plan):
    plan = make_plan("kept", epochs=5, keep_every=2)
    train(plan)
    kept = sorted(path.name for path in plan.folder.glob("epoch_*"))
    epochs = [f"epoch_{number:03d}" for number in (2, 4)]
    assert kept == [f"{epoch}.{kind}" for epoch in epochs for kind in ("keras", "npz")]


def test_without_validation_there_is_a_last_model_and_no_best(make_plan):
    plan = make_plan("none", epochs=1, validation=[])
    progress = train(plan)
    assert "val_dice" not in progress.rows[0]
    assert (plan.folder / LAST).is_file()
    assert not (plan.folder / BEST).exists()


def test_a_truncated_photo_is_named(make_plan, samples):
    data = samples[0].photo.read_bytes()
    samples[0].photo.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"car00_01\.jpg' is truncated"):
        train(make_plan("truncated"))


def test_a_loss_that_is_no_number_stops_the_run(make_plan):
    plan = make_plan("nan", loss=lambda t, p: losses.get("dice")(t, p) * float("nan"))
    with pytest.raises(UserError, match=r"step 1 of the run \(epoch 1, .*rate 0.*car0\d_0\d\.jpg'"):
        train(plan)
    assert not (plan.folder / LAST).exists()
    assert state.load(plan.folder).progress.step == 0


def test_averages_that_are_no_numbers_are_not_saved(make_plan):
    plan = make_plan("averages", epochs=1)
    average = next(v for v in plan.network.weights if v.path.endswith("moving_variance"))
    average.assign(keras.ops.full_like(average, float("inf")))
    with pytest.raises(UserError, match=r"weight \S+moving_variance is not a finite number"):
        train(plan)
    assert not (plan.folder / LAST).exists()


def test_weights_that_are_no_numbers_are_not_saved(make_plan):
    """The loss is finite, its gradient is not."""
    plan = make_plan("nan", loss=lambda t, p: keras.ops.sqrt(losses.get("dice")(t, p) * 0.0))
    with pytest.raises(UserError, match=r"weight \S+kernel is not a finite number at step"):
        train(dataclasses.replace(plan, steps_per_epoch=1))
    assert not (plan.folder / LAST).exists()
    assert state.load(plan.folder).progress.step == 0


def test_validation_scores_photos_at_their_own_size(samples):
    """A network that knows the answer scores 1; the mean is over photos."""
    photo = keras.Input((None, None, 3))
    bright = keras.ops.mean(photo, -1, keepdims=True) - 110.0
    network = keras.Model(photo, keras.ops.sigmoid(bright))
    scores = validate(
        network, samples, Resizer("pad", 0, 0, 32), losses.get("bce_dice"), MASKS, batch_size=3
    )
    assert scores["dice"] > 0.97
    assert scores["dice_coef_clipped"] == pytest.approx(100 * scores["dice"])
