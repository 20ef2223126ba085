"""Cut-outs: against composites whose opacity, colours and shadow are known."""

import functools
import io
import itertools

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest

from carvana_tf import commands
from carvana_tf.data.images import read_photo, write_mask, write_photo, write_probability
from carvana_tf.errors import Problems, UserError
from carvana_tf.filenames import MANIFEST
from carvana_tf.masks import manifest
from carvana_tf.masks.cutouts import cutter, encoding, matting
from carvana_tf.masks.cutouts.cutter import Cutter
from carvana_tf.masks.cutouts.options import CutoutOptions
from carvana_tf.masks.cutouts.shadow import shadow

SIZE = 240, 320
FRONT, BACK = np.array((200.0, 60, 40)), np.array((40.0, 160, 90))
ORIENTATION = 0x0112


def true_alpha():
    """An ellipse whose edge is as soft as a lens makes it."""
    large = np.zeros((SIZE[0] * 4, SIZE[1] * 4), np.uint8)
    cv2.ellipse(large, (640, 480), (420, 260), 20, 0, 360, 255, -1)
    small = cv2.resize(large, SIZE[::-1], interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small.astype(np.float32) / 255, (0, 0), 0.8)


ALPHA = true_alpha()


def composite(front, back, alpha=ALPHA):
    return alpha[..., None] * front + (1 - alpha[..., None]) * back


