"""Image labels from photos to a submission, and every number on the way against NumPy."""

import csv
import gzip
import json
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from carvana_tf import commands
from carvana_tf.data.images import read_photo
from carvana_tf.errors import UserError
from carvana_tf.masks import manifest
from carvana_tf.models import checkpoint, model_file
from carvana_tf.models.options import NetworkOptions
from carvana_tf.recipe import check, runner
from carvana_tf.recipe import labels as recipes
from carvana_tf.tasks import TASKS
from carvana_tf.tasks.labels import table
from carvana_tf.tasks.labels.scores import ranking_scores
from carvana_tf.tasks.options import grouped
from carvana_tf.training.options import TrainingOptions

ROOT = Path(__file__).parents[1]
CLASSES = ("red", "green", "blue", "bar")
SIDE = 32


def call(name, *arguments):
    arguments = [*arguments, "--verbosity=-1"]
    return commands.find(name).chosen(arguments).call(arguments)


def draw(folder, name, labels, random):
    image = random.integers(100, 120, (SIDE + 8, SIDE + 16, 3)).astype(np.uint8)
    for place, label in enumerate(sorted(labels)):
        left = 6 + 14 * place
        if label == "bar":
            image[:, left : left + 4] = 255
        else:
            image[12:28, left : left + 10] = 0
            image[12:28, left : left + 10, 2 - CLASSES.index(label)] = 255
    cv2.imwrite(str(folder / f"{name}.png"), image)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A dataset and two networks, of fold 0 and 1, each trained for a moment.

    Names are as of a camera: by the pattern of masks, all photos were one group.
    """
    root = tmp_path_factory.mktemp("labels")
    random = np.random.default_rng(7)
    rows = {"train": {}, "test": {}}
    for folder, count in (("train", 12), ("test", 5)):
        (root / "input" / folder).mkdir(parents=True)
        for number in range(count):
            chosen = set(random.choice(CLASSES, random.integers(1, 4), replace=False))
            rows[folder][f"{folder}.5_{number}"] = sorted(chosen)
            draw(root / "input" / folder, f"{folder}.5_{number}", chosen, random)
    write(
        root / "input/train_labels.csv",
        "ImageID,Source,LabelName",
        [f"{photo},human,{label}" for photo, labels in rows["train"].items() for label in labels],
    )
    write(
        root / "input/test_labels.csv",
        "id,labels",
        [f"{photo},{' '.join(labels)}" for photo, labels in rows["test"].items()],
    )
    write(
        root / "input/folds.csv",
        "id,fold",
        [f"{photo},{i % 2}" for i, photo in enumerate(rows["train"])],
    )
    call("train", *flags(root), f"--models_dir={root}/models", "--fold=all")
    return root, rows


def write(path, header, lines):
    path.write_text("\n".join([header, *lines]) + "\n")


def flags(root):
    return (
        "--task=labels", "--network=mobilenet", "--alpha=0.25", "--weights=none", "--gpu=",
        f"--dataset_dir={root}/input", f"--folds_source={root}/input/folds.csv",
        "--size_policy=crop", f"--input_width={SIDE}",
        f"--input_height={SIDE}", "--batch_size=4", "--epochs=2", "--augmentation=none",
        "--dtype=float32",
    )  # fmt: skip


def model(root, fold=0):
    return root / f"models/mobilenet-fold_{fold}/last.keras"


def predict(root, out, *arguments, weights=None):
    call(
        "predict", f"--weights={weights or model(root)}", f"--dataset_dir={root}/input", "--gpu=",
        f"--folds_source={root}/input/folds.csv", "--dtype=float32",
        "--engine=keras", f"--pred_mask_dir={out}", *arguments,
    )  # fmt: skip
    return {row.photo: row for row in table.open_scores(out).rows()}


def crops(photo, places):
    """Windows of a photo at (down, right) in 0..1, by indexing."""
    free = np.array(photo.shape[:2]) - SIDE
    corners = [np.rint(free * place).astype(int) for place in np.array(places)]
    return np.stack([photo[top : top + SIDE, left : left + SIDE] for top, left in corners])


def test_training_is_judged_by_gap_and_f2(work):
    root, rows = work
    log = list(csv.DictReader((root / "models/mobilenet-fold_0/log.csv").open()))
    assert {"loss", "val_loss", "val_gap", "val_f2", "val_f2_threshold"} <= set(log[0])
    known = json.loads(model(root).with_suffix(".json").read_text())
    first = dict.fromkeys(label for labels in rows["train"].values() for label in labels)
    assert (known["task"], known["classes"], known["scoring"]) == ("labels", [*first], "ranking")
    network = keras.saving.load_model(model(root))
    assert network.output_shape == (None, len(CLASSES))


@pytest.mark.parametrize(
    ("tta", "places", "flips"),
    [
        ("none", [(0.5, 0.5)], (1,)),
        ("hflip", [(0.5, 0.5)], (1, -1)),
        ("ten_crop", [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)], (1, -1)),
    ],
)
def test_a_row_is_that_of_the_mean_logits(work, tmp_path, tta, places, flips):
    root, rows = work
    found = predict(root, tmp_path / "out", f"--pred_tta={tta}")
    network = keras.saving.load_model(model(root))
    classes = json.loads(model(root).with_suffix(".json").read_text())["classes"]
    assert list(found) == [f"{photo}.png" for photo in sorted(rows["test"])]
    for name, row in found.items():
        views = crops(read_photo(root / "input/test" / name), places)
        logits = [network.predict(views[:, :, ::flip], verbose=0) for flip in flips]
        ids, scores = ranking_scores(np.concatenate(logits).mean(axis=0))
        expected = {classes[i]: score for i, score in zip(ids, scores, strict=True)}
        assert set(row.labels) == set(classes) and (np.diff(row.scores) <= 0).all()
        np.testing.assert_allclose(row.scores, [expected[c] for c in row.labels], atol=2e-5)


def test_a_run_goes_on_after_a_bad_photo_and_again_after_more_photos(work, tmp_path, capsys):
    root, _ = work
    whole = predict(root, tmp_path / "whole")
    photos = tmp_path / "photos"
    photos.mkdir()
    names = sorted(whole)
    for name in names[:3]:
        (photos / name).write_bytes((root / "input/test" / name).read_bytes())
    good = (photos / names[1]).read_bytes()
    (photos / names[1]).write_bytes(good[:200])
    out = tmp_path / "out"
    found = predict(root, out, f"--test_data_dir={photos}")
    assert list(found) == [names[0], names[2]]
    assert names[1] in (out / "bad_files.csv").read_text()
    assert "1 photos have no row" in capsys.readouterr().err
    (photos / names[1]).write_bytes(good)
    for name in names[3:]:
        (photos / name).write_bytes((root / "input/test" / name).read_bytes())
    found = predict(root, out, f"--test_data_dir={photos}")
    assert "2 already predicted" in capsys.readouterr().out
    assert set(found) == set(whole) and not (out / "bad_files.csv").exists()
    for name, row in whole.items():
        assert found[name].labels == row.labels
        np.testing.assert_array_equal(found[name].scores, row.scores)
    predict(root, out, f"--test_data_dir={photos}")
    assert "5 already predicted" in capsys.readouterr().out
    with pytest.raises(UserError, match="made with other models"):
        predict(root, out, f"--test_data_dir={photos}", weights=model(root, 1))


@pytest.fixture(scope="module")
def oof(work):
    """The tables of both folds, and their union."""
    root, _ = work
    parts = [root / f"oof{fold}" for fold in (0, 1)]
    for fold, part in enumerate(parts):
        predict(root, part, "--predict_on_val", weights=model(root, fold))
    call("ensemble", "--task=labels", f"--pred_mask_dirs={parts[0]},{parts[1]}",
         f"--pred_mask_dir={root}/oof")  # fmt: skip
    return root / "oof"


def test_folds_become_one_table_out_of_fold(work, oof):
    root, rows = work
    found = {row.photo: row for row in table.open_scores(oof).rows()}
    assert set(found) == {f"{photo}.png" for photo in rows["train"]}
    for fold in (0, 1):
        for row in table.open_scores(root / f"oof{fold}").rows():
            assert found[row.photo].labels == row.labels
            np.testing.assert_array_equal(found[row.photo].scores, row.scores)
    made = manifest.read(oof)
    assert (made.task, made.out_of_fold, len(made.models)) == ("labels", True, 2)


def f2(answered, true):
    right = len(set(answered) & set(true))
    precision = right / len(answered) if answered else 1.0
    recall = right / len(true) if true else 1.0
    return 5 * precision * recall / (4 * precision + recall) if right else 0.0


def test_an_evaluation_has_the_scores_of_a_loop(work, oof, capsys):
    root, rows = work
    call("evaluate", "--task=labels", f"--pred_mask_dir={oof}", f"--dataset_dir={root}/input",
         f"--folds_source={root}/input/folds.csv",
         "--threshold=0.5", "--min_labels=1", "--max_labels=3")  # fmt: skip
    summary = json.loads((oof / "evaluation/summary.json").read_text())
    values, by_threshold = [], {}
    for row in table.open_scores(oof).rows():
        true = rows["train"][row.photo.removesuffix(".png")]
        for threshold in (0.5, *(n / 20 for n in range(20))):
            count = min(max(int((row.scores > np.float32(threshold)).sum()), 1), 3)
            by_threshold.setdefault(threshold, []).append(f2(row.labels[:count], true))
    values = by_threshold[0.5][::2]  # 0.5 is there twice
    assert summary["mean_f2"] == pytest.approx(np.mean(values))
    best = max(np.mean(v) for t, v in by_threshold.items() if t != 0.5)
    assert summary["best_threshold_mean_f2"] >= best - 1e-9
    assert summary["crossfit_mean_f2"] <= summary["best_threshold_mean_f2"] + 1e-9
    counts = {c: sum(c in labels for labels in rows["train"].values()) for c in CLASSES}
    frequent = sorted(counts, key=lambda c: -counts[c])
    constant = max(
        np.mean([f2(frequent[:n], labels) for labels in rows["train"].values()]) for n in (1, 2, 3)
    )
    assert summary["most_frequent"]["mean_f2"] == pytest.approx(constant, abs=0.05)
    assert "most frequent labels" in capsys.readouterr().out
    assert summary["labels_never_predicted"] == []
    photos = list(csv.DictReader((oof / "evaluation/per_photo.csv").open()))
    assert [row["group"] for row in photos] == [Path(row["id"]).stem for row in photos]
    assert len(photos) == len(rows["train"]) and {row["fold"] for row in photos} == {"0", "1"}
    page = (oof / "evaluation/report.html").read_text()
    assert f"{summary['mean_f2']:.5f}" in page and photos[0]["id"] in page
    pictures = list((oof / "evaluation/report_files").glob("*-photo.jpg"))
    assert len(pictures) == len(photos)


def test_an_ensemble_is_the_weighted_mean(work, oof, tmp_path):
    root, _ = work
    rows = [predict(root, tmp_path / str(f), weights=model(root, f)) for f in (0, 1)]
    call("ensemble", "--task=labels", f"--pred_mask_dirs={tmp_path}/0,{tmp_path}/1",
         f"--pred_mask_dir={tmp_path}/mean", "--weights=1,3")  # fmt: skip
    for row in table.open_scores(tmp_path / "mean").rows():
        of = [dict(zip(r[row.photo].labels, r[row.photo].scores, strict=True)) for r in rows]
        expected = {c: (of[0].get(c, 0) + 3 * of[1].get(c, 0)) / 4 for c in {*of[0], *of[1]}}
        assert set(row.labels) == set(expected)
        np.testing.assert_allclose(row.scores, [expected[c] for c in row.labels], rtol=1e-5)
    predict(root, tmp_path / "known", f"--test_data_dir={root}/input/train")
    with pytest.raises(UserError, match=r"is out of fold and .* is not"):
        call("ensemble", "--task=labels", f"--pred_mask_dirs={root}/oof0,{tmp_path}/known",
             f"--pred_mask_dir={tmp_path}/mixed")  # fmt: skip


def edited(source, target, change=str, models=None):
    """A copy of a folder of scores, its table and the models of its manifest changed."""
    target.mkdir()
    text = gzip.decompress((source / table.NAME).read_bytes()).decode()
    (target / table.NAME).write_bytes(gzip.compress(change(text).encode()))
    known = json.loads((source / "manifest.json").read_text())
    known["models"] = [model | (models or {}) for model in known["models"]]
    (target / "manifest.json").write_text(json.dumps(known))
    return target


def test_tables_that_no_mean_suits_are_refused(work, oof, tmp_path):
    del oof  # makes the tables of the folds
    root, _ = work
    for change, says in (
        ({"classes": "other"}, "different labels"),
        ({"scoring": "sigmoid"}, "different kinds"),
    ):
        other = edited(root / "oof1", tmp_path / "".join(change), models=change)
        both = ["--task=labels", f"--pred_mask_dirs={root}/oof0,{other}"]
        with pytest.raises(UserError, match=says):
            call("ensemble", *both, f"--pred_mask_dir={tmp_path}/out")
    call("ensemble", *both, f"--pred_mask_dir={tmp_path}/out", "--force")
    made = manifest.read(tmp_path / "out")
    assert says in made.ensemble["forced"][0] and not made.out_of_fold


def test_an_ensemble_knows_a_photo_however_its_name_is_spelled(work, oof, tmp_path):
    del oof  # makes the tables of the folds
    root, _ = work
    one = edited(root / "oof0", tmp_path / "a", lambda text: text.replace("train", "\u00e4"))
    other = edited(root / "oof0", tmp_path / "b", lambda text: text.replace("train", "a\u0308"))
    for folder in (one, other):  # whose manifests know the old names
        (folder / "manifest.json").unlink()
    call("ensemble", "--task=labels", f"--pred_mask_dirs={one},{other}",
         f"--pred_mask_dir={tmp_path}/mean")  # fmt: skip
    found, expected = (list(table.open_scores(path).rows()) for path in (tmp_path / "mean", one))
    assert [(row.photo, row.labels) for row in found] == [(r.photo, r.labels) for r in expected]


def test_one_class_is_nothing_to_rank(work, tmp_path):
    root, _ = work
    write(tmp_path / "one.csv", "id,labels", ["train.5_0,red", "train.5_1,"])
    given = [*flags(root), f"--train_labels={tmp_path}/one.csv"]
    options = commands.find("train").parse(given)[TrainingOptions]
    with pytest.raises(UserError, match="only red; give --loss_function=bce"):
        TASKS["labels"].of_training(options)
    task = TASKS["labels"].of_training(options.replace(loss_function="bce"))
    assert task.classes == ("red",)


def test_a_flag_or_the_dataset_may_group_photos(tmp_path):
    (tmp_path / "dataset.yaml").write_text("group_pattern: ^(.+)_\\d+$\n")
    for given, group in (
        (["--task=labels"], "a_1"),
        (["--task=labels", "--group_pattern=^(.+)_"], "a"),
        (["--task=labels", f"--dataset_dir={tmp_path}"], "a"),
        ([], "a"),
    ):
        values = commands.find("train").parse(given)
        options = values[TrainingOptions]
        dataset = grouped(options.dataset, values, TASKS[options.task.task])
        assert dataset.naming.group("a_1") == group


def test_a_submission_follows_its_sample(work, tmp_path, capsys):
    root, rows = work
    found = predict(root, tmp_path / "out")
    names = [*sorted(rows["test"], reverse=True), "not_there"]
    write(tmp_path / "sample.csv", "image_id,labels", [f"{name}," for name in names])
    call("encode", "--task=labels", f"--pred_mask_dir={tmp_path}/out", "--max_labels=2",
         f"--pred_sample_csv={tmp_path}/sample.csv", f"--submissions_dir={tmp_path}",
         "--submission_name=s.csv.gz", "--min_labels=1", "--threshold=0.9")  # fmt: skip
    assert "1 photos" in (noted := capsys.readouterr()).err and "not_there" in noted.err
    with gzip.open(tmp_path / "s.csv.gz", "rt") as stream:
        written = list(csv.reader(stream))
    assert written[0] == ["image_id", "labels"] and written[-1] == ["not_there", ""]
    for (name, labels), expected in zip(written[1:], names[:-1], strict=False):
        row = found[f"{name}.png"]
        count = min(max(int((row.scores > np.float32(0.9)).sum()), 1), 2)
        assert name == expected and labels.split() == list(reversed(row.labels[:count]))


def test_class_ids_survive_the_change_of_stage(work, tmp_path):
    root, rows = work
    known = json.loads(model(root).with_suffix(".json").read_text())["classes"]
    lines = [f"{photo},{' '.join(labels)}" for photo, labels in reversed(rows["test"].items())]
    (tmp_path / "tuning.csv").write_text("\n".join(lines) + "\n")
    arguments = [
        *(f for f in flags(root) if not f.startswith("--weights")),
        f"--weights={model(root)}", f"--train_labels={tmp_path}/tuning.csv", "--fold=none",
        "--train_data_dir_name=test", f"--models_dir={tmp_path}",
    ]  # fmt: skip
    options = commands.find("train").parse(arguments)
    task = TASKS["labels"].of_training(options[TrainingOptions])
    assert list(task.classes) == known
    (tmp_path / "tuning.csv").write_text("test.5_0,red purple\n")
    with pytest.raises(UserError, match=r"purple.*--unknown_labels=skip"):
        call("train", *arguments)
    call("train", *arguments, "--unknown_labels=skip", "--epochs=1")
    tuned = json.loads((tmp_path / "mobilenet-fold_none/last.json").read_text())
    assert tuned["classes"] == known


@pytest.mark.parametrize(
    ("command", "flag", "says"),
    [
        ("predict", "--tile_size=64", "--tile_size has no effect with --task=labels"),
        ("predict", "--task=masks", "contradicts .*last.keras"),
        ("predict", "--output=mask", "--output=mask is no form of rows"),
        ("predict", "--pred_tta=scales", "--pred_tta=scales does not suit"),
        ("train", "--loss_function=dice", "--loss_function"),
        ("train", "--monitor=val_dice", "--monitor"),
        ("train", "--decoder=unet", "--decoder=unet has no effect with a --task"),
    ],
)
def test_what_does_not_suit_labels_is_refused(work, tmp_path, command, flag, says):
    root, _ = work
    with pytest.raises(UserError, match=says):
        if command == "predict":
            predict(root, tmp_path / "out", flag)
        else:
            call("train", *flags(root), f"--models_dir={tmp_path}", flag)


@pytest.mark.parametrize("command", ["evaluate", "encode"])
def test_a_folder_of_labels_is_no_folder_of_masks(work, oof, command):
    root, _ = work
    more = [f"--dataset_dir={root}/input"] if command == "evaluate" else ["--pred_sample_csv="]
    with pytest.raises(UserError, match="--task=labels"):
        call(command, f"--pred_mask_dir={oof}", *more)


def test_masks_refuse_flags_of_labels_and_crops():
    with pytest.raises(UserError, match="--top_k=5 has no effect without --task=labels"):
        commands.find("train").parse(["--top_k=5"])
    with pytest.raises(UserError, match="crops gives no masks"):
        TASKS["masks"].refuse_views(windows=True, tiles=False, boxes=False, logits=False)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a.png,red,1.5", "score of 0 to 1"),
        ("a.png,red,nan", "score of 0 to 1"),
        ("a.png,red green,0.5", "score of 0 to 1"),
        ("a.png,red green,0.4 0.5", "best first"),
        ("a.png,red red,0.5 0.4", "score of 0 to 1"),
        ("b.png,red,0.5", "twice"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, line, says):
    path = tmp_path / table.NAME
    path.write_bytes(gzip.compress(f"id,labels,scores\nb.png,red,0.5\n{line}\n".encode()))
    with pytest.raises(UserError, match=says):
        list(table.open_scores(tmp_path).rows())


RECIPE = """
task: labels
prepare: {shorter_side: 34}
stages:
  - name: train
    photos: train
    labels: train_labels.csv
    val_ratio: 0.25
    flags: &small {network: mobilenet, alpha: 0.25, weights: none, size_policy: crop,
      input_width: 32, input_height: 32, batch_size: 4, epochs: 1, dtype: float32}
  - name: tune
    photos: test
    labels: tuning.csv
    val_ratio: 0.4
    flags: *small
