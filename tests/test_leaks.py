"""Leaks planted on purpose: each must be refused, or found, with what to do about it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from processes import finish_script_apart

from carvana_tf.data import checks
from carvana_tf.data.dataset import Naming, find_photos
from carvana_tf.data.folds import fold_of_samples, read_folds
from carvana_tf.data.images import read_grey, read_photo, write_mask, write_photo
from carvana_tf.errors import UserError
from carvana_tf.evaluation import crossfit, scores
from carvana_tf.evaluation.counts import Counts
from carvana_tf.files import digest
from carvana_tf.inference.predict_folder import OutputOptions, predict_folder
from carvana_tf.masks import ensembling
from carvana_tf.masks.open_folder import open_folder
from carvana_tf.models import checkpoint, model_file
from carvana_tf.models.checkpoint import NetworkOptions
from carvana_tf.training import pseudo, splits, stacking
from carvana_tf.training.options import TrainingOptions

ROOT = Path(__file__).parents[1]
CARS = ("car00", "car01", "car02", "car03")  # of folds 0, 1, 0, 1


def make_model(path, bias, trained, fold, **further):
    """sigmoid of the photo's red channel, which says it was trained on these cars."""
    photo = keras.Input((None, None, 3))
    dot = keras.layers.Conv2D(1, 1, activation="sigmoid")
    model = keras.Model(photo, dot(photo))
    dot.set_weights([np.array([0.05, 0, 0]).reshape(1, 1, 3, 1), np.array([bias])])
    said = {
        "network": "simple_unet",
        "stride": 8,
        "size_policy": "pad",
        "input_height": 0,
        "input_width": 0,
        "stacked_channels": 0,
        "fold": fold,
        "training_groups": sorted(trained),
        **further,
    }
    return model_file.save(model, path, said)


@pytest.fixture
def dataset(make_dataset):
    return make_dataset(groups=4, views=2)


@pytest.fixture
def predict(dataset, tmp_path):
    """Predicts the photos of a fold, or all, with a model of a bias, into a mask folder."""

    def run(name, bias, trained, fold=None, **said):
        model = make_model(tmp_path / f"{name}.keras", bias, trained, fold, **said)
        samples = find_photos(dataset / "train")
        folds = fold_of_samples(samples, read_folds(dataset / "folds.csv"))
        chosen = [s for s, f in zip(samples, folds, strict=True) if fold in (None, f)]
        members = [checkpoint.read(model, NetworkOptions())]
        options = OutputOptions.of(dtype="float32")
        predict_folder(chosen, members, tmp_path / name, options, ["cpu:0"])
        return open_folder(tmp_path / name)

    return run


