"""A run of a recipe becomes rows of benchmarks/quality.csv."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import quality  # noqa: E402

NET = {"network": "simple_unet", "input_width": 64, "input_height": 48}
LARGE = {**NET, "input_width": 96, "input_height": 64}
RECIPE = {
    "folds": {"n_folds": 2},
    "members": [
        {"name": "a", "stages": [{"flags": NET}, {"flags": LARGE}]},
        {"name": "b", "flags": {**LARGE, "network": "simple_unet"}, "start_from": "a"},
        {"name": "c", "flags": NET, "weight": 0, "predict": {"engine": "openvino"}},
    ],
}
TRAININGS = {
    **{f"a-stage1-train-{fold}": 60.0 for fold in (0, 1)},
    **{f"a-train-{fold}": 120.0 for fold in (0, 1)},
    **{f"b-train-{fold}": 300.0 for fold in (0, 1)},
    **{f"c-train-{fold}": 30.0 + 60 * fold for fold in (0, 1)},
}


def score(name, dice):
    return {
        "name": name,
        "photos": 24,
        "dice": dice,
        "low": dice - 0.01,
        "high": None,
        "worst": 0.5,
        "percentile_5": 0.6000004,
        "boundary_f": 0.7,
    }


@pytest.fixture
def made(tmp_path):
    """The rows that are added, by member; `times` are those of the run."""

    def rows(times):
        run = tmp_path / "run"
        run.mkdir()
        scores = [score(name, 0.9) for name in ("a", "b", "c", "ensemble")]
        summary = {"scores": scores, "ensemble": {"weights": {"a": 0.5, "b": 0.5}}}
        (run / "summary.json").write_text(json.dumps(summary))
        (run / "timings.json").write_text(json.dumps(times))
        for name, seconds in {"a": 2.0, "b": 6.0, "c": 1.0}.items():
            for fold in (0, 1):
                folder = run / f"masks/{name}/fold_{fold}"
                folder.mkdir(parents=True)
                (folder / "timings.json").write_text(json.dumps({"photos": 12, "seconds": seconds}))
        recipe, table = tmp_path / "r.yaml", tmp_path / "quality.csv"
        recipe.write_text(json.dumps(RECIPE))
        table.write_text((ROOT / "benchmarks/quality.csv").read_text())
        before = pd.read_csv(table, dtype=str)
        flags = [f"--recipe={recipe}", f"--run_dir={run}", f"--table={table}", "--note=why"]
        for _ in range(2):  # the second time adds nothing
            assert quality.main(quality.COMMAND, flags) == 0
        after = pd.read_csv(table, dtype=str)
        pd.testing.assert_frame_equal(after[: len(before)], before)
        added = after[len(before) :]
        return dict(zip("abce", added.to_dict("records"), strict=True))

    return rows


def test_each_member_and_the_ensemble_get_a_row(made):
    rows = made({"a-train-0": 1.0, "processor_seconds": TRAININGS})
    a, b, c, ensemble = rows.values()
    # With what it starts from, each training once.
    assert [row["processor_minutes"] for row in rows.values()] == ["3.0", "8.0", "1.0", "8.0"]
    assert a["size"] == b["size"] == "64x48 then 96x64"
    assert (a["folds"], a["train_photos"], a["network"]) == ("0 1", "12", "simple_unet")
    assert (a["photos_per_second"], b["photos_per_second"]) == ("6.0", "2.0")
    assert ensemble["photos_per_second"] == "1.5"  # one after the other; c has no weight
    assert (c["engine"], ensemble["engine"]) == ("openvino", "keras")
    assert (a["dice"], a["low"], a["percentile_5"]) == ("0.9", "0.89", "0.6")
    assert ensemble["note"] == "ensemble of the recipe, why"


def test_minutes_that_are_not_known_are_left_out(made):
    known = {name: spent for name, spent in TRAININGS.items() if name != "a-train-1"}
    rows = made({"processor_seconds": known})
    assert rows["c"]["processor_minutes"] == "1.0"
    assert pd.isna([rows[name]["processor_minutes"] for name in "abe"]).all()
