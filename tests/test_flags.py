"""Dataclasses as flags, and one line for every mistake."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from carvana_tf import flags
from carvana_tf.cli import Command, main
from carvana_tf.data import names
from carvana_tf.errors import UserError, unknown_name
from carvana_tf.flags import Needs, option

REPOSITORY = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Options:
    """What many need."""

    t_text: str = option("word", "Text.")
    t_number: int = option(3, "Number.", lower=1, upper=9)
    t_share: float = option(0.5, "Share.", lower=0, upper=1, alias="t_part")
    t_unbounded: float = option(0.0, "Any number.")
    t_switch: bool = option(True, "Switch.")
    t_names: tuple[str, ...] = option(("a", "b"), "Names.")
    t_maybe: int | None = option(None, "Maybe.")
    t_list: tuple[str, ...] | None = option(None, "Maybe names.")
    t_choice: str = option("x", "Choice.", choices=("x", "y"))


def parse(*arguments):
    return flags.parse((Options,), arguments)


def test_defaults():
    assert parse()[Options] == Options()


def test_values():
    values = parse(
        "--t_text=",
        "--t_number=9",
        "--t_part=0.25",
        "--t_unbounded=-1e9",
        "--t_switch=false",
        "--t_names=x,y,z",
        "--t_maybe=4",
        "--t_list=",
        "--t_choice=y",
    )
    assert values[Options] == Options("", 9, 0.25, -1e9, False, ("x", "y", "z"), 4, (), "y")


def test_a_flag_that_is_set_to_its_default_is_set():
    values = parse("--t_number=3", "--t_part=0.5")
    assert values.is_set("t_number") and values.is_set("t_share")
    assert not values.is_set("t_text")


@pytest.mark.parametrize(
    "argument",
    [
        *("--t_number=0", "--t_number=x", "--t_choice=z", "--t_unknown=1"),
        *("--t_share=1.5", "--t_share=x", "--t_share=nan", "--t_unbounded=inf"),
    ],
)
def test_bad_values(argument):
    with pytest.raises(UserError, match=r"t_.*--help lists the flags"):
        parse(argument)


@dataclasses.dataclass(frozen=True)
class Rare:
    """What few need.

    A second paragraph.
    """

    t_seed: int = option(5, "Seed.", advanced=True)


@dataclasses.dataclass(frozen=True)
class Both(flags.Configuration):
    usual: Options
    rare: Rare

    NEEDS = (Needs(("t_seed",), lambda both: both.usual.t_switch, "without --t_switch"),)


def test_a_configuration_is_read_from_its_flags():
    both = flags.parse((Both,), ["--t_seed=7", "--t_text=other"])[Both]
    assert both == Both(Options(t_text="other"), Rare(7))
    assert both.flat()["t_seed"] == 7
    assert both.flat().keys() == flags.defaults(Both).keys()
    assert Both.of(t_seed=7).replace(t_text="other") == both
    with pytest.raises(TypeError, match="no flag is called t_sead"):
        Both.of(t_sead=7)


def test_a_configuration_has_rules_between_its_groups():
    with pytest.raises(UserError, match=r"^--t_seed=7 has no effect without --t_switch;"):
        flags.parse((Both,), ["--t_seed=7", "--not_switch"])
    assert flags.parse((Both,), ["--not_switch"])[Both].rare == Rare()


@pytest.mark.parametrize("width", [60, 200])
def test_help_shows_flags_under_headings(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    text = flags.format_help("\nWhat it does.\n", (Both,))
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert words.startswith("What it does. What many need: --t_text: Text. (default: word)")
    assert "--t_share (or --t_part): Share. (0 to 1; default: 0.5)" in words
    assert "--[no]t_switch: Switch. (default: on)" in words
    assert "--t_names: Names. (default: a,b)" in words
    assert "--t_choice: Choice. (x | y; default: x)" in words
    assert "--t_maybe: Maybe. --t_list: Maybe names." in words
    assert "t_seed" not in text and "What few need" not in text
    assert "1 more flag" in text and "--helpfull" in text


def test_full_help_shows_every_flag():
    text = flags.format_help("", (Both,), full=True)
    assert "\n\nWhat few need:\n  --t_seed: Seed. (default: 5)" in text
    assert "more flag" not in text


@pytest.mark.parametrize(
    ("outcome", "status", "line"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (UserError("two\n  lines"), 1, "error: two lines\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.png"),
            1,
            "error: No space left on device for 'a.png'; make room and run the command again.\n",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            1,
            "error: Disk quota exceeded; make room and run the command again.\n",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted; what was finished is kept.\n"),
    ],
)
def test_exit_status_and_line(capsys, outcome, status, line):
    def run(values):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    assert main(Command("", (), run), []) == status
    assert capsys.readouterr().err == line


LOST = """
import os, signal, time
from carvana_tf.cli import Command, main
from carvana_tf.data import names
class Deleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
def run(values):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Deleted()
    time.sleep(60)
raise SystemExit(main(Command("", (), run)))
"""


def test_ctrl_c_in_a_finaliser_is_not_lost():
    command = [sys.executable, "-c", LOST]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 130
    assert done.stderr == "error: interrupted; what was finished is kept.\n"


@pytest.mark.parametrize("fault", [ZeroDivisionError(), OSError(errno.EBADF, "Bad file")])
def test_a_fault_of_the_program_keeps_its_traceback(fault):
    def run(values):
        raise fault

    with pytest.raises(type(fault)):
        main(Command("", (), run), [])


def test_unknown_names_suggest_the_nearest():
    message = str(unknown_name("--network", "resnet_unet", ["resnet50_unet", "vgg"]))
    assert "Did you mean 'resnet50_unet'?" in message and message.endswith("vgg.")
    assert "Did you mean" not in str(unknown_name("--network", "qqqq", ["vgg"]))


@pytest.mark.parametrize(
    ("argument", "part"),
    [("--n_folds=1", "n_folds"), ("--n_fold=3", "n_fold"), ("stray", "'stray' is no flag")],
)
def test_bad_flags_of_a_script_are_one_line(tmp_path, argument, part):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "make_folds.py"), argument],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and part in line
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_reported_and_nothing_runs(capsys):
    def validate(values, problems):
        raise PermissionError(errno.EACCES, "Permission denied", "train")

    assert main(Command("", (), lambda values: pytest.fail("it ran"), validate), []) == 1
    assert capsys.readouterr().err.startswith("error: Permission denied for 'train';")


@pytest.mark.parametrize(
    "values",
    [["a", "b"], ["a,b", "c"], ['quo"te', "-dash"], ["line\nend", "r\rc"], ["\udce9", ""], []],
)
def test_lists_of_names_survive_a_command_line(values):
    assert names.split_list(names.join_list(values)) == values
    assert parse(f"--t_names={names.join_list(values)}")[Options].t_names == tuple(values)


@pytest.mark.parametrize("name", ["a,b", "a\nb,c", ' "x'])
def test_a_path_with_commas_is_one_value_of_a_list(tmp_path, name):
    path = tmp_path / name
    path.mkdir()
    other = tmp_path / "other"
    for arguments in ([f"--t_names={path}"], ["--t_names", str(path)]):
        assert parse(*arguments)[Options].t_names == (str(path),)
    assert parse("--t_names", str(path), str(other))[Options].t_names == (str(path), str(other))


def test_a_quotation_mark_without_end_is_one_line():
    with pytest.raises(UserError, match=r"--t_names=.*is no list") as caught:
        parse('--t_names="a,b')
    assert "\n" not in str(caught.value)
