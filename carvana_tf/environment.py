"""What the user's machine sets, against what this toolkit needs: settled before anything is loaded.

Libraries below read environment variables and files in the home folder. Each is one of four
kinds: set by us, because all runs need the same; removed, because a wrong value fails with a
traceback or changes results unseen; checked, and reported in one line; or left alone.
`docs/environment.md` has the table.
"""

import atexit
import functools
import importlib.util
import io
import locale
import os
import re
import resource
import shutil
import sys
import tempfile
import warnings
from collections.abc import MutableMapping
from pathlib import Path

from carvana_tf.errors import UserError

Variables = MutableMapping[str, str]

BACKENDS = ("tensorflow", "jax", "torch")

CPU_DEVICES = "CARVANA_TF_CPU_DEVICES"
"""Variable with a number of logical processors that stand for GPUs, for tests and benchmarks."""

ONLY_GPU = "CARVANA_TF_ONLY_GPU"
"""Variable with the system's number of the GPU that a process must have, and alone sees."""

_LEAST_ADDRESSES = 2_800_000_000
"""What TensorFlow 2.21 takes to start and run a small network, measured on 2 cores."""

# Keras reads ~/.keras/keras.json, and fails on what older versions wrote there; in a place that
# cannot be a folder it neither finds nor writes one.
_NO_HOME = os.path.join(os.devnull, "keras")
_KERAS_HOME, _OWN_KERAS_HOME = "KERAS_HOME", "CARVANA_TF_KERAS_HOME"

_SET = {
    # Pictures are drawn into files; a backend with windows fails without a screen.
    "MPLBACKEND": "Agg",
    "MATPLOTLIBRC": os.devnull,
    # No filters from plug-ins, which files could ask for.
    "HDF5_PLUGIN_PRELOAD": "::",
    # For the scripts that this one starts.
    "PYTHONUTF8": "1",
}

_REMOVED = re.compile(
    # Limits and formats of images are ours to decide.
    r"OPENCV_(?!LOG_LEVEL$).*"
    # Progress bars: a value that does not fit ends a run.
    r"|TQDM_(?!DISABLE$).*"
    # They shorten trainings, or ask for another Keras.
    r"|KERAS_(MAX_EPOCHS|MAX_STEPS_PER_EPOCH|NNX_ENABLED)|TF_USE_LEGACY_KERAS"
    # HDF5 would open files in another way.
    r"|HDF5_(DRIVER|DRIVER_CONFIG)"
    # A flag it does not know ends the process at once, without a message of ours.
    r"|TF_XLA_FLAGS"
    # TensorFlow does not load with an implementation that its protobuf no longer has.
    r"|PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
)

_THREADS = (
    "OMP_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
_THREAD_COUNTS = re.compile(r"\s*[1-9]\d{0,2}(\s*,\s*[1-9]\d{0,2})*\s*")
_WIDTH = re.compile(r"[1-9]\d{0,4}")

# Results are the same on one machine; with these they may differ in the last digits.
_NUMERICS = (
    "TF_ENABLE_ONEDNN_OPTS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "NVIDIA_TF32_OVERRIDE",
    "TF_ENABLE_AUTO_MIXED_PRECISION",
    "XLA_FLAGS",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
)

_WITH_ONEDNN = "TF_ENABLE_ONEDNN_OPTS=1"


def prepare() -> list[str]:
    """Settles the environment of this process, and of those it starts.

    Call it before NumPy's, OpenCV's, Keras' or matplotlib's first import. The process is
    started again where Python itself was set in a way that cannot be changed later.

    Returns:
        Lines for the user: what is ignored, and what may change results.

    Raises:
        UserError: The backend cannot be used, or no temporary file can be written.
    """
    _start_again()
    notes = settle(os.environ)
    if "PYTHONWARNINGS" in os.environ:
        # "error" would turn what a library deprecates into a failure of ours.
        del os.environ["PYTHONWARNINGS"]
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise UserError(
            f"no temporary file can be written ({error}); set TMPDIR to a folder where it can."
        ) from error
    if not _can_be_made(os.environ["MPLCONFIGDIR"]):
        # Matplotlib would do so too, with a warning; and "~" without a home is a folder here.
        os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="carvana_tf-")
        atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)
    return notes


def _can_be_made(folder: str) -> bool:
    """Whether a folder is there and can be written to, or can be made."""
    if not os.path.isabs(folder):
        return False
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return _is_writable(folder)


