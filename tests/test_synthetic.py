import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import PIL.Image
import pytest

from carvana_tf.data.dataset import find_samples
from carvana_tf.data.images import decode_mask, read_mask, read_photo, read_size, write_gif_mask
from carvana_tf.data.synthetic import bodies, render, studio
from carvana_tf.data.synthetic.dataset import DemoSettings, car_id, make_dataset
from carvana_tf.data.synthetic.rendering import STAMP
from carvana_tf.errors import UserError

ROOT = Path(__file__).parents[1]
TINY = DemoSettings(train_cars=2, test_cars=1, views=16, width=144, height=96, seed=5)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "input"
    assert make_dataset(folder, TINY) == 48
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_bytes_do_not_depend_on_processes(demo, tmp_path):
    make_dataset(tmp_path / "other", TINY, processes=3)
    assert contents(tmp_path / "other") == contents(demo)


def test_other_seed_gives_other_cars(demo, tmp_path):
    other = dataclasses.replace(TINY, seed=6, train_cars=1, test_cars=0, views=1)
    make_dataset(tmp_path, other)
    assert not {p.name for p in (tmp_path / "train").iterdir()} & {
        p.name for p in (demo / "train").iterdir()
    }
    assert len(pd.read_csv(tmp_path / "sample_submission.csv")) == 0


def test_more_cars_leave_the_others_as_they_were(demo, tmp_path):
    """Photos of one car do not depend on how many cars or views were asked for."""
    make_dataset(tmp_path, dataclasses.replace(TINY, train_cars=1, test_cars=1))
    fewer, more = contents(tmp_path), contents(demo)
    photos = [name for name in fewer if name.endswith((".jpg", ".gif"))]
    assert len(photos) == 64
    assert all(fewer[name] == more[name] for name in photos)


def test_layout_is_that_of_the_competition(demo):
    samples = find_samples(demo / "train", demo / "train_masks")
    assert len(samples) == 32
    assert {sample.group for sample in samples} == {car_id(5, "train", i) for i in range(2)}
    assert all(len(s.group) == 12 and int(s.group, 16) >= 0 for s in samples)
    assert {s.stem[-2:] for s in samples} == {f"{view:02d}" for view in range(1, 17)}
    tested = find_samples(demo / "test", demo / "test_masks")
    assert not {s.group for s in tested} & {s.group for s in samples}
    table = pd.read_csv(demo / "sample_submission.csv")
    assert list(table) == ["img", "rle_mask"]
    assert sorted(table["img"]) == sorted(p.name for p in (demo / "test").iterdir())
    assert set(table["rle_mask"]) == {"1 1"}
    metadata = pd.read_csv(demo / "metadata.csv")
    assert list(metadata) == ["id", "year", "make", "model", "trim1", "trim2"]
    assert set(metadata["id"]) == {s.group for s in samples + tested}


def test_masks_are_two_valued_palette_gifs_of_sane_area(demo):
    for sample in find_samples(demo / "train", demo / "train_masks"):
        with PIL.Image.open(sample.mask) as image:
            assert (image.format, image.mode, image.size) == ("GIF", "P", (144, 96))
            assert image.getpalette()[:6] == [0, 0, 0, 255, 255, 255]
            indices = np.asarray(image)
        assert set(np.unique(indices)) == {0, 1}
        mask = decode_mask(sample.mask)
        assert mask.kind == "0/255"
        np.testing.assert_array_equal(mask.pixels, indices == 1)
        assert 0.10 < mask.pixels.mean() < 0.60
        assert read_size(sample.photo) == (96, 144)
        # The car is whole: nothing of it touches the border.
        border = np.concatenate([mask.pixels[[0, -1]].ravel(), mask.pixels[:, [0, -1]].ravel()])
        assert not border.any()


def test_views_differ_and_opposite_sides_mirror(demo):
    samples = find_samples(demo / "train", demo / "train_masks")[:16]
    photos = [read_photo(sample.photo).astype(int) for sample in samples]
    masks = [read_mask(sample.mask) for sample in samples]
    for i in range(16):
        for j in range(i):
            assert np.abs(photos[i] - photos[j]).mean() > 1.0
    # From the side a car is wider than from the front.
    width = [np.ptp(np.flatnonzero(mask.any(0))) for mask in masks]
    assert min(width[4], width[12]) > 1.6 * max(width[0], width[8])
    # View 5 has the nose at the left, view 13 at the right.
    assert (masks[4] & masks[12][:, ::-1]).sum() > 0.85 * masks[4].sum()


def scene_of(index: int, width: int, height: int, **changes):
    rng = np.random.default_rng(index)
    design = dataclasses.replace(bodies.draw_design(rng, index), **changes)
    scene = studio.draw_studio(rng, width, height, design.length)
    return design, scene


@pytest.mark.parametrize("index", range(6))
def test_every_class_of_car_renders_whole(index):
    design, scene = scene_of(index, 240, 160)
    assert design.kind == list(bodies.KINDS)[index]
    car = render.build_car(design, 0.25)
    noise = render.noise_tile(160, 240, 0)
    for view in (0, 2, 4, 9):
        angle = 2 * np.pi * view / 16
        photo, mask = render.render(car, scene, angle, np.random.default_rng(0), noise)
        assert photo.shape == (160, 240, 3) and photo.dtype == np.uint8
        # One car in one piece, without holes but those of the wheels and below the body.
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        assert stats[1:, cv2.CC_STAT_AREA].max() > 0.995 * mask.sum()
        holes = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)[2]
        assert (
            holes[1:, cv2.CC_STAT_AREA].sum() - holes[1:, cv2.CC_STAT_AREA].max()
            < 0.02 * mask.sum()
        )


