"""Folds: groups whole, every size in every fold, the same for the same seed."""

import random
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carvana_tf.data.dataset import Sample
from carvana_tf.data.folds import (
    find_folds_file,
    fold_of_samples,
    make_folds,
    read_folds,
    split,
    write_folds,
)
from carvana_tf.errors import UserError


def table(areas):
    return pd.DataFrame({"id": [f"car{i:03d}" for i in range(len(areas))], "area": areas})


def samples(groups, views=3):
    return [Sample(f"{g}_{v}", g, Path(f"{g}_{v}.jpg")) for g in groups for v in range(views)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=7, max_size=60), st.integers(2, 7), st.integers(0, 9))
def test_each_deal_gives_each_fold_one(areas, n_folds, seed):
    folds = make_folds(table(areas), n_folds, seed)
    assert list(folds.columns) == ["id", "fold", "area"]
    assert list(folds["id"]) == sorted(folds["id"])
    assert dict(zip(folds["id"], folds["area"], strict=True)) == dict(
        table(areas).itertuples(index=False)
    )
    assigned = list(folds.sort_values(["area", "id"])["fold"])
    for start in range(0, len(assigned), n_folds):
        block = assigned[start : start + n_folds]
        assert len(set(block)) == len(block)
        assert set(block) <= set(range(n_folds))
        if len(block) == n_folds:
            assert set(block) == set(range(n_folds))


def test_the_seed_decides_not_the_order_of_the_rows():
    areas = table([random.Random(1).randrange(1000) for _ in range(40)])
    first = make_folds(areas, 5, 80)
    pd.testing.assert_frame_equal(first, make_folds(areas, 5, 80))
    shuffled = areas.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(first, make_folds(shuffled, 5, 80))
    assert list(first["fold"]) != list(make_folds(areas, 5, 81)["fold"])


def test_impossible_folds():
    with pytest.raises(UserError, match="at least 2"):
        make_folds(table([1, 2]), 1)
    with pytest.raises(UserError, match="2 groups cannot fill"):
        make_folds(table([1, 2]), 3)
    with pytest.raises(UserError, match="'a' appears more than once"):
        make_folds(pd.DataFrame({"id": ["a", "a", "b"], "area": [1, 2, 3]}), 2)


def test_round_trip_keeps_ids_as_text(tmp_path):
    areas = pd.DataFrame({"id": ["007", "1e5", "NA", "null"], "area": [4, 3, 2, 1]})
    folds = make_folds(areas, 2)
    write_folds(tmp_path / "folds.csv", folds)
    pd.testing.assert_frame_equal(read_folds(tmp_path / "folds.csv"), folds, check_dtype=False)
    assert list(read_folds(tmp_path / "folds.csv")["id"]) == ["007", "1e5", "NA", "null"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("id,fold\n", "no rows"),
        ("id,fold\na,1e300\n", "'a' the fold '1e300'"),
        ("id,area\na,1\n", "no column 'fold'"),
        ("name,fold\na,1\n", "no column 'id'"),
        ("id,fold\na,-1\n", "'a' the fold '-1'"),
        ("id,fold\na,0.5\n", "'a' the fold '0.5'"),
        ("id,fold\na,x\n", "'a' the fold 'x'"),
        ("id,fold\na,\n", "'a' the fold ''"),
        ("id,fold\na,inf\n", "'a' the fold 'inf'"),
        ("id,fold\na,0\na,1\n", "more than once"),
        ("id,fold,fold\na,0,1\n", "two columns 'fold'"),
        ("id\tfold\na\t0\n", "tabs between its columns"),
        ('id,fold\n"a,0\n', "no CSV table"),
        (b"\xff\xfe\x00\xd8", "no CSV table"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "folds.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_folds(path)
    assert "folds.csv" in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_folds(tmp_path / "none.csv")


def test_the_dataset_comes_before_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = tmp_path / "data"
    dataset.mkdir()
    with pytest.raises(UserError, match=r"make_folds\.py"):
        find_folds_file("f.csv", dataset)
    (tmp_path / "f.csv").touch()
    assert find_folds_file("f.csv", dataset) == Path("f.csv")
    (dataset / "f.csv").touch()
    assert find_folds_file("f.csv", dataset) == dataset / "f.csv"


def test_split_keeps_groups_whole():
    groups = [f"car{i:03d}" for i in range(11)]
    folds = make_folds(table(list(range(11))), 3)
    seen = []
    for fold in range(3):
        train, validation = split(*2 * [samples(groups)], folds, fold)
        assert {s.group for s in train}.isdisjoint({s.group for s in validation})
        assert len(train) + len(validation) == 33
        seen += [sample.stem for sample in validation]
    assert sorted(seen) == sorted(sample.stem for sample in samples(groups))


def test_a_table_of_images_works_too():
    folds = pd.DataFrame({"id": ["a_0", "a_1"], "fold": [1, 0]})
    assert fold_of_samples(samples(["a"], views=2), folds) == [1, 0]


def test_split_errors():
    folds = pd.DataFrame({"id": ["a", "b", "c"], "fold": [0, 1, 2]})
    with pytest.raises(UserError, match=r"--fold=7 .*0, 1, 2"):
        split(*2 * [samples(["a", "b"])], folds, 7)
    with pytest.raises(UserError, match="no validation photo"):
        split(*2 * [samples(["a", "b"])], folds, 2)
    with pytest.raises(UserError, match="no training photo"):
        split(*2 * [samples(["a"])], folds, 0)
    with pytest.raises(UserError, match="1 ids are not in the folds file, the first is 'x'"):
        split(*2 * [samples(["a", "x"])], folds, 0)
