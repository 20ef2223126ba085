"""The short form of tests/faults/models.py, and what each kind of refusal says."""

import json
import random

import h5py
import pytest
from faults import models as faults

from carvana_tf.errors import UserError
from carvana_tf.models import metadata, model_file, safety


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return faults.make_base(tmp_path_factory.mktemp("base"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", faults.KINDS)
def test_hostile_files_are_refused_by_name_or_harmless(base, tmp_path, kind):
    for number in range(3):
        number = len(faults.KINDS) * number + list(faults.KINDS).index(kind)
        _, path = faults.make(base, number, tmp_path)
        readers = faults.as_prediction, lambda p: faults.as_training(p, base)
        results = [faults.read(kind, path, reader) for reader in readers]
        for result in results:
            allowed = {"refused"} if kind in faults.ALWAYS_REFUSED else {"refused", "loaded"}
            assert result.outcome in allowed, result
            assert result.seconds < 60


@pytest.mark.parametrize("number", range(len(faults.CODE)))
def test_code_is_refused_for_what_it_is(base, tmp_path, number):
    config = faults.config_of(base)
    config["config"]["layers"].insert(1, faults.CODE[number])
    path = tmp_path / "evil.keras"
    path.write_bytes(faults.changed(base, safety.CONFIG, json.dumps(config).encode()))
    named = faults.CODE[number]["class_name"]
    named = faults.CODE[number]["config"] if named == "function" else named
    expected = (
        "Python code" if named == "Lambda" else str(named) if isinstance(named, str) else "class"
    )
    with pytest.raises(UserError, match=r"evil\.keras") as caught:
        model_file.load(path)
    assert expected in str(caught.value)
    assert "train" not in str(caught.value)  # that would not help


def test_files_of_this_machine_do_not_come_into_weights(base, tmp_path):
    data = faults.edited(base.weights_h5, faults.external_storage, random.Random(0))
    (tmp_path / "evil.weights.h5").write_bytes(data)
    with pytest.raises(UserError, match="from other files of this machine"):
        safety.check_weights(tmp_path / "evil.weights.h5")


@pytest.mark.parametrize("link", ["pipe", "zero", "folder"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, link):
    path = tmp_path / "a.keras"
    if link == "pipe":
        faults.os.mkfifo(path)
    elif link == "zero":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UserError, match="is no regular file"):
        safety.read_keras(path)
    with pytest.raises(UserError, match="is no regular file"):
        safety.check_weights(path)


def test_losses_of_the_author_do_not_matter(base, tmp_path):
    config = faults.config_of(base) | {
        "compile_config": {"loss": {"class_name": "Mine", "module": "my.losses", "config": {}}}
    }
    path = tmp_path / "a.keras"
    path.write_bytes(faults.changed(base, safety.CONFIG, json.dumps(config).encode()))
    model_file.load(path)


@pytest.mark.parametrize(
    "pattern", [r"^(.+)_\d+$", "(.+)", "^([a-z]+)-.*_.*$", r"(car\d{2}|van)_.*", "([^_]+)_.+"]
)
def test_patterns_that_end_soon_are_accepted(tmp_path, pattern):
    metadata.check(tmp_path, {"group_pattern": pattern})


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        r"((\w+)*)+!",
        "(a|aa)+$",
        "(.*)(.*)(.*)(.*)(.*)x",
        r"(\w+)\1",
        "(?=(a+))",
        "(",
        "a",
    ],
)
def test_patterns_that_may_take_for_ever_are_refused(tmp_path, pattern):
    with pytest.raises(UserError, match="group_pattern"):
        metadata.check(tmp_path, {"group_pattern": pattern})


@pytest.mark.parametrize("rate", [4096, [1, 4096], 257, -1])
def test_a_dilation_that_pads_beyond_memory_is_refused(base, tmp_path, rate):
    config = faults.config_of(base)
    layers = config["config"]["layers"]
    convolution = next(layer for layer in layers if layer["class_name"] == "Conv2D")
    convolution["config"]["dilation_rate"] = rate
    path = tmp_path / "a.keras"
    path.write_bytes(faults.changed(base, safety.CONFIG, json.dumps(config).encode()))
    wrong = max(rate) if isinstance(rate, list) else rate
    with pytest.raises(UserError, match=rf"a\.keras' gives dilation_rate={wrong} .*0 to 256"):
        safety.read_keras(path)


def test_enumerations_are_no_weights(base, tmp_path):
    """Keras would read their numbers, and their names may fill memory."""

    def enumerate_kernel(file, chance):
        group, name = faults.own_array(file)
        shape = group[name].shape
        del group[name]
        group.create_dataset(name, shape, h5py.enum_dtype({"a": 1, "b": 2}, basetype="i4"))

    path = tmp_path / "a.weights.h5"
    path.write_bytes(faults.edited(base.weights_h5, enumerate_kernel, random.Random(0)))
    with pytest.raises(UserError, match=r"a\.weights\.h5' holds '.*' of type .*are numbers"):
        safety.check_weights(path)
