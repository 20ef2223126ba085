"""Everything that belongs to one backend: devices, memory growth, compute types.

Only this module, `replicas`, and `inference/engines`, where they compile or convert a network,
call TensorFlow. All else is Keras 3 and runs on `KERAS_BACKEND=jax` too. Programs import it
before any other module that needs Keras: it starts the backend without its messages.
"""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from carvana_tf.environment import CPU_DEVICES, ONLY_GPU, cpuinfo, processor_flags
from carvana_tf.errors import UserError


def _processor_name() -> str:
    return cpuinfo("model name") or "unknown processor"


def _use_onednn() -> None:
    """Has TensorFlow use oneDNN; by itself it does so only on most processors with AVX-512."""
    if "avx2" in processor_flags():
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Holds back what TensorFlow's C++ prints while it is imported; prints it on failure."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _use_onednn()
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        try:
            yield
        except BaseException:
            heard.seek(0)
            os.write(kept, heard.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


with _quiet_start():
    import keras


def select(gpu: str) -> tuple[list[str], str | None]:
    """Chooses the devices to work on; call it before anything else touches the backend.

    Args:
        gpu: Comma-separated numbers of GPUs as the system counts them ("0,1"); empty
            means the processor alone. With `CPU_DEVICES` in the environment they number
            that many logical processors instead.

    Returns:
        The devices' names for `keras.device` ("gpu:0", … or "cpu:0"), in the order asked
        for, and one line for the user where there is no GPU at all, else None.

    Raises:
        UserError: `gpu` is not a list of different numbers, or other GPUs are there than these,
            or the one that this process must have is not.
    """
    wanted = _parse(gpu)
    present = _limit_to(wanted)
    missing = [number for number in wanted if not present.get(number)]
    found = [number for number in wanted if present.get(number)]
    names = [present[number] for number in found] or ["cpu:0"]
    if not missing:
        return names, None
    lacking = ",".join(map(str, missing))
    if only := os.environ.get(ONLY_GPU):
        raise UserError(f"GPU {only} is not here; name in --gpu those that are.")
    if present:
        raise UserError(
            f"--gpu={gpu}: GPU {lacking} is not here, but "
            f"{','.join(map(str, sorted(present)))} is; name those, or --gpu= for the processor."
        )
    if keras.backend.backend() == "torch":
        return names, "KERAS_BACKEND=torch works on the processor alone."
    return names, f"GPU {lacking} is not here; using the processor."


def name_of(device: str) -> str:
    """What a device of `select` is, as "GPU 1 (NVIDIA H100)" or "processor (…, 8 cores)"."""
    if not device.startswith("gpu:"):
        return f"processor ({_processor_name()}, {os.cpu_count()} cores)"
    number = int(device.removeprefix("gpu:"))
    only = os.environ.get(ONLY_GPU)
    if keras.backend.backend() == "jax":
        import jax

        (kind,) = (each.device_kind for each in jax.local_devices() if each.id == number)
        return f"GPU {only or number} ({kind})"
    import tensorflow as tf

    gpu = tf.config.get_visible_devices("GPU")[number]
    kind = tf.config.experimental.get_device_details(gpu).get("device_name", "unknown")
    return f"GPU {only or tf.config.list_physical_devices('GPU').index(gpu)} ({kind})"


def compute_dtype(requested: str) -> str:
    """The Keras dtype policy for a `--dtype` value.

    Returns:
        "float32", "mixed_bfloat16" or "mixed_float16". "auto" is bfloat16 where the
        hardware multiplies it natively (AMX or AVX512-BF16, Ampere or newer GPUs, TPUs),
        float16 on the older GPUs that multiply that natively (Volta, Turing), else float32.
    """
    if requested == "auto":
        requested = "bfloat16" if has_bfloat16() else "float16" if has_float16() else "float32"
    return "float32" if requested == "float32" else f"mixed_{requested}"


@functools.cache
def has_bfloat16() -> bool:
    """Whether the hardware in use multiplies bfloat16 natively."""
    if keras.backend.backend() == "jax":
        import jax

        if jax.default_backend() == "tpu":
            return True
    gpus = _compute_capabilities()
    if gpus:
        return min(gpus) >= 8
    return bool({"amx_bf16", "avx512_bf16"} & processor_flags())


@functools.cache
def has_float16() -> bool:
    """Whether the hardware in use is GPUs that multiply float16 natively."""
    return min(_compute_capabilities(), default=0) >= 7


def _compute_capabilities() -> list[int]:
    """The major compute capability of each GPU in use, 0 where it is unknown."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.get_visible_devices("GPU")
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return [int(d.get("compute_capability", (0, 0))[0]) for d in details]
    if keras.backend.backend() == "jax":
        import jax

        if jax.default_backend() == "gpu":
            found = [getattr(d, "compute_capability", "0.0") for d in jax.local_devices()]
            return [int(float(capability)) for capability in found]
    return []


def make_deterministic() -> None:
    """Makes the backend's operations repeatable; some are slower for it on a GPU.

    JAX is repeatable on CPUs and TPUs as it is; on GPUs its XLA flag must stand in the
    environment before the start.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    if keras.backend.backend() == "torch":
        import torch

        torch.use_deterministic_algorithms(True)


def has_fused_operations() -> bool:
    """Whether to use `fused_batch_norm`, `double_size`, `fused_adam` and `convolve`.

    That is with TensorFlow on processors, where they were measured.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.get_visible_devices("GPU")


def fused_batch_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Batch normalisation with the batch's own statistics, in one operation.

    Keras makes it of some twenty operations, each of which reads and writes the whole
    tensor in float32. Needs `has_fused_operations`.

    Args:
        x: [B, H, W, C] of float32, bfloat16 or float16.
        gamma: float32[C], the scale.
        beta: float32[C], the offset.
        epsilon: Added to the variance.

    Returns:
        The outcome in the shape and type of `x`, and the mean and the biased variance
        of the batch, float32[C].
    """
    import tensorflow as tf

    empty = tf.constant([], tf.float32)
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=empty, variance=empty, epsilon=epsilon
    )
    # The operation gives the unbiased variance; Keras averages the biased one.
    count = tf.cast(tf.reduce_prod(tf.shape(x)[:-1]), tf.float32)
    return y, mean, variance * tf.maximum(count - 1.0, 1.0) / count


