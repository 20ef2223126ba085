"""Trains on one and on two logical processors in one process; prints what came out as JSON.

A program of its own: a process divides its processor once, before anything runs on it.
"""

import json
import os
import signal
import sys
from pathlib import Path

os.environ["CARVANA_TF_CPU_DEVICES"] = "2"

import keras
import numpy as np

from carvana_tf import devices, replicas
from carvana_tf.data.dataset import find_samples
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.presets import PRESETS
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.tasks import MASKS
from carvana_tf.tasks.labels import losses as label_losses
from carvana_tf.tasks.masks import losses
from carvana_tf.training import optimizers
from carvana_tf.training.loop import TrainingPlan, train
from carvana_tf.training.options import OptimizerOptions

STEPS = 6


def network(scarce: bool = False) -> keras.Model:
    """A network with all that needs care on several devices."""
    photo = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(photo)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.SpatialDropout2D(0.2)(x)
    x = Scarce()(x) if scarce else x
    return keras.Model(photo, keras.layers.Conv2D(1, 1, activation="sigmoid")(x))


class Scarce(keras.layers.Layer):
    """Memory that is not enough for more than two photos on all devices, while a step runs."""

    def call(self, inputs):
        if keras.backend.backend() == "jax":
            return self._with_jax(inputs)
        import tensorflow as tf

        def check(count):
            return np.float32(0) if count * replicas.count() <= 2 else fail()

        nothing = tf.numpy_function(check, [tf.shape(inputs)[0]], tf.float32)
        return inputs + tf.ensure_shape(nothing, ())

    def _with_jax(self, inputs):
        import jax

        count = inputs.shape[0]
        if not isinstance(count, int) or count <= 2:  # any number, or few
            return inputs
        nothing = jax.pure_callback(fail, jax.ShapeDtypeStruct((), "float32"))
        return inputs + jax.lax.stop_gradient(nothing)


def fail():
    raise MemoryError("RESOURCE_EXHAUSTED: out of memory")


class Stop(keras.callbacks.Callback):
    """Ctrl-C in a step of the second epoch."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 2 and self.epoch == 1:
            signal.raise_signal(signal.SIGINT)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch


def break_batch(training: TrainingSet, step: int) -> None:
    """Lets a batch fail."""
    batch = training.batch

    def failing(number: int):
        if number == step:
            raise UserError("no such photo")
        return batch(number)

    training.batch = failing


def run(
    root: Path, names: list[str], folder: str, *, stop: bool = False, bad: int = -1, **settings
) -> dict:
    """The losses and weights of a short training, which may go on with one that was stopped."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy(settings.pop("dtype", "float32"))
    samples = find_samples(root / "train", root / "train_masks")
    resizer = Resizer("resize", 24, 32, 8)
    training = TrainingSet(samples[:5], resizer, PRESETS["default"], MASKS, batch_size=4, seed=1)
    break_batch(training, bad)
    out = root / folder
    out.mkdir(exist_ok=True)
    replay, scarce = (settings.pop(name, False) for name in ("replay", "scarce"))
    options = OptimizerOptions("adam", **settings)
    with replicas.data_parallel(names):
        with replicas.shared_variables():
            model = network(scarce)
        plan = TrainingPlan(
            network=model,
            optimizer=lambda start: optimizers.build(options, 0.01),
            task=MASKS,
            loss=losses.get("bce_dice"),
            training=training,
            validation=samples[5:],
            epochs=2,
            steps_per_epoch=STEPS,
            validate_every=1,
            monitor="val_dice",
            patience=0,
            threads=2,
            folder=out,
            save_model=lambda path, scores: None,
            replay=replay,
            callbacks=[Stop()] if stop else [],
        )
        try:
            rows = train(plan).rows
        except (KeyboardInterrupt, UserError) as error:
            return {"stopped": f"{type(error).__name__} {error}"}
    weights = np.concatenate([np.ravel(keras.ops.convert_to_numpy(v)) for v in model.weights])
    return {"rows": rows, "weights": weights.astype(float).tolist(), "devices": len(names)}


def ranking(names: list[str]) -> float:
    """The loss of a batch whose photos have 2, 0, 1 and 4 labels, by the devices' parts of it."""
    labels = np.float32([[1, 1, 0, 0, 0], [0] * 5, [0, 0, 1, 0, 0], [1, 1, 1, 1, 0]])
    logits = np.random.default_rng(2).normal(size=labels.shape).astype(np.float32)

    def part(labels, logits):
        values = label_losses.get("ranking")(labels, logits)
        return keras.ops.sum(values), values

    with replicas.data_parallel(names):
        compute = replicas.divided if replicas.is_divided() else lambda call, *batch: call(*batch)
        return float(compute(part, *map(keras.ops.convert_to_tensor, (labels, logits)))[0])


def main() -> None:
    """Trains in the folder of a dataset; with "all" goes on, fails, and uses a loss scale, too."""
    root, everything = Path(sys.argv[1]), sys.argv[2:] == ["all"]
    names, _ = devices.select("0,1")
    one, jax = names[:1], keras.backend.backend() == "jax"
    hard = {"clipnorm": 0.3, "ema": 0.9, "weight_decay": 0.01, "replay": True}
    hard["gradient_accumulation"] = 2
    found = {
        "names": names,
        "one": run(root, one, "one", **hard),
        "two": run(root, names, "two", **hard),
        "ranking": [ranking(one), ranking(names)],
    }
    if everything:
        found["stopped one"] = run(root, one, "one again", **hard, stop=True)
        found["one again"] = run(root, one, "one again", **hard)
        found["stopped two"] = run(root, names, "two again", **hard, stop=True)
        found["bad two"] = run(root, names, "two again", **hard, bad=STEPS + 4)
        found["two again"] = run(root, names, "two again", **hard)
        # A callback of JAX would take more devices for a deadlock.
        found["scarce"] = run(root, one if jax else names, "scarce", scarce=True)
        if not jax:
            for name, used in (("half one", one), ("half two", names)):
                found[name] = run(root, used, name, dtype="mixed_float16")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
