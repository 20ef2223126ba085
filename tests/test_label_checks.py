"""tools/check_data.py --task=labels: what is wrong with photos and their labels."""

import csv

import numpy as np
import pytest

from carvana_tf import commands
from carvana_tf.data.images import write_photo
from carvana_tf.errors import UserError


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Five photos that differ."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for number in range(1, 6):
        photo = random.integers(0, 256, (40, 40, 3)).astype(np.uint8)
        write_photo(tmp_path / f"input/train/IMG_{number}.jpg", photo)
    return tmp_path / "input"


def check(*arguments):
    arguments = ["--task=labels", *arguments]
    return commands.find("check_data").chosen(arguments).call(arguments)


def findings(path):
    with path.open(newline="") as stream:
        return [tuple(row.values()) for row in csv.DictReader(stream)]


def test_all_that_is_wrong_is_listed(dataset, capsys):
    (dataset / "train_labels.csv").write_text(
        "ImageID,Source,LabelName,Confidence,IsOccluded\n"
        "IMG_1,v,cat,1,0\nIMG_1,v,cat,1,0\nIMG_1,v,dog,1,0\nIMG_2,v,cat,0,0\n"
        'IMG_3,v,"cat,dog",1,0\nIMG_3,v,dog,1,0\nIMG_9,v,dog,1,0\nIMG_4,v,bird,1,0\n'
    )
    (dataset / "train/IMG_4.jpg").write_bytes(b"no photo")
    (dataset / "folds.csv").write_text("id,fold\nIMG_1,0\nIMG_2,1\nIMG_3,0\n")
    assert check("--report=found.csv") == 1
    found = findings(dataset.parent / "found.csv")
    short = {(severity, file.rpartition("/")[2], what) for severity, file, what, _ in found}
    table = "train_labels.csv"
    assert {each for each in short if "unreadable" not in each[2]} >= {
        ("error", "folds.csv", "'IMG_4' is missing"),
        ("warning", table, "1 labels are repeated: counted once"),
        ("warning", table, "'IMG_9' has no photo in 'input/train'"),
        ("warning", "IMG_5.jpg", "has no row"),
        ("note", table, "the column 'IsOccluded' is not read"),
        ("note", table, "the class 'bird' has one photo"),
        ("note", "IMG_2.jpg", "has no label"),
    }
    (joined,) = (what for _, _, what, _ in found if "comma" in what)
    assert joined.startswith("1 classes have a comma")
    fixes = [fix for _, file, _, fix in found if file == "input/folds.csv"]
    assert fixes == ["make the folds again with tools/prepare_dataset.py, see its --val_ratio"]
    assert any(f == "input/train/IMG_4.jpg" and s == "error" for s, f, _, _ in found)
    severities = [row[0] for row in found]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    counts = [severities.count(severity) for severity in ("error", "warning", "note")]
    assert "{} errors, {} warnings, {} notes".format(*counts) in capsys.readouterr().out


def test_a_dataset_in_order_has_no_findings(dataset, capsys):
    rows = "".join(f"IMG_{number},cat dog\n" for number in range(1, 6))
    (dataset / "other.csv").write_text(f"id,labels\n{rows}")
    folds = "".join(f"IMG_{number},{number % 2}\n" for number in range(1, 6))
    (dataset / "folds.csv").write_text(f"id,fold\n{folds}")
    assert check("--train_labels=other.csv") == 0
    assert capsys.readouterr().out == "0 errors, 0 warnings, 0 notes\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,labels\ncar_1,cat\n", "no photo of 'input/train' is in the table, whose first is"),
        ("id,labels\nIMG_1\n", "line 2 of 'input/train_labels.csv' has 1 columns"),
        ("id,labels\nIMG_1,cat\nIMG_1.jpg,dog\n", "both stand for 'IMG_1.jpg'"),
    ],
)
def test_a_table_that_is_of_no_use_is_an_error(dataset, capsys, text, message):
    (dataset / "train_labels.csv").write_text(text)
    assert check() == 1
    assert message in capsys.readouterr().out


def test_a_table_that_is_missing_is_one_line(dataset):
    with pytest.raises(UserError, match=r"--train_labels='train_labels\.csv' is neither in"):
        check()