def double_size(x: Any) -> Any:
    """Repeats each pixel of [B, H, W, C] to four: [B, 2H, 2W, C].

    Keras repeats along one axis after the other, and sums so for the gradient. Needs
    `has_fused_operations`.
    """
    import tensorflow as tf

    @tf.custom_gradient
    def double(x):
        y = tf.raw_ops.ResizeNearestNeighbor(images=x, size=2 * tf.shape(x)[1:3])
        return y, lambda gradient: 4 * tf.nn.avg_pool2d(gradient, 2, 2, "VALID")

    return double(x)


def has_slow_kernel_gradients() -> bool:
    """Whether to use `convolve`: oneDNN's own code for a kernel's gradient is slow here.

    That is with AVX2 and without AVX-512: see `docs/speed.md`.
    """
    flags = processor_flags()
    return has_fused_operations() and "avx2" in flags and "avx512f" not in flags


def convolve(x: Any, kernel: Any) -> Any:
    """A convolution with stride 1 and padding "same" whose kernel's gradient is matrix products.

    oneDNN and Eigen have no fast code for that gradient on processors without AVX-512. Here the
    input or the output's gradient, whichever has fewer channels, is copied once for each column of
    the kernel, shifted by it, and the copies are concatenated. The product of this and of the other
    one is a row of the kernel's gradient. Needs `has_fused_operations`.

    Args:
        x: float32[B, H, W, C].
        kernel: float32[rows, columns, C, F], a tensor or a variable, rows and columns odd.

    Returns:
        float32[B, H, W, F].
    """
    import tensorflow as tf

    @tf.custom_gradient
    def convolution(x, kernel):
        def gradients(gradient):
            of_input = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x),
                filter=kernel,
                out_backprop=gradient,
                strides=[1, 1, 1, 1],
                padding="SAME",
            )
            return of_input, _kernel_gradient(x, gradient, kernel.shape)

        return tf.nn.conv2d(x, kernel, 1, "SAME"), gradients

    return convolution(x, tf.convert_to_tensor(kernel))


