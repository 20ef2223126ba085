"""tools/import_masks.py: exports as each tool documents them become masks."""

import base64
import io
import json
import shutil
import zlib

import numpy as np
import PIL.Image
import pytest

from carvana_tf import commands
from carvana_tf.annotations import reading, runs, voc
from carvana_tf.data.images import read_mask, write_photo
from carvana_tf.errors import UserError

HEIGHT, WIDTH = 24, 32


def boxes(*corners):
    """A mask of boxes, each left, top, right, bottom."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    for left, top, right, bottom in corners:
        mask[top:bottom, left:right] = True
    return mask


CAR = boxes((4, 6, 20, 18))
HOLE = boxes((8, 9, 12, 13))
VAN = boxes((22, 2, 30, 5), (22, 12, 30, 20))  # two parts
CAR_LINE, HOLE_LINE = [[4, 6], [20, 6], [20, 18], [4, 18]], [[8, 9], [12, 9], [12, 13], [8, 13]]
VAN_LINES = [[[22, 2], [30, 2], [30, 5], [22, 5]], [[22, 12], [30, 12], [30, 20], [22, 20]]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in ("car_1.jpg", "car_2.jpg", "scan_1.5.png"):
        write_photo(folder / name, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return folder


@pytest.fixture
def imported(monkeypatch, tmp_path, photos):
    """Runs the command on three photos; returns the masks by name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, tmp_path / "photos")

    def run(*arguments, source="export", fails=None):
        given = (f"--annotations={source}", "--photo_dir=photos", "--out_dir=masks", *arguments)
        if fails is None:
            assert commands.find("import_masks").call(given) == 0
        else:
            with pytest.raises(UserError, match=fails):
                commands.find("import_masks").call(given)
        return {
            path.name: read_mask(path)
            for path in sorted((tmp_path / "masks").glob("*"))
            if path.suffix in (".png", ".gif")
        }

    return run


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, (dict, list)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def coco(root, shapes="polygons"):
    def flat(line):
        return [value for point in line for value in point]

    counts = runs.counts_of((CAR & ~HOLE).T.ravel())
    car = {
        "polygons": [flat(CAR_LINE)],
        "counts": {"size": [HEIGHT, WIDTH], "counts": counts.tolist()},
        "compressed": {"size": [HEIGHT, WIDTH], "counts": runs.compress(counts)},
    }[shapes]
    document = {
        "info": {"description": "an export", "year": 2024},
        "licenses": [],
        "images": [
            {"id": 7, "file_name": "images/car_1.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 8, "file_name": "car_2.jpg", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, "segmentation": car,
             "area": 192.0, "bbox": [4, 6, 16, 12]},
            {"id": 2, "image_id": 7, "category_id": 5, "iscrowd": int(shapes != "polygons"),
             "segmentation": [flat(line) for line in VAN_LINES], "bbox": [22, 2, 8, 18]},
        ],
        "categories": [
            {"id": 3, "name": "car", "supercategory": "vehicle"},
            {"id": 5, "name": "van", "supercategory": "vehicle"},
            {"id": 6, "name": "bus", "supercategory": "vehicle"},
        ],
    }  # fmt: skip
    write(root / "annotations/instances_default.json", document)


def labelme_shape(label, points, kind="polygon", **more):
    return {
        "label": label, "points": points, "group_id": None, "description": "", "shape_type": kind,
        "flags": {}, "mask": None, **more,
    }  # fmt: skip


def labelme_file(root, name, shapes, size=(HEIGHT, WIDTH)):
    write(root / name, {
        "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "..\\photos\\car_1.jpg",
        "imageData": None, "imageHeight": size[0], "imageWidth": size[1],
    })  # fmt: skip


