"""A dataset remembered: `dataset.yaml` found by looking, written, and read by every command."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from carvana_tf import cli, commands
from carvana_tf.commands import check_data, encode
from carvana_tf.data import description, layout
from carvana_tf.data.dataset import DEFAULT_GROUP_PATTERN, EACH_ITS_OWN
from carvana_tf.data.images import write_gif_mask, write_mask, write_photo
from carvana_tf.errors import Problems, UserError
from carvana_tf.options import DatasetOptions
from carvana_tf.recipe.steps import RunPaths
from carvana_tf.training.options import TrainingOptions
from carvana_tf.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
CELLS = "photos: images\nmasks: masks\nmask_suffix: ''\ntest_photos: more\n"


def describe(folder, text=CELLS):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.yaml").write_text(text)
    return f"--dataset_dir={folder}"


def parse(name, *arguments):
    return commands.find(name).chosen(arguments).parse(arguments)


def make(root, pictures=(), masks=()):
    """Noise as photos, rectangles as masks."""
    for number, name in enumerate(pictures):
        noise = np.random.default_rng(number).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        write_photo(root / name, noise)
    for name in masks:
        mask = np.zeros((24, 30), bool)
        mask[4:20, 5 : 8 + len(name)] = True
        (write_gif_mask if name.endswith(".gif") else write_mask)(root / name, mask)
    return root


def stems(count, form="p{:02d}x"):
    return [form.format(i) for i in range(count)]


# Reading ----------------------------------------------------------------------


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    folder = describe(tmp_path)
    options = parse("train", folder, "--val_data_dir_name=train", "--mask_extension=.gif")
    training = options[TrainingOptions]
    assert training.split.train_data_dir_name == "images"
    assert training.split.val_data_dir_name == "train"
    assert (training.dataset.mask_suffix, training.dataset.mask_extension) == ("", ".gif")
    assert training.dataset.group_pattern == DEFAULT_GROUP_PATTERN
    again = parse("train", folder, "--mask_suffix=_mask")[TrainingOptions]
    assert again.dataset.mask_suffix == "_mask"
    file = tmp_path / "more.flags"
    file.write_text("--train_mask_dir=other\n")
    assert parse("train", folder, f"--flagfile={file}")[TrainingOptions].split == (
        dataclasses.replace(again.split, train_mask_dir_name="other")
    )


def test_remembered_values_are_not_set_but_recorded(tmp_path):
    values = parse("train", describe(tmp_path))
    assert not values.is_set("mask_suffix")
    assert values.remembered.keys() == {
        *("train_data_dir_name", "val_data_dir_name", "mask_suffix"),
        *("train_mask_dir_name", "val_mask_dir_name"),
    }
    assert values.flag("mask_suffix") == ""
    assert values[TrainingOptions].flat()["val_mask_dir_name"] == "masks"


def test_without_the_file_all_is_as_it_was(tmp_path):
    for name in commands.SCRIPTS:
        values = commands.find(name).parse([])
        assert values.remembered == {}
    assert description.read(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (("train", "--fold=none"), {"train_data_dir_name", "train_mask_dir_name"}),
        (
            ("train", "--fold=none", "--val_data_dir_name=x"),
            {"train_data_dir_name", "train_mask_dir_name", "val_mask_dir_name"},
        ),
        (("train", "--task=labels"), {"train_data_dir_name", "val_data_dir_name"}),
        (("make_folds", "--areas_csv=a.csv"), set()),
        (("predict",), {"test_data_dir"}),
        (("predict", "--predict_on_val"), {"val_data_dir_name"}),
        (("predict", "--predict_on_val", "--test_data_dir=t"), set()),
        (("predict", "--engine=openvino-int8"), {"test_data_dir", "calibration_dir"}),
        (("ensemble",), set()),
        (("ensemble", "--fit_weights"), {"train_mask_dir_name"}),
        (("evaluate",), {"train_mask_dir_name", "photo_dir"}),
        (("pipeline",), {"train_data_dir_name", "train_mask_dir_name", "test_data_dir"}),
    ],
)
def test_what_has_no_effect_is_left_at_its_default(tmp_path, arguments, left):
    name, *further = arguments
    values = parse(name, describe(tmp_path), *further)
    assert values.remembered.keys() - {"mask_suffix"} == left
    if name == "train" and "--fold=none" in further:
        validates = "--val_data_dir_name=x" in further
        assert values[TrainingOptions].split.validates_nothing != validates


def test_the_folder_of_test_photos_is_inside_the_dataset(tmp_path):
    values = parse("predict", describe(tmp_path))
    assert values.flag("test_data_dir") == str(tmp_path / "more")


def test_a_submission_takes_the_sample_of_its_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def sample(*arguments):
        return encode._options(parse("encode", *arguments)).pred_sample_csv

    assert sample() == "input/sample_submission.csv"
    assert sample("--dataset_dir=a") == "a/sample_submission.csv"
    describe(tmp_path / "a", "sample_submission: b.csv")
    assert sample("--dataset_dir=a") == "a/b.csv"
    assert sample("--dataset_dir=a", "--pred_sample_csv=") == ""
    with pytest.raises(UserError, match=r"'a/b\.csv' does not exist"):
        problems = Problems()
        encode.validate(parse("encode", "--dataset_dir=a", "--pred_mask_dir=a"), problems)
        problems.raise_any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photo: images", "key 'photo' is unknown. Did you mean 'photos'"),
        ("1: images", "key '1' is unknown"),
        ("photos: 3", "photos must be text, received 3"),
        ("photos: [a]", "photos must be text"),
        ("mask_suffix:", "mask_suffix must be text, received None"),
        ("photos: /etc", "photos must be a path inside"),
        ("masks: a/../../b", "masks must be a path inside"),
        ("folds_source: ../folds.csv", "folds_source must be a path inside"),
        ("sample_submission: ''", "sample_submission must be a path inside"),
        ("photo_depth: 33", "photo_depth must be a whole number, 0 to 32"),
        ("n_folds: 1", "n_folds must be a whole number, at least 2"),
        ("n_folds: true", "n_folds must be a whole number"),
        ("max_pixels: 1.5", "max_pixels must be a whole number"),
        ("mask_extension: gif", "'gif' is none of"),
        ("group_pattern: (", "no regular expression"),
        ("mask_values: maybe", "--mask_values='maybe' must be"),
        ("[photos]", "must have keys and values"),
        ("photos: [", "is no YAML"),
        ("a: &a [*a]", "is no YAML"),
        ("photos: !!python/name:os.system", "is no YAML"),
        ("\0", "is no YAML"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_file(tmp_path, capsys, text, message):
    folder = describe(tmp_path, text)
    assert cli.main(check_data.COMMAND, [folder]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and "dataset.yaml" in line and line.startswith("error: ")


def test_an_empty_file_says_nothing_and_help_does_not_read_it(tmp_path, capsys):
    assert description.read(Path(describe(tmp_path, "# nothing\n").partition("=")[2])) == {}
    folder = describe(tmp_path, "[")
    assert cli.main(commands.find("train"), [folder, "--help"]) == 0
    assert "dataset.yaml: photos" in capsys.readouterr().out


def test_a_message_about_a_flag_says_that_the_file_sets_it(tmp_path, capsys):
    folder = describe(tmp_path)
    assert cli.main(commands.find("make_folds"), [folder]) == 1
    note, line = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note: from '{tmp_path}/dataset.yaml': --")
    assert "--train_data_dir_name=images" in note and "--mask_suffix= " in f"{note} "
    assert f"('{tmp_path}/dataset.yaml' sets --train_data_dir_name" in line


def test_commands_of_a_recipe_get_what_the_user_said(tmp_path):
    folder = describe(tmp_path, "mask_suffix: ''\nmask_extension: .gif\nmask_values: auto\n")
    dataset = parse("pipeline", folder, "--mask_suffix=_mask")[DatasetOptions]
    paths = RunPaths(dataset, tmp_path, tmp_path, None, None, tmp_path)
    assert paths.shared() == [folder, "--mask_suffix=_mask", "--mask_extension=.gif"]
    step = parse("make_folds", *paths.shared())
    assert step[DatasetOptions] == dataset
    (tmp_path / "dataset.yaml").unlink()
    assert paths.shared() == [folder, "--mask_extension=.gif"]


WITHOUT_KERAS = """
import sys
from carvana_tf import cli, commands
for name in ("train", "predict", "evaluate", "make_folds", "check_data", "pipeline"):
    assert cli.main(commands.find(name), ["--dataset_dir=cells"]) == 1, name
