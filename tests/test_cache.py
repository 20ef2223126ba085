"""Caches of decoded photos: the same batches whichever is used, nothing stale."""

import dataclasses
import shutil

import numpy as np
import pytest

from carvana_tf.data import cache, mask_values
from carvana_tf.data.cache import CACHES, DiskCache, MemoryCache, make_cache
from carvana_tf.data.dataset import find_samples
from carvana_tf.data.images import Reading, read_photo, write_photo
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.presets import PRESETS
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.tasks import MASKS
from carvana_tf.tasks.masks import Masks

CROP = Resizer("crop", 24, 32, 8)


@pytest.fixture
def samples(make_dataset):
    root = make_dataset(groups=2)
    return find_samples(root / "train", root / "train_masks")


@pytest.fixture
def reads(monkeypatch):
    """The photos that were decoded, one entry each time."""
    names = []
    read = Masks.read_planes
    monkeypatch.setattr(
        Masks, "read_planes", lambda self, sample: names.append(sample.stem) or read(self, sample)
    )
    return names


def training_set(samples, kind, folder=None, resizer=CROP):
    return TrainingSet(
        samples,
        resizer,
        PRESETS["default"],
        MASKS,
        batch_size=2,
        seed=5,
        cache=kind,
        cache_dir=folder,
    )


def batches(training, count=6):
    return [training.batch(step) for step in range(count)]


@pytest.mark.parametrize("resizer", [CROP, Resizer("resize", 20, 28, 4), Resizer("pad", 0, 0, 8)])
def test_every_cache_gives_the_same_batches(samples, tmp_path, reads, resizer):
    expected = batches(training_set(samples, "none", resizer=resizer))
    assert len(reads) == 12
    for kind in CACHES:
        reads.clear()
        found = batches(training_set(samples, kind, tmp_path / "cache", resizer))
        assert len(reads) == (12 if kind == "none" else len(samples))
        for (photos, masks), (photos_found, masks_found) in zip(expected, found, strict=True):
            np.testing.assert_array_equal(photos_found, photos)
            np.testing.assert_array_equal(masks_found, masks)


def test_arrays_on_disk_serve_later_runs_and_other_folds(samples, tmp_path, reads):
    batches(training_set(samples, "disk", tmp_path / "cache"))
    reads.clear()
    batches(training_set(samples[1:], "disk", tmp_path / "cache"))
    assert not reads


def test_a_changed_photo_is_decoded_anew_and_its_old_array_removed(samples, tmp_path, reads):
    batches(training_set(samples, "disk", tmp_path / "cache"))
    reads.clear()
    write_photo(samples[2].photo, 255 - read_photo(samples[2].photo))
    changed = batches(training_set(samples, "disk", tmp_path / "cache"))
    assert reads == [samples[2].stem]
    assert len(list((tmp_path / "cache").iterdir())) == len(samples)
    for (photos, _), (expected, _) in zip(
        changed, batches(training_set(samples, "none")), strict=True
    ):
        np.testing.assert_array_equal(photos, expected)


def test_each_resolution_has_arrays_of_its_own(samples, tmp_path, reads):
    batches(training_set(samples, "disk", tmp_path))
    reads.clear()
    resized = training_set(samples, "disk", tmp_path, Resizer("resize", 20, 28, 4))
    assert resized.batch(0)[0].shape == (2, 20, 28, 3)
    assert reads


def test_equalised_photos_have_arrays_of_their_own(samples, tmp_path):
    equalising = dataclasses.replace(CROP, clahe=True)
    batches(training_set(samples, "disk", tmp_path))
    expected = batches(training_set(samples, "none", resizer=equalising))
    found = batches(training_set(samples, "disk", tmp_path, equalising))
    np.testing.assert_array_equal(expected[0][0], found[0][0])


@pytest.mark.parametrize("left", [0, 5, 200])
def test_a_damaged_array_is_made_anew(samples, tmp_path, left):
    expected = batches(training_set(samples, "disk", tmp_path / "cache"))
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:left])
    for (photos, _), (found, _) in zip(
        expected, batches(training_set(samples, "disk", tmp_path / "cache")), strict=True
    ):
        np.testing.assert_array_equal(found, photos)