def _kernel_gradient(x: Any, gradient: Any, shape: Sequence[int]) -> Any:
    """The gradient of `convolve`'s kernel.

    Args:
        x: float32[B, H, W, C], its input.
        gradient: float32[B, H, W, F], that of its output.
        shape: Of the kernel.
    """
    import tensorflow as tf

    rows, columns, channels, filters = shape
    shifts_input = channels < filters
    shifted, fixed = (x, gradient) if shifts_input else (gradient, x)
    narrow, wide = sorted((channels, filters))
    height, width = tf.unstack(tf.shape(x)[1:3])
    up, left = rows // 2, columns // 2
    shifted = tf.pad(shifted, [[0, 0], [up, up], [left, left], [0, 0]])
    shifted = tf.concat([shifted[:, :, i : i + width] for i in range(columns)], -1)
    fixed = tf.reshape(fixed, [-1, wide])
    products = [
        tf.matmul(
            fixed,
            tf.reshape(shifted[:, i : i + height], [-1, columns * narrow]),
            transpose_a=True,
        )
        for i in range(rows)
    ]
    kernel = tf.reshape(tf.stack(products), [rows, wide, columns, narrow])
    if shifts_input:
        return tf.transpose(kernel, [0, 2, 3, 1])
    # To shift the input up is to shift the gradient down.
    return tf.transpose(kernel[::-1, :, ::-1], [0, 2, 1, 3])


def enlarge(x: Any, factors: tuple[int, int], interpolation: str) -> Any:
    """Resizes [B, H, W, C] to `factors` times its height and width, which may be unknown.

    Needs TensorFlow.
    """
    import tensorflow as tf

    size = tf.shape(x)[1:3] * factors
    return tf.cast(tf.image.resize(x, size, interpolation), x.dtype)


def mixed_sizes(
    batches: Callable[[], Iterator[Any]],
    count: int,
    inputs: Sequence[int | None],
    outputs: Sequence[int | None],
) -> Any:
    """What `fit` takes instead of a `PyDataset` whose batches differ in height and width.

    Keras makes a graph for the sizes of the first two batches and refuses others. JAX
    compiles for each size anyway.

    Args:
        batches: Starts an iterator over (`uint8[B, H, W, C]`, `float32[B, …]`).
        count: How many batches it gives.
        inputs: Shape of a batch's photos, None where it varies.
        outputs: Of its targets.
    """
    if keras.backend.backend() != "tensorflow":
        return batches()
    import tensorflow as tf

    signature = (
        tf.TensorSpec(tuple(inputs), tf.uint8),
        tf.TensorSpec(tuple(outputs), tf.float32),
    )
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(count))


def fused_adam(
    variable: Any,
    momentum: Any,
    velocity: Any,
    gradient: Any,
    *,
    rate: Any,
    step: Any,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> None:
    """One update by Adam in place, in one operation; `step` counts from 1.

    Keras makes it of some ten operations, each a pass over all weights. Needs
    `has_fused_operations`.
    """
    import tensorflow as tf

    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=momentum.handle,
        v=velocity.handle,
        beta1_power=tf.pow(beta_1, step),
        beta2_power=tf.pow(beta_2, step),
        lr=rate,
        beta1=beta_1,
        beta2=beta_2,
        epsilon=epsilon,
        grad=gradient,
    )


