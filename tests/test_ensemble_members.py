"""Models as members of an ensemble: any layout of the dataset, stacked channels."""

from pathlib import Path

import keras
import numpy as np
import pytest
from processes import finish_script_apart

from carvana_tf.commands import ensemble
from carvana_tf.data.images import read_grey, write_photo, write_probability
from carvana_tf.errors import UserError
from carvana_tf.files import digest, digest_of_lines
from carvana_tf.masks import manifest
from carvana_tf.models import model_file

ROOT = Path(__file__).parent.parent
# Groups are what stands before the dash; the default pattern would find none.
STEMS = [f"{group}-{letter}" for group in ("p", "q", "r", "s") for letter in "ab"]
FOLDS = {"p": 0, "q": 0, "r": 1, "s": 1}


def save_model(path, bias, channels, fold, **metadata):
    """A network whose probability is sigmoid(the mean of its channels / 255 + bias)."""
    photo = keras.Input((None, None, channels))
    dot = keras.layers.Conv2D(1, 1, activation="sigmoid", name="mask")
    model = keras.Model(photo, dot(keras.layers.Rescaling(1 / 255)(photo)))
    weights = np.full((1, 1, channels, 1), 1 / channels)
    dot.set_weights([weights, np.array([bias])])
    described = {
        "network": f"{channels} channels",
        "stride": 8,
        "size_policy": "pad",
        "stacked_channels": channels - 3,
        "fold": fold,
        "training_groups": [group for group, f in FOLDS.items() if f != fold],
        "group_pattern": "^(.)-",
        "mask_suffix": "",
        "val_data_dir_name": "images",
    }
    model_file.save(model, path, described | metadata)


@pytest.fixture
def cells(tmp_path):
    """Photos in cells/images, out-of-fold channels for them, and models of fold 0."""
    random = np.random.default_rng(2)
    for stem in STEMS:
        photo = random.integers(0, 256, (16, 24, 3), np.uint8)
        write_photo(tmp_path / "cells/images" / f"{stem}.png", photo)
        grey = random.integers(0, 256, (16, 24), np.uint8)
        write_probability(tmp_path / "channel" / f"{stem}.png", grey)
    groups = digest_of_lines(["r", "s"])
    manifest.write(
        tmp_path / "channel",
        manifest.Manifest(
            models=({"file": "c", "digest": "c", "fold": 0, "training_groups": groups},),
            out_of_fold=True, tta="none", engine="keras", dtype="float32", photos=len(STEMS),
            photos_digest=digest_of_lines(STEMS), encoding=manifest.ENCODING, version="0",
        ),
    )  # fmt: skip
    rows = [f"{group},{fold},1" for group, fold in FOLDS.items()]
    (tmp_path / "cells/folds.csv").write_text("\n".join(["id,fold,area", *rows]) + "\n")
    save_model(tmp_path / "plain.keras", -0.4, 3, 0)
    channel = str(tmp_path / "channel")
    save_model(tmp_path / "stacked.keras", -0.3, 4, 0, stacked_channels_dir=channel)
    return tmp_path


@pytest.mark.slow
def test_plain_and_stacked_models_predict_their_fold_of_any_layout(cells):
    flags = ("--predict_on_val", "--dataset_dir=cells", "--pred_mask_dir=out")
    members = "--member=plain.keras,stacked.keras"
    done = finish_script_apart(ROOT / "ensemble.py", *flags, members, cwd=cells)
    assert done.returncode == 0, done.stderr
    out = cells / "out"
    made = manifest.read(out)
    assert made.out_of_fold and made.photos == 4 and len(made.models) == 2
    for stem in STEMS[:4]:
        members = [
            read_grey(out / "members" / digest(cells / name)[:16] / f"{stem}.png").astype(int)
            for name in ("plain.keras", "stacked.keras")
        ]
        assert not np.array_equal(*members)
        np.testing.assert_array_equal(read_grey(out / f"{stem}.png"), (sum(members) + 1) // 2)


@pytest.fixture
def flags_of():
    """The flags that a member is predicted with, by those of ensemble.py."""
    return lambda member, *arguments: ensemble._photos_of(
        member, ensemble.COMMAND.parse([f"--member={member}", *arguments])
    )


def test_flags_win_over_what_the_model_says(cells, flags_of):
    known = flags_of(cells / "plain.keras", "--predict_on_val")
    assert {"--group_pattern=^(.)-", "--mask_suffix=", "--val_data_dir_name=images"} <= {*known}
    given = ("--group_pattern=(.)", "--val_data_dir_name=other", "--folds_source=f.csv")
    assert {*given, "--mask_suffix="} <= {
        *flags_of(cells / "plain.keras", "--predict_on_val", *given)
    }


def test_channels_go_to_the_models_that_take_them(cells, flags_of):
    flag = "--stacked_channels_dir=x"
    assert flag in flags_of(cells / "stacked.keras", flag)
    assert flag not in flags_of(cells / "plain.keras", flag)
    # The masks of the training photos are none of the test photos'.
    with pytest.raises(UserError, match=r"stacked\.keras' takes 1 stacked channels; name"):
        flags_of(cells / "stacked.keras", "--test_data_dir=t")


def test_channels_that_no_member_takes_are_refused(cells, monkeypatch):
    monkeypatch.chdir(cells)
    flags = ("--member=plain.keras", "--pred_mask_dir=out", "--stacked_channels_dir=channel")
    with pytest.raises(UserError, match="--stacked_channels_dir='channel' has no effect"):
        ensemble.COMMAND.call(flags)
