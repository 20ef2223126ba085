"""Devices as each backend counts them; the hardware is made up."""

import os
import types

import keras
import pytest

from carvana_tf import devices
from carvana_tf.errors import UserError


@pytest.fixture
def tensorflow(monkeypatch):
    """TensorFlow with three GPUs; returns what was made visible."""
    tf = pytest.importorskip("tensorflow")
    visible = []
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["A", "B", "C"])
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda gpus, kind: visible.append(list(gpus))
    )
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, on: None)
    return visible


@pytest.fixture
def jax(monkeypatch):
    """JAX with the GPUs 0, 1 and 2; returns the numbers of those made the default."""
    jax = pytest.importorskip("jax")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(
        jax, "local_devices", lambda: [types.SimpleNamespace(id=i) for i in range(3)]
    )
    defaults = []
    # JAX takes no made-up device for its default one.
    config = types.SimpleNamespace(update=lambda name, device: defaults.append((name, device.id)))
    monkeypatch.setattr(jax, "config", config)
    return defaults


def test_tensorflow_counts_the_visible_gpus_anew(tensorflow):
    assert devices.select("2,1") == (["gpu:1", "gpu:0"], None)
    assert tensorflow == [["B", "C"]]


def test_tensorflow_that_runs_already_keeps_its_gpus(tensorflow, monkeypatch):
    import tensorflow as tf

    def refuse(gpus, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", refuse)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["A", "C"])
    with pytest.raises(UserError, match="GPU 1 is not here"):
        devices.select("1,2")


def test_jax_keeps_the_numbers_of_the_machine(jax):
    assert devices.select("1") == (["gpu:1"], None)
    assert devices.select("2,0") == (["gpu:2", "gpu:0"], None)
    assert jax == [("jax_default_device", 1), ("jax_default_device", 2)]


def test_what_is_missing_is_told(jax):
    for gpu in ("0,5", "7"):
        with pytest.raises(UserError, match=r"GPU [57] is not here, but 0,1,2 is"):
            devices.select(gpu)
    with pytest.raises(UserError, match="twice"):
        devices.select("2,0,2")


def test_empty_means_the_processor(tensorflow):
    assert devices.select("") == (["cpu:0"], None)
    assert tensorflow == [[]]


@pytest.mark.parametrize("gpu", ["a", "0,x", "-1", "0 1", "1.5"])
def test_anything_but_numbers_is_refused(gpu):
    with pytest.raises(UserError, match="--gpu="):
        devices.select(gpu)


@pytest.mark.parametrize(
    ("requested", "gpus", "processor", "policy"),
    [
        ("auto", [], {"avx512_bf16"}, "mixed_bfloat16"),
        ("auto", [], {"avx2"}, "float32"),
        ("auto", [9, 8], {"avx2"}, "mixed_bfloat16"),
        ("auto", [9, 7], {"avx512_bf16"}, "mixed_float16"),
        ("auto", [7, 6], {"avx512_bf16"}, "float32"),
        ("float32", [9], {"avx512_bf16"}, "float32"),
        ("bfloat16", [], {"avx2"}, "mixed_bfloat16"),
        ("float16", [], {"avx2"}, "mixed_float16"),
    ],
)
def test_compute_dtype(monkeypatch, requested, gpus, processor, policy):
    monkeypatch.setattr(devices, "_compute_capabilities", lambda: gpus)
    monkeypatch.setattr(devices, "processor_flags", lambda: processor)
    for probe in (devices.has_bfloat16, devices.has_float16):
        monkeypatch.setattr(devices, probe.__name__, probe.__wrapped__)  # what was remembered
    assert devices.compute_dtype(requested) == policy
    assert keras.dtype_policies.get(policy).name == policy


@pytest.mark.parametrize(
    ("flags", "given", "expected"),
    [({"avx2"}, None, "1"), ({"avx2"}, "0", "0"), ({"avx"}, None, None)],
)
def test_onednn_is_used_where_the_processor_has_avx2(monkeypatch, flags, given, expected):
    name = "TF_ENABLE_ONEDNN_OPTS"
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr(devices, "processor_flags", lambda: flags)
    devices._use_onednn()
    assert os.environ.get(name) == expected
