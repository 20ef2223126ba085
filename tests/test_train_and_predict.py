"""train_and_predict.py with real networks: whole runs, failures, and kills at any time."""

import csv
import dataclasses
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from faults.folders import contents
from processes import kill_with_steps, start_recipe_apart

from carvana_tf import commands
from carvana_tf.errors import UserError
from carvana_tf.options import DatasetOptions
from carvana_tf.recipe import recipe, run, runner
from carvana_tf.recipe.steps import RunPaths

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("eager", "undrawn")
TINY = {
    "network": "unet_tiny",
    "smoke": True,
    "size_policy": "resize",
    "epochs": 2,
    "learning_rate": 0.01,
}


@pytest.fixture
def dataset(make_dataset):
    """Eight photos of four cars with masks, and two more without."""
    root = make_dataset()
    (root / "folds.csv").unlink()
    (root / "test").mkdir()
    for number in (1, 2):
        photo = root / "train" / f"car00_{number:02d}.jpg"
        shutil.copy(photo, root / "test" / f"new{number}_01.jpg")
    return root


def write_recipe(folder, **content):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"folds": {"n_folds": 2}, **content}))
    return path


class InProcess:
    """Runs commands in this process: far faster than starting each."""

    def __call__(self, line, log):
        name, *arguments = line
        try:
            return commands.find(name).call(arguments)
        except UserError as error:
            log.write_text(f"{error}\n")
            return 1


def paths_of(dataset, out):
    return RunPaths(
        dataset=DatasetOptions(dataset_dir=str(dataset)),
        photos=dataset / "train",
        masks=dataset / "train_masks",
        test=dataset / "test",
        sample=None,
        out=out,
    )


@pytest.mark.slow
def test_pseudo_labels_and_a_start_then_prediction_alone(dataset, tmp_path):
    flags = {**TINY, "epochs": 1}
    whole = {**flags, "smoke": False}  # a smoke run starts from no weights
    rows = [
        {"name": "a", "flags": flags},
        {"name": "b", "flags": whole, "pseudo": ["a"]},
        {"name": "c", "flags": whole, "start_from": "b", "weight": 0},
    ]
    ensemble = {"fit_weights": True}
    chosen = recipe.read(write_recipe(tmp_path, members=rows, ensemble=ensemble))
    paths = paths_of(dataset, tmp_path / "out")
    execute = InProcess()
    work = runner.Runner(paths.out, [], execute)
    assert run.carry_out(chosen, paths, work) == 0, work.failures
    models = paths.out / "models"
    b, c = (
        json.loads((models / f"unet_tiny-{name}-fold_1/last.json").read_text()) for name in "bc"
    )
    assert b["pseudo_photos"] == 2 and {"new1", "new2"} <= {*b["training_groups"]}
    # What starts from a network knows what that knows.
    assert c["weights"] == str(models / "unet_tiny-b-fold_1/last.keras")
    assert c["pseudo_photos"] == 0 and c["training_groups"] == b["training_groups"]
    label = json.loads((paths.mask_dir("a", "test_fold_1") / "manifest.json").read_text())
    assert [model["fold"] for model in label["models"]] == [1]
    # Out of fold where scores come from; the test photos are known to b.
    kinds = {}
    for part in ("oof", "test"):
        made = json.loads((paths.mask_dir("ensemble", part) / "manifest.json").read_text())
        kinds[part] = made["out_of_fold"]
        assert made["ensemble"]["forced"] == []
    assert kinds == {"oof": True, "test": False}

    only = dataclasses.replace(paths, out=tmp_path / "only", models=models, predict_only=True)
    again = runner.Runner(only.out, [], execute)
    assert run.carry_out(chosen, only, again) == 0, again.failures
    assert not list(only.out.rglob("*.keras"))
    for name in ("submission.csv.gz", "masks/ensemble/oof/manifest.json", "members.csv"):
        assert (only.out / name).read_bytes() == (paths.out / name).read_bytes(), name


@pytest.mark.parametrize(
    ("warnings", "smoke", "status"),
    [
        ([None, None], 0, 0),
        (["bad", None], 0, 0),
        ([None, "bad"], 0, 3),
        (["bad"], 1, 0),
        ([], 0, 0),
    ],
)
def test_a_result_that_shows_nothing_has_a_status_of_its_own(
    tmp_path, capsys, warnings, smoke, status
):
    member = {"name": "a", "flags": {**TINY, "smoke": bool(smoke)}}
    chosen = recipe.read(write_recipe(tmp_path, members=[member]))
    rows = [{"name": f"row{i}", "warning": warning} for i, warning in enumerate(warnings)]
    assert run._judge(chosen, rows) == status
    assert ("error: row1 is useless: bad." in capsys.readouterr().err) == (status == 3)


