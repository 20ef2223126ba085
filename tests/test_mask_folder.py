"""Mask folders against their manifests."""

import dataclasses

import numpy as np
import pytest

from carvana_tf.data.images import write_probability
from carvana_tf.errors import UserError
from carvana_tf.files import digest_of_lines
from carvana_tf.masks import manifest
from carvana_tf.masks.open_folder import incomplete, open_complete, open_folder

MODEL = {
    "file": "m.keras", "digest": "0" * 64, "network": "unet", "fold": 1, "training_groups": "1" * 64
}  # fmt: skip
MADE = manifest.Manifest(
    (MODEL,), True, "none", "keras", "float32", 2, digest_of_lines(["b", "a"]),
    manifest.ENCODING, "1",
)  # fmt: skip


@pytest.fixture
def masks(tmp_path):
    for stem in "ab":
        write_probability(tmp_path / f"{stem}.png", np.zeros((3, 4), np.uint8))
    return tmp_path


def test_a_folder_that_is_what_its_manifest_says(masks):
    assert open_folder(masks).out_of_fold is None
    manifest.write(masks, MADE)
    folder = open_folder(masks)
    assert open_complete(masks) == folder
    assert list(folder.masks) == ["a", "b"] and folder.whole_folds() == {1}
    assert incomplete(folder) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"photos": 3}, "lists 3 photos, but .* holds 2 masks"),
        ({"photos_digest": digest_of_lines(["a", "c"])}, "lists other photos than the 2 masks"),
    ],
)
def test_photos_that_contradict_the_manifest_are_refused_or_recorded(masks, changes, message):
    manifest.write(masks, dataclasses.replace(MADE, **changes))
    folder = open_folder(masks)
    assert len(incomplete(folder)) == 1
    with pytest.raises(UserError, match=message + ".*--force"):
        open_complete(masks)
    assert open_complete(masks, force=True).forced == tuple(incomplete(folder))


def test_another_encoding_is_refused_at_once(masks):
    manifest.write(masks, dataclasses.replace(MADE, encoding=manifest.BINARY))
    open_folder(masks, binary=True)
    with pytest.raises(UserError, match="0/255"):
        open_folder(masks)


@pytest.mark.parametrize(
    ("out_of_fold", "expected_message"), [(True, "are out of fold"), (False, "NOT out of fold")]
)
def test_the_origin_in_words(masks, out_of_fold, expected_message):
    assert "is not known" in open_folder(masks).origin
    manifest.write(masks, dataclasses.replace(MADE, out_of_fold=out_of_fold))
    assert expected_message in open_folder(masks).origin


def test_models_that_do_not_tell_what_they_know(masks):
    models = (MODEL, MODEL | {"training_groups": None})
    manifest.write(masks, dataclasses.replace(MADE, models=models, out_of_fold=False))
    folder = open_folder(masks)
    assert folder.out_of_fold is False
