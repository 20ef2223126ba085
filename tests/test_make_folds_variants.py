"""The methods of make_folds: whole groups, balance, stratification, seeds, the flags."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from carvana_tf.data.folds import METHODS, SIZED, make_folds
from carvana_tf.data.images import read_mask
from carvana_tf.errors import UserError

ROOT = Path(__file__).parents[1]
SHUFFLED = ("area_blocks", "area_bins", "random", "random_first")


def table(count, seed=0):
    random = np.random.default_rng(seed)
    ids = random.permutation([f"car{i:03d}" for i in range(count)])
    return pd.DataFrame({"id": ids, "area": random.gamma(9, 1e6, count).astype(int)})


def assign(areas, n_folds, method, seed=80):
    return make_folds(areas, n_folds, seed, method, 3 if method in SIZED else 0)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(sorted(METHODS)),
    st.lists(st.integers(0, 60), min_size=9, max_size=70),
    st.integers(2, 7),
    st.integers(0, 2**31),
)
def test_every_group_gets_one_fold_and_sizes_are_balanced(method, areas, n_folds, seed):
    groups = pd.DataFrame({"id": [f"g{i:02d}" for i in range(len(areas))], "area": areas})
    folds = assign(groups, n_folds, method, seed)
    assert list(folds["id"]) == list(groups["id"])
    assert list(folds["area"]) == areas
    sizes = np.bincount(folds["fold"], minlength=n_folds)
    assert len(sizes) == n_folds
    if method == "first_groups":
        assert list(folds["fold"][:3]) == [0, 0, 0]
    if method in SIZED:
        assert sizes[0] == 3
        sizes = sizes[1:]
    assert sizes.max() - sizes.min() <= 1
    assert sizes.min() >= 1


@pytest.mark.parametrize("method", SHUFFLED)
def test_a_seed_repeats_and_another_does_not(method):
    areas = table(60)
    first = assign(areas, 5, method)
    pd.testing.assert_frame_equal(first, assign(areas, 5, method))
    assert list(first["fold"]) != list(assign(areas, 5, method, seed=81)["fold"])


@pytest.mark.parametrize("method", [*SHUFFLED, "area_rank"])
def test_the_order_of_rows_does_not_matter(method):
    areas = table(60)
    pd.testing.assert_frame_equal(
        assign(areas, 5, method), assign(areas.sample(frac=1, random_state=1), 5, method)
    )


def test_area_rank_is_the_rank_modulo_the_folds():
    areas = pd.DataFrame({"id": list("abcdefg"), "area": [50, 10, 70, 30, 20, 60, 40]})
    folds = assign(areas, 3, "area_rank").set_index("id")["fold"]
    assert [folds[i] for i in "bedgafc"] == [0, 1, 2, 0, 1, 2, 0]
    # What the winners report of 318 cars in 5 folds.
    sizes = assign(table(318), 5, "area_rank")["fold"].value_counts(sort=False)
    assert sorted(sizes, reverse=True) == [64, 64, 64, 63, 63]


@pytest.mark.parametrize("count", [318, 40])
def test_area_bins_stratifies_as_stratified_k_fold_does(count):
    areas = table(count).sort_values("id", ignore_index=True)
    folds = assign(areas, 7, "area_bins")
    # Independent of ours: bins merged from below by a plain loop over the histogram's edges.
    _, edges = np.histogram(areas["area"], 35)
    place = np.clip(np.searchsorted(edges, areas["area"], side="right") - 1, 0, 34)
    label, size = 0, 0
    labels = np.zeros(35, int)
    for i in range(35):
        labels[i] = label
        size += (place == i).sum()
        if size >= 7 and (place > i).sum() >= 7:
            label, size = label + 1, 0
    bins = labels[place]
    assert bins.max() >= 3
    ours = pd.crosstab(bins, folds["fold"]).to_numpy()
    theirs = np.zeros_like(ours)
    splitter = StratifiedKFold(7, shuffle=True, random_state=0)
    for fold, (_, held_out) in enumerate(splitter.split(bins, bins)):
        theirs[:, fold] = np.bincount(bins[held_out], minlength=len(ours))
    # Each fold has its share of each bin, to one group, as theirs has.
    assert (np.ptp(ours, 1) <= 1).all()
    np.testing.assert_array_equal(np.sort(ours, 1), np.sort(theirs, 1))


def test_area_bins_smaller_than_the_folds_are_merged():
    """One group for each bin of the histogram: seven bins of five remain, each shuffled."""
    groups = pd.DataFrame({"id": [f"g{i:02d}" for i in range(35)], "area": range(35)})
    choices = [assign(groups, 5, "area_bins", seed)["fold"].to_numpy() for seed in range(4)]
    for folds in choices:
        assert (np.sort(folds.reshape(7, 5), 1) == range(5)).all()
    assert len({tuple(folds) for folds in choices}) == 4


def test_area_bins_of_equal_areas():
    groups = pd.DataFrame({"id": list("abcde"), "area": [7] * 5})
    assert sorted(assign(groups, 5, "area_bins")["fold"]) == [0, 1, 2, 3, 4]


def test_stratified_folds_have_evener_areas_than_random_ones():
    areas = table(318)
    spread = {
        method: np.mean(
            [
                assign(areas, 5, method, seed).groupby("fold")["area"].mean().std()
                for seed in range(8)
            ]
        )
        for method in SHUFFLED
    }
    assert spread["area_blocks"] < spread["random"] / 3
    assert spread["area_bins"] < spread["random"] / 3


def test_first_groups_keeps_the_order_of_the_table():
    areas = pd.DataFrame({"id": list("zyxabcd"), "area": [1] * 7})
    folds = make_folds(areas, 3, method="first_groups", first_groups=3).set_index("id")["fold"]
    assert folds.to_dict() == {"z": 0, "y": 0, "x": 0, "a": 1, "b": 2, "c": 1, "d": 2}


@pytest.mark.parametrize(
    ("method", "count", "message"),
    [
        ("first_groups", 0, "from 1 to 6 .*received 0"),
        ("random_first", 7, "from 1 to 6 .*received 7"),
        ("random", 3, "--first_groups=3 has no meaning with --method=random"),
    ],
)
def test_contradictions_are_refused(method, count, message):
    with pytest.raises(UserError, match=message):
        make_folds(table(10), 5, method=method, first_groups=count)


def script(*flags, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(ROOT / "make_folds.py"), "--dataset_dir=input", *flags],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_script_ranks_by_the_photos_of_one_view(make_dataset):
    root = make_dataset(groups=5)
    run = script("--method=area_rank", "--n_folds=2", "--area_photos=_02$", cwd=root.parent)
    assert run.returncode == 0, run.stderr
    assert "5 groups in 2 folds by area_rank" in run.stdout
    folds = pd.read_csv(root / "folds.csv").set_index("id")
    masks = {p.name[:5]: p for p in (root / "train_masks").glob("*_02_mask.gif")}
    areas = {group: int(read_mask(path).sum()) for group, path in masks.items()}
    assert folds["area"].to_dict() == areas
    ranked = sorted(areas, key=lambda group: areas[group])
    assert [folds["fold"][group] for group in ranked] == [0, 1, 0, 1, 0]


def test_the_script_deals_photos_when_each_is_its_own_group(make_dataset):
    root = make_dataset(groups=3, views=4)
    run = script("--method=random", "--group_pattern=(.+)", "--n_folds=4", cwd=root.parent)
    assert run.returncode == 0, run.stderr
    folds = pd.read_csv(root / "folds.csv")
    assert len(folds) == 12
    assert list(np.bincount(folds["fold"])) == [3, 3, 3, 3]


def test_the_script_takes_an_id_for_what_it_says(tmp_path):
    (tmp_path / "a.csv").write_text("id,area\nNA,5\nnull,4\n007,3\n")
    run = script("--areas_csv=a.csv", "--n_folds=3", "--folds_out=out.csv", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    ids = [line.split(",")[0] for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert ids == ["id", "007", "NA", "null"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method=area_ranks"], "area_ranks"),
        (["--area_photos=_99$"], "matches no photo of 4 of 4 groups, the first is 'car00'"),
        (["--area_photos=("], "--area_photos='(' is no regular expression"),
        (
            ["--areas_csv=a.csv", "--area_photos=x"],
            "--area_photos=x has no effect with --areas_csv",
        ),
        (["--areas_csv=a.csv"], "gives 'b' the area 'big', which is no number"),
    ],
)
def test_the_script_tells_mistakes_in_one_line(make_dataset, flags, message):
    root = make_dataset()
    (root.parent / "a.csv").write_text("id,area\na,5\nb,big\n")
    before = (root / "folds.csv").read_text()
    run = script("--n_folds=2", *flags, cwd=root.parent)
    assert run.returncode == 1
    assert message in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert (root / "folds.csv").read_text() == before
