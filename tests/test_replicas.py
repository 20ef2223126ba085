"""Training on two logical processors at once is that on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from processes import UNOPTIMISED

from carvana_tf import replicas
from carvana_tf.errors import UserError

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_two_devices_train_as_one_and_go_on_exactly(make_dataset, tmp_path):
    """Compiles each step once: a run that goes on does what the whole one did."""
    pytest.importorskip("jax")
    compiled = {
        "XLA_FLAGS": UNOPTIMISED,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/two_devices.py"), str(make_dataset())],
        capture_output=True,
        text=True,
        env=os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)} | compiled,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["names"] == ["cpu:0", "cpu:1"]
    for name in ("loss", "val_loss"):
        one, two = ([row[name] for row in found[each]["rows"]] for each in ("one", "two"))
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
    stops = [stop["stopped"].split()[0] for stop in found["stops"]]
    assert stops == ["KeyboardInterrupt", "UserError"]
    assert (
        "a batch of 2 fits; --batch_size=2 --gradient_accumulation=2 " in found["scarce"]["stopped"]
    )
    for name in ("one", "two"):
        again, rows = found[f"{name} again"], found[name]["rows"]
        for row, before in zip(again["rows"], rows, strict=True):
            assert row | {"seconds": 0} == before | {"seconds": 0}
        assert again["weights"] == found[name]["weights"]


def test_other_backends_train_on_one_device(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(UserError, match="KERAS_BACKEND=jax"), replicas.data_parallel(["a", "b"]):
        pass
    with replicas.data_parallel(["a"]):
        pass
