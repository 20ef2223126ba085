"""tools/prepare_dataset.py: a dataset resized once, whole and resumable, next to its source."""

import os
import random
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from carvana_tf import commands
from carvana_tf.data import bad_files, labels, prepare
from carvana_tf.data.dataset import find_photos
from carvana_tf.data.folds import read_folds, split
from carvana_tf.data.images import (
    encode_photo,
    read_mask,
    read_photo,
    read_size,
    resize_mask,
    write_gif_mask,
    write_photo,
)
from carvana_tf.data.prepare import Size
from carvana_tf.errors import UserError
from carvana_tf.files import LOCK, PREFIX

ROOT = Path(__file__).parents[1]


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def disc(height: int, width: int) -> np.ndarray:
    """A mask with an ellipse in it."""
    rows, columns = np.mgrid[:height, :width]
    return ((rows / height - 0.45) / 0.3) ** 2 + ((columns / width - 0.55) / 0.35) ** 2 < 1


def add(root: Path, stem: str, height: int, width: int, suffix: str = ".jpg") -> None:
    """A photo of a bright ellipse on a dark ground, and its mask."""
    mask = disc(height, width)
    photo = np.where(mask[..., None], (230, 210, 190), (30, 40, 50)).astype(np.uint8)
    write_photo(root / f"train/{stem}{suffix}", photo, 100)
    write_gif_mask(root / f"train_masks/{stem}_mask.gif", mask)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command in this process, of `input` to `out`, with further flags."""
    monkeypatch.chdir(tmp_path)

    def call(*flags: str) -> None:
        commands.find("prepare_dataset").call(["--output_dir=out", *flags])

    return call


@pytest.fixture
def dataset(tmp_path) -> Path:
    root = tmp_path / "input"
    for stem, height, width in (("a_1", 120, 180), ("b_1", 181, 97), ("c.5_1", 33, 500)):
        add(root, stem, height, width)
    add(root, "more/d_1", 60, 61, ".png")
    return root


@pytest.mark.parametrize(
    ("size", "given", "expected"),
    [
        (Size(shorter_side=256), (768, 1024), (256, 341)),
        (Size(shorter_side=256), (1025, 683), (384, 256)),
        (Size(shorter_side=256), (100, 50), (512, 256)),
        (Size(longer_side=100), (1280, 1918), (67, 100)),
        (Size(longer_side=10), (3, 4000), (1, 10)),
        (Size(exact=(768, 512)), (1280, 1918), (768, 512)),
    ],
)
def test_sizes(size, given, expected):
    assert size.of(*given) == expected


def test_shorter_side_is_opencv_bilinear_of_the_same_relative_path(run, dataset, tmp_path):
    run("--shorter_side=40", "--photo_format=png", "--threads=2")
    names = {"a_1.png": (40, 60), "b_1.png": (75, 40), "c.5_1.png": (40, 606)}
    for name, (height, width) in {**names, "more/d_1.png": (40, 41)}.items():
        made = read_photo(tmp_path / "out/train" / name)
        (source,) = (dataset / "train").glob(name.replace(".png", ".*"))
        expected = cv2.resize(cv2.imread(str(source)), (width, height))[..., ::-1]
        assert made.shape == (height, width, 3)
        assert np.abs(made.astype(int) - expected).max() <= 2  # two decoders of JPEG


def test_area_averages_and_jpeg_keep_names(run, dataset, tmp_path):
    write_photo(dataset / "train/E.JPG", np.full((90, 60, 3), (200, 10, 90), np.uint8))
    run("--size=50x20")
    found = contents(tmp_path / "out")
    assert {name for name in found if name.startswith("train/")} == {
        "train/a_1.jpg", "train/b_1.jpg", "train/c.5_1.jpg", "train/E.JPG", "train/more/d_1.jpg",
    }  # fmt: skip
    assert all(read_size(tmp_path / "out" / name) == (20, 50) for name in found if "/" in name)
    assert read_photo(tmp_path / "out/train/E.JPG")[10, 25] == pytest.approx((200, 10, 90), abs=4)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    write_photo(dataset / "noise/n.png", noise)
    for method in ("area", "bilinear"):
        flags = ("--photo_format=png", f"--interpolation={method}", "--size=20x20", "--overwrite")
        run("--photo_dirs=noise", *flags)
        spread = read_photo(tmp_path / "out/noise/n.png").std() / (noise.std() / 10)
        assert (spread < 1.3) == (method == "area"), spread


def test_masks_stay_where_the_photo_shows_the_object(run, dataset, tmp_path):
    for flags in (["--longer_side=70"], ["--size=64x48"], ["--shorter_side=90"]):
        run("--mask_dir=train_masks", "--overwrite", "--interpolation=area", *flags)
        for name in ("a_1", "b_1", "c.5_1", "more/d_1"):
            photo = read_photo(tmp_path / f"out/train/{name}.jpg").astype(int)
            path = tmp_path / f"out/train_masks/{name}_mask.png"
            mask = read_mask(path)
            assert set(np.unique(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))) == {0, 255}
            seen = photo[..., 0] > 130
            # All that may differ is a pixel at the edge here and there.
            edge = cv2.dilate(mask.view(np.uint8), np.ones((3, 3), np.uint8)) > cv2.erode(
                mask.view(np.uint8), np.ones((3, 3), np.uint8)
            )
            assert not ((seen != mask) & ~edge).any()
            assert (seen != mask).sum() <= max(0.1 * edge.sum(), 2)


def test_nearest_pixels_would_move_edges():
    """What `resize_mask` says of them: areas and places of its own masks are better."""
    mask = disc(97, 143)
    exact = mask.mean(), np.argwhere(mask).mean(0) / mask.shape
    size = (24, 36)
    nearest = cv2.resize(mask.view(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0

    def centre(values):
        return (np.argwhere(values) + 0.5).mean(0) / values.shape

    ours = resize_mask(mask, *size)
    assert abs(ours.mean() - exact[0]) < 0.004
    errors = [np.abs(centre(each) - centre(mask)).max() for each in (ours, nearest)]
    assert errors[0] < 0.003 < 0.01 < errors[1]


def test_photos_without_masks_and_other_folders(run, dataset, tmp_path, capsys):
    (dataset / "train_masks/b_1_mask.gif").unlink()
    write_photo(dataset / "test/t_1.jpg", np.zeros((30, 30, 3), np.uint8))
    run("--mask_dir=train_masks", "--size=20x20")
    assert "4 photos, 3 with masks (1 have none), 0 of them already" in capsys.readouterr().out
    # Another folder, and other settings of its own.
    run("--photo_dirs=test", "--size=10x10")
    run("--photo_dirs=train,test", "--mask_dirs=train_masks", "--size=20x20", "--overwrite")
    assert {read_size(path) for path in (tmp_path / "out").rglob("*.*g")} == {(20, 20)}


KILLED = """
import os, signal, sys
from carvana_tf import commands
from carvana_tf.data import prepare
encode, calls = prepare.encode_photo, []
def killing(*arguments):
    calls.append(0)
    if len(calls) == 25:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*arguments)
