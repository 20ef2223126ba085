"""recipes/*.flags: each says where it is from, has the published values, and runs."""

import contextlib
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import draw_pair, write_palette_gif
from processes import run_script_apart

from carvana_tf import commands as toolkit
from carvana_tf.data.images import write_photo, write_probability
from carvana_tf.files import digest_of_lines
from carvana_tf.flags import defaults
from carvana_tf.masks import manifest
from carvana_tf.models import model_file
from carvana_tf.options import DatasetOptions
from carvana_tf.training import rates
from carvana_tf.training.options import TrainingOptions

ROOT = Path(__file__).parents[1]
EQUAL = "bce_dice:bce_weight=1,dice_weight=1"
ALBU = (EQUAL, 1e-4, "adam", "pad", 40, 4)
FOURTH = ("bce_dice", 1e-5, "adam", "crop 1024x1024", 30, 1)

# As the systems' notes have them: loss, learning rate (None: --lr_schedule has it), optimiser,
# size, epochs, photos per update.
FACTS = {
    "000-scratch": ("weighted_bce_dice", 5e-3, "sgd", "resize 1024x1024", 250, 4),
    "000-vgg11v1-stage1": ("weighted_bce_dice", 1e-4, "adam", "resize 1024x1024", 15, 4),
    "000-vgg11v1-stage2": ("weighted_bce_dice", None, "adam", "resize 1024x1024", 45, 4),
    "000-linknet34-fma_s44": ALBU,
    "000-linknet34-fma_s88": ALBU,
    "000-linknet34-fma_noseed": ALBU,
    "000-linknet34-f04a_s44": ALBU,
    "000-linknet34-f04a_clahe": ALBU,
    "000-linknet34-f04a_clahe_rmsprop": (EQUAL, 1e-4, "rmsprop", "pad", 40, 4),
    "000-ternaus": ("log_dice", 1e-4, "adam", "pad", 52, 4),
    "001-resnet50": FOURTH,
    "001-mobilenet": FOURTH,
    "001-inception_resnet_v2": FOURTH,
    "001-vgg": FOURTH,
    "001-stacked_simple_unet": ("bce_dice", 1e-3, "adam", "crop 1024x1024", 30, 1),
    "002-unet_classic": ("distance_weighted", 3e-4, "sgd", "pad", 150, 1),
    "004-unet_bn": (EQUAL, 1e-3, "adam", "resize 768x768", 120, 4),
}
NAMES = sorted(FACTS)

LINKNET = {
    "augmentation": "000-albu",
    "clipnorm": 1.0,
    "hard_example_replay": True,
    "lr_schedule": "000-albu",
    "fresh_optimizer_epoch": 23,
    "monitor": "val_loss",
    "patience": 0,
}
CONSTANT = {"lr_schedule": "constant"}
FOURTH_FURTHER = CONSTANT | {"augmentation": "001"}
FURTHER = {name: LINKNET for name in NAMES if "linknet34" in name} | {
    "000-scratch": {
        "augmentation": "000-aug2",
        "momentum": 0.9,
        "weight_decay": 0.005,
        "lr_schedule": "step",
        "patience": 0,
    },
    "000-vgg11v1-stage1": {
        "augmentation": "000-aug1",
        "lr_schedule": "000-vgg11v1",
        "patience": 0,
    },
    "000-vgg11v1-stage2": {
        "augmentation": "000-aug0",
        "lr_schedule": "0:1e-6,5:1e-4,15:1e-5,20:1e-6,25:1e-4,35:1e-5,40:1e-6",
        "patience": 0,
    },
    "000-ternaus": {
        "augmentation": "000-ternaus",
        "lr_schedule": "000-ternaus",
        "monitor": "val_loss",
        "patience": 0,
    },
    "001-resnet50": FOURTH_FURTHER | {"preprocessing_function": "caffe"},
    "001-vgg": FOURTH_FURTHER | {"preprocessing_function": "caffe"},
    "001-mobilenet": FOURTH_FURTHER | {"preprocessing_function": "tf"},
    "001-inception_resnet_v2": FOURTH_FURTHER | {"preprocessing_function": "tf"},
    "001-stacked_simple_unet": FOURTH_FURTHER | {"preprocessing_function": "tf"},
    "002-unet_classic": CONSTANT
    | {
        "augmentation": "002",
        "momentum": 0.99,
        "weight_decay": 0.01,
        "patience": 0,
        "keep_every": 5,
    },
    "004-unet_bn": CONSTANT | {"augmentation": "004", "patience": 9, "min_delta": 1e-5},
}
"""What else differs from the defaults of `train.py`."""


def path_of(name: str) -> Path:
    return ROOT / "recipes" / f"{name}.flags"


def read(name: str, *further: str) -> TrainingOptions:
    """What `train.py` makes of a recipe."""
    values = toolkit.find("train").parse([f"--flagfile={path_of(name)}", *further])
    return values[TrainingOptions]


def commands(name: str, script: str) -> list[str]:
    """The command lines of a script in a recipe's comment."""
    lines = [line.removeprefix("#").strip() for line in path_of(name).read_text().splitlines()]
    return [line for line in lines if line.startswith(f"python {script} ")]


def test_every_published_network_has_its_recipe():
    # Those of system 003 are of labels: tests/test_labels.py.
    assert sorted(path.stem for path in (ROOT / "recipes").glob("00[!3]*.flags")) == NAMES


