"""What the user's machine sets: it changes no result, and nothing is sent or left at home."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import offline
import pytest

from carvana_tf import environment
from carvana_tf.errors import UserError

ROOT = Path(__file__).parents[1]
THREADS = "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "OPENBLAS_NUM_THREADS"


def settle(**variables):
    return variables, environment.settle(variables)


@pytest.mark.parametrize("value", ["nonsense", "0", "-1", "", "1.5", "100000", "2;3"])
def test_numbers_of_threads_that_are_none_are_ignored_and_named(value):
    for name in THREADS:
        variables, notes = settle(**{name: value})
        assert name not in variables
        assert [note.split("=")[0] for note in notes] == [name]


def test_numbers_of_threads_are_the_users():
    for name in THREADS:
        assert settle(**{name: "2"}) == (settle(**{name: "2"})[0], [])
        assert settle(**{name: "4,2"})[0][name] == "4,2"


REMOVED = {
    "OPENCV_IO_MAX_IMAGE_PIXELS": "10",
    "OPENCV_FOR_THREADS_NUM": "x",
    "TQDM_MININTERVAL": "x",
    "KERAS_MAX_EPOCHS": "1",
    "KERAS_MAX_STEPS_PER_EPOCH": "1",
    "TF_XLA_FLAGS": "--nonsense",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "cpp",
    "TF_USE_LEGACY_KERAS": "1",
    "HDF5_DRIVER": "nonsense",
}


@pytest.mark.parametrize("name", REMOVED)
def test_what_would_fail_or_shorten_a_run_is_ignored_and_named(name):
    variables, (note,) = settle(**{name: REMOVED[name]})
    assert name not in variables
    assert note.startswith(f"{name}={REMOVED[name]} is ignored")


@pytest.mark.parametrize("name", ["TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS", "NVIDIA_TF32_OVERRIDE"])
def test_what_may_change_results_is_named(name):
    variables, (note,) = settle(**{name: "0"})
    assert variables[name] == "0"
    assert f"{name}=0" in note


@pytest.mark.parametrize("flags, notes", [({"avx2"}, 0), (set(), 1)])
def test_onednn_is_named_where_it_is_not_used_without_the_variable(monkeypatch, flags, notes):
    monkeypatch.setattr(environment, "processor_flags", lambda: flags)
    assert len(settle(TF_ENABLE_ONEDNN_OPTS="1")[1]) == notes


@pytest.mark.parametrize("value", ["0", "-5", "x", ""])
def test_widths_that_are_none_are_ignored(value):
    assert "COLUMNS" not in settle(COLUMNS=value)[0]


def test_a_date_that_is_none_is_ignored():
    variables, (note,) = settle(SOURCE_DATE_EPOCH="today")
    assert "SOURCE_DATE_EPOCH" not in variables and "SOURCE_DATE_EPOCH=today" in note
    assert settle(SOURCE_DATE_EPOCH="1700000000")[1] == []


def test_a_folder_for_temporary_files_that_does_not_exist_is_ignored(tmp_path):
    (tmp_path / "file").touch()
    # Nobody can make a file in /proc, which root has the permission for.
    for folder in (tmp_path / "none", tmp_path / "file", "/proc"):
        variables, (note,) = settle(TMPDIR=str(folder))
        assert "TMPDIR" not in variables and str(folder) in note
    assert settle(TMPDIR=str(tmp_path))[1] == []


@pytest.mark.parametrize("backend", ["theano", "TensorFlow", "nonsense", "numpy"])
def test_a_backend_that_cannot_be_used_is_one_line(backend):
    with pytest.raises(UserError, match=f"KERAS_BACKEND={backend} .*tensorflow"):
        settle(KERAS_BACKEND=backend)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_backend_that_is_not_installed_is_named_with_its_extra(monkeypatch, backend):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install -e '.\[{backend}\]'"):
        settle(KERAS_BACKEND=backend)


def test_pytorch_gets_no_gpu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    variables, _ = settle(KERAS_BACKEND="torch", CUDA_VISIBLE_DEVICES="0")
    assert variables["CUDA_VISIBLE_DEVICES"] == ""
    variables, _ = settle(KERAS_BACKEND="jax", CUDA_VISIBLE_DEVICES="0")
    assert variables["CUDA_VISIBLE_DEVICES"] == "0"


def test_keras_keeps_its_downloads_where_they_were(monkeypatch, tmp_path):
    for name in ("KERAS_HOME", "CARVANA_TF_KERAS_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    environment.settle(os.environ)
    assert environment.keras_home() == str(tmp_path / ".keras")
    environment.settle(os.environ)  # as a process that this one starts
    assert environment.keras_home() == str(tmp_path / ".keras")
    monkeypatch.setenv("KERAS_HOME", "/elsewhere")
    environment.settle(os.environ)
    environment.settle(os.environ)
    assert environment.keras_home() == "/elsewhere"
    assert not list(tmp_path.iterdir())


def test_a_place_without_temporary_files_is_one_line(monkeypatch):
    def fail():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", fail)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError, match="TMPDIR"):
        environment.prepare()


def test_a_wrong_backend_is_told_before_anything_is_loaded(tmp_path):
    done = run("train.py", tmp_path, "--smoke", KERAS_BACKEND="nonsense")
    assert done.returncode == 1
    assert done.stderr.startswith("error: KERAS_BACKEND=nonsense cannot be used")
    assert done.stderr.count("\n") == 1


def test_a_home_that_cannot_be_written_to_is_none_of_our_business(tmp_path):
    assert environment._can_be_made(str(tmp_path / "a/b"))
    for folder in ("/dev/null/none", "/proc/none", "~/.cache", str(tmp_path / "file/below")):
        (tmp_path / "file").touch()
        assert not environment._can_be_made(folder)
    code = (
        "import carvana_tf.cli, os; os.umask(0o077); import matplotlib.pyplot as plt\n"
        "plt.figure().text(0, 0, 'a'); plt.savefig('a.png')"
    )
    places = {"HOME": "/dev/null/none", "TMPDIR": "/nonsense", "XDG_CACHE_HOME": "/dev/null/x"}
    before = set(Path(tempfile.gettempdir()).glob("carvana_tf-*"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **places},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a.png").stat().st_size
    assert set(Path(tempfile.gettempdir()).glob("carvana_tf-*")) == before


# Imported by each Python that starts with it on its path: notes connections and changes at home.
SPY = """
import os, sys
home, log = os.environ["HOME"], os.environ["SPY_LOG"]
def spy(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        # Families and addresses; a socket between two processes here has a path or none.
        address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        if not isinstance(address, (str, bytes)) or event == "socket.getaddrinfo":
            note(f"{event} {address}")
    written = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
    if written or event in ("os.mkdir", "os.rename"):
        path = os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else ""
        if path.startswith(home + "/") and not path.startswith(home + "/.cache"):
            note(f"{event} {path}")
def note(line):
    with open(log, "a") as file:
        file.write(line + chr(10))
sys.addaudithook(spy)
"""


@pytest.fixture
def spied(tmp_path):
    """A folder with a `sitecustomize` for PYTHONPATH, an empty home, and a log that is empty."""
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy/sitecustomize.py").write_text(SPY)
    (tmp_path / "home").mkdir()
    (tmp_path / "spy/log").touch()
    return tmp_path


# The audit hook above hears of what Python does alone, the kernel of all.
GUARD = [sys.executable, str(ROOT / "tests/offline.py")]
OFFLINE = GUARD if offline.is_possible() else []


@pytest.mark.skipif(not OFFLINE, reason="no filters of system calls here")
def test_the_kernel_ends_what_opens_a_connection():
    for arguments, status in {
        "socket.AF_INET": -signal.SIGSYS,
        "socket.AF_INET6, socket.SOCK_DGRAM": -signal.SIGSYS,
        "socket.AF_INET6": 0,
        "socket.AF_UNIX": 0,
    }.items():
        code = f"import socket; socket.socket({arguments})"
        done = subprocess.run([*GUARD, sys.executable, "-c", code], check=False)
        assert done.returncode == status, arguments


def run(script, folder, *flags, **variables):
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{folder / 'spy'}"}
    clean |= {"HOME": str(folder / "home"), "SPY_LOG": str(folder / "spy/log")}
    clean |= {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [*OFFLINE, sys.executable, str(ROOT / script), *flags],
        cwd=folder, env=clean | variables, capture_output=True, timeout=300, check=False,
        encoding="utf-8",
    )  # fmt: skip


HOSTILE = REMOVED | {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
    "PYTHONWARNINGS": "error",
    "PYTHONOPTIMIZE": "2",
    "PYTHONHASHSEED": "7",
    "MPLBACKEND": "nonsense",
    "OMP_NUM_THREADS": "nonsense",
    "TF_NUM_INTRAOP_THREADS": "0",
    "TMPDIR": "/nonsense",
    "COLUMNS": "0",
    "TZ": "nonsense",
    "CUDA_VISIBLE_DEVICES": "nonsense",
    "MALLOC_ARENA_MAX": "1",
}
KERAS_JSON = {
    "image_data_format": "channels_first",
    "floatx": "float16",
    "backend": "theano",
    "epsilon": 1,
}


@pytest.mark.slow
def test_commands_give_the_same_in_a_hostile_environment_and_stay_at_home(spied, make_dataset):
    dataset = make_dataset()
    for path in (*dataset.glob("train/*"), *dataset.glob("train_masks/*")):
        path.rename(path.with_name(f"größe{path.name}"))
    table = (dataset / "folds.csv").read_text().replace("car", "größecar")
    (dataset / "folds.csv").write_text(table, encoding="utf-8")
    (spied / "matplotlibrc").write_text("backend: nonsense\ntext.usetex: True\n")
    digests = {}
    for name, variables in {"clean": {}, "hostile": HOSTILE}.items():
        if variables:
            (spied / "home/.keras").mkdir()
            (spied / "home/.keras/keras.json").write_text(json.dumps(KERAS_JSON))
        common = ["--dataset_dir=input", "--gpu=", "--dtype=float32"]
        flags = [
            "--network=unet_tiny",
            "--smoke",
            "--epochs=1",
            "--fold=0",
            "--size_policy=resize",
            f"--models_dir={name}",
        ]
        done = run("train.py", spied, *common, *flags, **variables)
        assert done.returncode == 0, done.stderr
        (best,) = spied.glob(f"{name}/*/best.keras")
        digests[name] = best.read_bytes()
    assert digests["clean"] == digests["hostile"]
    flags = [f"--weights={best}", "--pred_mask_dir=hostile/masks", "--test_data_dir=input/train"]
    flags += [*common, "--engine=openvino-int8"]
    done = run("predict_multithreaded.py", spied, *flags, **HOSTILE)
    assert done.returncode == 0, done.stderr
    names = [path.name for path in (spied / "hostile/masks").glob("*.png")]
    assert len(names) == 8 and all(name.startswith("größe") for name in names)
    shutil.copytree(spied / "hostile/masks", spied / "copy")
    masks = ["--pred_mask_dir=hostile/masks"]
    others = {
        "evaluate.py": [*masks, "--out_dir=report", "--force"],
        "ensemble.py": [
            "--pred_mask_dirs=hostile/masks,copy",
            "--pred_mask_dir=both",
            "--force",
        ],
        "generate_encoded_submission.py": masks,
        "make_folds.py": ["--folds_out=f.csv", "--n_folds=2"],
        "tools/check_data.py": [],
    }
    for script, flags in others.items():
        dataset_dir = [] if script.startswith("generate") else ["--dataset_dir=input"]
        done = run(script, spied, *dataset_dir, *flags, **HOSTILE)
        assert done.returncode == 0, (script, done.stderr)
    assert (spied / "spy/log").read_text() == ""


def test_a_limit_on_addresses_is_named_before_tensorflow_aborts(monkeypatch):
    limits = {"infinite": resource.RLIM_INFINITY, "small": 1 << 30, "large": 6 << 30}
    now = limits["infinite"]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (now, now))
    assert environment.address_limit() is None
    now = limits["large"]
    assert "ulimit -v gives this process 6.0 GB of addresses" in str(environment.address_limit())
    now = limits["small"]
    with pytest.raises(UserError, match=r"ulimit -v .* 1\.0 GB of addresses.*ulimit -v unlimited"):
        environment.address_limit()
