"""Training on several devices at once: each computes a part of every batch.

JAX divides arrays by itself. With TensorFlow each device has a copy of the network's variables,
see `shared_variables`, and a step is computed by `divided`.

The devices of several machines are used in the same way. All processes of such a training, see
`join`, run the same program on the same photos and get the same values; only the first one's
files are kept. Whatever one of them decides by its clock or by a signal all must decide.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from carvana_tf.errors import UserError
from carvana_tf.failures import describe, is_device_error
from carvana_tf.interrupt import EndsAtOnce
from carvana_tf.machines import VARIABLE, Machines

_strategies: list[Any] = []
"""Of the `data_parallel` blocks that are open, where the backend is TensorFlow."""

_joined: list[tuple[Machines, Any]] = []
"""The machines of this process, and their strategy, which a process can make once."""


def join(machines: Machines) -> None:
    """Waits until all processes of a training are there; from then on they train together.

    Call it once, after `devices.select` and before the backend computes anything.

    Raises:
        UserError: The backend trains on one machine, or they do not find each other.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"KERAS_BACKEND={keras.backend.backend()} trains on one machine; unset {VARIABLE}, or "
            "use tensorflow."
        )
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # it describes each of its first sums
    try:
        with EndsAtOnce():  # Python gets no signals while the backend waits
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        own = machines.addresses[machines.number]
        raise UserError(
            f"the processes of {VARIABLE} do not find each other ({describe(error)}); see that "
            f"the port of {own} is free here, and that {machines.others} can be reached."
        ) from error
    _joined.append((machines, strategy))


def is_first() -> bool:
    """Whether this process writes the results; so it is where there is no other one."""
    return not _joined or _joined[0][0].number == 0


def is_joined() -> bool:
    """Whether there are other processes, which must come to each step, too."""
    return bool(_joined)


def total(names: Sequence[str]) -> int:
    """How many devices train: those of this process (`names`), or of all together."""
    return int(_joined[0][1].num_replicas_in_sync) if _joined else max(len(names), 1)


def asked_of_any(here: bool) -> bool:
    """Whether something is so in any of the processes, which must all call this."""
    return bool(np.any(_gathered(int(here)))) if _joined else here


def refuse_difference(text: str) -> None:
    """Compares what the processes are about to do; all must call this.

    Raises:
        UserError: It is not the same.
    """
    if not _joined:
        return
    digest = hashlib.sha256(text.encode()).digest()[:8]
    if len(np.unique(_gathered(int.from_bytes(digest, "big", signed=True)))) > 1:
        raise UserError(
            f"the processes of {VARIABLE} do not train the same: they have other flags, photos or "
            "versions, choose another --dtype, or see another --models_dir; give all the same "
            "command, --dtype and folders."
        )


def _gathered(number: int) -> np.ndarray:
    """`int64[devices]`: the number that each device's process has given."""
    import tensorflow as tf

    strategy = _joined[0][1]

    def compute() -> Any:
        return tf.distribute.get_replica_context().all_gather(value, axis=0)

    with _with_all():
        with tf.device("cpu:0"):
            value = tf.constant([number], tf.int64)
        return np.asarray(strategy.experimental_local_results(strategy.run(compute))[0])


def lost_machine(error: BaseException) -> UserError | None:
    """What is to be said of an error that comes of the end of another process; else None."""
    if not _joined or not is_device_error(error):
        return None
    return UserError(
        f"another process of {VARIABLE} ({_joined[0][0].others}) has ended or cannot be reached, "
        "or a device fails (--verbosity=1 shows the error); see what it says, and start all of "
        "them again: they go on from the last saved state."
    )


@contextlib.contextmanager
def _with_all() -> Iterator[None]:
    """Turns the backend's error into a line where another process is lost."""
    try:
        yield
    except Exception as error:
        if (lost := lost_machine(error)) is None:
            raise
        raise lost from error


@contextlib.contextmanager
def data_parallel(names: Sequence[str]) -> Iterator[None]:
    """A block whose networks are trained on all of the devices.

    Each batch is divided among them; what is computed is that of the whole batch.

    Args:
        names: Of `devices.select`; with fewer than two the block changes nothing.

    Raises:
        UserError: The backend trains on one device only.
    """
    backend = keras.backend.backend()
    if _joined:
        with _dividing(_joined[0][1]), _with_all():
            yield
    elif len(names) < 2:
        yield
    elif backend == "jax":
        before = keras.distribution.distribution()
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=list(names)))
        try:
            yield
        finally:
            keras.distribution.set_distribution(before)
    elif backend == "tensorflow":
        import tensorflow as tf

        tf.get_logger().setLevel("WARNING")  # it names the devices of its first ten sums
        # The default works no more in this process once a step has failed.
        sums = tf.distribute.ReductionToOneDevice(accumulation_fn=_add)
        with _dividing(tf.distribute.MirroredStrategy([f"/{name}" for name in names], sums)):
            yield
    else:
        raise UserError(
            f"KERAS_BACKEND={backend} trains on one device; name one in --gpu, or use tensorflow "
            "or jax."
        )