assert not {"keras", "tensorflow", "jax"} & {*sys.modules}
"""


def test_reading_it_loads_no_keras(tmp_path):
    describe(tmp_path / "cells")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS], cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# Looking ----------------------------------------------------------------------

IMAGES = [f"images/{stem}.jpg" for stem in stems(6)]
AS_IMAGES = [f"masks/{stem}.png" for stem in stems(6)]


def _of(folder, ending, form="p{:02d}x"):
    return [f"{folder}/{stem}{ending}" for stem in stems(6, form)]


@pytest.mark.parametrize(
    ("pictures", "masks", "expected"),
    [
        (IMAGES, AS_IMAGES, {"photos": "images", "masks": "masks", "mask_suffix": ""}),
        (IMAGES, _of("out", ".png"), {"masks": "out", "mask_suffix": ""}),
        (_of("i", ".jpg", "p_{}"), _of("i", ".gif", "p_{}"), {"mask_extension": ".gif"}),
        (IMAGES, _of("images", "-seg.png"), {"masks": "images", "mask_suffix": "-seg"}),
        (_of(".", ".jpg"), _of(".", "_mask.png"), {"photos": ".", "mask_suffix": "_mask"}),
        (_of("a/b", ".jpg"), _of("a/c", ".png"), {"photos": "a/b", "masks": "a/c"}),
        (_of("train", ".jpg"), _of("train_masks", ".png"), {"mask_suffix": ""}),
        (
            [*_of("train/images", ".jpg"), *_of("val/images", ".jpg", "q{}")],
            [*_of("train/masks", ".png"), *_of("val/masks", ".png", "q{}")],
            {"photos": "train/images", "masks": "train/masks", "test_photos": "val/images"},
        ),
        ([*IMAGES, "more/z.jpg"], AS_IMAGES, {"test_photos": "more"}),
        ([*IMAGES, "more/z.jpg", "yet/z.jpg"], AS_IMAGES, {"test_photos": None}),
        ([*IMAGES, "more/z.jpg", "test/z.jpg"], AS_IMAGES, {"test_photos": "test"}),
        (
            [*IMAGES, *_of("small", ".jpg", "p0{}x")[:2]],
            AS_IMAGES,
            {"photos": "images", "test_photos": None},
        ),
    ],
)
def test_folders_and_names_are_found(tmp_path, pictures, masks, expected):
    found = layout.find(make(tmp_path, pictures, masks), {})
    assert {key: found.values.get(key) for key in expected} == expected
    assert not found.unclear


def test_predictions_are_no_masks(tmp_path):
    folders = ("out", "again", "predicted_masks")
    make(tmp_path, IMAGES, [name for folder in folders for name in _of(folder, ".png")])
    with pytest.raises(UserError, match="may be the masks: again, out;"):
        layout.find(tmp_path, {})
    (tmp_path / "again/manifest.json").write_text("{}")
    assert layout.find(tmp_path, {}).values["masks"] == "out"


@pytest.mark.parametrize(
    ("masks", "message", "given"),
    [
        (
            [*AS_IMAGES, *_of("masks_2", ".png")],
            "may be the masks: masks, masks_2; .*--train_mask_dir_name",
            {"masks": "masks_2"},
        ),
        (
            [*_of("masks", "_a.png"), *_of("masks", "_b.png")],
            r"names add '_a' \(6\), '_b' \(6\); choose one with --mask_suffix",
            {"mask_suffix": "_b"},
        ),
        ([], r"no folder's images are masks .*images \(6\).*--train_mask_dir_name", None),
    ],
)
def test_what_is_ambiguous_asks_for_a_flag(tmp_path, masks, message, given):
    make(tmp_path, IMAGES, masks)
    with pytest.raises(UserError, match=message):
        layout.find(tmp_path, {})
    if given is not None:
        found = layout.find(tmp_path, given)
        assert given.items() <= found.values.items()


def test_two_types_of_masks_ask_for_one(tmp_path):
    make(tmp_path, IMAGES, [*AS_IMAGES, *_of("masks", ".bmp")])
    with pytest.raises(UserError, match=r"\.png \(6\).*--mask_extension"):
        layout.find(tmp_path, {})
    assert layout.find(tmp_path, {"mask_extension": ".bmp"}).values["mask_extension"] == ".bmp"


@pytest.mark.parametrize(
    ("form", "count", "pattern", "n_folds"),
    [
        ("img_{:03d}", 12, EACH_ITS_OWN, 5),
        ("p{}", 3, DEFAULT_GROUP_PATTERN, 3),
        ("p{}_1", 12, DEFAULT_GROUP_PATTERN, 5),
    ],
)
def test_groups(tmp_path, form, count, pattern, n_folds):
    names = stems(count, form)
    make(tmp_path, [f"a/{n}.png" for n in names], [f"b/{n}.png" for n in names])
    found = layout.find(tmp_path, {})
    assert found.values["group_pattern"] == pattern
    assert found.values["n_folds"] == n_folds
    assert not found.unclear


def test_a_group_of_most_photos_is_unclear_and_nothing_is_written(tmp_path, capsys):
    names = [*stems(10, "img_{}"), "x_1", "y_1"]
    make(tmp_path, [f"a/{n}.png" for n in names], [f"b/{n}.png" for n in names])
    arguments = [f"--dataset_dir={tmp_path}", "--write"]
    assert cli.main(check_data.COMMAND, arguments) == 1
    assert "unclear: group_pattern" in capsys.readouterr().out
    assert not (tmp_path / "dataset.yaml").exists()
    assert cli.main(check_data.COMMAND, [*arguments, "--group_pattern=(.+)"]) == 0
    assert description.read(tmp_path)["group_pattern"] == "(.+)"


# Writing ----------------------------------------------------------------------


def test_what_was_found_is_written_and_kept(tmp_path, capsys):
    make(tmp_path, [*IMAGES, "more/z.jpg"], AS_IMAGES)
    (tmp_path / "my_sample_submission.csv").write_text("img,rle_mask\nz.jpg,\n")
    (tmp_path / "labels.csv").write_text("id,labels\np00x,a\n")
    dataset = f"--dataset_dir={tmp_path}"
    assert cli.main(check_data.COMMAND, [dataset]) == 0
    assert not (tmp_path / "dataset.yaml").exists()
    assert cli.main(check_data.COMMAND, [dataset, "--write", "--photo_depth=8"]) == 0
    assert f"layout -> {tmp_path}/dataset.yaml" in capsys.readouterr().out
    found = description.read(tmp_path)
    assert found == {
        "photos": "images",
        "masks": "masks",
        "test_photos": "more",
        "sample_submission": "my_sample_submission.csv",
        "labels": "labels.csv",
        "mask_suffix": "",
        "mask_extension": "",
        "group_pattern": DEFAULT_GROUP_PATTERN,
        "mask_values": "auto",
        "photo_depth": 8,
        "max_pixels": 1 << 28,
        "folds_source": "folds.csv",
        "n_folds": 5,
    }
    lines = (tmp_path / "dataset.yaml").read_text().splitlines()
    assert max(map(len, lines)) <= 100
    for key in found:
        (place,) = (i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
        assert lines[place - 1].startswith("# ")
    changed = (tmp_path / "dataset.yaml").read_text().replace("n_folds: 5", "n_folds: 3")
    (tmp_path / "dataset.yaml").write_text(changed)
    assert cli.main(check_data.COMMAND, [dataset, "--write"]) == 0
    assert description.read(tmp_path) == found | {"n_folds": 3}
    assert cli.main(commands.find("make_folds"), [dataset]) == 0
    assert "6 groups in 3 folds" in capsys.readouterr().out
    assert cli.main(check_data.COMMAND, [dataset]) == 0


def test_nothing_is_written_where_something_is_wrong(tmp_path, capsys):
    make(tmp_path, IMAGES, AS_IMAGES)
    (tmp_path / IMAGES[0]).write_bytes(b"\xff\xd8")
    assert cli.main(check_data.COMMAND, [f"--dataset_dir={tmp_path}", "--write"]) == 1
    assert "nothing was recorded" in capsys.readouterr().out
    assert not (tmp_path / "dataset.yaml").exists()


def test_a_place_outside_is_not_remembered(tmp_path):
    make(tmp_path, _of("in/images", ".jpg"), _of("out/masks", ".png"))
    root = tmp_path / "in"
    arguments = [f"--dataset_dir={root}", "--write", f"--train_mask_dir={tmp_path}/out/masks"]
    assert cli.main(check_data.COMMAND, arguments) == 0
    assert "masks" not in description.read(root)
    assert description.read(root)["photos"] == "images"


@pytest.mark.parametrize("value", ["a: b", "#x", "yes", "0x1", " lead", "ü", "a'b\"c", "a\udcffb"])
def test_names_come_back_as_they_were(tmp_path, value):
    description.write(tmp_path, {"photos": value, "mask_suffix": value}, {})
    assert description.read(tmp_path) == {"photos": value, "mask_suffix": value}


def test_recipes_and_descriptions_share_one_reader(tmp_path):
    (tmp_path / "a.yaml").write_text("a: " + "[" * 30 + "]" * 30)
    with pytest.raises(UserError, match=r"^a thing '.*a.yaml' is no YAML: it nests"):
        read_yaml(tmp_path / "a.yaml", "a thing")


@pytest.mark.skipif("NUCLEI_DIR" not in os.environ, reason="NUCLEI_DIR is not set")
def test_microscopy_photos_are_found():
    found = layout.find(Path(os.environ["NUCLEI_DIR"]), {})
    expected = {"photos": "images", "masks": "masks", "mask_suffix": "", "n_folds": 5}
    assert expected.items() <= found.values.items()