predict: {pred_tta: ten_crop}
answer: {threshold: fitted, min_labels: 1}
submissions: [{photos: test, sample: sample.csv}]
"""


def test_a_recipe_goes_from_photos_to_a_submission_and_on_after_a_failure(work, tmp_path):
    root, rows = work
    (tmp_path / "r.yaml").write_text(RECIPE)
    tuning = [f"{photo},{' '.join(labels)}" for photo, labels in rows["test"].items()]
    (root / "input/tuning.csv").write_text("\n".join(tuning) + "\n")
    write(root / "input/sample.csv", "image_id,labels", [f"{name}," for name in rows["test"]])
    chosen = recipes.read(tmp_path / "r.yaml")
    paths = recipes.LabelPaths(root / "input", tmp_path / "out")
    steps = recipes.steps(chosen, paths)
    check.command_lines(steps, commands.find)
    lines = []

    def execute(line, log):
        lines.append(line)
        if line[0] == "encode" and len(lines) < len(steps) + 1:
            return 1
        return call(*line)

    assert not runner.Runner(paths.out, steps, execute).run(steps)
    assert [line[0] for line in lines] == [step.command for step in steps]
    assert runner.Runner(paths.out, steps, execute).run(steps)
    assert len(lines) == len(steps) + 1  # what was done is not done again
    written = (tmp_path / "out/submission_test.csv").read_text().splitlines()
    assert written[0] == "image_id,labels" and len(written) == len(rows["test"]) + 1
    summary = json.loads(paths.scores(chosen.stages[-1]).read_text())
    assert f"--threshold={summary['best_threshold']}" in lines[-1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("task: labels", "task: masks"), "is no recipe of labels"),
        (("name: tune", "name: train"), "two stages have one name"),
        (("val_ratio: 0.4", "val_ratio: 2"), "between 0 and 1"),
        (("epochs: 1", "fold: 3"), "--fold is set by"),
        (("    photos: test\n", ""), "'photos' is missing"),
        (("pred_tta: ten_crop", "pred_tta: ten_crops"), "ten_crops"),
        (("shorter_side: 34", "side: 34"), "side"),
    ],
)
def test_a_wrong_recipe_is_refused_before_it_starts(tmp_path, change, says):
    (tmp_path / "r.yaml").write_text(RECIPE.replace(*change))
    arguments = ["--task=labels", f"--recipe={tmp_path}/r.yaml", "--dry_run", "--out_dir=out"]
    with pytest.raises(UserError, match=says):
        commands.find("pipeline").chosen(arguments).call(arguments)
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_labels_asks_for_its_task(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    with pytest.raises(UserError, match="give --task=labels"):
        commands.find("pipeline").call(
            [f"--recipe={tmp_path}/r.yaml", "--out_dir=out", "--dry_run"]
        )


@pytest.mark.parametrize("name", ["inclusive_images", "labels_quick"])
def test_the_shipped_recipes_are_accepted(name, tmp_path):
    chosen = recipes.read(ROOT / f"recipes/{name}.yaml")
    check.command_lines(recipes.steps(chosen, recipes.LabelPaths(ROOT, tmp_path)), commands.find)


def test_the_published_network_trains_as_its_recipe_says(work, tmp_path):
    root, _ = work
    call("train", f"--flagfile={ROOT}/recipes/003-seresnet101-train.flags", "--smoke",
         "--epochs=1", "--gpu=", f"--dataset_dir={root}/input",
         f"--folds_source={root}/input/folds.csv", "--fold=0",
         "--group_pattern=(.+)", f"--models_dir={tmp_path}", "--size_policy=resize")  # fmt: skip
    trained = json.loads((tmp_path / "seresnet101-003-train-fold_0-smoke/last.json").read_text())
    assert (trained["task"], trained["network"]) == ("labels", "seresnet101")


def test_a_model_of_windows_must_say_their_size(work, tmp_path):
    root, _ = work
    network, metadata = model_file.load(model(root))
    del metadata["input_height"]
    path = model_file.save(network, tmp_path / "m.keras", metadata)
    with pytest.raises(UserError, match="--size_policy=crop needs --input_height"):
        checkpoint.read(path, NetworkOptions())
