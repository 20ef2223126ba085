"""Training on two logical processors at once is that on one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from processes import UNOPTIMISED

from carvana_tf import replicas
from carvana_tf.errors import UserError

ROOT = Path(__file__).parent.parent


def test_two_devices_give_the_losses_of_one(make_dataset):
    found = _train("tensorflow", make_dataset())
    _compare_losses(found)
    one, two = found["ranking"]  # a loss whose value of a photo depends on the whole batch
    assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_two_devices_train_as_one_and_go_on_exactly(make_dataset, tmp_path, backend):
    """JAX compiles each step once: a run that goes on does what the whole one did."""
    pytest.importorskip(backend)
    compiled = {
        "XLA_FLAGS": UNOPTIMISED,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    found = _train(backend, make_dataset(), "all", **compiled)
    assert found["names"] == ["cpu:0", "cpu:1"]
    _compare_losses(found)
    if backend == "tensorflow":
        _compare_losses(found, "half ", 1e-3)
    for name in ("one", "two"):
        assert found[f"stopped {name}"]["stopped"].split() == ["KeyboardInterrupt"]
    assert found["bad two"]["stopped"] == "UserError no such photo"
    assert (
        "a batch of 2 fits; --batch_size=2 --gradient_accumulation=2 " in found["scarce"]["stopped"]
    )
    for name in ("one", "two"):
        again, rows = found[f"{name} again"], found[name]["rows"]
        for row, before in zip(again["rows"], rows, strict=True):
            assert row | {"seconds": 0} == before | {"seconds": 0}
        assert again["weights"] == found[name]["weights"]


def _train(backend: str, root: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """What `two_devices.py` finds."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/two_devices.py"), str(root), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)} | environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _compare_losses(found: dict[str, Any], kind: str = "", tolerance: float = 1e-5) -> None:
    for name in ("loss", "val_loss"):
        one, two = ([row[name] for row in found[kind + n]["rows"]] for n in ("one", "two"))
        np.testing.assert_allclose(two, one, rtol=0, atol=tolerance)


def test_pytorch_trains_on_one_device(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(UserError, match="KERAS_BACKEND=torch"), replicas.data_parallel(["a", "b"]):
        pass
    with replicas.data_parallel(["a"]):
        pass
