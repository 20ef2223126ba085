"""The command plan: a flag file that train.py takes, and mistakes in one line."""

import shutil

import pytest

from carvana_tf import cli, commands, flags
from carvana_tf.errors import Problems

QUICK = ("--nomeasure", "--weights=none", "--minutes=3")


@pytest.fixture
def call(monkeypatch, tmp_path, capsys, make_dataset):
    """Runs `plan` on a small dataset; status, output and errors."""
    pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    make_dataset()

    def called(*arguments):
        status = cli.main(commands.find("plan"), ["--dataset_dir=input", *arguments])
        return status, *capsys.readouterr()

    return called


def test_a_plan_is_what_train_takes(call, tmp_path):
    status, printed, _ = call(*QUICK)
    assert status == 0
    assert "train.py --flagfile=plan.flags" in printed and "make_folds" not in printed
    assert "models/unet_bn-fold_0/last.keras" in printed
    lines = (tmp_path / "plan.flags").read_text().splitlines()
    before = ""
    for line in lines:
        if line.startswith("--"):
            assert before.startswith("# "), f"{line} has no comment"
        before = line
    command, problems = commands.find("train"), Problems()
    values = command.parse(["--flagfile=plan.flags"])
    command.validate(values, problems)
    problems.raise_any()
    assert values.flag("network") == "unet_bn" and values.flag("weights") == "none"


def test_a_plan_is_not_overwritten_unasked(call, tmp_path):
    (tmp_path / "plan.flags").write_text("mine")
    status, _, errors = call(*QUICK)
    assert status == 1 and errors.count("\n") == 1
    assert "--flags_out='plan.flags' is there already; give another name, or --overwrite" in errors
    assert (tmp_path / "plan.flags").read_text() == "mine"
    assert call(*QUICK, "--overwrite")[0] == 0
    assert "--network=unet_bn" in (tmp_path / "plan.flags").read_text()


def test_a_layout_of_the_command_line_is_in_the_plan(call, tmp_path):
    (tmp_path / "input/train").rename(tmp_path / "input/photos")
    (tmp_path / "input/folds.csv").unlink()
    status, printed, _ = call(*QUICK, "--train_data_dir_name=photos", "--flags_out=a.flags")
    assert status == 0
    assert "make_folds.py --dataset_dir=input --train_data_dir_name=photos\n" in printed
    lines = flags.read_flagfile(tmp_path / "a.flags")
    assert {"--train_data_dir_name=photos", "--val_data_dir_name=photos"} <= {*lines}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes=0"], "--minutes"),
        (["--minutes=0.1"], "--minutes=0.1 is too short"),
        (["--flags_out=none/plan.flags"], "--flags_out='none/plan.flags' cannot be written"),
        (["--gpu=0,1"], "--gpu=0,1: steps are timed, and a plan is made, for one device"),
        (["--flags_out=input"], "--flags_out='input' is there already"),
        (["--network=mobilnet"], "Did you mean 'mobilenet'?"),
        (["--weights=missing.keras"], "--weights 'missing.keras' does not exist"),
        (["--network=unet_bn", "--weights=imagenet"], "Keras has no weights of unet_bn"),
    ],
)
def test_a_mistake_is_one_line(call, tmp_path, arguments, message):
    given = [*QUICK[:2]] if not any("--weights" in word for word in arguments) else ["--nomeasure"]
    status, _, errors = call(*given, *arguments)
    (line,) = (each for each in errors.splitlines() if each.startswith("error: "))
    assert status == 1 and message in line
    assert not (tmp_path / "plan.flags").exists()


@pytest.mark.parametrize(("emptied", "message"), [("train", "photo"), ("train_masks", "mask")])
def test_no_photo_or_no_mask_is_one_line(call, tmp_path, emptied, message):
    shutil.rmtree(tmp_path / "input" / emptied)
    (tmp_path / "input" / emptied).mkdir()
    status, _, errors = call(*QUICK)
    assert status == 1 and errors.count("\n") == 1 and message in errors
    assert not (tmp_path / "plan.flags").exists()


@pytest.mark.usefixtures("eager", "undrawn")
def test_steps_are_measured(call, tmp_path):
    # So many minutes are enough however slow the machine is.
    status, printed, _ = call("--weights=none", "--network=unet_tiny", "--minutes=1000")
    assert status == 0, printed
    assert "timing a few steps of unet_tiny" in printed and "seconds a step" in printed
    assert "(measured)" in (tmp_path / "plan.flags").read_text()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["input", "plan.flags"]
