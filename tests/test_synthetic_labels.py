"""tools/make_demo_dataset.py --task=labels: the tables say what the photos show."""

import csv
import dataclasses
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from carvana_tf import commands
from carvana_tf.data.images import read_photo
from carvana_tf.data.synthetic import labelled, rendering, scenes
from carvana_tf.data.synthetic.labelled import LabelSettings, make_dataset
from carvana_tf.data.synthetic.render import noise_tile
from carvana_tf.errors import UserError

TINY = LabelSettings(
    train_photos=22, tuning_photos=3, test_photos=5, test_stage2_photos=4,
    width=96, height=72, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labels") / "input"
    assert make_dataset(folder, TINY) == 31
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as stream:
        return list(csv.reader(stream))


@pytest.fixture(scope="module")
def drawn():
    """Photos of each region with their things and what each pixel shows."""
    noise = noise_tile(120, 160, 0)
    return {
        region.outdoors: [
            scenes.draw_scene(region, np.random.default_rng([5, i]), 160, 120, noise)
            for i in range(50)
        ]
        for region in (scenes.HOME, scenes.ABROAD)
    }


def test_bytes_do_not_depend_on_processes(demo, tmp_path):
    make_dataset(tmp_path / "other", TINY, processes=2)
    assert contents(tmp_path / "other") == contents(demo)


def test_more_photos_leave_the_others_as_they_were(demo, tmp_path):
    fewer = dataclasses.replace(TINY, train_photos=3, test_photos=4, test_stage2_photos=1)
    make_dataset(tmp_path, fewer)
    few, more = contents(tmp_path), contents(demo)
    photos = [name for name in few if name.endswith(".jpg")]
    assert len(photos) == 8
    assert all(few[name] == more[name] for name in photos)
    other = dataclasses.replace(fewer, seed=4)
    with pytest.raises(UserError, match=r"8 other images.*--overwrite"):
        make_dataset(tmp_path, other)
    assert make_dataset(tmp_path, other, overwrite=True) == 8
    assert not {name for name in contents(tmp_path) if name in photos}
    assert make_dataset(tmp_path, other) == 0


def test_layout_is_that_of_the_challenge(demo):
    photos = {split: {p.stem for p in (demo / split).glob("*.jpg")} for split in TINY.counts}
    assert {split: len(found) for split, found in photos.items()} == TINY.counts
    header, *rows = table(demo / "train_human_labels.csv")
    assert header == ["ImageID", "Source", "LabelName", "Confidence"]
    assert {row[0] for row in rows} == photos["train"]
    assert {row[3] for row in rows} == {"1"}
    # Two photos have a label that two people gave.
    counts = Counter((row[0], row[2]) for row in rows)
    assert sorted(counts.values())[-3:] == [1, 2, 2]
    truths = {}
    for split, number in (("test", 1), ("test_stage2", 2)):
        header, *truth = table(demo / f"stage{number}_truth.csv")
        assert header == ["id", "labels"]
        sample_header, *sample = table(demo / f"stage{number}_sample_submission.csv")
        assert sample_header == ["image_id", "labels"]
        assert [row[0] for row in sample] == [row[0] for row in truth]
        assert {row[0] for row in sample} == photos[split]
        assert len({row[1] for row in sample}) == 1
        truths[split] = truth
    tuning = table(demo / "tuning_labels.csv")
    assert tuning == truths["test"][:3]
    names = {row[2] for row in rows} | {n for t in truths.values() for r in t for n in r[1].split()}
    assert names <= set(scenes.LABELS)


def test_tables_say_what_was_drawn(demo):
    """The photo of an id is drawn again, and has the labels that its row has."""
    truth = dict(table(demo / "stage2_truth.csv")[1:])
    noise = noise_tile(72, 96, 3)
    for number in range(4):
        name = labelled.photo_id(3, "test_stage2", number)
        photo, things, _ = scenes.draw_scene(
            scenes.ABROAD, np.random.default_rng([3, 7, 2, number]), 96, 72, noise
        )
        shown = read_photo(demo / f"test_stage2/{name}.jpg").astype(int)
        assert np.abs(shown - photo).mean() < 4  # JPEG
        assert {label for thing in things for label in thing.labels} == set(truth[name].split())


def test_each_thing_is_seen_and_has_its_paint(drawn):
    """Pixels, not the plan: each thing owns enough of them, in the hue of its paint."""
    hues = {"red": (170, 184), "yellow": (15, 32), "blue": (105, 125)}
    checked = Counter()
    for outdoors, photos in drawn.items():
        for photo, things, owner in photos:
            assert set(np.unique(owner)) <= {-1, *range(len(things))}
            for number, thing in enumerate(things):
                own = owner == number
                assert own.sum() >= 25, thing
                assert not own[[0, -1]].any() and not own[:, [0, -1]].any()
                left, top, right, bottom = thing.box
                rows, columns = np.nonzero(own)
                assert left - 3 < columns.min() and columns.max() < right + 3
                assert top - 3 < rows.min() and rows.max() < bottom + 3
                if not thing.paint or outdoors:
                    continue
                hue, colourful, value = cv2.cvtColor(photo, cv2.COLOR_RGB2HSV)[own].T.astype(int)
                checked[thing.paint] += 1
                if thing.paint in hues:
                    low, high = hues[thing.paint]
                    vivid = (colourful > 110) & (value > 50)
                    right_hue = (hue[vivid] >= low) & (hue[vivid] <= high)
                    right_hue |= hue[vivid] + 180 <= high
                    assert vivid.mean() > 0.15 and right_hue.mean() > 0.6, thing
                elif thing.paint == "white":
                    assert np.percentile(value, 80) > 140, thing
                elif thing.paint == "black":
                    assert np.median(value) < 90, thing
    assert min(checked[paint] for paint in scenes.PAINTS) >= 2


def test_labels_follow_from_things():
    def labels(name, paint=""):
        return scenes.Thing(name, paint, 0, 0, (0, 0, 1, 1)).labels

    assert labels("van", "red") == {"vehicle", "van", "red"}
    assert labels("box", "yellow") == {"box"}
    assert labels("tree") == {"tree"}


def test_the_second_region_has_other_frequencies_and_other_light(drawn):
    shares = {}
    for outdoors, photos in drawn.items():
        counts = Counter(label for _, things, _ in photos for label in
                         set().union(*(thing.labels for thing in things)))  # fmt: skip
        shares[outdoors] = {label: counts[label] / len(photos) for label in scenes.LABELS}
        assert min(shares[outdoors].values()) > 0, "a label is never drawn"
        assert 1.4 < np.mean([len(things) for _, things, _ in photos]) < 3
    home, abroad = shares[False], shares[True]
    assert home["car"] > 2 * abroad["car"] and abroad["tree"] > 3 * home["tree"]
    assert abroad["red"] > 2 * home["red"]
    light = {o: np.mean([p.mean() for p, _, _ in photos]) for o, photos in drawn.items()}
    assert light[False] > light[True] + 25


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = commands.find("make_demo_dataset")
    counts = ["--train_photos=2", "--test_photos=2", "--tuning_photos=1", "--test_stage2_photos=1"]
    flags = ["--dataset_dir=d", "--task=labels", "--processes=1", *counts]
    assert command.call(flags) == 0
    assert "2 photos to train, 1 to tune, 5 photos in" in capsys.readouterr().out
    assert read_photo(next((tmp_path / "d/train").iterdir())).shape == (120, 160, 3)
    assert command.call(flags) == 0
    assert "nothing to do" in capsys.readouterr().out
    for wrong, message in (
        (["--views=3", *flags], "--views=3 has no effect with --task=labels"),
        (counts, "--train_photos=2 has no effect without --task=labels"),
        ([*flags, "--tuning_photos=9"], "--tuning_photos=9 are more than --test_photos=2"),
        (["--dataset_dir=d", "--train_cars=1", "--test_cars=0"], "holds 5 other images"),
    ):
        with pytest.raises(UserError, match=message):
            command.call(wrong)
    masks = ["--train_cars=1", "--test_cars=0", "--views=1", "--width=64", "--height=48"]
    command.call(["--dataset_dir=d", *masks, "--processes=1", "--overwrite"])
    assert not list((tmp_path / "d/test_stage2").iterdir())
    assert (tmp_path / "d" / rendering.STAMP).is_file()