def _is_writable(folder: str) -> bool:
    """Whether a file can be made in a folder; permissions do not say that of every file system."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def settle(variables: Variables) -> list[str]:
    """Changes variables as `prepare` needs it; returns its lines.

    Raises:
        UserError: The backend cannot be used.
    """
    notes = []
    for name in [name for name in variables if _REMOVED.fullmatch(name)]:
        notes.append(f"{name}={variables.pop(name)} is ignored.")
    for name in _THREADS:
        value = variables.get(name)
        if value is not None and not _THREAD_COUNTS.fullmatch(value):
            del variables[name]
            notes.append(f"{name}={value} is ignored; it is no number of threads (1 to 999).")
    date = variables.get("SOURCE_DATE_EPOCH", "")
    if date and not date.isdecimal():  # matplotlib reads it
        del variables["SOURCE_DATE_EPOCH"]
        notes.append(f"SOURCE_DATE_EPOCH={date} is ignored; it is no number of seconds.")
    for name in ("COLUMNS", "LINES"):
        if not _WIDTH.fullmatch(variables.get(name, "1")):
            del variables[name]
    folder = variables.get("TMPDIR")
    if folder and not _is_writable(folder):
        del variables["TMPDIR"]
        notes.append(f"TMPDIR={folder} is ignored; it is no folder that can be written to.")
    numerics = [f"{name}={variables[name]}" for name in _NUMERICS if variables.get(name)]
    if _WITH_ONEDNN in numerics and "avx2" in processor_flags():  # so it is without the variable
        numerics.remove(_WITH_ONEDNN)
    if numerics:
        notes.append(f"{', '.join(numerics)} may change results in their last digits.")
    variables.update(_SET)
    cache = variables.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    # Instead of its settings in ~/.config; fonts are listed here as by default.
    variables.setdefault("MPLCONFIGDIR", os.path.join(cache, "matplotlib"))
    settle_keras(variables)
    return notes


def processor_flags() -> set[str]:
    """The names of the processor's instruction sets, as "avx2"; none where they are not known."""
    return set(cpuinfo("flags").split())


@functools.cache
def cpuinfo(key: str) -> str:
    """What Linux says of the first processor under a name, as "model name"; "" elsewhere."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.split(":")[0].strip() == key:
                return line.split(":", 1)[1].strip()
    return ""


def settle_keras(variables: Variables) -> None:
    """Changes what Keras reads: all that a program which imports this package has changed.

    Raises:
        UserError: The backend cannot be used.
    """
    if variables.get(_KERAS_HOME) != _NO_HOME:
        variables[_OWN_KERAS_HOME] = variables.get(_KERAS_HOME, "")
        variables[_KERAS_HOME] = _NO_HOME
    _settle_backend(variables)


def keras_home() -> str:
    """Where Keras keeps its downloads: what the user set, else `~/.keras`."""
    own = os.environ.get(_OWN_KERAS_HOME) or os.environ.get(_KERAS_HOME)
    return own if own and own != _NO_HOME else os.path.join(os.path.expanduser("~"), ".keras")


def block_telemetry() -> None:
    """Makes the package by which OpenVINO and NNCF report to an analytics host unavailable.

    Both do without it where it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _settle_backend(variables: Variables) -> None:
    """The backend is what the variable says; a file in the home folder does not count."""
    backend = variables.get("KERAS_BACKEND") or BACKENDS[0]
    if backend not in BACKENDS:
        raise UserError(
            f"KERAS_BACKEND={backend} cannot be used; unset it (tensorflow), or set it to "
            f"{' or '.join(BACKENDS)}."
        )
    if importlib.util.find_spec(backend) is None:
        raise UserError(
            f"KERAS_BACKEND={backend} is not installed; pip install -e '.[{backend}]'"
            if backend != BACKENDS[0]
            else "tensorflow is not installed; pip install -e ., or set KERAS_BACKEND=jax."
        )
    variables["KERAS_BACKEND"] = backend
    if backend == "torch":  # it would take a GPU whatever --gpu says
        variables["CUDA_VISIBLE_DEVICES"] = ""


def _start_again() -> None:
    """Starts the process again where Python itself was set in a way that cannot be changed later.

    Names of files are read in UTF-8, as all that is written; and docstrings are there, which
    some libraries look into.
    """
    encodings = sys.getfilesystemencoding(), locale.getpreferredencoding(False).lower()
    options = [] if encodings == ("utf-8", "utf-8") else ["-X", "utf8"]
    if options:
        os.environ.pop("PYTHONIOENCODING", None)
    stripped = sys.flags.optimize > 1 and os.environ.get("PYTHONOPTIMIZE", "") > "1"
    if stripped:
        os.environ["PYTHONOPTIMIZE"] = "1"
    python = shutil.which(sys.executable)
    if python and (stripped or (options and not sys.flags.utf8_mode)):
        os.execv(python, [sys.executable, *options, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")


def address_limit() -> str | None:
    """What to report of a limit on this process's addresses before TensorFlow is loaded.

    TensorFlow's own threads abort without a message where addresses run out, so it cannot be
    reported then.

    Raises:
        UserError: TensorFlow would not even start.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return None
    size = f"{most / 2**30:.1f} GB"
    if most < _LEAST_ADDRESSES:
        raise UserError(
            f"ulimit -v gives this process {size} of addresses, and TensorFlow takes "
            f"{_LEAST_ADDRESSES / 2**30:.1f} GB to start; raise it (ulimit -v unlimited), and "
            "limit memory by a control group instead."
        )
    return (
        f"ulimit -v gives this process {size} of addresses; TensorFlow ends without a message "
        "where they run out. Raise it, and limit memory by a control group instead."
    )
