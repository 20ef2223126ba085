"""The Python API: the command's values, in order, from files and arrays."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

import carvana_tf
from carvana_tf.data.images import read_photo
from carvana_tf.errors import UserError
from carvana_tf.inference import in_memory, loading
from carvana_tf.inference.predict_folder import predict_folder
from carvana_tf.models.model_file import save

ROOT = Path(__file__).parents[1]
WEIGHTS = ((3.0, -1.0, 0.5), -0.7), ((0.2, 0.1, -2.0), 0.4)


def make_model(path, weights, bias, **changes):
    import keras

    photo = keras.Input((None, None, 3))
    layer = keras.layers.Conv2D(1, 1, activation="sigmoid", name="mask")
    model = keras.Model(photo, layer(keras.layers.Rescaling(1 / 255)(photo)))
    layer.set_weights([np.reshape(weights, (1, 1, -1, 1)), np.array([bias])])
    sizes = {"size_policy": "resize", "input_height": 32, "input_width": 48}
    metadata = {"network": "simple_unet", "stride": 8, "stacked_channels": 0, "fold": 0, **sizes}
    save(model, path, metadata | changes)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos in input/test and models where the documentation has them."""
    root = tmp_path_factory.mktemp("api")
    folder = root / "input/test"
    folder.mkdir(parents=True)
    random = np.random.default_rng(3)
    for i in range(1, 7):
        noise = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        photo = cv2.resize(noise, (56 + i, 40), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"car1_{i:02d}.jpg"), photo)
    for fold, parameters in enumerate(WEIGHTS):
        path = root / f"models/mobilenet-fold_{fold}/best.keras"
        path.parent.mkdir(parents=True)
        make_model(path, *parameters)
    return root


@pytest.fixture
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def models(place):
    return sorted(place.glob("models/*/best.keras"))


def by_command(place, out, members, **changes):
    """What the command writes, by stem."""
    from carvana_tf.models import checkpoint

    values = loading.parse(changes)
    output = values[loading.OutputOptions]
    read = [checkpoint.read(path, values[loading.NetworkOptions]) for path in members]
    samples = in_memory.find_photos(place / "input/test")
    predict_folder(samples, read, out, output, ["cpu:0"], engine="keras")
    return {p.stem: cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted(out.glob("*.png"))}


@pytest.mark.parametrize(
    "changes",
    [{}, {"pred_tta": "hflip", "threads": 3}, {"tile_size": 16, "tile_overlap": 8}],
    ids=str,
)
def test_values_and_order_are_those_of_the_command(place, tmp_path, changes):
    expected = by_command(place, tmp_path / "out", models(place), **changes)
    found = list(
        carvana_tf.predict(place / "input/test", models(place), gpu="", engine="keras", **changes)
    )
    assert [prediction.photo.stem for prediction in found] == list(expected)
    for prediction, grey in zip(found, expected.values(), strict=True):
        assert np.array_equal(prediction.grey, grey)
        assert np.array_equal(prediction.mask(90), grey > 90)
        assert np.array_equal(np.rint(prediction.probability * 255), grey)
    assert len({prediction.grey.shape for prediction in found}) == 6


@pytest.mark.parametrize("background", ["transparent", "#102030"])
def test_cutouts_are_those_of_the_command(place, tmp_path, background):
    expected = by_command(
        place, tmp_path / "out", models(place)[:1], cutout=True, background=background
    )
    found = carvana_tf.predict(
        place / "input/test", models(place)[0], gpu="", cutout=True, background=background
    )
    for prediction, picture in zip(found, expected.values(), strict=True):
        order = cv2.COLOR_BGRA2RGBA if picture.shape[2] == 4 else cv2.COLOR_BGR2RGB
        assert np.array_equal(prediction.cutout, cv2.cvtColor(picture, order))