@pytest.mark.slow
def test_stacking_and_a_failing_member(dataset, tmp_path, capsys):
    path = write_recipe(
        tmp_path,
        members=[
            {"name": "a", "flags": {**TINY, "epochs": 1}},
            {"name": "bad", "flags": {**TINY, "smoke": False, "weights": "absent.h5"}},
            {"name": "on_bad", "flags": TINY, "stack": ["bad"]},
            {"name": "stacked", "flags": {**TINY, "epochs": 1}, "stack": ["a"]},
        ],
        ensemble={"fit_weights": True, "postprocess": ["largest"]},
    )
    chosen = recipe.read(path)
    paths = paths_of(dataset, tmp_path / "out")
    execute = InProcess()
    assert run.carry_out(chosen, paths, runner.Runner(paths.out, [], execute)) == 1
    message = capsys.readouterr()
    assert "only these members are complete: a, stacked" in message.out
    summary = json.loads((paths.out / "summary.json").read_text())
    names = ["a", "stacked", "ensemble", "ensemble-postprocessed"]
    assert [row["name"] for row in summary["scores"]] == names
    assert [gain["steps"] for gain in summary["postprocess"]] == ["largest"]
    assert "status 1" in summary["failures"]["bad-train-0"]
    assert "needs" in summary["failures"]["on_bad-train-0"]
    assert "absent.h5" in (paths.out / "logs" / "bad-train-0.log").read_text()

    for name, count in (("a", 8), ("stacked", 8), ("ensemble", 8)):
        made = json.loads((paths.mask_dir(name, "oof") / "manifest.json").read_text())
        assert made["out_of_fold"] and made["photos"] == count
        scores = json.loads(paths.scores(name).read_text())
        (row,) = (row for row in summary["scores"] if row["name"] == name)
        assert [row["low"], row["high"]] == scores["interval"]
        assert row["crossfitted_threshold_dice"] == scores["crossfit"][0]["mean_dice"]
    fitted = json.loads((paths.mask_dir("ensemble", "oof") / "manifest.json").read_text())
    on_test = json.loads((paths.mask_dir("ensemble", "test") / "manifest.json").read_text())
    assert on_test["ensemble"]["weights"] == pytest.approx(fitted["ensemble"]["weights"])
    assert list(summary["ensemble"]["weights"].values()) == fitted["ensemble"]["weights"]
    # What is submitted is cut where it was post-processed.
    cut = json.loads((paths.out / "steps/submission.json").read_text())["command"][1]
    assert cut == f"--threshold={on_test['threshold']}"
    assert summary["scores"][-1]["cut_at"] == on_test["threshold"]
    models = paths.out / "models"
    stacked = json.loads((models / "unet_tiny-stacked-fold_0-smoke" / "last.json").read_text())
    assert stacked["stacked_channels_dir"] == str(paths.mask_dir("a", "oof"))
    with gzip.open(paths.out / "submission.csv.gz", "rt", newline="") as handle:
        assert [row["img"] for row in csv.DictReader(handle)] == ["new1_01.jpg", "new2_01.jpg"]
    page = (paths.out / "report.html").read_text()
    assert 'href="scores/stacked/report.html"' in page and "bad-train-0" in page


class Run:
    """The script in a process of its own, whose steps are forked."""

    def __init__(self, folder, *flags):
        self.out = folder / "out"
        self._flags = flags
        self._log = folder / "console.log"

    def start(self):
        script = ROOT / "train_and_predict.py"
        return start_recipe_apart(self._log, script, *self._flags, cwd=self.out.parent)

    def finish(self):
        """Runs to the end; returns what was printed."""
        process = self.start()
        process.join()
        assert process.exitcode == 0, self._log.read_text()
        return self._log.read_text()

    def stop(self, step, delay, number):
        """Starts, and some seconds into a step sends a signal; returns the exit status."""
        record = self.out / "steps" / f"{step}.json"
        process = self.start()
        while not record.is_file():
            process.join(0.02)
            assert process.is_alive(), self._log.read_text()
        process.join(delay)
        if number == signal.SIGKILL:
            kill_with_steps(process)
        elif process.is_alive():
            os.kill(process.pid, number)
        process.join()
        return process.exitcode


@pytest.mark.slow
def test_killed_runs_end_byte_for_byte_as_an_undisturbed_one(dataset, tmp_path):
    path = write_recipe(
        tmp_path, members=[{"name": "a", "flags": TINY}], ensemble={"fit_weights": True}
    )
    flags = f"--recipe={path}", f"--dataset_dir={dataset}", "--out_dir=out"
    run = Run(tmp_path, *flags)
    run.finish()
    expected = contents(run.out)
    run.out.rename(tmp_path / "undisturbed")

    draw = random.Random(80)
    for step, longest in (
        ("folds", 1.0),
        ("a-train-0", 3.0),
        ("a-predict-fold_0", 2.0),
        # The runner does the other steps likewise, see test_recipe_runner.py.
        ("ensemble-oof", 1.0),
    ):
        assert run.stop(step, draw.uniform(0.0, longest), signal.SIGKILL) in (-signal.SIGKILL, 0)
        if step == "a-train-0":
            assert run.stop("a-train-1", draw.uniform(0.0, 3.0), signal.SIGTERM) == 130
    run.finish()
    assert contents(run.out) == expected
    # The end once more, as from a shell.
    (run.out / "submission.csv.gz").unlink()
    command = [sys.executable, str(ROOT / "train_and_predict.py"), *flags]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert contents(run.out) == expected
    before = {file: file.stat().st_mtime_ns for file in run.out.rglob("*.png")}
    assert "[" not in run.finish()  # no step
    assert {file: file.stat().st_mtime_ns for file in run.out.rglob("*.png")} == before
