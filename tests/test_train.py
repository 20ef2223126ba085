"""train.py through its library entry: runs, their files, and what a user gets wrong."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import draw_pair
from processes import run_script_apart, start_script_apart

import carvana_tf
from carvana_tf.data.images import (
    read_mask,
    read_photo,
    write_mask,
    write_photo,
    write_probability,
)
from carvana_tf.errors import UserError
from carvana_tf.files import digest_of_lines, held
from carvana_tf.masks import manifest
from carvana_tf.models import checkpoint, decoders, model_file
from carvana_tf.models.options import NetworkOptions
from carvana_tf.tasks import MASKS
from carvana_tf.training import loop, run, state
from carvana_tf.training.network import bn_momentum
from carvana_tf.training.network import build as build_network
from carvana_tf.training.options import TrainingOptions
from carvana_tf.training.splits import find_splits
from carvana_tf.training.state import Progress

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("eager", "undrawn")


@pytest.fixture
def make_run(make_dataset, tmp_path):
    root = make_dataset(height=40, width=56)

    def make(**changes):
        smoke = {"network": "unet_tiny", "smoke": True, "models_dir": str(tmp_path / "models")}
        # A schedule that does not depend on the length of the run.
        usual = {"size_policy": "resize", "lr_schedule": "constant", "weights": "none"}
        return TrainingOptions.of(**{"dataset_dir": str(root)} | smoke | usual | changes)

    return make


def train_first(options):
    return run.train_split(options, find_splits(options)[0])


@pytest.mark.graph
def test_a_run_leaves_models_with_metadata_and_a_log(make_run):
    result = train_first(make_run(epochs=2))
    folder = result["folder"]
    assert folder.name == "unet_tiny-fold_0-smoke"
    plain = keras.saving.load_model(folder / "best.keras")
    ours, metadata = model_file.load(folder / "best.keras")
    photo = np.full((1, 64, 64, 3), 100, np.uint8)
    np.testing.assert_array_equal(plain.predict_on_batch(photo), ours.predict_on_batch(photo))
    assert metadata["fold"] == 0
    assert metadata["training_groups"] == ["car01", "car03"]
    assert metadata["val_groups"] == ["car00", "car02"]
    assert metadata["stride"] == 4
    assert metadata["scores"]["val_dice"] == max(row["val_dice"] for row in result["rows"])
    assert json.loads((folder / "best.json").read_text()) == metadata
    header = (folder / "log.csv").read_text().splitlines()[0].split(",")
    for name in ("dice", "accuracy", "dice_coef", "dice_coef_border", "dice_coef_clipped", "loss"):
        assert f"val_{name}" in header
    assert "val_binary_crossentropy" in header


def test_all_folds_are_trained_one_after_the_other(make_run):
    options = make_run(fold="all", epochs=1)
    splits = find_splits(options)
    names = [run.train_split(options, split)["folder"].name for split in splits]
    assert names == ["unet_tiny-fold_0-smoke", "unet_tiny-fold_1-smoke"]
    trained = [{sample.group for sample in split.training} for split in splits]
    assert not trained[0] & trained[1]


def test_a_grey_network_learns_from_one_view(make_run):
    options = make_run(
        network="unet_tiny",
        photo_channels=1,
        train_pattern="_01$",
        loss_function="weighted_log_dice",
        epochs=1,
    )
    (split,) = find_splits(options)
    assert [sample.stem for sample in split.training] == ["car01_01", "car03_01"]
    assert len(split.validation) == 4
    result = run.train_split(options, split)
    (row,) = result["rows"]
    assert 0 < row["accuracy"] < 1
    assert 0 < row["val_accuracy"] < 1
    assert row["val_accuracy"] != row["val_dice"]
    model, metadata = model_file.load(result["folder"] / "best.keras")
    assert metadata["photo_channels"] == 1
    assert metadata["train_pattern"] == "_01$"
    assert model.get_layer("encoder_stage1_conv1").kernel.shape[2] == 1


def test_views_of_training_and_validation_are_chosen_apart(make_run):
    options = make_run(fold="all", train_pattern="^car0[01]", val_pattern="_02$")
    for split in find_splits(options):
        groups = {sample.group for sample in split.training}
        assert groups == {f"car0{1 - split.fold}"}
        stems = [sample.stem for sample in split.validation]
        assert stems == [f"car{group:02d}_02" for group in (split.fold, split.fold + 2)]
    (everything,) = find_splits(make_run(fold="none", train_pattern="_02$"))
    assert [sample.stem[-2:] for sample in everything.training] == ["02"] * 4


def test_fold_none_trains_on_everything(make_run):
    options = make_run(fold="none", epochs=1, net_alias="full")
    (split,) = find_splits(options)
    assert len(split.training) == 8
    folder = run.train_split(options, split)["folder"]
    assert folder.name == "unet_tiny-full-fold_none-smoke"
    assert (folder / "last.keras").is_file()
    assert not (folder / "best.keras").exists()


@pytest.mark.parametrize(("given", "smoke"), [(None, 64), (1024, 64), (32, 32)])
def test_a_smoke_run_is_no_larger_than_the_real_one(given, smoke):
    """Its crop has to fit photos that the real one fits."""
    options = TrainingOptions.of(input_width=given, input_height=given).shrunk()
    assert (options.input.input_width, options.input.input_height) == (smoke, smoke)


@pytest.mark.parametrize("policy", ["crop", "pad"])
def test_other_size_policies_run(make_dataset, make_run, policy):
    options = make_run(size_policy=policy, epochs=1)
    if policy == "crop":  # the smoke crop is larger than these photos
        with pytest.raises(UserError, match="larger than"):
            train_first(options)
        return
    assert len(train_first(options)["rows"]) == 1


def test_a_run_from_before_a_flag_was_there_goes_on(make_run):
    options = make_run(epochs=1)
    folder = train_first(options)["folder"]
    settings = json.loads((folder / "run.json").read_text())
    assert settings.pop("min_delta") == 0
    (folder / "run.json").write_text(json.dumps(settings))
    assert not train_first(options)["trained"]
    with pytest.raises(UserError, match=r"other settings \(min_delta\)"):
        train_first(options.replace(min_delta=0.1))


@pytest.mark.parametrize(
    ("flags", "written"),
    [
        (
            {"size_policy": "crop", "lr_schedule": "0:0.1"},
            {"size_policy": None, "use_crop": True, "learning_rate": 1e-5},
        ),
        (
            {"size_policy": "pad", "clr": "1e-5,1e-4,5,triangular", "lr_schedule": "cosine"}
            | {"input_width": None, "input_height": None},
            {"size_policy": None, "use_crop": False, "learning_rate": 1e-5, "input_width": 1024}
            | {"lr_schedule": "constant"},
        ),
    ],
)
def test_a_run_of_earlier_defaults_goes_on_with_the_same_values(make_run, flags, written):
    changes = {"smoke": False, "input_width": 32, "input_height": 32} | flags
    options = make_run(network="unet_tiny", epochs=1, batch_size=1, **changes)
    folder = train_first(options)["folder"]
    settings = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(settings | {"weights": None} | written))
    assert not train_first(options)["trained"]
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        train_first(options.replace(seed=1))


def test_defaults_start_from_imagenet_where_keras_has_it(make_run, monkeypatch, capsys):
    asked = []

    def load_into(network, source, **_):
        asked.append((network.name, source))
        raise UserError("no network")

    monkeypatch.setattr("carvana_tf.models.weights.load_into", load_into)
    changes = {"network": "mobilenet", "weights": None, "epochs": 1}
    train_first(make_run(**changes))
    assert not asked and "random weights, as always with --smoke" in capsys.readouterr().out
    with pytest.raises(UserError, match="no network"):
        train_first(make_run(smoke=False, **changes))
    assert asked == [("mobilenet", "imagenet")]


def test_photos_of_any_size_train_with_the_defaults(make_run, capsys):
    options = make_run(smoke=False, size_policy=None, network="unet_tiny", epochs=1, batch_size=2)
    root = Path(options.dataset.dataset_dir)
    photo, mask = draw_pair(72, 100, 1)
    write_photo(root / "train" / "car01_01.jpg", photo)
    write_mask(root / "train_masks" / "car01_01_mask.gif", mask)
    folder = train_first(options)["folder"]
    metadata = model_file.read_metadata(folder / "last.keras")
    assert (metadata["size_policy"], metadata["learning_rate"]) == ("resize", 1e-3)
    assert (metadata["input_width"], metadata["input_height"]) == (56, 40)
    assert "unet_tiny from random weights; resize 56x40, batch 2" in capsys.readouterr().out
    assert not train_first(options)["trained"]


def test_a_photo_that_shrinks_the_crop_of_all_is_named(make_run, capsys):
    options = make_run(smoke=False, size_policy="crop", network="unet_tiny", epochs=1, batch_size=2)
    path = Path(options.dataset.dataset_dir) / "train/car01_01.jpg"  # 40 x 56, as all
    mask = path.parents[1] / "train_masks/car01_01_mask.gif"
    write_photo(path, read_photo(path)[:20, :20])
    write_mask(mask, read_mask(mask)[:20, :20])
    folder = train_first(options)["folder"]
    printed = capsys.readouterr().out
    assert f"only 20x20 pixels, as '{path}' has 20x20; half of the 4 photos" in printed
    assert "--size_policy=resize" in printed
    # Windows are cut in training only.
    trained = checkpoint.read(folder / "last.keras", NetworkOptions())
    assert (trained.task, trained.resizer.policy) == ("masks", "pad")


def test_another_version_of_the_package_goes_on(make_run, monkeypatch):
    options = make_run(epochs=1)
    monkeypatch.setattr(carvana_tf, "__version__", "99")
    folder = train_first(options)["folder"]
    assert json.loads((folder / "run.json").read_text())["version"] == "99"
    assert model_file.read_metadata(folder / "last.keras")["version"] == "99"
    monkeypatch.undo()
    assert not train_first(options)["trained"]


def test_a_state_of_a_later_format_is_named(make_run, monkeypatch):
    options = make_run(epochs=1)
    monkeypatch.setattr(state, "FORMAT", state.FORMAT + 1)
    train_first(options)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"state\.npz' has format 3, .*--restart"):
        train_first(options)


def test_a_run_is_lengthened_where_its_rates_allow_it(make_run, tmp_path):
    options = make_run(epochs=1, keep_every=1, learning_rate=0.01)
    short = train_first(options)["rows"]
    longer = options.replace(epochs=2)
    result = train_first(longer)
    assert result["trained"] and len(result["rows"]) == 2
    assert result["rows"][0] == pytest.approx(short[0] | {"seconds": result["rows"][0]["seconds"]})
    assert json.loads((result["folder"] / "run.json").read_text())["epochs"] == 2
    assert not train_first(longer)["trained"]
    with pytest.raises(UserError, match="has done more than --epochs=1"):
        train_first(options)
    # Back to a kept epoch, and on again.
    kept = longer.replace(from_epoch=1)
    before = model_file.load(result["folder"] / "last.keras")[0].get_weights()
    again = train_first(kept)
    assert again["trained"] and len(again["rows"]) == 2
    after = model_file.load(again["folder"] / "last.keras")[0].get_weights()
    for value, expected in zip(after, before, strict=True):
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(UserError, match=r"--from_epoch=5: .* keeps no state.*of 1, 2"):
        train_first(longer.replace(from_epoch=5))


def test_a_run_whose_rates_depend_on_its_length_says_how_to_go_on(make_run):
    options = make_run(epochs=1, lr_schedule="cosine")
    folder = train_first(options)["folder"]
    message = rf"--lr_schedule=cosine depend.*--epochs=2; .*--weights={folder}/last\.keras.*alias"
    with pytest.raises(UserError, match=message):
        train_first(options.replace(epochs=2))


def test_a_lost_state_beside_models_is_no_new_run(make_run):
    options = make_run(epochs=1)
    folder = train_first(options)["folder"]
    best = (folder / "best.keras").read_bytes()
    for name in ("state.npz", "state.previous.npz"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"holds log\.csv but no state\.npz.*--restart"):
        train_first(options)
    assert (folder / "best.keras").read_bytes() == best
    assert train_first(options.replace(restart=True))["trained"]
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match=r"holds state\.npz but no run\.json.*--restart"):
        train_first(options)


def test_other_flags_are_refused_before_the_first_epoch_ends(make_run):
    """A run that has not done a step may be corrected; one that has may not."""
    options = make_run(epochs=1)

    class Stop(KeyboardInterrupt):
        pass

    def stop(*_, **__):
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "fit", stop)
        with pytest.raises(Stop):
            train_first(options)
    other = options.replace(learning_rate=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "validate", stop)
        with pytest.raises(Stop):
            train_first(other)
    with pytest.raises(UserError, match=r"other settings \(learning_rate\)"):
        train_first(options)


def test_a_trial_does_not_stand_in_the_way_of_the_real_run(make_run, tmp_path):
    options = make_run(
        network="unet_tiny", epochs=1, input_width=64, input_height=64, steps_per_epoch=1
    )
    trial = train_first(options)["folder"]
    real = train_first(options.replace(smoke=False))["folder"]
    assert (trial.name, real.name) == ("unet_tiny-fold_0-smoke", "unet_tiny-fold_0")
    with pytest.raises(UserError, match=r"'/nowhere\.h5' do not exist"):
        train_first(options.replace(weights="/nowhere.h5", net_alias="w"))


def move(root, stems, photos, masks):
    """Moves photos and their masks into folders of their own."""
    for stem in stems:
        for path in (root / "train" / f"{stem}.jpg", root / "train_masks" / f"{stem}_mask.gif"):
            target = root / (photos if path.suffix == ".jpg" else masks) / path.name
            target.parent.mkdir(exist_ok=True)
            path.rename(target)


def test_validation_photos_may_lie_in_a_folder_of_their_own(make_run):
    options = make_run(val_data_dir_name="val", val_mask_dir_name="val_masks")
    root = Path(options.dataset.dataset_dir)
    move(root, ["car00_01", "car00_02", "car02_01", "car02_02"], "val", "val_masks")
    (split,) = find_splits(options)
    assert {sample.group for sample in split.training} == {"car01", "car03"}
    assert {sample.group for sample in split.validation} == {"car00", "car02"}
    assert {sample.photo.parent.name for sample in split.validation} == {"val"}
    with pytest.raises(UserError, match=r"--fold=1 leaves no training photo in '.*train'"):
        find_splits(options.replace(fold="1"))
    # Photos that no fold has: all of the one folder, all of the other.
    (root / "folds.csv").write_text("id,fold,area\ncar01,0,1\ncar03,1,1\n")
    with pytest.raises(UserError, match=r"'car00'.*--fold=none"):
        find_splits(options)
    none = options.replace(fold="none", epochs=1)
    (split,) = find_splits(none)
    assert (len(split.training), len(split.validation)) == (4, 4)
    result = run.train_split(none, split)
    assert "val_dice" in result["rows"][0]
    metadata = model_file.read_metadata(result["folder"] / "best.keras")
    assert metadata["fold"] == "none" and metadata["val_groups"] == ["car00", "car02"]


def test_folders_that_share_photos_need_folds(make_run):
    options = make_run(fold="none", val_data_dir_name="val", val_mask_dir_name="val_masks")
    root = Path(options.dataset.dataset_dir)
    move(root, ["car00_01", "car02_01"], "val", "val_masks")
    with pytest.raises(UserError, match=r"share 2 groups, the first is 'car00'.*--fold"):
        find_splits(options)


def test_a_finished_run_is_left_alone(make_run):
    options = make_run(epochs=1)
    first = train_first(options)
    before = (first["folder"] / "last.keras").stat().st_mtime_ns
    again = train_first(options)
    assert not again["trained"]
    assert again["rows"] == first["rows"]
    assert (first["folder"] / "last.keras").stat().st_mtime_ns == before
    again = train_first(options.replace(restart=True))
    assert again["trained"]
    assert again["rows"][0]["loss"] == first["rows"][0]["loss"]


def test_a_folder_in_use_is_refused(make_run, tmp_path):
    folder = tmp_path / "models" / "unet_tiny-fold_0-smoke"
    with held(folder), pytest.raises(UserError, match="unet_tiny-fold_0-smoke' is in use by"):
        train_first(make_run(epochs=1))
    assert not folder.exists()


def test_other_settings_under_the_same_name_are_refused(make_run, monkeypatch):
    train_first(make_run(epochs=1))
    with pytest.raises(UserError, match=r"other settings \(loss_function\).*--net_alias"):
        train_first(make_run(epochs=1, loss_function="dice"))
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match=r"other settings \(backend\)"):
        train_first(make_run(epochs=1))


def test_what_is_told_of_a_finished_run(make_run):
    folder = train_first(make_run(epochs=1))["folder"]
    # A mistake, before it counts as another setting.
    with pytest.raises(UserError, match="--lr_schedule='0:fast'"):
        train_first(make_run(epochs=1, lr_schedule="0:fast"))
    (folder / "best.keras").unlink()
    with pytest.raises(UserError, match=r"best\.keras is gone.*--restart"):
        train_first(make_run(epochs=1))
    (folder / "last.keras").unlink()
    with pytest.raises(UserError, match=r"best\.keras and last\.keras is gone"):
        train_first(make_run(epochs=1))


def test_the_epoch_of_a_fresh_optimiser_reaches_the_loop(make_run, monkeypatch):
    plans = []
    monkeypatch.setattr(run, "train", lambda plan: plans.append(plan) or Progress())
    train_first(make_run(fresh_optimizer_epoch=23))
    (plan,) = plans
    assert plan.freeze_epochs == 23
    assert not plan.frozen


def test_a_second_stage_starts_from_the_first_of_its_fold(make_run, tmp_path):
    path = str(tmp_path / "first-fold_{fold}.keras")
    # A rate of 0 leaves all weights but the moving averages as they were.
    options = make_run(
        smoke=False,
        input_width=64,
        input_height=64,
        steps_per_epoch=1,
        epochs=1,
        fold="all",
        learning_rate=0.0,
        weights=path,
    )
    splits = find_splits(options)
    first, _ = build_network(options.replace(weights=None), MASKS)
    model_file.save(
        first, path.replace("{fold}", "0"), {"training_groups": ["car01", "car03", "older"]}
    )
    folder = run.train_split(options, splits[0])["folder"]
    second, metadata = model_file.load(folder / "best.keras")
    for one, other in zip(first.trainable_variables, second.trainable_variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert metadata["training_groups"] == ["car01", "car03", "older"]
    leaking = options.replace(weights=path.replace("{fold}", "0"))
    with pytest.raises(UserError, match=r"trained on 2 groups of the validation fold.*'car01'"):
        run.train_split(leaking, splits[1])


def test_a_trained_network_that_does_not_tell_its_groups_is_refused(make_run, tmp_path):
    options = make_run(
        network="unet_tiny",
        smoke=False,
        input_width=64,
        input_height=64,
        steps_per_epoch=1,
        epochs=1,
    )
    network, _ = build_network(options, MASKS)
    whole, encoder = (str(tmp_path / f"{name}.weights.h5") for name in ("whole", "encoder"))
    network.save_weights(whole)
    inner = [x for x in network.layers if x.weights and not x.name.startswith(decoders.PREFIXES)]
    keras.Sequential([keras.Input((None, None, 3)), *inner[:2]]).save_weights(encoder)
    with pytest.raises(UserError, match=r"does not say on which groups.*fold 0.*--force"):
        train_first(options.replace(weights=whole))
    for name, weights, force in (("f", whole, True), ("e", encoder, False)):
        started = options.replace(
            weights=weights, force=force, net_alias=name, allow_partial_weights=not force
        )
        folder = train_first(started)["folder"]
        assert model_file.read_metadata(folder / "last.keras")["unknown_origin"] is force
        found = checkpoint.read(folder / "last.keras", checkpoint.NetworkOptions())
        assert found.lists_all_groups is not force
    # What starts from it knows no more of its own origin, and anything may be trained on all.
    again = options.replace(weights=str(tmp_path / "models/unet_tiny-f-fold_0/last.keras"))
    with pytest.raises(UserError, match="does not say on which groups"):
        train_first(again)
    foreign = options.replace(weights=whole, foreign_weights=True, net_alias="o")
    folder = train_first(foreign)["folder"]
    assert not model_file.read_metadata(folder / "last.keras")["unknown_origin"]
    full = options.replace(weights=whole, fold="none", net_alias="full")
    assert train_first(full)["trained"]


def test_frozen_layers_keep_their_first_weights(make_run):
    options = make_run(epochs=1, learning_rate=0.1)
    network, _ = model_file.load(train_first(options)["folder"] / "last.keras")
    kernels = [layer.name for layer in network.layers if hasattr(layer, "kernel")]
    frozen = options.replace(net_alias="frozen", freeze_till_layer=kernels[4])
    trained, _ = model_file.load(train_first(frozen)["folder"] / "last.keras")
    keras.utils.clear_session()
    keras.utils.set_random_seed(options.run.seed)
    first, _ = build_network(frozen, MASKS)
    for i, name in enumerate(kernels):
        before, after = (np.asarray(m.get_layer(name).kernel) for m in (first, trained))
        assert np.array_equal(before, after) == (i < 4), name


@pytest.mark.graph
def test_every_new_flag_reaches_the_run(make_run, capsys):
    """Accumulation, replay and averages in one run, whose curves and pictures are there."""
    options = make_run(
        network="vgg11v1",
        epochs=2,
        optimizer="sgd",
        momentum=0.8,
        nesterov=True,
        weight_decay=0.01,
        clipnorm=1.0,
        gradient_accumulation=3,
        ema=0.5,
        hard_example_replay=True,
        freeze_encoder_epochs=1,
        lr_schedule="0:0.1,1:0.01",
        loss_function="weighted_bce_dice:boundary_weight=2",
        clahe=True,
        augmentation="001:zoom=0.2,shift=0.1",
        debug_pictures=2,
    )
    result = train_first(options)
    amounts = "hflip=0.5,zoom_y=0.8..1.2,zoom_x=0.8..1.2,shift_y=0.1,shift_x=0.1"
    drawn = f"{amounts},border=constant,channel_shift=0.1@1"
    assert f"augmentation 001:zoom=0.2,shift=0.1: {drawn}" in capsys.readouterr().out
    rates = [row["learning_rate"] for row in result["rows"]]
    assert rates == pytest.approx([0.1, 0.01])
    assert (result["folder"] / "curves.png").is_file()
    pictures = sorted(path.name for path in (result["folder"] / "debug").iterdir())
    assert len(pictures) == 8
    assert pictures[3].endswith("_weights.png")
    _, metadata = model_file.load(result["folder"] / "last.keras")
    assert metadata["optimizer"] == "sgd"
    assert metadata["clahe"] is True
    assert metadata["augmentation"] == "001:zoom=0.2,shift=0.1"
    assert metadata["augmentation_amounts"] == drawn
    assert metadata["lr_schedule"] == "0:0.1,1:0.01"
    # Pictures are no part of what a run computes.
    again = train_first(options.replace(debug_pictures=0))
    assert not again["trained"]


@pytest.fixture
def predicted(make_run, tmp_path):
    """Photos without masks and what a model of fold 0 made of them."""
    options = make_run()
    root = Path(options.dataset.dataset_dir)
    (root / "test").mkdir()
    masks = tmp_path / "predicted_0"
    masks.mkdir()
    for number in range(4):
        photo = root / "test" / f"new{number}_01.png"
        write_photo(photo, np.full((40, 56, 3), 60 * number, np.uint8))
        write_probability(masks / f"{photo.stem}.png", np.full((40, 56), 70 * number, np.uint8))
    model = {"file": "best.keras", "fold": 0}
    model["training_groups"] = digest_of_lines(["car01", "car03"])
    made = manifest.Manifest(
        (model,), True, "none", "keras", "float32", 4, "", manifest.ENCODING, "0"
    )
    stems = [path.stem for path in masks.glob("*.png")]
    manifest.write(masks, dataclasses.replace(made, photos_digest=digest_of_lines(stems)))
    return masks


def test_predicted_masks_are_trained_on_beside_the_others(make_run, predicted, capsys):
    options = make_run(epochs=1, pseudo_mask_dir=str(predicted.parent / "predicted_{fold}"))
    result = train_first(options.replace(pseudo_confidence=1.0))
    assert "1 of 4 masks are sure enough" in capsys.readouterr().out
    _, metadata = model_file.load(result["folder"] / "last.keras")
    assert metadata["pseudo_photos"] == 1
    # A leak check of the new model must know all it has learnt from ...
    (new,) = set(metadata["training_groups"]) - {"car01", "car03"}
    assert new.startswith("new")
    # ... and still find the folds file it belongs to.
    assert metadata["labelled_groups_digest"] == digest_of_lines(["car01", "car03"])
    # Other predicted masks are another run.
    with pytest.raises(UserError, match="other settings"):
        train_first(options)


def test_predicted_masks_of_another_fold_are_refused(make_run, predicted, tmp_path):
    options = make_run(epochs=1, fold="1", pseudo_mask_dir=str(predicted))
    with pytest.raises(UserError, match=r"best\.keras' of fold 0.*--fold=1.*--force"):
        train_first(options)
    assert not (tmp_path / "models").exists()
    forced = train_first(options.replace(force=True, pseudo_weight=0.5))
    _, metadata = model_file.load(forced["folder"] / "last.keras")
    assert metadata["force"] is True
    # It may know the photos it was validated on: its masks of them are not out of fold.
    assert set(metadata["val_groups"]) == {"car01", "car03"} < set(metadata["training_groups"])
    # Of what is trained on altogether, nothing can be validated on.
    (everything,) = find_splits(options.replace(fold="none"))
    assert run.train_split(options.replace(fold="none"), everything)["rows"]


def test_predicted_masks_of_the_validation_photos_are_refused(make_run, predicted):
    options = make_run(pseudo_mask_dir=str(predicted), pseudo_data_dir="train")
    (predicted / "new0_01.png").rename(predicted / "car00_01.png")
    stems = [path.stem for path in predicted.glob("*.png")]
    made = manifest.read(predicted)
    manifest.write(predicted, dataclasses.replace(made, photos_digest=digest_of_lines(stems)))
    with pytest.raises(UserError, match=r"1 photos.*validation fold.*car00_01\.jpg"):
        train_first(options)


def test_other_groups_than_the_runs_are_refused_outside_of_trials(make_run, predicted):
    options = make_run(pseudo_mask_dir=str(predicted), smoke=False)
    split = find_splits(options)[0]
    fewer = dataclasses.replace(split, training=split.training[:2])
    with pytest.raises(UserError, match="another folds file"):
        run.train_split(options, fewer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam", "momentum": 0.9}, "--momentum"),
        ({"lr_schedule": "0:1e-4;3:1e-5"}, "--lr_schedule='0:1e-4;3:1e-5'"),
        ({"lr_schedule": "consine"}, "Did you mean 'cosine'"),
        ({"lr_schedule": "0:nan"}, "--lr_schedule='0:nan'"),
        ({"photo_channels": 2}, "--photo_channels=2 must be 3"),
        ({"train_pattern": "("}, "--train_pattern='.' is no regular expression"),
        ({"val_pattern": "_09$"}, "--val_pattern='_09.' matches.*first of 4 is 'car00_01'"),
        ({"fold": "none", "val_pattern": "1"}, "--val_pattern=1 has no effect with --fold=none"),
        ({"augmentation": "001:zom=0.2"}, "Did you mean 'zoom'"),
        ({"loss_function": "bce_dice:dice=1"}, "'bce_dice': parameter 'dice' is unknown"),
        ({"freeze_encoder_epochs": 1, "fresh_optimizer_epoch": 1}, "give one of the two"),
        ({"net_alias": "a/b"}, "--net_alias='a/b'.*without slashes"),
        ({"fold": "none", "val_data_dir_name": "val"}, "val' does not exist"),
        (
            {"fold": "none", "validate_every": 5},
            "--validate_every=5 has no effect with --fold=n",
        ),
        ({"fold": "none", "patience": 5}, "--patience=5 has no effect with --fold=none"),
        ({"freeze_encoder_epochs": 1}, "no pretrained encoder"),
        ({"pseudo_mask_dir": "absent"}, "'absent' does not exist"),
        ({"network": "unet_tyni"}, "Did you mean 'unet_tiny'"),
        ({"loss_function": "bce_dyce"}, "Did you mean 'bce_dice'"),
        ({"fold": "9"}, "--fold=9 does not exist"),
        ({"fold": "first"}, "must be a number"),
        ({"n_folds": 5}, "the folds file has 2"),
        ({"dataset_dir": "/nowhere"}, "does not exist"),
        ({"folds_source": "other.csv"}, "make_folds.py"),
        ({"mask_suffix": "_truth"}, "--mask_suffix"),
        ({"group_pattern": "("}, "no regular expression"),
        ({"weights": "absent.h5", "smoke": False}, "absent.h5"),
        ({"freeze_till_layer": "conv_9"}, "--freeze_till_layer"),
        ({"clr": "1,2,x,triangular"}, "--clr"),
        ({"clr": "0,inf,5,triangular"}, "--clr"),
        ({"size_policy": "crop"}, "the crop of 64x64 is larger than"),
        ({"network": "mobilenet", "stacked_channels": 1, "stacked_channels_dir": "x"}, "stacked"),
        ({"stacked_channels": 1}, "--stacked_channels_dir"),
        ({"stacked_channels_dir": "x"}, "'x' is given, but the network takes no stacked"),
        ({"cache_dir": "x", "cache": "memory"}, "--cache_dir='x' needs --cache=disk or auto"),
        ({"models_dir": "/proc/nothing"}, "/proc/nothing"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_no_file(make_run, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        train_first(make_run(**changes))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "models").rglob("*.keras"))


def test_a_mask_of_another_size_stops_before_a_model_is_written(make_run, tmp_path):
    options = make_run(epochs=1)
    for stem in ("car01_01", "car01_02", "car03_01", "car03_02"):
        path = Path(options.dataset.dataset_dir) / "train_masks" / f"{stem}_mask.gif"
        path.unlink()
        write_mask(path.with_suffix(".png"), np.ones((5, 5), bool))
    with pytest.raises(UserError, match="is 5x5 but its photo is 56x40"):
        train_first(options)
    assert not list((tmp_path / "models").rglob("*.keras"))


def test_stacked_masks_must_be_out_of_fold(make_run, tmp_path):
    folder = tmp_path / "stack" / "0"
    flags = {"stacked_channels": 1, "stacked_channels_dir": str(folder.parent), "epochs": 1}
    options = make_run(**flags)
    stems = [f"car{group:02d}_{view:02d}" for group in range(4) for view in (1, 2)]
    for stem in stems:
        write_probability(folder / f"{stem}.png", np.full((40, 56), 200, np.uint8))
    with pytest.raises(UserError, match=r"stack/0' has no manifest\.json.*--force"):
        find_splits(options)
    origin = manifest.Manifest(
        (), False, "none", "keras", "float32", 8, digest_of_lines(stems), manifest.ENCODING, "1"
    )
    manifest.write(folder, origin)
    with pytest.raises(UserError, match="stack/0' is not out of fold"):
        find_splits(options)
    forced = train_first(options.replace(force=True))["folder"]
    assert model_file.read_metadata(forced / "best.keras")["force"]
    manifest.write(folder, dataclasses.replace(origin, out_of_fold=True))
    samples = find_splits(options)[0].training
    assert samples[0].stacked == (folder / f"{samples[0].stem}.png",)
    for stem in stems:
        write_probability(folder / f"{stem}.png", np.eye(40, 56, dtype=np.uint8))
    with pytest.raises(UserError, match=r"other settings \(data_digest\)"):
        train_first(options.replace(force=True))


@pytest.mark.slow
def test_the_published_command_line_runs(make_run, tmp_path):
    """System 001's own flags, weights aside; --smoke keeps it short."""
    options = make_run()
    root = Path(options.dataset.dataset_dir)
    (root / "train_masks").rename(root / "gif_train_masks")
    folds = (root / "folds.csv").read_text().splitlines()
    fifth = [f"{line.split(',')[0]},{i % 5},1" for i, line in enumerate(folds[1:])]
    (root / "folds.csv").write_text("\n".join(["id,fold,area", *fifth, "absent,4,1"]) + "\n")
    flags = [
        *("--gpu=1", "--seed=80", f"--dataset_dir={root}", f"--models_dir={tmp_path / 'models'}"),
        *("--network=mobilenet", "--preprocessing_function=tf", "--fold=1", "--n_folds=5"),
        *("--folds_source=folds.csv", "--val_mask_dir=gif_train_masks"),
        *("--train_mask_dir=gif_train_masks", "--smoke", "--size_policy=resize"),
    ]
    script, log = ROOT / "train.py", tmp_path / "log"
    assert "GPU 1 is not here" in run_script_apart("train.py", log, script, *flags, cwd=tmp_path)
    assert (tmp_path / "models" / "mobilenet-fold_1-smoke" / "best.keras").is_file()
    wrong = start_script_apart(log, script, *flags, "--loss_function=nonsense", cwd=tmp_path)
    wrong.join()
    assert wrong.exitcode == 1
    printed = log.read_text()
    assert printed.splitlines()[-1].startswith("error: --loss_function 'nonsense'")
    assert "Traceback" not in printed


@pytest.mark.parametrize(("steps", "momentum"), [(2, 0.8), (36, 8 / 9), (400, 0.99), (5000, 0.99)])
def test_moving_averages_fit_into_an_epoch(steps, momentum):
    assert bn_momentum(steps) == pytest.approx(momentum)
