"""Manifests of mask folders."""

import json

import pytest

from carvana_tf.errors import UserError
from carvana_tf.masks import manifest

EXAMPLE = manifest.Manifest(
    models=({"file": "a.keras", "digest": "0f", "network": "unet", "fold": 0},),
    out_of_fold=True,
    tta="hflip",
    engine="keras",
    dtype="bfloat16",
    photos=2,
    photos_digest="ab",
    encoding=manifest.ENCODING,
    version="0.1.0",
)


def test_round_trip(tmp_path):
    manifest.write(tmp_path, EXAMPLE)
    assert manifest.read(tmp_path) == EXAMPLE
    assert json.loads((tmp_path / "manifest.json").read_text())["tta"] == "hflip"


def test_a_folder_without_manifest(tmp_path):
    assert manifest.read(tmp_path) is None


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"models": [], "unknown": 1}', "null"])
def test_damaged_manifests_are_named(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        manifest.read(tmp_path)