def test_a_model_trained_on_all_folds_is_refused_as_out_of_fold(dataset, tmp_path):
    make_model(tmp_path / "all.keras", -5, CARS, "none")
    done = finish_script_apart(
        ROOT / "predict_multithreaded.py",
        *("--predict_on_val", "--fold=0", f"--dataset_dir={dataset}", "--gpu="),
        *(f"--weights={tmp_path / 'all.keras'}", f"--pred_mask_dir={tmp_path / 'masks'}"),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "was trained on 2 groups of --fold=0, the first is 'car00'" in message
    assert not (tmp_path / "masks").exists()


def test_its_masks_do_not_pass_for_out_of_fold(predict):
    honest = [predict(f"fold{f}", -5, CARS[1 - f :: 2], fold=f) for f in (0, 1)]
    leaking = predict("all", -6, CARS)
    assert [folder.out_of_fold for folder in (*honest, leaking)] == [True, True, False]
    with pytest.raises(UserError, match=r"is out of fold and '.*all' is not.*--force"):
        ensembling.plan([*honest, leaking])
    forced = ensembling.plan([*honest, leaking], force=True)
    assert len(forced.problems) == 1 and not forced.out_of_fold
    # Alone nothing contradicts it, but it is known for what it is: nothing is fitted on it.
    assert not ensembling.plan([leaking]).out_of_fold
    counts = Counts(*np.ones((2, 4, 256), int))
    photos = scores.per_photo(list("abcd"), list("abcd"), [0, 0, 1, 1], counts)
    assert "not out of fold" in crossfit.obstacle(photos, leaking.manifest)
    assert crossfit.obstacle(photos, honest[0].manifest) is None
    assert "NOT out of fold" in leaking.origin


def test_a_model_as_member_predicts_what_it_has_not_seen(dataset, predict, tmp_path):
    other = predict("other", -5, CARS[::2], fold=1)
    model = make_model(tmp_path / "model.keras", -5, CARS[1::2], 0)
    done = finish_script_apart(
        ROOT / "ensemble.py",
        *(f"--member={model},{other.path}", "--predict_on_val"),
        *(f"--pred_mask_dir={tmp_path / 'out'}", f"--dataset_dir={dataset}"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    made = open_folder(tmp_path / "out")
    assert made.out_of_fold and len(made.masks) == 8
    assert made.manifest.ensemble["members"] == [[digest(model)[:16], "other"]]
    (folder,) = (tmp_path / "out/members").iterdir()
    for stem, path in open_folder(folder).masks.items():
        np.testing.assert_array_equal(read_grey(path), read_grey(made.masks[stem]))


def test_one_model_that_saw_a_single_car_of_the_fold_is_enough(predict):
    assert predict("mostly", -5, [*CARS[1::2], "car02"], fold=0).out_of_fold is False


def test_one_model_under_two_names_counts_once(predict, tmp_path):
    one = predict("one", -5, CARS[1::2], fold=0)
    (tmp_path / "copy").mkdir()
    for file in one.path.iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"made by the same model .* leave one out"):
        ensembling.plan([one, open_folder(tmp_path / "copy")])


def test_forced_pseudo_labels_of_other_models_leave_a_mark(dataset, predict):
    clean = predict("clean", -5, CARS[1::2], fold=0)
    (clean.path / "stranger.png").write_bytes(next(iter(clean.masks.values())).read_bytes())
    (dataset / "test").mkdir()
    for stem, path in clean.masks.items():
        (dataset / "test" / f"new{stem}.jpg").write_bytes(
            (dataset / "train" / f"{stem}.jpg").read_bytes()
        )
        path.rename(path.with_name(f"new{stem}.png"))
    options = TrainingOptions.of(
        dataset_dir=str(dataset), pseudo_mask_dir=str(clean.path), pseudo_data_dir="test", fold="0"
    )
    (split,) = splits.find_splits(options)
    with pytest.raises(UserError, match=r"lists 4 photos, but .* holds 5.*--force"):
        splits.with_pseudo(options, split)
    forced = splits.with_pseudo(options.replace(force=True), split)
    assert len(forced.pseudo) == 4 and forced.leaks


def test_what_started_from_unknown_weights_is_not_known_to_be_out_of_fold(predict):
    folder = predict("unknown", -5, CARS[1::2], fold=0, unknown_origin=True)
    assert folder.out_of_fold is False
    with pytest.raises(UserError, match="does not say what it was trained on"):
        pseudo.refuse_leak(folder.path, 0, CARS[1::2])
    # What it was trained on here is known all the same.
    source = checkpoint.read(folder.path.with_suffix(".keras"), NetworkOptions())
    assert source.training_groups == frozenset(CARS[1::2]) and not source.lists_all_groups


def combine(*arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "ensemble.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_an_ensemble_does_not_launder_masks_of_unknown_models(predict, tmp_path):
    clean = predict("clean", -5, CARS[1::2], fold=0)
    (tmp_path / "found").mkdir()
    for name, path in clean.masks.items():
        (tmp_path / "found" / f"{name}.png").write_bytes(path.read_bytes())
    out = tmp_path / "out"
    combine(f"--pred_mask_dirs={clean.path},{tmp_path / 'found'}", f"--pred_mask_dir={out}")
    assert open_folder(out).out_of_fold is False
    with pytest.raises(UserError, match="of an unknown fold"):
        pseudo.refuse_leak(out, 0, CARS[1::2])


def test_stacked_channels_of_one_model_or_of_other_photos_are_refused(predict, tmp_path, capsys):
    one = predict("one", -5, CARS[1::2], fold=0)
    copy = tmp_path / "copy"
    shutil.copytree(one.path, copy)
    both = Path(f"{one.path},{copy}")
    stacking.refuse_misfits(one.path, 1)
    with pytest.raises(UserError, match=r"made by the same model .*leave one out.*--force"):
        stacking.refuse_misfits(both, 2)
    next(copy.glob("*.png")).unlink()
    with pytest.raises(UserError, match=r"lists 4 photos, but .* holds 3.*--force"):
        stacking.refuse_misfits(both, 2)
    stacking.refuse_misfits(both, 2, force=True)
    assert capsys.readouterr().err.count("warning: ") == 2


def test_pseudo_labels_of_a_model_that_saw_the_validation_fold(predict, tmp_path):
    clean = predict("clean", -5, CARS[1::2], fold=0)
    pseudo.refuse_leak(clean.path, 0, CARS[1::2])
    with pytest.raises(UserError, match=r"of fold 0, which may have been trained"):
        pseudo.refuse_leak(clean.path, 1, CARS[0::2])
    with pytest.raises(UserError, match="of another folds file"):
        pseudo.refuse_leak(clean.path, 0, ["car01", "car02"])
    knowing = predict("knowing", -5, CARS, fold=0, val_groups=CARS[::2])
    with pytest.raises(UserError, match=r"'knowing\.keras', which knows masks of fold 0"):
        pseudo.refuse_leak(knowing.path, 0, CARS)


def scene(seed, shape=(96, 128)):
    """A smooth random picture with some detail."""
    random = np.random.default_rng(seed)
    small = random.integers(30, 220, (14, 18, 3), dtype=np.uint8)
    return cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC)


def resized_and_encoded_again(photo):
    smaller = cv2.resize(photo, None, fx=0.93, fy=0.93, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def test_a_near_duplicate_in_another_fold_is_found(tmp_path):
    photos, masks = tmp_path / "train", tmp_path / "train_masks"
    for i, car in enumerate(CARS):
        write_photo(photos / f"{car}_01.jpg", scene(i))
        write_mask(masks / f"{car}_01_mask.png", scene(i)[..., 0] > 120)
    (tmp_path / "folds.csv").write_text("id,fold\n" + "".join(f"{c},{c[-1]}\n" for c in CARS))

    def copies():
        found = checks.check_dataset(photos, masks, Naming(), tmp_path / "folds.csv", threads=2)
        return [finding for finding in found if finding.kind.startswith("is a copy")]

    assert copies() == []
    planted = resized_and_encoded_again(read_photo(photos / "car01_01.jpg"))
    write_photo(photos / "car03_01.jpg", planted)
    (finding,) = copies()
    assert finding.file.endswith("car03_01.jpg")
    assert finding.what == "is a copy of 'car01_01.jpg', in folds 3 and 1"
    assert "put both in one fold" in finding.fix


def test_a_model_chosen_by_its_score_on_its_fold_is_known_for_it(predict):
    chosen = predict("best", -5, CARS[1::2], fold=0, chosen_by="val_dice")
    last = predict("last", -5, CARS[1::2], fold=0)
    assert chosen.out_of_fold and last.out_of_fold
    assert (chosen.chosen_on_its_fold, last.chosen_on_its_fold) == ("val_dice", None)
    assert "flatters the score (by 0.0009" in chosen.origin and "flatters" not in last.origin
    assert "last.keras is free of that" in chosen.origin
    table = pd.read_csv(Path(__file__).parents[1] / "benchmarks/best_or_last.csv")
    assert {f"{difference:.4f}" for difference in table["difference"]} == {"0.0009"}
    # On photos of other folds nothing was chosen.
    assert predict("all_photos", -5, CARS[1::2], chosen_by="val_dice").chosen_on_its_fold is None