def test_photo_and_mask_agree_at_the_edge():
    """Without noise, shadow or lettering nearby the mask is where the photo shows paint.

    A pure red car in a grey studio: redness is coverage, whatever the light. Tyres, glass
    and lamps are not red, so only the upper edge of the bonnet is compared.
    """
    design, scene = scene_of(
        0, 480, 320, colour=(255, 0, 0), rails=False, antenna="none", face=(0.5, 0.0, 0.0, 0.0)
    )
    scene = dataclasses.replace(scene, backdrop=np.full((320, 480, 3), 128, np.float32))
    car = render.build_car(design, 0.5)
    still = np.zeros((384, 544, 3), np.float32)
    photo, mask = render.render(car, scene, np.pi / 2, np.random.default_rng(0), still)
    red = photo[..., 0].astype(int) - photo[..., 2]
    columns = np.flatnonzero(mask.any(0))
    columns = columns[len(columns) * 6 // 100 : len(columns) * 20 // 100]
    top = mask.argmax(0)[columns]
    inside, outside = red[top + 1, columns], red[top - 2, columns]
    assert (inside > 60).mean() > 0.95
    assert (np.abs(outside) < 6).all()


def test_open_wheels_show_what_is_behind():
    areas = {}
    for opened in (False, True):
        design, scene = scene_of(5, 960, 640, open_wheels=opened, spokes=5)
        car = render.build_car(design, 1)
        still = np.zeros((704, 1024, 3), np.float32)
        _, mask = render.render(car, scene, np.pi / 2, np.random.default_rng(0), still)
        areas[opened] = mask
    assert not (areas[True] & ~areas[False]).any()
    lost = areas[False].sum() - areas[True].sum()
    assert 20 < lost < 0.02 * areas[False].sum()


def test_gif_masks_of_one_value_keep_their_palette(tmp_path):
    for value in (False, True):
        path = tmp_path / f"{value}.gif"
        write_gif_mask(path, np.full((7, 9), value))
        np.testing.assert_array_equal(read_mask(path), np.full((7, 9), value))


def test_same_settings_again_do_nothing(demo):
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    assert make_dataset(demo, TINY) == 0
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before


def test_other_images_are_not_overwritten_unasked(tmp_path):
    one = DemoSettings(1, 1, 2, 96, 64, 1)
    make_dataset(tmp_path, one)
    two = dataclasses.replace(one, seed=2)
    with pytest.raises(UserError, match="--overwrite"):
        make_dataset(tmp_path, two)
    assert make_dataset(tmp_path, two, overwrite=True) == 4
    assert {p.name[:12] for p in (tmp_path / "train").iterdir()} == {car_id(2, "train", 0)}


def test_interrupted_dataset_is_not_taken_for_whole(tmp_path):
    one = DemoSettings(1, 1, 2, 96, 64, 1)
    make_dataset(tmp_path, one)
    (tmp_path / STAMP).unlink()
    with pytest.raises(UserError, match="other images"):
        make_dataset(tmp_path, one)


def test_an_interrupted_dataset_is_made_again_by_the_same_settings_alone(tmp_path, monkeypatch):
    one = DemoSettings(1, 1, 2, 96, 64, 1)
    broken = r"writing '.*_mask\.gif' failed: OSError: broken"
    with monkeypatch.context() as patched, pytest.raises(UserError, match=broken):
        patched.setattr(PIL.Image.Image, "save", raises(OSError("broken")))
        make_dataset(tmp_path, one)
    assert list((tmp_path / "train").iterdir())
    with pytest.raises(UserError, match="other images"):
        make_dataset(tmp_path, DemoSettings(2, 1, 2, 96, 64, 1))
    assert make_dataset(tmp_path, one) == 4
    assert make_dataset(tmp_path, one) == 0


def raises(error):
    def function(*_, **__):
        raise error

    return function


def run_script(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "tools/make_demo_dataset.py", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_script_renders_and_reports(tmp_path):
    flags = ["--train_cars=1", "--test_cars=1", "--views=2", "--width=96", "--height=64"]
    done = run_script(f"--dataset_dir={tmp_path}", "--processes=2", *flags)
    assert done.returncode == 0, done.stderr
    assert "4 photos" in done.stdout
    again = run_script(f"--dataset_dir={tmp_path}", *flags)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    other = run_script(f"--dataset_dir={tmp_path}", *flags, "--seed=3")
    assert other.returncode == 1
    assert other.stderr.startswith("error: ") and len(other.stderr.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--views=0", "--train_cars=x", "--width=3", "--colour=red"])
def test_bad_flags_give_one_line(flag, tmp_path):
    done = run_script(f"--dataset_dir={tmp_path}", flag)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert flag[2:].split("=")[0] in done.stderr
    assert not list(tmp_path.iterdir())