SOURCES = {
    "000": "The 1st-place solution (asanakoy/kaggle_carvana_segmentation)",
    "001": "The 4th-place solution (killthekitten/kaggle-carvana-2017)",
    "002": "sohyongsheng's solution (sohyongsheng/kaggle-carvana)",
    "004": "AlbertoSabater's Keras solution on a laptop",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_comment_says_where_it_is_from_and_how_to_run_it(name):
    text = path_of(name).read_text()
    comment = text[: text.index("\n\n")].splitlines()
    assert all(line.startswith("#") for line in comment)
    assert comment[0].startswith(f"# {SOURCES[name[:3]]}")
    assert any(line.startswith("# Published score: ") for line in comment)
    train = f"python train.py --flagfile=recipes/{name}.flags --fold=0"
    assert commands(name, "train.py")[-1] == train
    (make_folds,) = commands(name, "make_folds.py")
    assert f"--folds_source={read(name).dataset.folds_source}" in shlex.split(make_folds)
    hint = "--train_data_dir_name=train_hq --val_data_dir_name=train_hq"
    assert (hint in " ".join(text.split())) == name.startswith("000")


@pytest.mark.parametrize("name", NAMES)
def test_the_further_values_are_the_published_ones(name):
    options = read(name)
    named = {
        *("network", "net_alias", "weights", "loss_function", "learning_rate", "optimizer"),
        *("size_policy", "input_width", "input_height", "epochs", "batch_size", "clahe", "seed"),
        *("gradient_accumulation", "stacked_channels", "stacked_channels_dir", "models_dir"),
        *("train_data_dir_name", "val_data_dir_name", "allow_partial_weights"),
    }
    ours = {*defaults(DatasetOptions)}
    changed = {
        flag: value
        for flag, value in options.flat().items()
        if flag not in named | ours and value != defaults(TrainingOptions)[flag]
    }
    assert changed == FURTHER[name]


@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_published_ones(name):
    options = read(name)
    seen, schedule, length = options.input, options.schedule, options.length
    size = "" if seen.policy == "pad" else f" {seen.input_width}x{seen.input_height}"
    assert FACTS[name] == (
        options.loss.loss_function,
        None if ":" in schedule.lr_schedule else schedule.learning_rate,
        options.optimizer.optimizer,
        seen.policy + size,
        length.epochs,
        length.batch_size * options.optimizer.gradient_accumulation,
    )
    assert seen.clahe == ("clahe" in name)


def test_the_second_stage_goes_on_with_the_rates_of_the_first():
    first, second = read("000-vgg11v1-stage1"), read("000-vgg11v1-stage2")
    cycle = rates.PUBLISHED[first.schedule.lr_schedule]
    count = second.length.epochs
    epochs = range(first.length.epochs, first.length.epochs + count)
    second_rates = rates.parse_rates(second.schedule.lr_schedule, count)
    np.testing.assert_allclose(
        second_rates, [first.schedule.learning_rate * cycle(epoch) for epoch in epochs]
    )
    model = f"{first.run.models_dir}/{first.run_name('3')}/last.keras"
    assert second.of_fold("3").start.weights == model


SIZE = 320, 480
"""Large enough for damaged memory to show: LinkNet crashes without its `SubsampledConv2D`."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A working folder: photos, stacked channels, and the folds that the recipes ask for."""
    work = tmp_path_factory.mktemp("work")
    (work / "recipes").symlink_to(ROOT / "recipes")
    root = work / "input"
    (root / "train").mkdir(parents=True)
    (root / "train_masks").mkdir()
    for channel in range(2):
        (work / "predicted_masks" / "stacked" / str(channel)).mkdir(parents=True)
    for car in range(7):
        for view in ("01", "05"):
            stem = f"car{car}_{view}"
            photo, mask = draw_pair(*SIZE, 100 * car + int(view))
            write_photo(root / "train" / f"{stem}.jpg", photo)
            write_palette_gif(root / "train_masks" / f"{stem}_mask.gif", mask)
            for channel in range(2):
                folder = work / "predicted_masks" / "stacked" / str(channel)
                write_probability(folder / f"{stem}.png", mask.astype(np.uint8) * 200)
    stems = [path.stem for path in (root / "train").iterdir()]
    origin = manifest.Manifest(
        *((), True, "none", "keras", "float32", 14),
        *(digest_of_lines(stems), manifest.ENCODING, "1"),
    )
    for channel in range(2):
        manifest.write(work / "predicted_masks" / "stacked" / str(channel), origin)
    with contextlib.chdir(work):
        for line in sorted({commands(name, "make_folds.py")[0] for name in NAMES}):
            _, _, *flags = shlex.split(line)
            few = ["--first_groups=2"] if "--first_groups" in line else []
            assert toolkit.find("make_folds").call([*flags, *few]) == 0
    return work


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_runs_as_documented(work, tmp_path, name):
    """In graph mode, in a process of its own: a crash names its recipe, and ends no worker."""
    _, script, *documented = shlex.split(commands(name, "train.py")[-1])
    options = read(name)
    weights = options.start.weights
    if weights not in (None, "imagenet"):
        # The stage before: a trial takes nothing from it, but asks that it is there.
        photo = keras.Input((None, None, 3))
        stage = keras.Model(photo, keras.layers.Conv2D(1, 1)(photo))
        before = work / weights.replace("{fold}", "0")
        before.parent.mkdir(parents=True, exist_ok=True)
        stage.save(before)
    flags = (*documented, "--smoke", "--epochs=1", f"--models_dir={tmp_path}")
    network = options.model.network
    run_script_apart(name, tmp_path / "log", ROOT / script, *flags, cwd=work)
    (run,) = tmp_path.glob("*-fold_0-smoke")
    metadata = model_file.read_metadata(run / "best.keras")
    assert np.isfinite(metadata["scores"]["val_loss"])
    assert metadata["network"] == network
    assert metadata["clahe"] == options.input.clahe
    assert not set(metadata["training_groups"]) & set(metadata["val_groups"])
