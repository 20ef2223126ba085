"""Planted faults are found, and a clean dataset is called clean."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from carvana_tf.data import checks, mask_values
from carvana_tf.data.dataset import Naming, list_images
from carvana_tf.data.duplicates import find_copies, fingerprint
from carvana_tf.data.images import AS_DECLARED, Reading, read_photo, write_mask, write_photo
from carvana_tf.errors import UserError

REPOSITORY = Path(__file__).parents[1]
SHAPE = (48, 64)


def picture(seed, shape=SHAPE):
    """A smooth random picture."""
    random = np.random.default_rng(seed)
    return cv2.resize(
        random.integers(40, 200, (9, 12, 3), dtype=np.uint8),
        shape[::-1],
        interpolation=cv2.INTER_CUBIC,
    )


def box(shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[10:30, 5:40] = True
    return mask


@pytest.fixture
def dataset(tmp_path):
    """Four cars of two views in two folds, nothing wrong."""
    for i in range(4):
        for view in (1, 2):
            write_photo(tmp_path / f"train/car{i}_{view}.jpg", picture(10 * i + view))
            write_mask(tmp_path / f"train_masks/car{i}_{view}_mask.png", box())
    lines = [f"car{i},{i % 2},100" for i in range(4)]
    (tmp_path / "folds.csv").write_text("\n".join(["id,fold,area", *lines]) + "\n")
    return tmp_path


def check(dataset, folds="folds.csv", naming=None, reading=AS_DECLARED):
    return checks.check_dataset(
        dataset / "train",
        dataset / "train_masks",
        naming or Naming(),
        dataset / folds if folds else None,
        threads=2,
        reading=reading,
    )


def only(findings):
    (finding,) = findings
    return finding


def test_a_clean_dataset_has_no_findings(dataset):
    assert check(dataset) == []


def test_annotations_of_labelme_next_to_their_photos_are_no_findings(dataset):
    for name in ("car0_1", "other"):
        (dataset / f"train/{name}.json").write_text("{}")
    found = [(each.what, each.file) for each in check(dataset)]
    assert found == [("is not of a type looked for", str(dataset / "train/other.json"))]


def test_missing_folds_are_a_note(dataset):
    finding = only(check(dataset, folds=None))
    assert (finding.severity, "make_folds.py" in finding.fix) == ("note", True)


def test_missing_and_extra_masks(dataset):
    (dataset / "train_masks/car0_1_mask.png").rename(dataset / "train_masks/other_mask.png")
    missing, extra = check(dataset)
    assert missing.severity == extra.severity == "warning"
    assert missing.file.endswith("car0_1.jpg") and missing.what == "has no mask"
    assert extra.file.endswith("other_mask.png") and "without photo" in extra.what


def test_no_mask_fits_the_naming(dataset):
    findings = check(dataset, naming=Naming("_label"))
    assert findings[0].severity == "error" and "no photo has a mask" in findings[0].what
    assert "--mask_suffix" in findings[0].fix


def test_size_mismatch(dataset):
    write_mask(dataset / "train_masks/car0_1_mask.png", box((48, 60)))
    finding = only(check(dataset))
    assert finding.severity == "error"
    assert "60x48" in finding.what and "64x48" in finding.what


def test_mixed_sizes_are_a_note(dataset):
    write_photo(dataset / "train/car0_1.jpg", picture(1, (40, 64)))
    write_mask(dataset / "train_masks/car0_1_mask.png", box((40, 64)))
    finding = only(check(dataset))
    assert finding.severity == "note" and "64x48 (7), 64x40 (1)" in finding.what


@pytest.mark.parametrize("name", ["train/car1_1.jpg", "train_masks/car1_1_mask.png"])
@pytest.mark.parametrize("kept", [0, 100])
def test_damaged_files(dataset, name, kept):
    path = dataset / name
    path.write_bytes(path.read_bytes()[:kept])
    finding = only(check(dataset))
    assert finding.severity == "error" and finding.file.endswith(name)


@pytest.mark.parametrize(
    ("grey", "severity", "what"),
    [
        (box() * np.uint8(1), "note", "0/1"),
        (box() * np.uint8(200), "note", "non-white"),
        (np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1)), "error", "no clear mask"),
        (np.zeros(SHAPE, np.uint8), "warning", "empty"),
        (np.full(SHAPE, 255, np.uint8), "warning", "whole photo"),
    ],
)
def test_kinds_of_masks(dataset, grey, severity, what):
    cv2.imwrite(str(dataset / "train_masks/car2_1_mask.png"), grey)
    finding = only([f for f in check(dataset) if f.file.endswith(".png")])
    assert finding.severity == severity and what in finding.what


@pytest.mark.parametrize("form", ["values", "colours", "indices"])
def test_objects_of_different_values(dataset, form):
    """Each file alone is a clear mask; together they may be classes."""
    for value, path in enumerate(sorted((dataset / "train_masks").iterdir())[:2], start=1):
        image = PIL.Image.fromarray(box().astype(np.uint8) * np.uint8(value))
        if form != "values":
            image = PIL.Image.frombytes("P", image.size, image.tobytes())
            image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        (image.convert("RGB") if form == "colours" else image).save(path)
    marks = "1 or white (7), 2 (1)" if form == "values" else "ff0000 (1), 00ff00 (1)"
    found = [f for f in check(dataset) if f.kind == "objects of different values"]
    assert only(found).severity == "warning" and marks in only(found).what
    settled = Reading(mask_values.parse("nonzero"))
    assert check(dataset, reading=settled) == []


def test_shapes_that_may_be_mistakes(dataset):
    inverted, outline, *_ = sorted((dataset / "train_masks").iterdir())
    write_mask(inverted, ~box())
    write_mask(outline, box() & ~cv2.erode(box().view(np.uint8), np.ones((3, 3))).astype(bool))
    findings = check(dataset)
    whats = {f.file: f.what for f in findings}
    fixes = [f.fix for f in findings if f.file == str(inverted)]
    assert fixes[0].endswith("--mask_values=object:0 turns them over")
    assert "around the background" in whats.pop(str(inverted))
    assert "encloses more background" in whats.pop(str(outline))
    assert not whats
    settled = Reading(mask_values.parse("object:0"))
    fixes = {f.file: f.fix for f in check(dataset, reading=settled)}
    # The others are turned over, so that the flag is no advice any more.
    assert str(inverted) not in fixes
    assert set(fixes.values()) == {"check that it is not inverted"}


def test_alpha_mask_is_a_note(dataset):
    rgba = np.dstack([picture(5), box() * np.uint8(255)])
    PIL.Image.fromarray(rgba).save(dataset / "train_masks/car2_1_mask.png")
    finding = only(check(dataset))
    assert finding.severity == "note" and "alpha" in finding.what


def test_shared_stems_and_stray_files(dataset):
    write_photo(dataset / "train/car0_1.png", picture(77))
    (dataset / "train/readme.txt").write_text("hello")
    (dataset / "train/.DS_Store").write_text("hidden")
    (dataset / "train/old").mkdir()
    write_mask(dataset / "train_masks/draft.png", box())
    error, *notes = check(dataset)
    assert error.severity == "error" and error.file.endswith("car0_1.png")
    assert {Path(note.file).name for note in notes} == {"readme.txt", "old", "draft.png"}
    assert {note.severity for note in notes} == {"note"}


def test_ids_and_folds(dataset):
    (dataset / "folds.csv").write_text("id,fold\ncar0,0\ncar1,1\ncar2_1,0\ncar2_2,0\ngone,1\n")
    missing, gone = check(dataset)
    assert missing.severity == "error" and "car3" in missing.what
    assert gone.severity == "note" and "gone" in gone.what


def test_a_damaged_folds_file_is_an_error(dataset):
    (dataset / "folds.csv").write_text("name,fold\n")
    finding = only(check(dataset))
    assert finding.severity == "error" and "no column 'id'" in finding.what


def detailed(seed, shape=(96, 128)):
    """A picture with structure of a few pixels, as photos have it."""
    random = np.random.default_rng(seed)
    coarse = random.integers(40, 200, (24, 32, 3), dtype=np.uint8)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def in_studio(seed):
    """A picture whose middle third is its own, before a background that all share."""
    photo = detailed(0)
    photo[32:64, 32:96] = detailed(seed + 1)[32:64, 32:96]
    return photo


def jpeg(photo):
    data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def larger(photo):
    return cv2.resize(photo, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC)


DISGUISES = {
    "same": lambda photo: photo,
    "re-encoded": jpeg,
    "smaller": lambda photo: cv2.resize(photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "larger": larger,
    "cropped": lambda photo: photo[1:-1, 2:-1],
    "brighter": lambda photo: cv2.convertScaleAbs(photo, alpha=1.2, beta=20),
    "darker": lambda photo: cv2.convertScaleAbs(photo, alpha=0.7),
    "mirrored": lambda photo: photo[:, ::-1],
    "upside down": lambda photo: photo[::-1, ::-1],
    "turned": lambda photo: np.rot90(photo),
    "cropped and brighter": lambda photo: cv2.convertScaleAbs(photo[2:, 2:], alpha=1.2, beta=20),
    "mirrored and cropped": lambda photo: photo[1:-1, ::-1][:, 2:],
    "larger and re-encoded": lambda photo: jpeg(larger(photo)),
}


@pytest.mark.parametrize("how", DISGUISES)
@pytest.mark.parametrize("flip", [False, True], ids=["copy second", "copy first"])
def test_disguised_copies_are_found(how, flip):
    photos = [in_studio(seed) for seed in range(4)]
    photos.append(np.ascontiguousarray(DISGUISES[how](photos[1])))
    prints = [fingerprint(photo) for photo in (reversed(photos) if flip else photos)]
    found = only(find_copies(prints, threads=1))
    assert (found.first, found.second) == ((0, 3) if flip else (1, 4))
    assert found.turned == (how.split()[0] in ("mirrored", "upside", "turned"))


def test_photos_of_one_studio_are_no_copies():
    assert find_copies([fingerprint(in_studio(seed)) for seed in range(12)]) == []


def in_one_pose(seed, count):
    """Photos whose coarse structure is one and whose details differ."""
    random = np.random.default_rng(seed)
    pose = random.integers(60, 196, (9, 9)).astype(np.float32)
    for _ in range(count):
        detail = random.normal(0, 25, (160, 160)).astype(np.float32)
        pose_, detail_ = (
            cv2.resize(part, (384, 384), interpolation=cv2.INTER_CUBIC) for part in (pose, detail)
        )
        yield np.dstack([np.clip(pose_ + detail_, 0, 255).astype(np.uint8)] * 3)


@pytest.mark.parametrize("seed", [1, 3, 5])
def test_a_copy_is_found_behind_five_more_similar_photos(seed):
    """A cropped copy resembles other cars in its new place more than its original."""

    def cropped(photo):
        return np.ascontiguousarray(photo[:-16, :-16])

    original, *others = in_one_pose(seed, 6)
    photos = [original, *map(cropped, others), cropped(original)]
    found = only(find_copies([fingerprint(photo) for photo in photos], threads=1))
    assert (found.first, found.second) == (0, 6)


@pytest.mark.parametrize("labels", [[[0], [0], [1]], [[0, 5], [1, 5], [2, 6]]])
def test_copies_that_share_a_label_are_of_no_interest(labels):
    prints = [fingerprint(in_studio(seed)) for seed in (3, 3, 3)]
    pairs = [(one.first, one.second) for one in find_copies(prints, np.array(labels))]
    assert pairs == [(0, 2), (1, 2)]


def test_copies_across_folds(dataset):
    photo = detailed(1)
    write_photo(dataset / "train/car1_2.jpg", photo)
    write_photo(dataset / "train/car2_2.jpg", np.ascontiguousarray(photo[:, ::-1]))
    for car in (1, 2):
        write_mask(dataset / f"train_masks/car{car}_2_mask.png", box(photo.shape[:2]))
    finding = only([f for f in check(dataset) if f.kind != "mixed sizes"])
    assert finding.severity == "warning" and "mirrored" in finding.what
    assert finding.file.endswith("car2_2.jpg") and "car1_2.jpg" in finding.what


def test_copies_that_stay_together_do_no_harm(dataset):
    shutil.copy(dataset / "train/car1_2.jpg", dataset / "train/car3_1.jpg")  # the same fold
    shutil.copy(dataset / "train/car0_1.jpg", dataset / "train/car0_2.jpg")  # the same car
    assert check(dataset) == []
    kinds = [finding.kind for finding in check(dataset, folds=None)]
    assert kinds.count("is a copy of a photo elsewhere") == 1


def test_flat_pictures_are_no_copies():
    flat = [fingerprint(np.full((50, 40, 3), level, np.uint8)) for level in (0, 90, 90)]
    assert find_copies(flat) == []
    assert find_copies([]) == []


def test_copies_are_found_across_blocks(monkeypatch):
    monkeypatch.setattr("carvana_tf.data.duplicates._ROWS", 3)
    seeds = [0, 1, 2, 3, 4, 0, 5, 4]
    found = find_copies([fingerprint(picture(seed)) for seed in seeds])
    assert [(one.first, one.second) for one in found] == [(0, 5), (4, 7)]


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        check(tmp_path)


def test_table_counts_what_it_does_not_show():
    many = [checks.Finding("error", "no mask", f"{i}.jpg", "has no mask", "add") for i in range(50)]
    one = checks.Finding("note", "other", "x", "odd", "none")
    lines = checks.table([*many, one]).splitlines()
    assert len(lines) == 1 + 3 + 1 + 1
    assert "47 more" in lines[4] and "50 in all" in lines[4]
    assert len({line.index("has no mask") for line in lines[1:4]}) == 1


def run_script(dataset, *arguments):
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "tools/check_data.py"), *arguments],
        cwd=dataset,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_script(dataset):
    done = run_script(dataset, "--dataset_dir=.")
    assert (done.returncode, done.stdout) == (0, "0 errors, 0 warnings, 0 notes\n")
    for path in (dataset / "train").iterdir():
        path.write_bytes(b"")
    done = run_script(
        dataset, "--dataset_dir=.", "--report=all.csv", "--train_mask_dir=train_masks"
    )
    assert done.returncode == 1
    assert "8 errors" in done.stdout
    with (dataset / "all.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8 and {row["severity"] for row in rows} == {"error"}


def test_script_ignores_the_folds_of_another_dataset(dataset, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    (dataset / "train").rename(inner / "train")
    (dataset / "train_masks").rename(inner / "train_masks")
    (dataset / "folds.csv").write_text("id,fold\nothers,0\n")
    done = run_script(dataset, "--dataset_dir=inner")
    assert done.returncode == 0 and "no folds file" in done.stdout


@pytest.mark.slow
def test_real_studio_photos_raise_no_false_alarm():
    if "CARVANA_DIR" not in os.environ:
        pytest.skip("CARVANA_DIR is not set")
    photos = list_images(Path(os.environ["CARVANA_DIR"]) / "train")
    chosen = list(photos)[::5]  # of each car, and of each view
    prints = [fingerprint(read_photo(photos[stem])) for stem in chosen]
    _, groups = np.unique([Naming().group(stem) for stem in chosen], return_inverse=True)
    assert find_copies(prints, groups[:, None]) == []
    for stem in chosen[::40]:
        photo = read_photo(photos[stem])
        for how, disguise in DISGUISES.items():
            copy = fingerprint(np.ascontiguousarray(disguise(photo)))
            labels = np.append(groups, groups.max() + 1)[:, None]
            assert len(find_copies([*prints, copy], labels)) == 1, (stem, how)