def test_arrays_are_as_their_files(place):
    files = sorted((place / "input/test").iterdir())
    model = carvana_tf.load(models(place)[0], gpu="", engine="keras")
    arrays = [read_photo(path) for path in files]
    mixed = [arrays[0], files[1], *arrays[2:]]
    for one, other in zip(model.predict(files), model.predict(mixed), strict=True):
        assert np.array_equal(one.grey, other.grey)
        assert other.photo == (one.photo if one.index == 1 else None)
    (single,) = model.predict(arrays[4])
    assert single.index == 0
    assert list(model.predict([])) == []


def test_who_stops_early_leaves_no_thread_behind(place):
    model = carvana_tf.load(models(place)[0], gpu="", engine="keras")
    photo = read_photo(place / "input/test/car1_01.jpg")
    before = threading.active_count()
    predictions = model.predict([photo] * 200)
    assert [next(predictions).index, next(predictions).index] == [0, 1]
    predictions.close()
    assert threading.active_count() == before


def test_an_unreadable_photo_is_an_error_at_its_place_or_left_out(place, tmp_path, caplog):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    good = place / "input/test/car1_01.jpg"
    predictions = carvana_tf.predict([good, bad, good], models(place)[0], gpu="")
    assert next(predictions).index == 0
    with pytest.raises(UserError, match=r"bad\.jpg"):
        next(predictions)
    found = carvana_tf.predict([bad, good], models(place)[0], gpu="", skip_unreadable=True)
    assert [prediction.index for prediction in found] == [1]
    assert "bad.jpg" in caplog.text


def test_where_memory_is_not_enough_smaller_batches_do(place, monkeypatch, caplog):
    run, sizes = in_memory.Session.run, []

    def scarce(session, samples, output, **rest):
        sizes.append(session.settings.batch_size)
        if session.settings.batch_size > 1:
            raise in_memory.OutOfMemory("out of memory")
        return run(session, samples, output, **rest)

    monkeypatch.setattr(in_memory.Session, "run", scarce)
    folder = place / "input/test"
    found = carvana_tf.predict(folder, models(place)[0], gpu="", pred_batch_size=4)
    assert [prediction.index for prediction in found] == list(range(6))
    assert sizes == [4, 2, 1]
    assert "going on with batches of 2" in caplog.text


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"pred_ttta": "hflip"}, r"'pred_ttta' is unknown\. Did you mean 'pred_tta'"),
        ({"pred_tta": "twice"}, "pred_tta"),
        ({"threads": 0}, "threads"),
        ({"background": "white"}, "--background=white has no effect"),
        ({"threshold": 9}, "Prediction.mask"),
        ({"cutout": True, "cutout_format": "webp"}, "cut-outs are arrays"),
        ({"engine": "openvino-int8"}, "calibration_dir"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(place, flags, named):
    with pytest.raises(UserError, match=named) as raised:
        list(carvana_tf.predict(place / "input/test", models(place)[0], **{"gpu": "", **flags}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("photos", "named"),
    [
        (np.zeros((4, 4, 3), np.float32), r"photo 0 is float32\[4, 4, 3\]; give uint8"),
        ([np.zeros((4, 4), np.uint8)], r"uint8\[4, 4\]"),
        ("nowhere.jpg", "'nowhere.jpg' does not exist"),
        ("input", "'input' holds no photo"),
    ],
    ids=["float", "grey", "missing", "empty"],
)
def test_what_is_no_photo_is_refused_at_once(inside, place, photos, named):
    with pytest.raises(UserError, match=named):
        carvana_tf.predict(photos, models(place)[0], gpu="")
    with pytest.raises(UserError, match="do not exist"):
        carvana_tf.load(place / "nothing.keras")


def test_the_examples_of_the_documentation_run(inside):
    examples = re.findall("```python\n(.+?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        names = {}
        exec(compile(example, "docs/python.md", "exec"), names)
    assert names["second"].grey.shape == (40, 56)


def test_the_import_loads_nothing_heavy():
    code = "import sys, carvana_tf; print(*{'numpy', 'keras', 'cv2', 'absl'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("", "")
