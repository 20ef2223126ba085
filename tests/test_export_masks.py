"""tools/export_masks.py: masks go into annotation tools and come back as they were."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from carvana_tf import commands, flags
from carvana_tf.annotations import exporting, reading
from carvana_tf.data.images import read_mask, write_mask, write_photo, write_probability
from carvana_tf.errors import UserError

SIZE = 21, 34


def masks():
    """One mask of each kind that something could go wrong with."""
    random = np.random.default_rng(0)
    empty, ring, parts = (np.zeros(SIZE, np.bool_) for _ in range(3))
    ring[2:18, 3:30] = True
    ring[5:15, 6:20] = ring[8:11, 22:25] = False
    ring[8:12, 9:15] = True  # an island in a hole
    parts[0:4, 0:5] = parts[4:9, 5:9] = parts[20, 33] = True  # touching at a corner, and alone
    pixel = empty.copy()
    pixel[7, 11] = True
    return {
        "empty_1": empty,
        "full_1": ~empty,
        "ring_1": ring,
        "parts_1": parts,
        "pixel_1": pixel,
        "noise 1.5": random.random(SIZE) > 0.5,
        "grüße & <1>": ring & (random.random(SIZE) > 0.1),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Photos, their probability PNGs in `predicted`, and hand-made masks in `made`."""
    folder = tmp_path_factory.mktemp("written")
    random = np.random.default_rng(1)
    for stem, mask in masks().items():
        write_photo(folder / f"photos/{stem}.jpg", np.zeros((*SIZE, 3), np.uint8))
        grey = np.where(mask, random.integers(128, 256, SIZE), random.integers(0, 128, SIZE))
        write_probability(folder / f"predicted/{stem}.png", grey.astype(np.uint8))
        write_mask(folder / f"made/{stem}_mask.png", mask)
    return folder