def png_text(mask):
    data = io.BytesIO()
    PIL.Image.fromarray(mask.astype(np.uint8)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def labelme(root):
    bitmap = png_text((CAR & ~HOLE)[6:18, 4:20])
    labelme_file(root, "car_1.json", [
        labelme_shape("car", [[4, 6], [19, 17]], "mask", mask=bitmap),
        labelme_shape("van", VAN_LINES[0]),
        labelme_shape("van", [[30, 20], [22, 12]], "rectangle"),
        labelme_shape("road", [[0, 20], [31, 22]], "line"),
    ])  # fmt: skip


def cvat(root):
    bitmap = (CAR & ~HOLE)[6:18, 4:20]
    rle = ", ".join(map(str, runs.counts_of(bitmap.ravel()).tolist()))
    text = ";".join(f"{x:.2f},{y:.2f}" for x, y in VAN_LINES[0])
    write(
        root / "annotations.xml",
        f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task><id>4</id><name>cars</name><size>2</size><mode>annotation</mode>
      <labels>
        <label><name>car</name><color>#2080c0</color><type>any</type><attributes/></label>
        <label><name>van</name><color>#c06060</color><type>any</type><attributes/></label>
      </labels>
    </task>
  </meta>
  <image id="0" name="sub/car_1.jpg" width="{WIDTH}" height="{HEIGHT}">
    <mask label="car" source="semi-auto" occluded="0" rle="{rle}" left="4" top="6" width="16"
      height="12" z_order="0"></mask>
    <polygon label="van" source="manual" occluded="0" points="{text}" z_order="0">
      <attribute name="colour">red &amp; white</attribute>
    </polygon>
    <box label="van" source="manual" occluded="0" xtl="22.00" ytl="12.00" xbr="30.00" ybr="20.00"
      z_order="0"></box>
    <polyline label="road" source="manual" occluded="0" points="1,1;2,2" z_order="0"></polyline>
    <tag label="car" source="manual"></tag>
  </image>
  <image id="1" name="car_2.jpg" width="{WIDTH}" height="{HEIGHT}"></image>
</annotations>
""",
    )


def percent(line):
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in line]


def region(kind, value, **more):
    return {
        "id": "Dx_aB91ISN", "from_name": "tag", "to_name": "image", "type": kind,
        "original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "value": value,
        **more,
    }  # fmt: skip


STUDIO_REGIONS = [
    region("brushlabels", {
        "format": "rle", "rle": runs.write_brush(CAR & ~HOLE), "brushlabels": ["car"],
    }),
    region("polygonlabels", {
        "points": percent(VAN_LINES[0]), "closed": True, "polygonlabels": ["van"],
    }),
    region("rectanglelabels", {
        "x": 100 * 22 / WIDTH, "y": 50.0, "width": 25.0, "height": 100 * 8 / HEIGHT,
        "rotation": 0, "rectanglelabels": ["van"],
    }),
    region("keypointlabels", {"x": 1, "y": 1, "width": 0.3, "keypointlabels": ["van"]}),
    {"id": "c", "from_name": "choice", "to_name": "image", "type": "choices",
     "value": {"choices": ["good"]}},
]  # fmt: skip


def studio_task(regions, image="/data/upload/3/2b7f1c9e-car_1.jpg", **annotation):
    return {
        "id": 11,
        "annotations": [{"id": 5, "completed_by": 1, "result": regions, "was_cancelled": False,
                         "ground_truth": False, **annotation}],
        "file_upload": "2b7f1c9e-car_1.jpg",
        "predictions": [],
        "data": {"image": image},
        "project": 3,
    }  # fmt: skip


def label_studio(root):
    write(root / "project-3.json", [studio_task(STUDIO_REGIONS)])


def label_studio_min(root):
    def plain(one):
        kept = ("original_width", "original_height", "image_rotation")
        return {**one["value"], **{key: one[key] for key in kept}}

    write(root / "project-3-min.json", [
        {"image": "/data/local-files/?d=set%201/car_1.jpg", "id": 11, "choice": "good",
         "tag": [plain(one) for one in STUDIO_REGIONS[:3]], "annotator": 1, "lead_time": 4.2},
    ])  # fmt: skip


def yolo(root):
    def text(line):
        return " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in line)

    van = f"1 {26 / WIDTH} {16 / HEIGHT} {8 / WIDTH} {8 / HEIGHT}"
    write(root / "data.yaml", "path: ../set\ntrain: images/train\nnames:\n  0: car\n  1: van\n")
    write(root / "labels/train/car_1.txt", f"0 {text(CAR_LINE)}\n1 {text(VAN_LINES[0])}\n{van}\n")
    write(root / "labels/train/car_2.txt", "")
    write(root / "train.txt", "images/train/car_1.jpg\n")


def supervisely(root):
    bitmap = base64.b64encode(zlib.compress(base64.b64decode(png_text(VAN[2:20, 22:30])))).decode()
    # Whole pixels, the last ones included.
    outer, inner = [[4, 6], [19, 6], [19, 17], [4, 17]], [[8, 9], [11, 9], [11, 12], [8, 12]]
    write(root / "meta.json", {
        "classes": [{"title": "car", "shape": "polygon", "color": "#0000ff"}, {"title": "van"}],
        "tags": [],
    })  # fmt: skip
    write(root / "set/ann/car_1.jpg.json", {
        "description": "", "tags": [], "size": {"height": HEIGHT, "width": WIDTH},
        "objects": [
            {"id": 5, "classTitle": "car", "geometryType": "polygon",
             "points": {"exterior": outer, "interior": [inner]}},
            {"id": 6, "classTitle": "van", "geometryType": "bitmap",
             "bitmap": {"data": bitmap, "origin": [22, 2]}},
            {"id": 7, "classTitle": "van", "geometryType": "line",
             "points": {"exterior": [[1, 1], [3, 3]], "interior": []}},
        ],
    })  # fmt: skip


def palette_png(path, indices):
    image = PIL.Image.fromarray(indices.astype(np.uint8), mode="P")
    colours = [voc.colour_of(index) for index in range(256)]
    image.putpalette(bytes(part for c in colours for part in (c >> 16, c >> 8 & 255, c & 255)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def pascal(root):
    indices = 7 * (CAR & ~HOLE) + 6 * VAN
    indices[:, 0] = 255
    palette_png(root / "SegmentationClass/car_1.png", indices)
    palette_png(root / "SegmentationObject/car_1.png", (CAR & ~HOLE) + 2 * VAN)
    write(root / "ImageSets/Segmentation/train.txt", "car_1\n")


def cvat_masks(root):
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[CAR & ~HOLE], colours[VAN] = (10, 128, 200), (108, 0, 100)
    path = root / "SegmentationClass/car_1.png"
    path.parent.mkdir(parents=True)
    PIL.Image.fromarray(colours).save(path)
    write(root / "labelmap.txt", (
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:10,128,200::\nvan:108,0,100::\n"
    ))  # fmt: skip


CASES = {
    "coco": (coco, "coco", False),
    "labelme": (labelme, "labelme", True),
    "cvat": (cvat, "cvat", True),
    "label_studio": (label_studio, "label_studio", True),
    "label_studio_min": (label_studio_min, "label_studio", True),
    "yolo": (yolo, "yolo", False),
    "supervisely": (supervisely, "supervisely", True),
    "voc": (pascal, "voc", True),
    "cvat_masks": (cvat_masks, "voc", True),
}


@pytest.mark.parametrize("case", CASES)
def test_every_format_is_recognised_and_read(imported, tmp_path, capsys, case):
    make, name, has_hole = CASES[case]
    make(tmp_path / "export")
    car = CAR & ~HOLE if has_hole else CAR
    if name == "voc" and case == "voc":
        car, labels = car, ("car", "bus")  # VOC has no van
    else:
        labels = ("car", "van")
    found = imported()
    assert reading.read(tmp_path / "export")[0] == name
    assert [*found] == ["car_1_mask.png"]
    both = car | VAN
    assert near(found["car_1_mask.png"], both, case)
    printed = capsys.readouterr().out
    assert f"is {reading.TITLES[name]}, with annotations of" in printed
    (line,) = (line for line in printed.splitlines() if line.split()[:1] == [labels[0]])
    assert line.split()[1:4] == ["1", "1", "object"]
    assert "1 masks -> masks; 2 photos without an area have none (see --empty)" in printed

    only = imported(f"--classes={labels[1]}", "--overwrite", f"--format={name}")
    assert near(only["car_1_mask.png"], VAN, case)


def near(found, expected, case):
    """Equal; Supervisely's corners are pixels, so that half a pixel is lost on two sides."""
    if case != "supervisely":
        return np.array_equal(found, expected)
    rows, columns = np.nonzero(found != expected)
    return {*zip(rows.tolist(), columns.tolist(), strict=True)} <= {
        *((row, 19) for row in range(6, 18)), *((17, column) for column in range(4, 20)),
        *((row, 11) for row in range(9, 13)), *((12, column) for column in range(8, 12)),
    }  # fmt: skip


@pytest.mark.parametrize("shapes", ["counts", "compressed"])
def test_run_lengths_and_crowds_of_coco(imported, tmp_path, shapes):
    coco(tmp_path / "export", shapes)
    (found,) = imported().values()
    assert np.array_equal(found, CAR & ~HOLE | VAN)
    (found,) = imported("--nocrowd", "--overwrite").values()
    assert np.array_equal(found, CAR & ~HOLE)


def test_a_file_can_be_named_instead_of_its_folder(imported, tmp_path):
    for make, file in ((coco, "annotations/instances_default.json"), (cvat, "annotations.xml"),
                       (labelme, "car_1.json"), (yolo, "data.yaml")):  # fmt: skip
        make(tmp_path / file[:6])
        assert "car_1_mask.png" in imported("--overwrite", source=f"{file[:6]}/{file}")


def test_every_shape_of_labelme(imported, tmp_path):
    labelme_file(tmp_path / "export", "other_name.json", [
        labelme_shape("car", [[10, 12], [14, 12]], "circle"),
        labelme_shape("van", [[20, 2], [28, 2], [28, 8], [20, 8]], "oriented_rectangle"),
        labelme_shape("van", [[1.4, 0.6], [3, 2]], "mask", mask=png_text(np.ones((2, 3)))),
    ])  # fmt: skip
    (found,) = imported().values()
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    circle = (columns - 10) ** 2 + (rows - 12) ** 2 < 16
    assert np.array_equal(found, circle | boxes((20, 2, 28, 8), (1, 1, 4, 3)))


def test_turned_boxes_and_ellipses(imported, tmp_path):
    # A square turned by 90 degrees around its centre (CVAT) is itself, around a corner (Label
    # Studio) lies next to it.
    write(
        tmp_path / "export/annotations.xml",
        f"""<annotations>
  <image id="0" name="car_1.jpg" width="{WIDTH}" height="{HEIGHT}">
    <box label="car" xtl="4" ytl="4" xbr="8" ybr="8" rotation="90.00" z_order="0"/>
    <ellipse label="car" cx="20" cy="12" rx="6" ry="3" rotation="90" z_order="0"/>
  </image></annotations>""",
    )
    (found,) = imported().values()
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    ellipse = ((columns - 20) / 3) ** 2 + ((rows - 12) / 6) ** 2 < 1
    assert np.array_equal(found, boxes((4, 4, 8, 8)) | ellipse)

    turned = [
        region("rectanglelabels", {"x": 50.0, "y": 50.0, "width": 12.5, "height": 25.0,
                                   "rotation": 90, "rectanglelabels": ["car"]}),
        region("ellipselabels", {"x": 25.0, "y": 25.0, "radiusX": 12.5, "radiusY": 12.5,
                                 "rotation": 0, "ellipselabels": ["car"]}),
    ]  # fmt: skip
    write(tmp_path / "studio.json", [studio_task(turned)])
    (found,) = imported("--overwrite", source="studio.json").values()
    ellipse = ((columns - 8) / 4) ** 2 + ((rows - 6) / 3) ** 2 < 1
    assert np.array_equal(found, boxes((10, 12, 16, 16)) | ellipse)


def test_labels_of_label_studio_that_stand_apart(imported, tmp_path):
    value = {"format": "rle", "rle": runs.write_brush(CAR)}
    apart = [region("brush", value), region("labels", {**value, "labels": ["van"]})]
    write(tmp_path / "studio.json", [studio_task(apart)])
    (found,) = imported("--classes=van", source="studio.json").values()
    assert np.array_equal(found, CAR)


def test_of_several_annotations_one_must_be_marked(imported, tmp_path, capsys):
    task = studio_task(STUDIO_REGIONS)
    other = {**task["annotations"][0], "result": [STUDIO_REGIONS[1]]}
    write(tmp_path / "s.json", [{**task, "annotations": [*task["annotations"], other]}])
    imported(source="s.json", fails="1 files or photos")
    assert "it has 2 annotations; mark one of them as ground truth" in capsys.readouterr().err
    other["ground_truth"] = True
    write(tmp_path / "s.json", [{**task, "annotations": [*task["annotations"], other]}])
    (found,) = imported(source="s.json").values()
    assert np.array_equal(found, boxes((22, 2, 30, 5)))
    cancelled = {**other, "was_cancelled": True}
    write(tmp_path / "s.json", [{**task, "annotations": [*task["annotations"], cancelled]}])
    (found,) = imported("--overwrite", source="s.json").values()
    assert np.array_equal(found, CAR & ~HOLE | VAN)


def test_voids_and_objects_of_voc(imported, tmp_path):
    pascal(tmp_path / "export")
    edge = boxes((0, 0, 1, HEIGHT))
    (found,) = imported("--classes=car,void").values()
    assert np.array_equal(found, CAR & ~HOLE | edge)
    for path in (tmp_path / "export/SegmentationClass").iterdir():
        path.unlink()
    (found,) = imported("--overwrite").values()
    assert np.array_equal(found, CAR & ~HOLE | VAN)
    (found,) = imported("--overwrite", source="export/SegmentationObject").values()
    assert np.array_equal(found, CAR & ~HOLE | VAN)


def test_classes_of_labelme2voc(imported, tmp_path):
    palette_png(tmp_path / "export/SegmentationClass/car_1.png", 1 * CAR + 2 * VAN)
    names = "__ignore__\n_background_\nvan\ncar\n"
    write(tmp_path / "export/class_names.txt", names)
    (found,) = imported("--classes=van").values()
    assert np.array_equal(found, CAR)


def test_labels_without_colours_have_those_of_voc(imported, tmp_path):
    # As Datumaro writes it where a dataset has no colours.
    palette_png(tmp_path / "export/SegmentationClass/car_1.png", 1 * CAR + 2 * VAN)
    write(tmp_path / "export/labelmap.txt", "# label:color_rgb\nbackground:::\ncar:::\nvan:::\n")
    (found,) = imported("--classes=van").values()
    assert np.array_equal(found, VAN)


def test_names_of_uploaded_files_are_known_in_every_format(imported, tmp_path):
    yolo(tmp_path / "export")
    labels = tmp_path / "export/labels/train"
    (labels / "car_1.txt").rename(labels / "2b7f1c9e-car_1.txt")
    assert [*imported()] == ["car_1_mask.png"]


def test_a_class_can_be_cut_out(imported, tmp_path):
    labelme_file(tmp_path / "export", "car_1.json", [
        labelme_shape("window", HOLE_LINE), labelme_shape("car", CAR_LINE),
    ])  # fmt: skip
    (found,) = imported("--cut_classes=window").values()
    assert np.array_equal(found, CAR & ~HOLE)
    (found,) = imported("--overwrite").values()
    assert np.array_equal(found, CAR)
    imported("--classes=car", "--cut_classes=car", fails="drop one")


def test_photos_without_an_area(imported, tmp_path):
    coco(tmp_path / "export")
    for rule, expected in {
        "skip": ["car_1_mask.png"],
        "listed": ["car_1_mask.png", "car_2_mask.png"],
        "background": ["car_1_mask.png", "car_2_mask.png", "scan_1.5_mask.png"],
    }.items():
        found = imported(f"--empty={rule}", "--overwrite")
        assert [*found] == expected
        assert not any(found[name].any() for name in expected[1:])


def test_masks_that_are_there_are_kept(imported, tmp_path, capsys):
    coco(tmp_path / "export")
    imported()
    (found,) = imported("--classes=van").values()
    assert np.array_equal(found, CAR | VAN)
    assert "0 masks -> masks; 1 were there already (--overwrite replaces" in capsys.readouterr().out
    (found,) = imported("--classes=van", "--overwrite").values()
    assert np.array_equal(found, VAN)
    imported("--mask_extension=.gif", fails=r"is a mask of 'car_1' already.*--mask_extension=\.png")
    assert "car_1.gif" in imported("--mask_extension=.gif", "--mask_suffix=")


def test_masks_do_not_go_among_the_photos(imported, tmp_path):
    coco(tmp_path / "export")
    imported("--out_dir=photos/.", fails="is the folder of the photos")
    imported("--mask_suffix=/../x", fails="no part of a file name")


def test_everything_that_is_missing_is_named(imported):
    with pytest.raises(UserError, match=r"3 mistakes: .*--annotations is .*--photo_dir.*--out_dir"):
        commands.find("import_masks").call([])
    imported(source="nowhere.json", fails="--annotations='nowhere.json' does not exist")


def test_an_unknown_class_has_near_names(imported, tmp_path):
    coco(tmp_path / "export")
    imported(
        "--classes=cars", fails="--classes: the class 'cars' is unknown. Did you mean 'car'.*bus"
    )
    imported("--cut_classes=x", fails="--cut_classes: the class 'x' is unknown")
    assert not (tmp_path / "masks").exists()


def test_what_cannot_be_used_is_listed_and_the_rest_is_done(imported, tmp_path, capsys):
    write_photo(tmp_path / "photos/large_1.jpg", np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.uint8))
    write_photo(tmp_path / "photos/turned_1.jpg", np.zeros((WIDTH, HEIGHT, 3), np.uint8))
    root = tmp_path / "export"
    for name in ("car_1", "large_1", "turned_1", "gone_1"):
        labelme_file(root, f"{name}.json", [labelme_shape("car", CAR_LINE)])
        document = json.loads((root / f"{name}.json").read_text())
        write(root / f"{name}.json", {**document, "imagePath": f"{name}.jpg"})
    write(root / "broken.json", '{"shapes": [')
    write(root / "list.json", [1, 2])
    labelme_file(root, "car_2.json", [labelme_shape("car", [[1, "x"], [2, 3], [4, 5]])])
    document = json.loads((root / "car_2.json").read_text())
    write(root / "car_2.json", {**document, "imagePath": "car_2.jpg"})

    found = imported("--format=labelme", fails="6 files or photos of 'export' could not be used")
    assert [*found] == ["car_1_mask.png"]
    lines = capsys.readouterr().err.splitlines()
    expected = (
        "'export/broken.json' is not valid JSON",
        "'export/list.json' is no LabelMe file; move it, or name another --format",
        "'gone_1.jpg' of 'export/gone_1.json' is not among the photos; add it",
        "'car_2.jpg' in 'export/car_2.json': its points are no list of x and y",
        "'large_1.jpg' has 64x48 pixels, but was annotated at 32x24 in 'export/large_1.json'; use "
        "the photo that was annotated, or --scale",
        "'turned_1.jpg' has 24x32 pixels, but was annotated at 32x24 in 'export/turned_1.json': "
        "sides are swapped",
    )
    for text in expected:
        assert sum(line.startswith(text) for line in lines) == 1, text
    table = (tmp_path / "masks/bad_files.csv").read_text()
    assert table.count("\n") == 7

    found = imported("--format=labelme", "--scale", fails="5 files or photos")
    large = CAR.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(found["large_1_mask.png"], large)


def test_photos_of_another_folder_are_one_line(imported, tmp_path):
    coco(tmp_path / "export")
    (tmp_path / "photos").rename(tmp_path / "moved")
    write_photo(tmp_path / "photos/other.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    imported(fails="none of the 2 photos that 'export' names is in .*images/car_1.jpg.*'other'")


def test_one_photo_annotated_twice_is_not_guessed(imported, tmp_path, capsys):
    for name in ("a.json", "b.json"):
        labelme_file(tmp_path / "export", name, [labelme_shape("car", CAR_LINE)])
    assert imported(fails="1 files or photos") == {}
    error = capsys.readouterr().err
    assert "annotated twice, in 'export/a.json' and 'export/b.json'; keep one" in error


BROKEN = {
    "no format": ("x.json", {"a": 1}, "is of no known format"),
    "not JSON": ("x.json", "{", "'export/x.json' is not valid JSON"),
    "deep": ("x.json", "[" * 100_000, "is not valid JSON"),
    "boxes of VOC": ("x.xml", "<annotation/>", "boxes of Pascal VOC"),
    "not XML": ("annotations.xml", "<annotations>", "is not valid XML"),
    "encoding": ("a.xml", '<?xml version="1.0" encoding="x"?><annotations/>', "is not valid XML"),
    "video": ("a.xml", "<annotations><track/></annotations>", "export it as 'CVAT for images 1.1'"),
    "bomb": (
        "a.xml",
        '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotations>&c;</annotations>',
        "has a DOCTYPE",
    ),
    "yaml bomb": ("data.yaml", "a: &a [1]\nnames: {0: *a}", "is of no known format"),
    "no lists": ("x.json", {"images": 1, "annotations": []}, "has no list of objects 'images'"),
    "empty": ("x.json", {"images": [], "annotations": []}, "holds no COCO annotation"),
    "packed": ("x.txt", "hello", "is of no known format"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_export_is_one_line(imported, tmp_path, name):
    file, content, message = BROKEN[name]
    write(tmp_path / "export" / file, content)
    imported(fails=message)
    assert not (tmp_path / "masks").exists()


def test_a_packed_export_is_to_be_unpacked(imported, tmp_path):
    write(tmp_path / "x.zip", "PK")
    imported(source="x.zip", fails="unpack it")


def huge_png(width, height):
    data = base64.b64decode(png_text(np.ones((2, 2))))
    return data[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[24:]


def with_bitmap(text):
    return labelme_shape("car", [[4, 6], [19, 17]], "mask", mask=text)


HOSTILE = {
    "run lengths of many pixels": ("coco", {"size": [HEIGHT, WIDTH], "counts": [0, 10**15]}),
    "a size of many pixels": ("coco", {"size": [10**6, 10**6], "counts": [10**12]}),
    "an endless size": ("coco", {"size": [1e999, 1], "counts": []}),
    "boxes alone": ("coco", []),
    "text": ("coco", "../../etc/passwd"),
    "no category": ("coco", None),
    "a bitmap of many pixels": (
        "labelme", with_bitmap(base64.b64encode(huge_png(40_000, 30_000)).decode())
    ),
    "a bitmap that is none": ("labelme", with_bitmap("!!!")),
    "a damaged bitmap": ("labelme", with_bitmap(png_text(CAR)[:60] + png_text(CAR)[80:])),
    "a bitmap missing": ("labelme", with_bitmap(None)),
    "a circle of one point": ("labelme", labelme_shape("car", [[1, 1]], "circle")),
    "a point far away": ("labelme", labelme_shape("car", [[1, 1], [2, 2], [1e9, 1]])),
    "no shape": ("labelme", labelme_shape("car", {"a": 1})),
    "a packed bomb": ("supervisely", base64.b64encode(zlib.compress(b"0" * 10**7)).decode()),
    "brushes of many pixels": ("label_studio", [255] * 12),
    "brushes of text": ("label_studio", "abc"),
    "a mask outside": ("cvat", 'left="31" top="6" width="16" height="12" rle="0, 192"'),
    "a mask of words": ("cvat", 'left="4" top="6" width="16" height="12" rle="many"'),
    "a mask of many pixels": ("cvat", 'left="0" top="0" width="1" height="1" rle="0, 99999999999"'),
    "negative numbers": ("cvat", 'left="-1" top="0" width="1" height="1" rle="0, 1"'),
    "words": ("yolo", "0 a b c d e f"),
    "pixels": ("yolo", "0 4 6 20 6 20 18"),
    "an odd number": ("yolo", "0 0.1 0.2 0.3 0.4 0.5 0.6 0.7"),
    "another class": ("yolo", "9 0.1 0.2 0.3 0.4 0.5 0.6"),
    "not a number": ("yolo", "0 nan 0.2 0.3 0.4 0.5 0.6"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_annotations_are_one_line_and_the_rest_is_done(imported, tmp_path, capsys, name):
    kind, content = HOSTILE[name]
    root = tmp_path / "export"
    CASES[kind][0](root)
    if kind == "coco":
        path = root / "annotations/instances_default.json"
        document = json.loads(path.read_text())
        document["annotations"].append({
            "id": 9, "image_id": 8, "category_id": 3 if content is not None else 99,
            "segmentation": content,
        })  # fmt: skip
        write(path, document)
    elif kind == "labelme":
        labelme_file(root, "car_2.json", [content])
        document = json.loads((root / "car_2.json").read_text())
        write(root / "car_2.json", {**document, "imagePath": "car_2.jpg"})
    elif kind == "supervisely":
        bitmap = {"data": content, "origin": [0, 0]}
        found = {"classTitle": "car", "geometryType": "bitmap", "bitmap": bitmap}
        size = {"height": HEIGHT, "width": WIDTH}
        write(root / "set/ann/car_2.jpg.json", {"size": size, "objects": [found]})
    elif kind == "label_studio":
        value = {"format": "rle", "rle": content, "brushlabels": ["car"]}
        task = studio_task([region("brushlabels", value)], image="s3://bucket/car_2.jpg")
        write(root / "second.json", [task])
    elif kind == "cvat":
        text = (root / "annotations.xml").read_text()
        before, after = text.rsplit("</image>", 1)
        write(root / "annotations.xml", f'{before}<mask label="car" {content}/></image>{after}')
    else:
        write(root / "labels/train/car_2.txt", content)
    found = imported(f"--format={kind}", fails="1 files or photos")
    assert [*found] == ["car_1_mask.png"]
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "car_2" in line)
    assert len(line) < 300


@pytest.mark.parametrize("name", ["../../outside.jpg", "/etc/car_9.jpg", "", ".", "a/../car_1.jpg"])
def test_names_lead_nowhere_else(imported, tmp_path, name):
    coco(tmp_path / "deep/er/export")
    path = tmp_path / "deep/er/export/annotations/instances_default.json"
    document = json.loads(path.read_text())
    document["images"][0]["file_name"] = name
    write(path, document)
    before = {*tmp_path.rglob("*")}
    inside = name.endswith("car_1.jpg")
    imported(source="deep/er/export", fails=None if inside else "could not be used")
    new = {path.relative_to(tmp_path).as_posix() for path in {*tmp_path.rglob("*")} - before}
    assert new == {"masks", "masks/car_1_mask.png" if inside else "masks/bad_files.csv"}


def test_the_bitmap_that_supervisely_documents(imported, tmp_path):
    text = (
        "eJzrDPBz5+WS4mJgYOD19HAJAtLMIMwIInOeqf8BUmwBPiGuQPr///9Lb86/C2QxlgT5BTM4PLuRBuTwebo4hlTM"
        "Sa44sKHhISMDuxpTYrr03F6gDIOnq5/LOqeEJgDM5ht6"
    )
    found = {"classTitle": "ring", "geometryType": "bitmap",
             "bitmap": {"data": text, "origin": [3, 5]}}  # fmt: skip
    size = {"height": HEIGHT, "width": WIDTH}
    write(tmp_path / "export/ann/car_1.jpg.json", {"size": size, "objects": [found]})
    (mask,) = imported().values()
    expected = boxes((3, 5, 6, 8))
    expected[6, 4] = False
    assert np.array_equal(mask, expected)


def test_a_brush_stroke_that_cvat_exported():
    # The first row of a round stroke has 10 pixels, after 17 of the box's 40.
    given = {
        "left": "0", "top": "0", "width": "40", "height": "3",
        "rle": "17, 10, 27, 15, 23, 18, 10",
    }  # fmt: skip
    from carvana_tf.annotations.cvat import _decode

    mask = _decode("mask", given, (10, 50)).mask
    assert mask.sum(axis=1).tolist() == [10, 15, 18]
    assert np.flatnonzero(mask[0]).tolist() == [*range(17, 27)]


def test_the_palette_of_voc():
    known = {0: 0x000000, 1: 0x800000, 7: 0x808080, 15: 0xC08080, 20: 0x004080, 255: 0xE0E0C0}
    assert {index: voc.colour_of(index) for index in known} == known
