"""Pseudo-labels: which are taken, and whose are refused."""

import dataclasses

import numpy as np
import pytest

from carvana_tf.data.dataset import Naming
from carvana_tf.data.images import write_probability
from carvana_tf.errors import UserError
from carvana_tf.files import digest_of_lines
from carvana_tf.masks import manifest
from carvana_tf.masks.open_folder import open_complete
from carvana_tf.training import pseudo

STEMS = ["car00_01", "car00_02", "car01_01"]
TRAINED = {"a", "b"}


@pytest.fixture
def photos(make_dataset):
    return make_dataset() / "train"


@pytest.fixture
def masks(tmp_path):
    """The share of pixels that are sure is 1, 3/4 and 0."""
    folder = tmp_path / "predicted"
    for number, stem in enumerate(STEMS):
        values = np.full((40, 56), 250, np.uint8)
        # On both sides of 0.1 and 0.9: 25 / 255 = 0.098, 26 / 255 = 0.102.
        values[:10] = (25, 26, 26)[number]
        values[10:20] = (230, 230, 229)[number]
        values[20:] = (0, 255, 128)[number]
        folder.mkdir(exist_ok=True)
        write_probability(folder / f"{stem}.png", values)
    return folder


def write_manifest(folder, *models):
    manifest.write(
        folder,
        manifest.Manifest(
            models=models, out_of_fold=True, tta="none", engine="keras", dtype="float32",
            photos=3, photos_digest=digest_of_lines(STEMS), encoding=manifest.ENCODING, version="0",
        ),
    )  # fmt: skip


def model(fold, groups=TRAINED, file="best.keras"):
    digest = None if groups is None else digest_of_lines(sorted(groups))
    return {"file": file, "fold": fold, "training_groups": digest}


def test_photos_with_a_predicted_mask_are_found(photos, masks):
    samples = pseudo.find_samples(photos, open_complete(masks), Naming())
    assert [sample.stem for sample in samples] == STEMS
    assert all(sample.soft for sample in samples)
    assert [sample.group for sample in samples] == ["car00", "car00", "car01"]


def test_nothing_found_is_told(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"'.*empty' holds no mask"):
        pseudo.find_samples(photos, open_complete(tmp_path / "empty"), Naming())
    write_probability(tmp_path / "empty" / "stranger.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match=r"<stem>\.png.*--pseudo_mask_dir"):
        pseudo.find_samples(photos, open_complete(tmp_path / "empty"), Naming())
    with pytest.raises(UserError, match=r"'.*absent' does not exist"):
        pseudo.find_samples(photos, open_complete(tmp_path / "absent"), Naming())


@pytest.mark.parametrize(("least", "kept"), [(0.0, 3), (0.01, 2), (0.75, 2), (0.76, 1), (1.0, 1)])
def test_masks_that_are_not_sure_are_left_out(photos, masks, least, kept):
    samples = pseudo.find_samples(photos, open_complete(masks), Naming())
    assert pseudo.confident(samples, least, 2) == samples[:kept]


def test_no_mask_is_sure_enough(photos, masks):
    samples = pseudo.find_samples(photos, open_complete(masks), Naming())[1:]
    with pytest.raises(UserError, match=r"--pseudo_confidence=0\.9.*surest has 0\.7500"):
        pseudo.confident(samples, 0.9, 2)


@pytest.mark.parametrize("models", [[model(0)], [model(0), model(0, file="b.keras")]])
def test_models_of_the_same_fold_are_allowed(masks, models):
    write_manifest(masks, *models)
    pseudo.refuse_leak(masks, 0, TRAINED)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([model(1)], r"'best\.keras' of fold 1.*--fold=0.*--force"),
        ([model(0), model("none", file="all.keras")], r"'all\.keras' of fold none"),
        ([model(None)], "of an unknown fold"),
        ([model(0, groups={"a", "c"})], "another folds file"),
        ([model(0, groups=None)], "does not say what it was trained on"),
        ([model(0) | {"knows_its_fold": True}], "knows masks of fold 0.*trained with --force"),
        ([], "no manifest.json that says what made it"),
    ],
)
def test_models_that_may_have_seen_the_fold_are_refused(masks, models, message):
    write_manifest(masks, *models)
    with pytest.raises(UserError, match=message) as caught:
        pseudo.refuse_leak(masks, 0, TRAINED)
    assert "\n" not in str(caught.value)


def test_masks_of_a_stacked_network_are_refused(masks):
    write_manifest(masks, model(0))
    made = manifest.read(masks)
    manifest.write(masks, dataclasses.replace(made, stacked="digest"))
    with pytest.raises(UserError, match=r"stacked channels, whose models may.*--force"):
        pseudo.refuse_leak(masks, 0, TRAINED)


def test_a_folder_that_is_not_its_manifests_is_refused_or_told(photos, masks, capsys):
    write_manifest(masks, model(0))
    (masks / f"{STEMS[0]}.png").unlink()
    with pytest.raises(UserError, match=r"lists 3 photos, but .* holds 2.*--force"):
        pseudo.find_samples(photos, open_complete(masks), Naming())
    samples = pseudo.find_samples(photos, open_complete(masks, force=True), Naming())
    assert [sample.stem for sample in samples] == STEMS[1:]
    assert "warning: " in capsys.readouterr().err


def test_without_groups_the_fold_decides(masks):
    write_manifest(masks, model(0, groups={"c"}))
    pseudo.refuse_leak(masks, 0, None)


def test_masks_of_unknown_origin_are_refused(masks):
    with pytest.raises(UserError, match=r"no manifest\.json.*--force"):
        pseudo.refuse_leak(masks, 0, TRAINED)


def test_photos_of_the_validated_groups_are_refused(photos, masks):
    samples = pseudo.find_samples(photos, open_complete(masks), Naming())
    pseudo.refuse_groups(samples, {"car02"})
    with pytest.raises(UserError, match=r"2 photos.*car00_01\.jpg.*--force"):
        pseudo.refuse_groups(samples, {"car00"})
    with pytest.raises(UserError, match="1 photos"):
        pseudo.refuse_groups([dataclasses.replace(samples[0], group="x")], {"x"})