@contextlib.contextmanager
def _dividing(strategy: Any) -> Iterator[None]:
    """A block whose steps a strategy divides."""
    _strategies.append(strategy)
    try:
        yield
    finally:
        _strategies.pop()


def _add(values: Sequence[Any]) -> Any:
    """Sums up; the gradient is defined by who calls it.

    Where TensorFlow makes a gradient it looks for variables in all operations up to its own
    inputs, and those of the other devices would be the whole network, for each sum again.
    """
    import tensorflow as tf

    return tf.add_n([tf.stop_gradient(value) for value in values])


def count() -> int:
    """How many devices train here."""
    if _strategies:
        return int(_strategies[-1].num_replicas_in_sync)
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else int(distribution.device_mesh.devices.size)


def shared_variables() -> contextlib.AbstractContextManager[Any]:
    """A block in a `data_parallel` one whose variables are those of all devices: a network's.

    Optimizers and metrics have theirs once, and are used as on one device.
    """
    return _strategies[-1].scope() if _strategies else contextlib.nullcontext()


def is_divided() -> bool:
    """Whether steps are to be computed by `divided`; JAX divides arrays by itself."""
    return bool(_strategies)


def divided(function: Callable[..., tuple[Any, Any]], *batch: Any) -> tuple[Any, Any]:
    """Calls a function with each device's part of a batch, on all devices at once.

    Args:
        function: Takes a part of each tensor of `batch`; gives tensors to be added up, in any
            nesting, and a tensor with a row for each row of the part.
        batch: Tensors of equally many rows, which can be divided by `count`.

    Returns:
        The sums, and all rows in the order of the batch.
    """
    import tensorflow as tf

    def compute() -> Any:
        context = tf.distribute.get_replica_context()
        with tf.device("cpu:0"):  # a device gets no more than its part
            parts = [_own_part(rows) for rows in batch]
        sums, rows = function(*parts)
        if sums:
            sums = context.all_reduce(tf.distribute.ReduceOp.SUM, sums)
        return sums, context.all_gather(rows, axis=0)

    strategy = _strategies[-1]
    with strategy.scope():
        results = strategy.run(compute)
    # All devices have the same.
    return tf.nest.map_structure(lambda each: strategy.experimental_local_results(each)[0], results)


def gradients(
    function: Callable[[], tuple[Any, Any]], variables: Sequence[keras.Variable]
) -> tuple[list[Any], Any]:
    """The gradients of the first thing that a function gives, and the second, with TensorFlow."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        value, others = function()
    return tape.gradient(value, variables), others


def first_copies(variables: Sequence[keras.Variable]) -> Sequence[Any]:
    """The first device's copies of variables, which an optimizer changes; then call `spread`.

    Where there are no others these are the variables.
    """
    return [_copies(variable)[0] for variable in variables] if is_divided() else variables


def spread(variables: Sequence[keras.Variable]) -> None:
    """Gives all devices the values of `first_copies`."""
    if not is_divided():
        return
    for variable in variables:
        first, *others = _copies(variable)
        for other in others:
            other.assign(first)


def _copies(variable: keras.Variable) -> Sequence[Any]:
    return _strategies[-1].experimental_local_results(variable.value)


def moments(x: Any, axes: Sequence[int]) -> tuple[Any, Any]:
    """Mean and biased variance over `axes` and all devices; each calls it with as many numbers.

    From those of each device's part by the formula of Chan, Golub and LeVeque (1979), which
    keeps its precision where means are far from 0, unlike the mean of squares.
    """
    mean, variance = keras.ops.moments(x, axes)
    whole = _mean_of_devices(mean)
    return whole, _mean_of_devices(variance + keras.ops.square(mean - whole))


def sum_of_devices(value: Any) -> Any:
    """In `divided` the sum of what each device computes of its part; elsewhere the value itself."""
    if not is_divided():
        return value
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _mean_of_devices(value: Any) -> Any:
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, value)


def part_of(draw: Callable[[Any], Any], like: Any) -> Any:
    """A device's part of what `draw` gives for a tensor of ones with the rows of all devices.

    All draw the same numbers, which are those that one device draws for the whole batch.

    Args:
        draw: Takes and gives a tensor.
        like: Has the shape and type of the part.
    """
    shape = keras.ops.shape(like)
    return _own_part(draw(keras.ops.ones((shape[0] * count(), *shape[1:]), like.dtype)))


def _own_part(rows: Any) -> Any:
    import tensorflow as tf

    number = tf.distribute.get_replica_context().replica_id_in_sync_group
    size = tf.shape(rows)[0] // count()
    return rows[number * size : (number + 1) * size]


def predict_on_batch(model: keras.Model, photos: np.ndarray) -> np.ndarray:
    """As `model.predict_on_batch`, for any number of photos.

    Args:
        model: Made in a `data_parallel` block, or not.
        photos: `uint8[B, H, W, C]`.

    Returns:
        `float32[B, …]`.
    """
    # A batch that does not divide is filled with its last photo.
    filled = np.concatenate([photos, *[photos[-1:]] * (-len(photos) % count())])
    return np.asarray(model.predict_on_batch(filled), np.float32)[: len(photos)]