prepare.encode_photo = killing
commands.find("prepare_dataset").call(sys.argv[1:])
"""


def test_killed_and_gone_on_gives_the_same_bytes(run, tmp_path, capsys):
    for i in range(40):
        add(tmp_path / "input", f"p{i:02d}_1", 20 + i, 50)
    flags = ["--mask_dir=train_masks", "--shorter_side=12", "--threads=2"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "--output_dir=out", *flags], cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    before = contents(tmp_path / "out")
    assert 8 <= sum(name.endswith(".jpg") for name in before if "/p" in name) < 25
    run(*flags)
    already = int(capsys.readouterr().out.partition("with masks, ")[2].split()[0])
    assert 8 <= already < 25
    run("--output_dir=whole", *flags)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not [name for name in contents(tmp_path / "out") if PREFIX in name or LOCK in name]


def test_again_does_nothing_and_a_replaced_photo_is_made_again(run, dataset, tmp_path, capsys):
    run("--size=20x20")
    before = {path: path.stat().st_ino for path in (tmp_path / "out/train").rglob("*.jpg")}
    capsys.readouterr()
    run("--size=20x20")
    assert "4 of them already there" in capsys.readouterr().out
    path = dataset / "train/a_1.jpg"
    write_photo(path, np.full((50, 50, 3), 77, np.uint8))
    os.utime(path, (1e9, 1e9))  # an older file than before
    run("--size=20x20")
    assert "3 of them already there" in capsys.readouterr().out
    after = {path: path.stat().st_ino for path in before}
    assert [p.name for p in before if after[p] != before[p]] == ["a_1.jpg"]
    assert abs(int(read_photo(tmp_path / "out/train/a_1.jpg").mean()) - 77) <= 2


def test_the_source_is_left_alone(run, dataset, tmp_path):
    before = contents(dataset)
    run("--mask_dir=train_masks", "--size=20x20")
    for out in ("input", "input/train", "input/train/more/x"):
        with pytest.raises(UserError, match=r"lie among the sources in .*choose another --output"):
            run(f"--output_dir={out}", "--size=20x20", "--overwrite")
    with pytest.raises(UserError, match=r"lie among the sources in"):
        run("--output_dir=.", "--dataset_dir=.", "--photo_dirs=input/train", "--size=9x9")
    run("--output_dir=input/small", "--size=20x20")  # next to it
    assert {k: v for k, v in contents(dataset).items() if not k.startswith("small")} == before


def test_bad_files_are_listed_and_left_out(run, dataset, tmp_path, capsys):
    (dataset / "train/a_1.jpg").write_bytes((dataset / "train/a_1.jpg").read_bytes()[:500])
    write_gif_mask(dataset / "train_masks/b_1_mask.gif", disc(9, 9))
    run("--mask_dir=train_masks", "--size=20x20")
    captured = capsys.readouterr()
    assert "2 photos, 2 with masks" in captured.out
    assert "warning: 2 photos are left out, see above and 'out/train/bad_files.csv'" in captured.err
    found = contents(tmp_path / "out")
    assert not [name for name in found if "a_1" in name or "b_1" in name]
    listed = (tmp_path / "out/train" / bad_files.NAME).read_text()
    assert "a_1.jpg" in listed and "b_1_mask.gif" in listed and "is 9x9, its photo" in listed
    # Repaired, they are added; broken later, what was made of them goes.
    for stem, size in (("a_1", (40, 40)), ("b_1", (30, 50))):
        add(dataset, stem, *size)
    run("--mask_dir=train_masks", "--size=20x20")
    assert bad_files.NAME not in {path.name for path in (tmp_path / "out/train").iterdir()}
    assert (tmp_path / "out/train/a_1.jpg").is_file()
    (dataset / "train/a_1.jpg").write_bytes(b"")
    run("--mask_dir=train_masks", "--size=20x20")
    assert not [name for name in contents(tmp_path / "out") if "a_1" in name]


def test_nothing_but_bad_files_is_an_error(run, tmp_path):
    (tmp_path / "input/train").mkdir(parents=True)
    (tmp_path / "input/train/a.jpg").write_bytes(b"none")
    with pytest.raises(UserError, match=r"none of the 1 photos .*a\.jpg.*bad_files\.csv"):
        run("--size=20x20")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--size=20x21"], "size: 20x20 there, 20x21 now"),
        (["--size=20x20", "--interpolation=bilinear"], "interpolation: area there"),
        (["--size=20x20", "--photo_format=png"], "photo_format: jpg there|quality: 95 there"),
        (["--size=20x20", "--jpeg_quality=60"], "quality: 95 there, 60 now"),
        (["--size=20x20", "--photo_depth=12"], "photo_depth: 0 there"),
        (["--size=20x20", "--mask_values=nonzero"], "mask_values: auto there, nonzero now"),
        (["--size=20x20", "--dataset_dir=other"], "source: .*/input/train there, .*/other/train"),
    ],
)
def test_other_settings_are_refused_by_name(run, dataset, tmp_path, flags, named):
    add(tmp_path / "other", "a_1", 30, 30)
    run("--mask_dir=train_masks", "--size=20x20")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=f"prepared with another ({named}).*--overwrite"):
        run("--mask_dir=train_masks", *flags)
    assert contents(tmp_path / "out") == before
    run("--mask_dir=train_masks", *flags, "--overwrite")
    run("--mask_dir=train_masks", *flags, "--output_dir=new")
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_what_others_put_there_is_refused(run, dataset, tmp_path):
    write_photo(tmp_path / "out/train/x.jpg", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UserError, match=r"holds images .*x\.jpg.* knows nothing of"):
        run("--size=20x20", "--overwrite")
    (tmp_path / "out/train/x.jpg").unlink()
    run("--size=20x20")
    (dataset / "train/b_1.jpg").unlink()
    with pytest.raises(UserError, match=r"1 images of photos that are not in the source.*b_1\.jpg"):
        run("--size=20x20")
    run("--size=20x20", "--overwrite")
    assert not (tmp_path / "out/train/b_1.jpg").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], r"give one of --shorter_side=256"),
        (["--size=20x20", "--shorter_side=3"], r"give one of --shorter_side"),
        (["--size=20"], r"--size='20' is no size; write width and height"),
        (["--size=0x9"], r"is no size"),
        (["--size=9x9", "--photo_dirs=trian"], r"'input/trian' does not exist; .*--photo_dirs"),
        (["--size=9x9", "--mask_dir=a,b"], r"--mask_dirs names 2 folders, --photo_dirs only 1"),
        (["--size=9x9", "--photo_dirs=train,train"], r"are the same folder"),
        (["--size=9x9", "--photo_dirs=train,train/more"], r"one lies in the other"),
        (["--size=9x9", "--photo_format=png", "--jpeg_quality=3"], r"--jpeg_quality=3 has no eff"),
        (["--size=9x9", "--mask_dir=train"], r"are the same folder"),
        (["--size=9x9", "--mask_dir=train_masks", "--mask_suffix=_x"], r"--mask_suffix='_mask' f"),
    ],
)
def test_mistakes(run, dataset, flags, message):
    with pytest.raises(UserError, match=message):
        run(*flags)


def test_links_to_folders_are_followed_once(run, dataset, tmp_path):
    (dataset / "train/again").symlink_to(dataset / "train", target_is_directory=True)
    elsewhere = tmp_path / "elsewhere"
    write_photo(elsewhere / "e.jpg", np.zeros((9, 9, 3), np.uint8))
    (dataset / "train/linked").symlink_to(elsewhere, target_is_directory=True)
    run("--size=9x9")
    found = {path.name for path in (tmp_path / "out/train").rglob("*.jpg")}
    assert found == {"a_1.jpg", "b_1.jpg", "c.5_1.jpg", "d_1.jpg", "e.jpg"}


def test_a_folder_in_use_is_refused(run, dataset, tmp_path):
    with prepare.held(tmp_path / "out"), pytest.raises(UserError, match="'out' is in use by"):
        run("--size=9x9")


def human(path: Path, rows: list[tuple[str, str]]) -> None:
    lines = [f"{photo},verification,{label},1" for photo, label in rows]
    path.write_text("\n".join(["ImageID,Source,LabelName,Confidence", *lines]) + "\n")


@pytest.fixture
def labelled(tmp_path) -> list[str]:
    """Two hundred photos with labels; their names."""
    stems = [f"{i:03x}" for i in range(200)]
    small = encode_photo(np.zeros((4, 6, 3), np.uint8), ".jpg")
    (tmp_path / "input/train").mkdir(parents=True)
    for stem in stems:
        (tmp_path / f"input/train/{stem}.jpg").write_bytes(small)
    rows = [(stem, label) for stem in reversed(stems) for label in ("zebra", "apple")]
    human(tmp_path / "input/human.csv", rows)
    return stems


def test_labels_become_a_clean_table_and_folds(run, labelled, tmp_path, capsys):
    run("--size=5x5", "--labels=human.csv", "--val_ratio=0.03")
    table = labels.read(tmp_path / "out/human.csv")
    assert table.classes == ("zebra", "apple")
    assert list(table.labels.items()) == [(stem, (0, 1)) for stem in reversed(labelled)]
    # The published choice, by its own means.
    expected = sorted(f"train/{stem}.jpg" for stem in labelled)
    random.seed(0xDEADFACE)
    random.shuffle(expected)
    folds = read_folds(tmp_path / "out/folds.csv")
    assert sorted(folds["id"]) == labelled
    chosen = set(folds["id"][folds["fold"] == 0])
    assert chosen == {name[6:9] for name in expected[-6:]}
    assert "fold 0: 6 photos to validate on, fold 1: 194" in capsys.readouterr().out
    samples = find_photos(tmp_path / "out/train")
    training, validation = split(samples, samples, folds, 0)
    assert {sample.stem for sample in validation} == chosen and len(training) == 194
    run("--size=5x5", "--labels=human.csv", "--val_ratio=0.03", "--seed=7")
    other = read_folds(tmp_path / "out/folds.csv")
    assert set(other["id"][other["fold"] == 0]) != chosen


def test_labels_and_photos_without_counterpart_are_told(run, labelled, tmp_path, capsys):
    (tmp_path / "input/train/000.jpg").write_bytes(b"bad")
    (tmp_path / "input/train/001.jpg").unlink()
    rows = [(stem, "apple") for stem in labelled[:-1]]
    human(tmp_path / "more.csv", [*rows, rows[5], ("gone", "kiwi")])
    run("--size=5x5", "--labels=more.csv", "--labels_out=train_labels.csv", "--threads=1")
    printed = capsys.readouterr().out
    assert "more.csv: 3 photos of the table are not there (000, 001, gone)" in printed
    assert "more.csv: 1 photos are not in the table (0c7)" in printed
    assert "more.csv: 1 labels are repeated: counted once" in printed
    assert "197 photos with 197 labels of 2 classes -> out/train_labels.csv" in printed
    assert sorted(labels.read(tmp_path / "out/train_labels.csv").labels) == labelled[2:-1]
    assert not (tmp_path / "out/folds.csv").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels=none.csv"], r"--labels='none\.csv' is neither in 'input' nor a file"),
        (["--labels=other.csv"], r"no labels of these photos \(its first is 'x', the first pho"),
        (["--labels=human.csv", "--output_dir=input/../input"], r"would (be replaced|lie among)"),
        (["--labels=human.csv", "--val_ratio=0.001"], r"are 0 to validate on and 200 to train"),
        (["--labels=human.csv", "--val_ratio=1"], r"are 200 to validate on and 0 to train"),
        (
            ["--labels=human.csv", "--photo_dirs=train,test"],
            r"out/train/000\.jpg, out/test/000\.jpg have one name",
        ),
        (["--val_ratio=0.1"], r"--val_ratio=0\.1 has no effect without --labels"),
        (["--labels=human.csv", "--seed=3"], r"--seed=3 has no effect without --val_ratio"),
    ],
)
def test_mistakes_in_labels(run, labelled, tmp_path, flags, message):
    human(tmp_path / "other.csv", [("x", "kiwi")])
    write_photo(tmp_path / "input/test/000.jpg", np.zeros((4, 4, 3), np.uint8))
    before = (tmp_path / "input/human.csv").read_bytes()
    with pytest.raises(UserError, match=message):
        run("--size=5x5", *flags)
    assert (tmp_path / "input/human.csv").read_bytes() == before
