"""Which files are samples."""

from pathlib import Path

import pytest

from carvana_tf.data.dataset import (
    Naming,
    Sample,
    find_photos,
    find_samples,
    list_images,
    list_masks,
    with_stacked_channels,
)
from carvana_tf.errors import UserError
from carvana_tf.options import DatasetOptions


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_photos_are_sorted_and_other_files_passed_over(tmp_path):
    touch(tmp_path, "b_2.jpg", "b_1.JPG", "a_1.png", ".hidden.jpg", "notes.txt", "Thumbs.db")
    samples = find_photos(tmp_path)
    assert [sample.stem for sample in samples] == ["a_1", "b_1", "b_2"]
    assert [sample.group for sample in samples] == ["a", "b", "b"]
    assert all(sample.mask is None for sample in samples)


def test_samples_are_photos_with_a_mask(tmp_path):
    photos = touch(tmp_path / "p", "a_1.jpg", "a_2.jpg", "c_1.jpg")
    masks = touch(tmp_path / "m", "a_1_mask.gif", "c_1_mask.png", "x_1_mask.gif", "a_2.gif")
    samples = find_samples(photos, masks)
    assert [(s.stem, s.mask.name) for s in samples] == [
        ("a_1", "a_1_mask.gif"),
        ("c_1", "c_1_mask.png"),
    ]
    only_gif = find_samples(photos, masks, Naming(mask_extension=".GIF"))
    assert [sample.stem for sample in only_gif] == ["a_1"]
    assert [s.stem for s in find_samples(photos, masks, Naming(mask_suffix=""))] == ["a_2"]


def test_masks_by_the_stem_of_their_photo(tmp_path):
    touch(tmp_path, "a_mask_mask.gif", "b_mask.gif")
    assert list(list_masks(tmp_path, Naming())) == ["a_mask", "b"]


def test_one_stem_twice(tmp_path):
    touch(tmp_path, "a.jpg", "a.png")
    with pytest.raises(UserError, match=r"a\.jpg.*a\.png"):
        list_images(tmp_path)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        find_photos(tmp_path / "none")
    with pytest.raises(UserError, match="holds no photo"):
        find_photos(tmp_path)
    photos = touch(tmp_path / "p", "a.jpg")
    masks = touch(tmp_path / "m", "b_mask.gif")
    with pytest.raises(UserError, match="--mask_suffix"):
        find_samples(photos, masks)


@pytest.mark.parametrize(
    ("pattern", "stem", "group"),
    [
        (Naming().group_pattern, "fff9b3a5373f_07", "fff9b3a5373f"),
        (Naming().group_pattern, "a_b_12", "a_b"),
        (Naming().group_pattern, "plain", "plain"),
        (r"^(\w{3})", "abcdef", "abc"),
        (r"^(x)?", "abc", "abc"),
    ],
)
def test_groups(pattern, stem, group):
    assert Naming(group_pattern=pattern).group(stem) == group


@pytest.mark.parametrize("pattern", ["(", "abc"])
def test_bad_group_patterns(pattern):
    with pytest.raises(UserError, match="--group_pattern"):
        Naming(group_pattern=pattern)


def test_stacked_channels(tmp_path):
    sample = Sample("a", "a", Path("a.jpg"))
    assert with_stacked_channels([sample], None, 0) == [sample]
    with pytest.raises(UserError, match="--stacked_channels_dir"):
        with_stacked_channels([sample], None, 2)
    touch(tmp_path / "0", "a.png")
    with pytest.raises(UserError, match=r"1 stacked channels are missing.*1/a\.png"):
        with_stacked_channels([sample], tmp_path, 2)
    touch(tmp_path / "1", "a.png")
    (stacked,) = with_stacked_channels([sample], tmp_path, 2)
    assert stacked.stacked == (tmp_path / "0/a.png", tmp_path / "1/a.png")
    (same,) = with_stacked_channels([sample], Path(f"{tmp_path / '0'},{tmp_path / '1'}"), 2)
    assert same == stacked
    (one,) = with_stacked_channels([sample], tmp_path / "1", 1)
    assert one.stacked == (tmp_path / "1/a.png",)
    with pytest.raises(UserError, match="names 1 mask folders"):
        with_stacked_channels([sample], tmp_path / "1", 2)


def test_a_dataset_that_is_named_must_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    assert DatasetOptions().existing_folder("train", "train_data_dir_name") == Path("train")
    with pytest.raises(UserError, match="--dataset_dir='absent' does not exist"):
        DatasetOptions(dataset_dir="absent").existing_folder("train", "train_data_dir_name")
