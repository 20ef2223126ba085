"""Ctrl-C while a script's packages load: one line, whatever was being loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from carvana_tf import commands

ROOT = Path(__file__).parent.parent
SCRIPTS = [*commands.SCRIPTS.values()]
INTERRUPTS = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"


def start(folder, script, package):
    """A script that gets Ctrl-C when it begins to load a package."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(INTERRUPTS)
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    return subprocess.run(
        [sys.executable, str(ROOT / script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def assert_one_line(done):
    assert done.stderr == "error: interrupted while starting; nothing was done.\n"
    assert done.returncode == 130


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_ends_in_one_line(tmp_path, script):
    assert_one_line(start(tmp_path, script, "numpy"))


def test_also_where_standard_error_is_held_back(tmp_path, make_dataset):
    make_dataset()  # so that what comes before TensorFlow finds no mistake
    assert_one_line(start(tmp_path, "train.py", "tensorflow"))


@pytest.mark.parametrize("closed", [(2,), (0, 1, 2)])
def test_closed_streams_end_no_command(tmp_path, closed):
    """With 2 closed, the next file that is opened would get its number and what is printed."""
    script = f"""
import os, sys
sys.argv = ["plot_curves.py", "--help"]
import carvana_tf.starting
with open({str(tmp_path / "file")!r}, "w") as file:
    assert file.fileno() > 2, file.fileno()
    os.write(2, b"from a library")
from carvana_tf.cli import main
from carvana_tf.commands.plot_curves import COMMAND
sys.exit(main(COMMAND))
"""
    redirected = " ".join(f"{n}>&-" for n in closed)
    done = subprocess.run(
        ["sh", "-c", f'"$0" "$@" {redirected}', sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert ("--runs" in done.stdout) == (1 not in closed)
    assert (tmp_path / "file").read_text() == ""


def test_every_script_is_a_command():
    files = (*ROOT.glob("*.py"), *(ROOT / "tools").glob("*.py"))
    assert sorted(str(path.relative_to(ROOT)) for path in files) == sorted(SCRIPTS)


def test_a_library_keeps_its_handler(tmp_path):
    code = "import signal, carvana_tf.starting as s; assert signal.getsignal(2) is not s._end"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=tmp_path)
