"""Each flag is used or refused: none is ignored without a word."""

import dataclasses

import pytest

from carvana_tf import commands, flags
from carvana_tf.errors import UserError
from carvana_tf.flags import Needs, option
from carvana_tf.training.options import TrainingOptions


@dataclasses.dataclass(frozen=True)
class Options:
    n_mode: str = option("a", "Mode.")
    n_steps: int = option(5, "Steps, of mode b.")
    n_quiet: bool = option(False, "Switch, of mode b.")

    NEEDS = (Needs(("n_steps", "n_quiet"), lambda o: o.n_mode == "b", "without --n_mode=b"),)


def parse(*arguments):
    return flags.parse((Options,), arguments)[Options]


@pytest.mark.parametrize("arguments", [("--n_steps=6",), ("--n_steps=5",), ("--n_quiet",)])
def test_a_flag_without_effect_is_refused(arguments):
    with pytest.raises(UserError, match=rf"^{arguments[0]} has no effect without --n_mode=b;"):
        parse(*arguments)
    assert parse(*arguments, "--n_mode=b").n_mode == "b"


def test_a_flag_that_says_no_is_no_wish():
    assert parse("--non_quiet") == Options()


CASES = {
    "train": [
        ("--clr=1e-5,1e-4,5,triangular", "--lr_schedule=cosine"),
        ("--clr=1e-5,1e-4,5,triangular", "--learning_rate=0.1"),
        ("--lr_schedule=0:1e-4", "--learning_rate=0.1"),
        ("--lr_schedule=step", "--warmup_steps=5"),
        ("--lr_schedule=cosine", "--decay_every=7"),
        ("", "--decay_factor=0.1"),
        ("--fold=none", "--n_folds=5"),
        ("--fold=none", "--monitor=val_loss"),
        ("--fold=none", "--min_delta=0.1"),
        ("--patience=0", "--min_delta=0.1"),
        ("", "--pseudo_confidence=0.5"),
        ("", "--pseudo_weight=0.5"),
        ("", "--pseudo_data_dir=other"),
        ("", "--foreign_weights"),
        ("--weights=none", "--allow_partial_weights"),
        ("--size_policy=crop", "--nouse_crop"),
        ("--size_policy=resize", "--use_crop"),
        ("--size_policy=pad", "--input_width=640"),
        ("--nouse_crop", "--input_height=640"),
        ("--epochs=5", "--fresh_optimizer_epoch=5"),
        ("--epochs=5", "--keep_every=6"),
        ("--restart", "--from_epoch=2"),
    ],
    "predict": [
        ("", "--fold=0"),
        ("", "--val_data_dir_name=val"),
        ("--predict_on_val --test_data_dir=x", "--val_data_dir_name=val"),
        ("", "--threshold=100"),
        ("--output=cutout", "--threshold=100"),
        ("--output=mask", "--background=white"),
        ("", "--keep_shadow"),
        ("", "--edges=mask"),
        ("", "--cutout_format=webp"),
        ("", "--tile_overlap=8"),
        ("", "--calibration_dir=x"),
        ("--engine=keras", "--calibration_photos=5"),
    ],
    "ensemble": [
        ("--member=folder", "--test_data_dir=x"),
        ("--member=a.keras --predict_on_val", "--test_data_dir=x"),
        ("", "--predict_on_val"),
        ("--member=a.keras", "--val_data_dir_name=x"),
        ("--member=a.keras", "--folds_dir=x"),
        ("", "--train_mask_dir_name=x"),
    ],
    "make_folds": [
        ("--areas_csv=x", "--train_data_dir_name=y"),
        ("--areas_csv=x", "--area_photos=5"),
        ("--method=area_rank", "--seed=3"),
    ],
    "encode": [
        ("--check=x", "--submission_name=y"),
        ("--check=x", "--image_extension=.png"),
    ],
    "pipeline": [("--dry_run", "--overwrite")],
}


@pytest.mark.parametrize("name", CASES)
def test_every_command_refuses_what_it_would_ignore(name):
    command = commands.find(name)
    for context, ignored in CASES[name]:
        with pytest.raises(UserError, match=rf"^{ignored.partition('=')[0]}\b.* has no effect "):
            command.parse([*context.split(), ignored])
        command.parse(context.split())


@pytest.mark.parametrize(("given", "meant"), [(None, "imagenet"), ("", "none"), ("none", "none")])
def test_weights_that_are_left_out_are_those_of_imagenet(given, meant):
    assert TrainingOptions.of(weights=given).resolved().start.weights == meant
