"""Commands: one table, a script for each, and answers that need no Keras."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import carvana_tf
from carvana_tf import __main__ as program
from carvana_tf import cli, commands, flags
from carvana_tf.child import Child
from carvana_tf.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def call(monkeypatch, capsys):
    """Status, output and errors of `carvana-tf`, run in this process."""

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["carvana-tf", *arguments])
        return program.main(), *capsys.readouterr()

    return called


@pytest.mark.parametrize("name", commands.SCRIPTS)
def test_a_script_runs_its_command(name):
    script = runpy.run_path(str(ROOT / commands.SCRIPTS[name]))
    assert script["COMMAND"] is commands.find(name)
    assert script["main"] is cli.main


def test_modules_and_table_agree():
    modules = {path.stem for path in (ROOT / "carvana_tf/commands").glob("*.py")}
    variants = {m for name in commands.SCRIPTS for m in commands.find(name).variants.values()}
    named = {*commands.SCRIPTS, *(variant.rpartition(".")[2] for variant in variants)}
    assert modules - {"__init__"} == named


def test_the_overview_has_a_line_for_each_command(call):
    for arguments in (["--help"], ["help"], []):
        status, printed, errors = call(*arguments)
        assert (status, errors) == (0, "")
        for name in commands.SCRIPTS:
            first = commands.find(name).doc.splitlines()[0]
            (line,) = (each for each in printed.splitlines() if each.split()[:1] == [name])
            assert line.endswith(first)


def test_the_version(call):
    assert call("--version") == (0, f"carvana-tf {carvana_tf.__version__}\n", "")


def test_an_unknown_command_has_near_names(call):
    status, printed, errors = call("predcit", "--help")
    assert (status, printed) == (1, "")
    assert errors.startswith("error: the command 'predcit' is unknown. Did you mean 'predict'?")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("name", commands.SCRIPTS)
def test_help_has_the_text_and_every_flag(call, name):
    command = commands.find(name)
    status, printed, errors = call(name, "--help")
    assert (status, errors) == (0, "")
    assert printed.startswith(command.doc.strip().splitlines()[0])
    # Also next to a wrong flag, as one looks it up.
    assert call(name, "--wrong", "--help") == (0, printed, "")
    full = call(name, "--helpfull")[1].replace("[no]", "")
    names = [field for group in command.groups for field in flags.defaults(group)]
    assert [each for each in names if f"--{each}" not in full] == []


def test_messages_and_help_name_what_was_called(call, make_dataset):
    root = make_dataset()
    _, _, errors = call("train", f"--dataset_dir={root}", "--folds_source=none.csv")
    assert f"`carvana-tf make_folds --dataset_dir={root} --folds_source=none.csv`" in errors
    assert "carvana-tf train --network=resnet50" in call("train", "--help")[1]
    assert "python train.py --network=resnet50" in commands.reference()
    path = f"{root}/train.py"
    assert f"'{path}' does not exist" in call("predict", f"--weights={path}")[2]


def test_a_folder_in_place_of_a_file_is_called_one(call, make_dataset):
    root = make_dataset()
    photo = next((root / "train").iterdir())
    assert f"'{root}' is a folder; name a file" in call("predict", f"--weights={root}")[2]
    assert f"'{photo}' is no folder; name the" in call("evaluate", f"--pred_mask_dir={photo}")[2]


@pytest.mark.parametrize("name", ["--helpfull", "-?", "-h"])
def test_every_name_of_help_lists_the_commands(call, name):
    assert call(name) == call("--help")


def test_the_page_of_all_flags_is_up_to_date():
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert text == commands.reference() + "\n", "run make docs"


WITHOUT_KERAS = """
import sys
from carvana_tf import cli, commands
names = sys.argv[1:]
for name in names:
    command = commands.find(name)
    of_tasks = [[f"--task={task}", "--help"] for task in command.variants]
    for arguments in (["--help"], ["--no_such_flag=1"], [], *of_tasks):
        if name != "make_demo_dataset" or arguments:
            status = cli.main(command, arguments)
            assert status == ("--help" not in arguments), (name, arguments, status)
    loaded = {"keras", "tensorflow", "jax"} & {*sys.modules}
    assert not loaded, f"{name} loads {loaded}"
"""


def test_help_a_wrong_flag_and_a_missing_folder_load_no_keras(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS, *commands.SCRIPTS], cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


RECIPE = """
import sys
from pathlib import Path
from carvana_tf import cli, commands
recipe = Path("r.yaml")
recipe.write_text("folds: {n_folds: 2}\\nmembers: [{name: a, flags: {network: vgg, epochs: 3}}]")
arguments = ["--recipe=r.yaml", "--out_dir=out", "--dataset_dir=input", "--dry_run"]
assert cli.main(commands.find("pipeline"), arguments) == 0
assert not {"keras", "tensorflow", "jax"} & {*sys.modules}
"""


def test_a_recipe_is_checked_without_keras(make_dataset, tmp_path):
    make_dataset()
    done = subprocess.run(
        [sys.executable, "-c", RECIPE], cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "python -m carvana_tf train --network=vgg --epochs=3" in done.stdout


def test_mistakes_in_several_groups_are_reported_together():
    with pytest.raises(UserError, match=r"2 mistakes: .*--fold=1 has no effect .*--tile_overlap=8"):
        commands.find("predict").parse(["--fold=1", "--tile_overlap=8"])


def test_a_child_runs_this_package_whatever_lies_in_the_folder(tmp_path, monkeypatch, capfdbinary):
    for name in ("carvana_tf", "keras"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with Child() as child, (tmp_path / "log").open("wb") as log:
        assert child.run(["inspect_model"], log) == 1
    assert (tmp_path / "log").read_text().startswith("error: --model is required")