@contextlib.contextmanager
def forgotten_gradients() -> Iterator[None]:
    """Where TensorFlow keeps no gradient functions of its graphs past the end of the block.

    It registers those of custom gradients for good, and each holds its graph and with it all
    variables of a training: weights and optimizer, 12 bytes a parameter with Adam. A network
    that was traced inside cannot be differentiated in that graph afterwards.
    """
    registered = _custom_gradients()
    before = set(registered)
    try:
        yield
    finally:
        for name in registered.keys() - before:
            if name.startswith("CustomGradient-"):
                del registered[name]


def _custom_gradients() -> dict[str, Any]:
    """TensorFlow's table of gradient functions, which has no public name."""
    if keras.backend.backend() != "tensorflow":
        return {}
    try:
        from tensorflow.python.framework import ops

        return ops.gradient_registry._registry
    except (ImportError, AttributeError):  # another version: it keeps them
        return {}


def describe() -> str:
    """One line on the backend and its hardware, for logs and benchmark files."""
    backend = keras.backend.backend()
    return f"keras {keras.__version__} on {backend}, {_processor_name()}, {os.cpu_count()} cores"


def _parse(gpu: str) -> list[int]:
    """The numbers of a list like "0,1", each once."""
    parts = [part.strip() for part in gpu.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise UserError(
            f"--gpu='{gpu}' must be numbers of GPUs, as in --gpu=0,1; --gpu= is the processor."
        )
    numbers = list(map(int, parts))
    if len(set(numbers)) < len(numbers):
        raise UserError(f"--gpu='{gpu}' names a device twice; name each once.")
    return numbers


def _limit_to(wanted: list[int]) -> dict[int, str]:
    """Shows the backend only the GPUs wanted; returns the names of the usable ones by number."""
    backend = keras.backend.backend()
    if wanted and (count := int(os.environ.get(CPU_DEVICES, 0))):
        return _make_logical(backend, count)
    if backend == "tensorflow":
        return _limit_tensorflow(wanted)
    if backend == "jax":
        import jax

        if not wanted:
            jax.config.update("jax_platforms", "cpu")
        elif jax.default_backend() == "gpu":
            # JAX shows every device under its own number; what names none uses the default one.
            present = {device.id: device for device in jax.local_devices()}
            first = [present[number] for number in wanted if number in present]
            if first:
                jax.config.update("jax_default_device", first[0])
            return {number: f"gpu:{number}" for number in present}
    return {}


def _make_logical(backend: str, count: int) -> dict[int, str]:
    """Divides the processor into logical devices; their names by number."""
    if backend == "jax":
        import jax

        jax.config.update("jax_platforms", "cpu")
        with contextlib.suppress(RuntimeError):  # it is running already
            jax.config.update("jax_num_cpu_devices", count)
        count = min(count, len(jax.local_devices()))
    elif backend == "tensorflow":
        import tensorflow as tf

        (processor,) = tf.config.list_physical_devices("CPU")
        with contextlib.suppress(RuntimeError):
            tf.config.set_logical_device_configuration(
                processor, [tf.config.LogicalDeviceConfiguration()] * count
            )
        count = min(count, len(tf.config.list_logical_devices("CPU")))
    else:
        count = 1
    return {number: f"cpu:{number}" for number in range(count)}


def _limit_tensorflow(wanted: list[int]) -> dict[int, str]:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    # TensorFlow numbers the visible devices from 0.
    visible = [gpu for number, gpu in enumerate(gpus) if number in wanted]
    try:
        tf.config.set_visible_devices(visible, "GPU")
        for gpu in visible:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        # The backend is already running (tests, notebooks): its choice stands.
        visible = tf.config.get_visible_devices("GPU")
    present = {gpus.index(gpu): f"gpu:{i}" for i, gpu in enumerate(visible)}
    # Of the others the number is known; they are only named in messages.
    return dict.fromkeys(range(len(gpus) if wanted else 0), "") | present
