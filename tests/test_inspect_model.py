"""tools/inspect_model.py as a user runs it."""

from pathlib import Path

import keras
import numpy as np
import pytest
from processes import finish_script_apart

from carvana_tf.models import model_file

ROOT = Path(__file__).parents[1]


def inspect(*flags, cwd):
    return finish_script_apart(ROOT / "tools/inspect_model.py", *flags, cwd=cwd)


@pytest.fixture
def network():
    photo = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, name="frozen", trainable=False)(photo)
    x = keras.layers.BatchNormalization(name="first")(x)
    x = keras.layers.SpatialDropout2D(0.2)(x)
    x = keras.layers.BatchNormalization(scale=False, name="second")(x)
    return keras.Model(photo, keras.layers.Conv2D(1, 1)(x))


def test_it_prints_counts_scores_and_flags(network, tmp_path):
    metadata = {
        "network": "simple_unet",
        "fold": 2,
        "learning_rate": 1e-05,
        "training_groups": [f"car{i:02d}" for i in range(9)],
        "val_groups": ["car09"],
        "scores": {"epoch": 3.0, "val_dice": 0.99612},
    }
    model_file.save(network, tmp_path / "ours.keras", metadata)
    network.save(tmp_path / "plain.keras")
    done = inspect("--model=ours.keras,plain.keras", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours, plain = done.stdout.split("\n\n")
    lines = dict(line.split(maxsplit=1) for line in ours.splitlines()[1:])
    moving = sum(int(np.prod(w.shape)) for w in network.weights if "moving" in w.name)
    assert moving == 16
    assert lines["parameters"] == f"{network.count_params()}, 16 of them moving statistics"
    assert lines["layers"] == f"{len(network.layers)}, 1 frozen"
    assert "expected the same size" in lines["predicts"]
    assert lines["scores.val_dice"] == "0.99612"
    assert lines["fold"] == "2"
    assert lines["learning_rate"] == "1e-05"
    assert lines["training_groups"] == "9: car00, car01, car02, car03, car04, …"
    assert lines["val_groups"] == "car09"
    assert lines["keras"] == keras.__version__
    assert "not written by train.py" in plain


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--model is required"),
        (("--model=broken.keras",), "broken.keras"),
    ],
)
def test_bad_input_is_one_line(tmp_path, flags, message):
    (tmp_path / "broken.keras").write_bytes(b"PK")
    done = inspect(*flags, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
