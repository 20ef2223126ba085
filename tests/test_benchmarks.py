"""The benchmarks' harness with contenders whose times are known."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carvana_tf.data.images import read_grey

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import harness  # noqa: E402
import inputs  # noqa: E402
import load  # noqa: E402
import results  # noqa: E402
from harness import Contender, Round, RoundOptions, Timing  # noqa: E402

HERE = "test_benchmarks"


def write_turns(rounds, log: str, name: str) -> None:
    """A contender that notes each of its rounds and tasks."""
    for task in rounds:
        with Path(log).open("a") as stream:
            stream.write(f"{name}{task} ")


def fail_late(rounds) -> None:
    """A contender that stops working in its second round."""
    for number, _ in enumerate(rounds):
        if number:
            raise ValueError("out of order")


def end_at_once(rounds) -> None:
    """A contender that cannot even prepare."""
    raise ImportError("no module named peer")


def busy(rounds, seconds: float) -> None:
    """A contender that keeps one core busy."""
    for _ in rounds:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass


def timing(name: str, items: int, *seconds: float) -> Timing:
    return Timing(name, items, tuple(Round(each, 0.0) for each in seconds), 0)


def test_contenders_take_turns_and_share_a_process(tmp_path):
    log = str(tmp_path / "log")
    contenders = [
        Contender("a", f"{HERE}:write_turns", (log, "a"), 1, "1"),
        Contender("b", f"{HERE}:write_turns", (log, "b"), 1),
        Contender("a again", f"{HERE}:write_turns", (log, "a"), 1, "2"),
    ]
    timings = harness.measure(contenders, RoundOptions(rounds=2, warmups=1, foreign=1.0))
    assert Path(log).read_text().split() == ["a1", "b", "a2", *["a1", "b", "a2"] * 2]
    assert [(each.name, len(each.rounds)) for each in timings] == [
        ("a", 2),
        ("b", 2),
        ("a again", 2),
    ]
    assert all(each.seconds > 0 and each.disturbed == 0 for each in timings)


def test_a_contender_that_fails_is_told_of_and_left_out(tmp_path, capfd):
    log = str(tmp_path / "log")
    contenders = [
        Contender("late", f"{HERE}:fail_late", (), 1),
        Contender("never", f"{HERE}:end_at_once", (), 1),
        Contender("works", f"{HERE}:write_turns", (log, "w"), 1),
        Contender("unwanted", f"{HERE}:write_turns", (log, "u"), 1),
    ]
    names = ("late", "never", "works")
    timings = harness.measure(contenders, RoundOptions(2, 1, 1.0, 0, names))
    assert [each.name for each in timings] == ["works"]
    heard = capfd.readouterr().err
    assert "out of order" in heard
    assert "no module named peer" in heard
    assert "u" not in Path(log).read_text()


def test_a_disturbed_round_is_repeated_and_the_quietest_counts(capfd):
    def run(shares: list[float], retries: int) -> tuple[Round | None, int]:
        given = iter(shares)
        used: list[float] = []

        def once() -> Round:
            used.append(next(given))
            return Round(float(len(used)), used[-1])

        return harness.quietest(once, 0.1, retries), len(used)

    assert run([0.05], 3) == (Round(1.0, 0.05), 1)
    assert run([0.5, 0.1, 0.0], 3) == (Round(2.0, 0.1), 2)
    assert run([0.5, 0.2, 0.9], 2) == (Round(2.0, 0.2), 3)
    assert run([0.5], 0) == (Round(1.0, 0.5), 1)
    assert harness.quietest(lambda: None, 0.1, 3) is None
    assert "others used 50% of the cores" in capfd.readouterr().err


def test_foreign_share_is_what_the_watched_processes_did_not_use():
    before = load.Snapshot(wall=100.0, busy=50.0, own=7.0)
    after = load.Snapshot(wall=110.0, busy=65.0, own=17.0)
    assert load.foreign_share(before, after, cores=2) == pytest.approx((15 - 10) / 20)
    assert load.foreign_share(before, load.Snapshot(110.0, 50.0, 9.0), cores=2) == 0
    assert load.foreign_share(None, after, cores=2) == 0


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="needs /proc")
def test_own_time_is_that_of_the_process_and_its_children():
    before = load.snapshot(os.getpid())
    process = multiprocessing.get_context("spawn").Process(target=busy, args=([1], 0.3))
    process.start()
    process.join()
    after = load.snapshot(os.getpid())
    assert after.own - before.own >= 0.28
    assert after.busy - before.busy >= after.own - before.own - 0.05


def test_median_rate_and_ratio():
    fast, slow = timing("fast", 10, 1.0, 9.0, 2.0), timing("slow", 5, 4.0, 3.0, 8.0)
    assert fast.seconds == 2.0
    assert fast.rate == 5.0
    comparisons = [
        results.Comparison("fast", "slow", 4.0),
        results.Comparison("slow", "fast", 1.0),
        results.Comparison("fast", "slow"),
        results.Comparison("fast", "missing", 1.0),
    ]
    rows = results.ratio_rows([fast, slow], comparisons)
    assert [row["reached"] for row in rows] == ["yes", "no", ""]
    assert rows[0]["ratio"] == 4.0  # 5 per second against 1.25
    # Round by round: 10 / 1 against 5 / 4, 10 / 9 against 5 / 3, 10 / 2 against 5 / 8.
    assert (rows[0]["lowest"], rows[0]["highest"]) == (0.667, 8.0)


def test_csv_keeps_other_machines(tmp_path, monkeypatch):
    path = tmp_path / "speed.csv"
    for processor, seconds in (("one", 1), ("other", 2), ("one", 3)):
        monkeypatch.setattr(results.machine, "hardware", lambda processor=processor: processor)
        results.replace_rows(path, [{"seconds": seconds}], {"setting": "a"})
    table = pd.read_csv(path)
    assert list(zip(table["hardware"], table["seconds"], strict=True)) == [("other", 2), ("one", 3)]


def test_csv_keeps_other_settings_and_replaces_its_own(tmp_path, capsys):
    path = tmp_path / "speed.csv"
    for setting, seconds in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        contenders = [timing("one", 1, seconds), timing("two", 1, 2 * seconds)]
        results.publish(
            "speed", setting, contenders, [results.Comparison("one", "two", 3.0)], tmp_path
        )
    table = pd.read_csv(path)
    assert list(table["setting"]) == ["b", "b", "a", "a"]
    assert list(table["median_seconds"]) == [2.0, 4.0, 3.0, 6.0]
    assert table["hardware"].str.contains("cores").all()
    assert table["software"].str.contains("python 3").all()
    ratios = pd.read_csv(tmp_path / "speed_ratios.csv")
    assert list(ratios["ratio"]) == [2.0, 2.0]
    assert list(ratios["reached"]) == ["no", "no"]
    assert "two" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_mask_folders_are_soft_repeat_and_differ_by_seed(make_dataset, tmp_path):
    chosen, kind = inputs.samples(str(make_dataset(groups=2)), tmp_path, 3)
    assert kind == "real photos"
    assert len({sample.stem for sample in chosen}) == 3
    one = inputs.mask_folder(chosen, tmp_path / "one", 7)
    other = inputs.mask_folder(chosen, tmp_path / "other", 7, seed=1)
    names = [f"{number:05d}.png" for number in range(7)]
    assert sorted(path.name for path in one.iterdir()) == names
    grey = read_grey(one / names[1])
    assert {0, 255} < set(np.unique(grey))
    assert grey.shape == (40, 56)
    np.testing.assert_array_equal(grey, read_grey(one / names[4]))
    assert (grey != read_grey(other / names[1])).any()
    # A second call makes nothing again.
    made = (one / names[1]).stat().st_mtime_ns
    assert (inputs.mask_folder(chosen, one, 7) / names[1]).stat().st_mtime_ns == made


@pytest.mark.parametrize("network", ["mobilenet", "resnet50"])
def test_a_twin_has_our_parameters_and_gives_our_logits(network, tmp_path):
    torch = pytest.importorskip("torch", reason="needs benchmarks/requirements-peers.txt")
    import keras

    from carvana_tf.models import decoders, model_file
    from peers import torch_twins

    inputs.make_model(str(tmp_path / "model.keras"), network)
    model, _ = model_file.load(tmp_path / "model.keras", "float32")
    twin = torch_twins.TWINS[network]().eval()
    torch_twins.copy_weights(inputs.read_layers(str(tmp_path / "model.keras")), twin)
    assert torch_twins.parameters(twin) == model.count_params()
    photo = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    logits = keras.Model(model.input, model.get_layer(decoders.LOGITS).output)
    expected = np.asarray(logits.predict_on_batch(photo))[..., 0]
    with torch.inference_mode():
        found = twin(torch.from_numpy(photo).permute(0, 3, 1, 2)).numpy()[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