def noisy(image, deviation=2.0):
    noise = np.random.default_rng(0).normal(0, deviation, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def coarse(alpha=ALPHA, scale=4, shift=0.0):
    """A mask as of a network that sees the photo smaller, and a little to the side."""
    small = cv2.resize(alpha, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
    moved = np.float32([[1, 0, shift], [0, 1, shift / 2]])
    small = cv2.warpAffine(small, moved, small.shape[::-1])
    small = cv2.GaussianBlur(small, (0, 0), 0.7)
    return np.rint(255 * cv2.resize(small, alpha.shape[::-1])).astype(np.uint8)


PHOTO = noisy(composite(FRONT, BACK))
GREY = coarse(shift=0.6)


def cut(photo=PHOTO, grey=GREY, **options):
    return Cutter(CutoutOptions(**options)).cut(grey, photo)


def decode(data):
    return np.array(PIL.Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(("scale", "shift"), [(4, 0.0), (4, 0.6), (4, 1.0), (2, 0.8), (8, 0.5)])
def test_the_edge_is_that_of_the_photo(scale, shift):
    grey = coarse(scale=scale, shift=shift)
    alpha = cut(grey=grey)[..., 3] / 255
    error, before = np.abs(alpha - ALPHA).sum(), np.abs(grey / 255 - ALPHA).sum()
    assert error < 0.35 * before


def test_an_edge_that_the_mask_decides_is_sharp_and_where_the_mask_has_it():
    grey = coarse()
    alpha = cut(grey=grey, edges="mask")[..., 3] / 255
    assert np.abs(alpha - ALPHA).sum() < 0.35 * np.abs(grey / 255 - ALPHA).sum()
    other = cut(photo=255 - PHOTO[::-1], grey=grey, edges="mask")[..., 3]
    np.testing.assert_array_equal(other / 255, alpha)


def test_colours_are_free_of_the_background():
    mixed = (ALPHA > 0.1) & (ALPHA < 0.9)
    small = PHOTO[::2, ::2].astype(np.float32) / 255
    own = matting.unmixed(PHOTO, small, ALPHA)
    error = np.abs(own[mixed] - FRONT).mean()
    assert error < 0.15 * np.abs(PHOTO[mixed] - FRONT).mean()
    sure = (ALPHA == 0) | (ALPHA == 1)
    np.testing.assert_array_equal(own[sure], PHOTO[sure])


@pytest.mark.parametrize("shadows", [False, True])
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_nothing_of_the_background_is_left_and_there_is_no_veil(suffix, shadows):
    options = CutoutOptions(cutout_format=suffix, keep_shadow=shadows)
    veiled = np.maximum(GREY, 30)  # as networks that are not sure
    veiled[:20] = 120
    image = decode(Cutter(options).encode(veiled, PHOTO))
    assert image.shape == (*SIZE, 4)
    assert not image[image[..., 3] == 0].any()
    if not shadows:
        assert set(np.unique(image[..., 3])) <= {0, *range(5, 251), 255}
    assert not image[:20].any()


def test_a_photo_without_object_gives_nothing_and_a_full_one_itself():
    assert not cut(grey=np.full(SIZE, 127, np.uint8), keep_shadow=True).any()
    full = cut(grey=np.full(SIZE, 255, np.uint8))
    np.testing.assert_array_equal(full[..., :3], PHOTO)
    assert (full[..., 3] == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (3, 5), (33, 2), (40, 40)])
def test_small_photos(size):
    random = np.random.default_rng(1)
    photo, grey = (random.integers(0, 256, (*size, c), np.uint8) for c in (3, 1))
    for mask, edges, keep in itertools.product(
        (grey[..., 0], (grey[..., 0] > 99) * np.uint8(255)), ("photo", "mask"), (False, True)
    ):
        image = cut(photo, mask, edges=edges, keep_shadow=keep)
        assert image.shape == (*size, 4)
        assert not image[image[..., 3] == 0].any()


def test_the_width_of_a_masks_edge():
    ramp = np.tile(np.clip(np.arange(-50, 50) * 255 / 10 + 127.5, 0, 255), (9, 1)).astype(np.uint8)
    assert matting.edge_width(ramp) == pytest.approx(8, rel=0.1)
    assert matting.edge_width(((ramp > 127) * 255).astype(np.uint8)) == 1
    assert matting.edge_width(np.zeros((5, 5), np.uint8)) == 1


@pytest.mark.parametrize("threshold", [0, 1, 60, 127, 200, 253, 254])
def test_a_mask_that_was_decided_elsewhere(threshold):
    values = np.arange(256, dtype=np.uint8)[None]
    moved = matting.centred(values, threshold)
    np.testing.assert_array_equal(moved > 127, values > threshold)
    assert (np.diff(moved.astype(int)) >= 0).all()
    if threshold == 127:
        np.testing.assert_array_equal(moved, values)


# Backgrounds.


@pytest.mark.parametrize(
    ("background", "colour"),
    [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#0a80FF", (10, 128, 255))],
)
@pytest.mark.parametrize("keep_shadow", [False, True])
def test_a_colour_as_background(background, colour, keep_shadow):
    options = CutoutOptions(background=background, keep_shadow=keep_shadow)
    image = decode(Cutter(options).encode(GREY, PHOTO))
    clear = cut(keep_shadow=keep_shadow)
    share = clear[..., 3:] / 255
    wanted = share * clear[..., :3] + (1 - share) * np.array(colour)
    assert image.shape == (*SIZE, 3)
    assert np.abs(image - wanted).max() <= 0.5001


def test_a_photo_as_background(tmp_path):
    behind = np.zeros((100, 500, 3), np.uint8)
    behind[:, 183:317] = (9, 99, 199)  # what fits the cut-out's shape
    write_photo(tmp_path / "b.png", behind)
    made = Cutter(CutoutOptions(background=str(tmp_path / "b.png")))
    image = decode(made.encode(GREY, PHOTO))
    outside = cut()[..., 3] == 0
    assert (image[outside] == (9, 99, 199)).all()
    tall = decode(made.encode(GREY.T.copy(), PHOTO.swapaxes(0, 1).copy()))
    assert tall.shape == (SIZE[1], SIZE[0], 3)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (7, 7), (1, 300)])
def test_covering_takes_the_middle(shape):
    ramp = np.tile(np.arange(200, dtype=np.uint8)[:, None, None], (1, 300, 3))
    covered = cutter.covering(ramp, *shape)
    assert covered.shape == (*shape, 3)
    assert covered.mean() == pytest.approx(99.5, abs=1)


@pytest.mark.parametrize("given", ["whit", "#12345", "missing.jpg"])
def test_a_background_that_there_is_not_is_refused(given):
    problems = Problems()
    CutoutOptions(background=given).check(problems)
    with pytest.raises(UserError, match=rf"--background='{given}' is neither transparent, white"):
        problems.raise_any()


def test_a_background_that_is_no_image_is_refused(tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"no image")
    problems = Problems()
    CutoutOptions(background=str(tmp_path / "b.jpg")).check(problems)
    with pytest.raises(UserError, match=r"b\.jpg"):
        problems.raise_any()


# The shadow.


def ground_with_shadow():
    """A lit floor, a box on it and the shadow below: the photo, alpha and the shadow's darkness."""
    rows = np.arange(SIZE[0], dtype=np.float32)[:, None]
    floor = np.tile(110 + 0.3 * rows, (1, SIZE[1]))
    alpha = np.zeros(SIZE, np.float32)
    alpha[60:160, 100:220] = 1
    dark = np.zeros(SIZE, np.float32)
    cv2.ellipse(dark, (160, 162), (75, 18), 0, 0, 360, 0.6, -1)
    dark = cv2.GaussianBlur(dark, (0, 0), 4)
    lit = (floor * (1 - dark))[..., None] * np.array((1.0, 0.98, 0.94))
    return noisy(composite(FRONT, lit, alpha)), alpha, dark


def test_the_shadow_is_the_darkening_of_the_ground():
    photo, alpha, dark = ground_with_shadow()
    found = shadow(photo, alpha)
    ground = (alpha == 0) & (dark > 0.05)
    assert np.abs(found - dark)[ground].mean() < 0.25 * dark[ground].mean()
    assert not found[:100].any()
    away = (alpha == 0) & (cv2.GaussianBlur(dark, (0, 0), 8) < 0.005)
    assert found[away].max() < 0.05


def test_no_shadow_where_there_is_none():
    _, alpha, _ = ground_with_shadow()
    rows = np.arange(SIZE[0], dtype=np.float32)[:, None, None]
    photo = noisy(composite(FRONT, np.tile(110 + 0.3 * rows, (1, SIZE[1], 3)), alpha))
    assert shadow(photo, alpha).max() < 0.03


def test_a_kept_shadow_is_black_and_darkens_what_is_behind():
    photo, alpha, dark = ground_with_shadow()
    grey = np.rint(255 * alpha).astype(np.uint8)
    image = cut(photo, grey, keep_shadow=True)
    below = (dark > 0.3) & (cv2.dilate(alpha, np.ones((9, 9))) == 0)
    assert not image[below][:, :3].any()
    assert image[below][:, 3].mean() / 255 == pytest.approx(dark[below].mean(), abs=0.1)
    plain = cut(photo, grey)
    inside = plain[..., 3] == 255
    np.testing.assert_array_equal(image[inside], plain[inside])


# Profiles and orientation.


@functools.cache  # it holds the time
def profile(swapped=False):
    """That of sRGB, or with red and green exchanged."""
    data = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    if swapped:
        table = data[:512].replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ")
        data = table.replace(b"?XYZ", b"gXYZ") + data[512:]
    return data


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("source", ["jpg", "png", "webp", "tif"])
def test_the_colour_profile_and_the_orientation_are_kept(tmp_path, source, suffix):
    path = tmp_path / f"photo.{source}"
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = 6
    lossless = {"lossless": True} if source == "webp" else {}
    PIL.Image.fromarray(PHOTO).save(path, exif=exif, icc_profile=profile(), **lossless)
    photo = read_photo(path)
    grey = np.ascontiguousarray(np.rot90(GREY, -1))
    data = Cutter(CutoutOptions(cutout_format=suffix)).encode(grey, photo, path)
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.size == SIZE
        assert image.format == suffix.upper()
        assert image.info["icc_profile"] == profile()
        assert image.getexif().get(ORIENTATION, 1) == 1
    inside = decode(data)[..., 3] == 255
    np.testing.assert_array_equal(decode(data)[inside][:, :3], photo[inside])


def test_profiles_that_do_not_describe_rgb_are_dropped(tmp_path):
    grey = profile()[:16] + b"GRAY" + profile()[20:]
    for name, given in {"grey": grey, "damaged": b"x" * 300, "short": b"RGB"}.items():
        path = tmp_path / f"{name}.jpg"
        PIL.Image.fromarray(PHOTO).save(path, icc_profile=given)
        assert encoding.read_profile(path) is None
    PIL.Image.fromarray(PHOTO).save(tmp_path / "none.png")
    assert encoding.read_profile(tmp_path / "none.png") is None
    assert encoding.read_profile(tmp_path / "missing.png") is None


def test_backgrounds_are_converted_to_the_photos_profile(tmp_path):
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(PHOTO).save(path, icc_profile=profile(swapped=True))
    PIL.Image.fromarray(np.full((20, 20, 3), (200, 20, 20), np.uint8)).save(tmp_path / "b.png")
    for background in ("#c81414", str(tmp_path / "b.png")):
        image = decode(Cutter(CutoutOptions(background=background)).encode(GREY, PHOTO, path))
        outside = np.array(image[0, 0], int)
        assert np.abs(outside - (20, 200, 20)).max() <= 3
    white = decode(Cutter(CutoutOptions(background="white")).encode(GREY, PHOTO, path))
    assert (white[0, 0] >= 254).all()


def test_a_profile_that_cannot_be_used_changes_nothing():
    colours = PHOTO[:2]
    broken = profile()[:200]
    np.testing.assert_array_equal(encoding.converted(colours, broken, None), colours)


def test_webp_has_a_limit():
    with pytest.raises(UserError, match="--cutout_format=png"):
        encoding.encode(np.zeros((1, 16384, 4), np.uint8), ".webp", None)


def test_descriptions_differ(tmp_path):
    write_photo(tmp_path / "b.png", PHOTO)
    given = [{}, {"background": "white"}, {"background": str(tmp_path / "b.png")}]
    given += [{"keep_shadow": True}, {"edges": "mask"}, {"cutout_format": "webp"}]
    assert len({cutter.describe(CutoutOptions(**each)) for each in given}) == len(given)
    same = [cutter.describe(CutoutOptions(background=each)) for each in ("white", "#FFFFFF")]
    assert same[0] == same[1]


# The command.


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Three photos with their masks; one of another size."""
    monkeypatch.chdir(tmp_path)
    for number, scale in enumerate((1, 1, 2)):
        photo = np.ascontiguousarray(PHOTO[::scale, ::scale])
        write_photo(tmp_path / f"photos/car{number}_1.jpg", photo)
        write_probability(tmp_path / f"masks/car{number}_1.png", GREY[::scale, ::scale].copy())
    write_photo(tmp_path / "photos/other_1.jpg", PHOTO)
    return tmp_path


def cut_out(*arguments):
    fixed = ("--photo_dir=photos", "--pred_mask_dir=masks", "--out_dir=out")
    return commands.find("cut_out").call([*fixed, *arguments])


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_the_command_writes_what_the_writer_does(tree, suffix):
    assert cut_out(f"--cutout_format={suffix}", "--background=#102030") == 0
    options = CutoutOptions(cutout_format=suffix, background="#102030")
    expected = {}
    for path in sorted((tree / "photos").glob("car*")):
        grey = cv2.imread(str(tree / f"masks/{path.stem}.png"), cv2.IMREAD_UNCHANGED)
        data = Cutter(options).encode(grey, read_photo(path), path)
        expected[f"{path.stem}.{suffix}"] = data
    assert files_in(tree / "out") == expected


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_half_filled_folder_is_completed(tree, capsys, suffix):
    flag = f"--cutout_format={suffix}"
    cut_out(flag)
    whole = files_in(tree / "out")
    (tree / f"out/car0_1.{suffix}").unlink()
    (tree / f"out/car1_1.{suffix}").write_bytes(whole[f"car1_1.{suffix}"][:-20])
    kept = (tree / f"out/car2_1.{suffix}").stat().st_mtime_ns
    capsys.readouterr()
    assert cut_out(flag) == 0
    assert "2 cut-outs, 1 were there -> out" in capsys.readouterr().out
    assert files_in(tree / "out") == whole
    assert (tree / f"out/car2_1.{suffix}").stat().st_mtime_ns == kept


def test_another_kind_of_cutouts_needs_overwrite(tree):
    cut_out("--cutout_format=webp")
    for flag in ("--cutout_format=png", "--keep_shadow", "--background=white"):
        with pytest.raises(UserError, match=r"made with other encoding: .*--overwrite"):
            cut_out(flag)
    assert cut_out("--cutout_format=png", "--overwrite") == 0
    assert set(files_in(tree / "out")) == {f"car{number}_1.png" for number in range(3)}


def test_bad_files_are_listed_and_the_rest_is_done(tree, capsys):
    (tree / "photos/car0_1.jpg").write_bytes(b"\xff\xd8 no photo")
    write_probability(tree / "masks/car2_1.png", GREY)
    with pytest.raises(UserError, match=r"2 photos have no cut-out; .*bad_files\.csv"):
        cut_out()
    assert "is 320x240 but its photo is 160x120" in capsys.readouterr().err
    assert set(files_in(tree / "out")) == {"car1_1.png", "bad_files.csv"}
    write_photo(tree / "photos/car0_1.jpg", PHOTO)
    write_probability(tree / "masks/car2_1.png", GREY[::2, ::2].copy())
    assert cut_out() == 0
    assert set(files_in(tree / "out")) == {f"car{number}_1.png" for number in range(3)}


def test_binary_masks_do_and_keep_their_edge(tree):
    for number in range(3):
        (tree / f"masks/car{number}_1.png").unlink()
    write_mask(tree / "masks/car0_1.png", ALPHA > 0.5)
    made = manifest.Manifest(
        (), True, "none", "keras", "float32", 1, "", f"{manifest.BINARY} of round(255p) > 99", "0",
        threshold=99,
    )  # fmt: skip
    manifest.write(tree / "masks", made)
    assert cut_out() == 0
    alpha = decode((tree / "out/car0_1.png").read_bytes())[..., 3] / 255
    assert np.abs(alpha - ALPHA).mean() < 0.003


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--photo_dir=none"], r"--photo_dir='none' does not exist"),
        (["--out_dir=photos"], r"--out_dir='photos' holds what is read"),
        (["--background=none.jpg"], r"--background='none.jpg' is neither"),
        (["--pred_mask_dir=photos"], r"the folder 'photos' holds no mask"),
    ],
)
def test_mistakes(tree, arguments, message):
    with pytest.raises(UserError, match=message):
        cut_out(*arguments)


def test_a_mask_without_photo_and_masks_of_labels_are_refused(tree):
    write_probability(tree / "masks/new_1.png", GREY)
    with pytest.raises(UserError, match=r"1 masks of 'masks' have no photo in 'photos' \(new_1\)"):
        cut_out()
    for path in (tree / "masks").iterdir():
        write_probability(path, (GREY > 127).astype(np.uint8))
    with pytest.raises(UserError, match="does not look like probabilities"):
        cut_out()
    assert not (tree / "out").exists()


def test_a_mask_that_is_object_all_over_overflows_nothing():
    grey = np.tile(np.linspace(140, 255, 64).round().astype(np.uint8), (48, 1))
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    found = matting.matte(photo, grey)  # warnings are errors
    assert found is not None
    assert found.alpha.min() == 1
