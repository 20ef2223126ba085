"""The cost model of a fleet: its bound, the simulation of it, and what is committed of both."""

import dataclasses
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from carvana_tf.errors import UserError

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))

import cost_model  # noqa: E402
import fleet  # noqa: E402
from fleet import Fleet, Photo  # noqa: E402

PHOTO = Photo(0.02, 0.01, 0.015, 200e3, 50e3, 8)
FLEET = Fleet(6, 2, 8, 6, 1e9, 5e9, 1e5, 0.002)


@pytest.mark.parametrize(
    "part, photo, machines",
    [
        ("devices", {"network": 0.05}, {}),
        ("processors", {}, {"cores": 1}),
        ("reading threads", {}, {"threads": 1, "latency": 0.02, "cores": 64}),
        ("writing threads", {"encode": 0.06}, {"threads": 1, "cores": 64}),
        ("network of the machines", {}, {"nic": 2e7}),
        ("storage: bytes", {}, {"bandwidth": 5e7}),
        ("storage: requests", {}, {"operations": 1000.0}),
    ],
)
def test_the_simulation_reaches_the_bound_of_each_part(part, photo, machines):
    one, all_of_them = dataclasses.replace(PHOTO, **photo), dataclasses.replace(FLEET, **machines)
    name, rate = fleet.bottleneck(all_of_them, one)
    assert name == part
    assert fleet.simulate(all_of_them, one, 300) == pytest.approx(rate, rel=0.03)


def test_parts_that_wait_for_each_other_stay_below_the_bound():
    """With as much to do for each thread and the device, and all of it random."""
    one = Photo(0.01, 0.01, 0.01, 1.0, 1.0, 1)
    alone = Fleet(1, 1, 3, 1, 1e9, 1e9, 1e9, 0.0)
    _, rate = fleet.bottleneck(alone, one)
    assert rate == pytest.approx(100)
    found = [fleet.simulate(alone, one, 2000, spread) for spread in (0.0, 0.5, 1.0)]
    assert found[0] == pytest.approx(rate, rel=1e-3)
    assert rate > found[1] > found[2] > 0.5 * rate


def test_machines_that_are_not_full_have_all_their_cores():
    assert dataclasses.replace(FLEET, gpus=5).machines == 3
    rows = [fleet.capacities(dataclasses.replace(FLEET, gpus=n), PHOTO) for n in (5, 6)]
    assert rows[0]["processors"] == rows[1]["processors"]
    assert rows[0]["devices"] < rows[1]["devices"]


def test_two_measured_shards_do_what_the_model_says_of_them():
    table = pd.read_csv(BENCHMARKS / "devices.csv")
    row = table[table["what"].str.startswith("2 shards to 1")].iloc[-1]
    # A core does all of a photo; neither storage nor network had anything to do.
    one = Photo(1e-6, 1 / row["one_photos_per_second"], 1e-6, 1.0, 1.0, 1)
    two = Fleet(2, 1, 1, 1, 1e9, 1e9, 1e9, 0.0)
    assert fleet.simulate(two, one, 50) == pytest.approx(row["two_photos_per_second"], rel=0.05)


def prediction(folder, **changed):
    stages = {"read": 2.0, "prepare": 1.0, "network": 8.0, "restore": 0.5, "encode": 1.0}
    rows = [{"stage": name, "seconds": each} for name, each in {**stages, "write": 0.5}.items()]
    rows += [{"stage": "waiting", "seconds": 99.0}] * 3
    times = {"photos": 100, "stages": rows, **changed}
    (folder / "timings.json").write_text(json.dumps(times))
    (folder / "photos").mkdir()
    (folder / "photos" / "a.jpg").write_bytes(b"x" * 30)
    (folder / "a.png").write_bytes(b"x" * 10)
    (folder / "b.png").write_bytes(b"x" * 20)
    return folder / "timings.json", folder / "photos"


def test_stage_times_are_those_of_a_prediction(tmp_path):
    times, photos = prediction(tmp_path)
    found = cost_model.photo_of(times, photos, 0)
    assert dataclasses.astuple(found) == pytest.approx((0.03, 0.08, 0.02, 30, 15, 0))
    assert cost_model.photo_of(times, photos, 4).network == pytest.approx(0.004)


def test_times_of_no_photos_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"timings\.json' is no timings\.json of a prediction"):
        cost_model.photo_of(*prediction(tmp_path, photos=0), 0)


COMMITTED = pd.read_csv(BENCHMARKS / "cost_model.csv").to_dict("records")


@pytest.mark.parametrize("row", COMMITTED, ids=[f"{r['requests']}-{r['gpus']}" for r in COMMITTED])
def test_the_committed_table_and_the_page_are_of_the_model(row):
    names = {field.name for field in dataclasses.fields(cost_model.CostOptions)}
    options = cost_model.CostOptions(**{k: v for k, v in row.items() if k in names})
    one = Photo(
        row["decode_ms"] / 1e3, row["network_ms"] / 1e3, row["encode_ms"] / 1e3,
        row["read_kb"] * 1e3, row["written_kb"] * 1e3, row["requests"],
    )  # fmt: skip
    name, rate = fleet.bottleneck(cost_model.fleet_of(row["gpus"], options), one)
    assert name == row["saturates_first"]
    assert rate == pytest.approx(row["photos_per_second"], rel=1e-3)
    assert row["simulated_to_model"] == pytest.approx(1, abs=0.03)
    cells = f"{row['gpus']:,} | {rate:,.0f} | {name} | {row['simulated']:,.0f}"
    assert f"| {cells} | {row['hours_of_10_million']:.1f} |" in (ROOT / "docs/scale.md").read_text()