@pytest.fixture
def tree(monkeypatch, tmp_path, written):
    """A copy of `written`, which is the working folder."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(name, *arguments):
    return commands.find(name).call(arguments)


def exported(*arguments, masks="--pred_mask_dir=predicted"):
    assert call("export_masks", masks, "--out_dir=out", "--photo_dir=photos", *arguments) == 0


def again(*arguments, source="out"):
    given = (f"--annotations={source}", "--photo_dir=photos", "--out_dir=back", "--empty=listed")
    assert call("import_masks", *given, *arguments) == 0


@pytest.mark.parametrize("source", ["--pred_mask_dir=predicted", "--mask_dir=made"])
@pytest.mark.parametrize("geometry", ["mask", "polygon"])
@pytest.mark.parametrize("name", exporting.FORMATS)
def test_the_same_pixels_come_back(tree, name, geometry, source):
    if name in exporting.WITHOUT_PIXELS and geometry == "mask":
        geometry = "polygon"
    split = ("--split_parts",) if source == "--mask_dir=made" else ()
    exported(f"--format={name}", f"--geometry={geometry}", "--label=my car", *split, masks=source)
    again("--classes=my car")
    for stem, mask in masks().items():
        assert np.array_equal(read_mask(tree / f"back/{stem}_mask.png"), mask), stem


@pytest.mark.parametrize("name", exporting.FORMATS)
def test_rough_polygons_stay_within_their_tolerance(tree, name):
    rows, columns = np.mgrid[:200, :240] + 0.5
    angle = np.arctan2(rows - 100, columns - 120)
    mask = np.hypot(rows - 100, columns - 120) < 70 + 12 * np.sin(5 * angle)
    mask &= np.hypot(rows - 90, columns - 130) > 20
    for folder in ("photos", "predicted"):
        for path in (tree / folder).iterdir():
            path.unlink()
    write_photo(tree / "photos/a_1.png", np.zeros((*mask.shape, 3), np.uint8))
    write_probability(tree / "predicted/a_1.png", mask.astype(np.uint8) * np.uint8(255))
    exported(f"--format={name}", "--geometry=polygon", "--tolerance=0.5")
    again()
    found = read_mask(tree / "back/a_1_mask.png")
    # Pixels whose centre is within half a pixel of the outline may change, and no others.
    for row, column in np.argwhere(found != mask):
        around = mask[row - 1 : row + 2, column - 1 : column + 2]
        assert around.any() and not around.all()
    assert np.count_nonzero(found != mask) < 0.1 * 2 * np.pi * 90


def test_coco_is_what_pycocotools_reads(tree):
    exported()
    document = json.loads((tree / "out/annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in document["images"]}
    assert sorted(names.values()) == sorted(f"{stem}.jpg" for stem in masks())
    assert document["categories"] == [{"id": 1, "name": "object"}]
    found = {names[one["image_id"]]: one for one in document["annotations"]}
    assert len({one["id"] for one in document["annotations"]}) == len(masks()) - 1
    for stem, mask in masks().items():
        if not mask.any():
            assert f"{stem}.jpg" not in found
            continue
        annotation = found[f"{stem}.jpg"]
        encoded = annotation["segmentation"]
        assert np.array_equal(coco_masks.decode(encoded).astype(bool), mask)
        assert annotation["area"] == coco_masks.area(encoded) == mask.sum()
        assert annotation["bbox"] == coco_masks.toBbox(encoded).tolist()


def test_polygons_of_coco_add_up(tree):
    exported("--geometry=polygon", "--split_parts")
    document = json.loads((tree / "out/annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in document["images"]}
    found = [one for one in document["annotations"] if names[one["image_id"]] == "parts_1.jpg"]
    # Parts that touch at a corner are one object of two polygons.
    assert sorted(len(one["segmentation"]) for one in found) == [1, 2]
    assert all(len(line) >= 6 for one in found for line in one["segmentation"])


def test_tasks_of_label_studio_fit_their_interface(tree):
    exported("--format=label_studio", "--photo_url=https://host/a/", "--label=car")
    interface = ET.parse(tree / "out/labeling_config.xml").getroot()
    control, image = interface.find("BrushLabels"), interface.find("Image")
    assert control.find("Label").get("value") == "car"
    tasks = json.loads((tree / "out/tasks.json").read_text())
    assert len(tasks) == len(masks())
    addresses = {task["data"][image.get("value")[1:]] for task in tasks}
    assert "https://host/a/noise%201.5.jpg" in addresses
    for task in tasks:
        for result in task["predictions"][0]["result"]:
            assert result["from_name"] == control.get("name")
            assert result["to_name"] == control.get("toName") == image.get("name")
            assert (result["original_height"], result["original_width"]) == SIZE
            assert result["value"]["brushlabels"] == ["car"]


def test_labelme_finds_the_photos(tree):
    exported("--format=labelme")
    document = json.loads((tree / "out/ring_1.json").read_text())
    assert (tree / "out" / document["imagePath"]).resolve() == tree / "photos/ring_1.jpg"
    (shape,) = document["shapes"]
    assert shape["points"] == [[3, 2], [29, 17]]
    exported("--format=labelme", "--out_dir=photos")
    document = json.loads((tree / "photos/ring_1.json").read_text())
    assert document["imagePath"] == "ring_1.jpg"


def test_cvat_has_every_photo(tree):
    exported("--format=cvat", "--label=a < b")
    root = ET.parse(tree / "out/annotations.xml").getroot()
    assert [name.text for name in root.iter("name")] == ["a < b"]  # of the label
    images = {image.get("name"): image for image in root.iter("image")}
    assert {*images} == {f"{stem}.jpg" for stem in masks()}
    assert len(images["empty_1.jpg"]) == 0
    (mask,) = images["pixel_1.jpg"]
    kept = {key: mask.get(key) for key in ("label", "rle", "left", "top", "width", "height")}
    assert kept == {
        "label": "a < b", "rle": "0, 1", "left": "11", "top": "7", "width": "1", "height": "1",
    }  # fmt: skip


def test_yolo_has_lines_of_parts_of_the_photo(tree):
    exported("--format=yolo", "--label=car: a")
    lines = (tree / "out/labels/full_1.txt").read_text().splitlines()
    values = [float(word) for line in lines for word in line.split()[1:]]
    assert (len(lines), min(values), max(values)) == (1, 0, 1)
    assert (tree / "out/labels/empty_1.txt").read_text() == ""
    assert '0: "car: a"' in (tree / "out/data.yaml").read_text()


def test_the_threshold_and_names_without_photos(tree):
    write_probability(tree / "one/a_1.png", np.array([[10, 200], [90, 91]], np.uint8))
    given = ("--pred_mask_dir=one", "--image_extension=.tif", "--out_dir=out", "--threshold=90")
    assert call("export_masks", *given) == 0
    document = json.loads((tree / "out/annotations.json").read_text())
    assert document["images"][0]["file_name"] == "a_1.tif"
    found = coco_masks.decode(document["annotations"][0]["segmentation"])
    assert found.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("name", exporting.FORMATS)
def test_nothing_is_replaced_unasked(tree, name):
    exported(f"--format={name}")
    with pytest.raises(UserError, match=r"of these files already .*--overwrite"):
        exported(f"--format={name}")
    exported(f"--format={name}", "--overwrite")


@pytest.mark.parametrize("name", exporting.FORMATS)
def test_a_damaged_mask_is_listed_and_the_rest_is_done(tree, capsys, name):
    path = tree / "predicted/ring_1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="1 masks could not be read; all are listed in 'out/bad_fi"):
        exported(f"--format={name}")
    assert "'predicted/ring_1.png'" in capsys.readouterr().err
    again()
    assert len(list((tree / "back").glob("*.png"))) == len(masks()) - 1


@pytest.mark.parametrize("masks", ["--pred_mask_dir=predicted", "--mask_dir=made"])
def test_a_mask_of_another_size_than_its_photo_is_listed(tree, capsys, masks):
    write_photo(tree / "photos/ring_1.jpg", np.zeros((9, 8, 3), np.uint8))
    with pytest.raises(UserError, match="1 masks could not be read"):
        exported(masks=masks)
    assert "has 34x21 pixels, its photo 'photos/ring_1.jpg' has 8x9" in capsys.readouterr().err


def test_a_name_that_xml_cannot_hold_is_one_line(tree):
    with pytest.raises(UserError, match="no name of a class"):
        exported("--format=cvat", "--label=a\x01")
    mask = next((tree / "predicted").iterdir())
    mask.rename(tree / "predicted/a\x01.png")
    with pytest.raises(UserError, match="characters that XML cannot hold"):
        call("export_masks", "--pred_mask_dir=predicted", "--image_extension=.jpg",
             "--format=cvat", "--out_dir=out")  # fmt: skip
    assert not (tree / "out/annotations.xml").exists()


def test_the_page_names_every_format_and_flags_that_exist():
    page = (Path(__file__).parents[1] / "docs/annotations.md").read_text(encoding="utf-8")
    assert {f"`{name}`" for name in (*reading.FORMATS, *exporting.FORMATS)} <= {
        *re.findall("`[a-z_]+`", page)
    }
    names = ("import_masks", "export_masks", "check_data")
    groups = [group for name in names for group in commands.find(name).groups]
    known = {flag for group in groups for flag in flags.defaults(group)} | {"output", "nocrowd"}
    assert {*re.findall(r"--([a-z_]+)", page)} <= known  # --output is LabelMe's


MISTAKES = {
    (): r"2 mistakes: .*either --pred_mask_dir or --mask_dir.*--out_dir is missing",
    ("--pred_mask_dir=none", "--out_dir=o"): "--pred_mask_dir='none' does not exist",
    ("--mask_dir=made", "--out_dir=o"): "names of the photos are not known",
    ("--pred_mask_dir=predicted", "--out_dir=o"): "names of 7 of 7 photos are not known",
    ("--format=yolo", "--geometry=mask"): "--format=yolo has polygons alone",
    ("--tolerance=1",): "--tolerance=1.0 has no effect without --geometry=polygon",
    ("--photo_url=x",): "has no effect without --format=label_studio",
    ("--pred_mask_dir=predicted", "--mask_suffix=x"): "has no effect without --mask_dir",
    ("--mask_dir=made", "--threshold=3"): "has no effect with --mask_dir",
    ("--mask_dir=made", "--photo_dir=photos", "--out_dir=o", "--mask_suffix=_no"): "holds no mask",
    ("--mask_dir=made", "--photo_dir=made", "--out_dir=o"): "7 masks of 'made' have no photo",
    ("--mask_dir=made", "--mask_values=no"): "mask_values",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_mistakes_are_one_line(tree, arguments):
    with pytest.raises(UserError, match=MISTAKES[arguments]):
        call("export_masks", *arguments)