def test_a_batch_does_not_change_what_is_kept(samples):
    training = training_set(samples, "memory")
    expected = [photos.copy() for photos, _ in batches(training)]
    for photos, masks in batches(training):
        photos[:] = 0
        masks[:] = 0
    for (photos, _), before in zip(batches(training), expected, strict=True):
        np.testing.assert_array_equal(photos, before)


def test_memory_is_filled_up_to_its_limit():
    cache = MemoryCache(25.0)
    for index in range(4):
        cache.keep(index % 3, np.full(10, index, np.uint8))
    assert [cache.get(index) is not None for index in range(3)] == [True, True, False]
    assert cache.get(0)[0] == 0


def test_auto_leaves_most_of_the_memory_free(samples, monkeypatch):
    layers = np.zeros((40, 56, 4), np.uint8)
    monkeypatch.setattr("carvana_tf.data.cache.available_memory", lambda: 2.5 * layers.nbytes / 0.3)
    cache = make_cache("auto", samples, CROP)
    for index in range(4):
        cache.keep(index, layers)
    assert sum(cache.get(index) is not None for index in range(4)) == 2


def test_memory_is_what_machine_and_container_leave(tmp_path, monkeypatch):
    for name in ("_MACHINE", "_CONTAINER"):
        monkeypatch.setattr(cache, name, tmp_path / name)
    assert cache.available_memory() == 0
    (tmp_path / "_MACHINE").write_text("MemTotal: 9 kB\nMemAvailable: 8 kB\nHugePages_Free: 0\n")
    assert cache.available_memory() == 8192
    group = tmp_path / "_CONTAINER"
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("4000\n")
    (group / "memory.stat").write_text("anon 3000\ninactive_file 1000\n")
    assert cache.available_memory() == 8192
    (group / "memory.max").write_text("5000\n")
    assert cache.available_memory() == 2000


def test_what_memory_has_no_room_for_goes_to_disk(samples, tmp_path, monkeypatch):
    layers = np.zeros((40, 56, 4), np.uint8)
    monkeypatch.setattr("carvana_tf.data.cache.available_memory", lambda: 1.5 * layers.nbytes / 0.3)
    free = shutil.disk_usage(tmp_path)._replace(free=int(2.5 * layers.nbytes / 0.3))
    monkeypatch.setattr("carvana_tf.data.cache.shutil.disk_usage", lambda folder: free)
    cache = make_cache("auto", samples, CROP, tmp_path / "cache")
    assert [cache.keep(index, layers + index) for index in range(4)] == [True] * 3 + [False]
    found = [cache.get(index) for index in range(4)]
    assert [int(each[0, 0, 0]) for each in found[:3]] == [0, 1, 2] and found[3] is None
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_cache_on_disk_needs_a_folder(samples, tmp_path):
    with pytest.raises(UserError, match="--cache_dir"):
        training_set(samples, "disk")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        DiskCache(tmp_path / "file", samples, CROP)


def test_a_full_disk_is_told(samples, tmp_path, monkeypatch):
    def full(path, layers):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    with pytest.raises(UserError, match="No space left on device; make room"):
        training_set(samples, "disk", tmp_path).batch(0)
    assert not list(tmp_path.glob("*.npy")) and not list(tmp_path.glob(".*"))


def test_how_values_are_understood_is_part_of_the_key(make_dataset, tmp_path):
    root = make_dataset(groups=1, views=1)
    resizer = Resizer("pad", 0, 0, 1)
    readings = [Reading(), Reading(photo_depth=12), Reading(mask_values.parse("nonzero"))]
    names = set()
    for reading in readings:
        samples = find_samples(root / "train", root / "train_masks", reading=reading)
        DiskCache(tmp_path / "cache", samples, resizer).keep(0, np.zeros((2, 2, 4), np.uint8))
        names |= {path.name for path in (tmp_path / "cache").iterdir()}
    assert len(names) == len(readings)
