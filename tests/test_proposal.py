"""Flags chosen from facts of the photos and the machine, as a table; what facts are."""

import dataclasses
import math

import numpy as np
import pytest

from carvana_tf.data import amounts, facts
from carvana_tf.data.dataset import find_samples
from carvana_tf.data.facts import Facts
from carvana_tf.data.images import write_mask
from carvana_tf.errors import UserError
from carvana_tf.models.networks import find
from carvana_tf.training import proposal
from carvana_tf.training.options import TrainingOptions
from carvana_tf.training.proposal import Budget, Shape, Speed, Start

CARS = Facts(
    photos=384, groups=24, height=1280, width=1918, least=(1280, 1918), sizes=1, area=0.2,
    objects=1, side=0.45,
)  # fmt: skip
NUCLEI = Facts(
    photos=64, groups=64, height=256, width=288, least=(256, 256), sizes=6, area=0.14,
    objects=25, side=0.05,
)  # fmt: skip
LITE = Start("efficientnet_lite0", "lite0.safetensors", "It is there.")
SCRATCH = Start("unet_bn", "none", "Nothing else is there.")


def plan(seen, start, minutes, cores=2, memory=64e9):
    """The flags, by name, of a proposal with four fifths of the photos to train on."""
    budget = Budget(minutes, memory, proposal.estimated(start.network, cores))
    shape = proposal.choose_shape(seen, start.network, budget)
    trained = seen.photos * 4 // 5
    return proposal.propose(seen, start, shape, budget, trained, seen.photos - trained)


def flags_of(proposed):
    return {choice.flag: choice.value for choice in proposed.choices}


@pytest.mark.parametrize(
    ("seen", "start", "minutes", "expected"),
    [
        # One large object: whole photos of the photos' shape, larger with more minutes.
        (CARS, LITE, 3, {"size_policy": "resize", "augmentation": "default"}),
        (CARS, LITE, 600, {"input_width": 768, "input_height": 512, "batch_size": 8}),
        # Never larger than the photos.
        (
            dataclasses.replace(CARS, height=160, width=240, least=(160, 240)),
            LITE, 600, {"input_width": 256, "input_height": 160},
        ),
        # Small objects, as in microscopy: windows, also upside down.
        (
            NUCLEI, LITE, 3,
            {
                "size_policy": "crop", "input_width": 256, "input_height": 256,
                "augmentation": "default:vflip=0.5",
            },
        ),
        # A window is never larger than the smallest photo, and there is none of tiny ones.
        (dataclasses.replace(NUCLEI, least=(200, 300)), LITE, 3, {"input_width": 192}),
        (dataclasses.replace(NUCLEI, least=(64, 300)), LITE, 3, {"size_policy": "resize"}),
        # Whole photos of that size would take longer to score than to train.
        (
            dataclasses.replace(NUCLEI, height=4000, width=6000, least=(4000, 6000)),
            LITE, 3, {"size_policy": "resize"},
        ),
        # One small object may have an up and a down.
        (dataclasses.replace(NUCLEI, objects=1), LITE, 3, {"augmentation": "default"}),
        (NUCLEI, SCRATCH, 3, {"network": "unet_bn", "weights": "none", "learning_rate": 0.004}),
    ],
)  # fmt: skip
def test_choices_by_facts(seen, start, minutes, expected):
    found = flags_of(plan(seen, start, minutes))
    assert found | expected == found


@pytest.mark.parametrize("seen", [CARS, NUCLEI], ids=["cars", "nuclei"])
@pytest.mark.parametrize("start", [LITE, SCRATCH], ids=["pretrained", "scratch"])
def test_the_time_is_used_and_not_exceeded(seen, start):
    speed, before = proposal.estimated(start.network, 2), 0
    for minutes in (2, 5, 15, 60, 240):
        proposed = plan(seen, start, minutes)
        found, shape = flags_of(proposed), proposed.shape
        assert proposed.steps == found["epochs"] * found["steps_per_epoch"]
        steps = proposed.steps * speed.step(shape.pixels)
        assert 0.5 * 60 * minutes < speed.start + steps <= proposed.seconds <= 60 * minutes
        assert found["validate_every"] <= found["epochs"]
        assert proposed.steps * shape.pixels > before
        before = proposed.steps * shape.pixels


@pytest.mark.parametrize("seen", [CARS, NUCLEI], ids=["cars", "nuclei"])
@pytest.mark.parametrize("minutes", [1, 3, 30, 1000])
def test_every_proposal_is_a_training_that_is_accepted(seen, minutes):
    """As `train.py` takes it: flags exist, sizes divide by the stride, nothing is idle."""
    for start in (LITE, SCRATCH):
        found = flags_of(plan(seen, start, minutes, cores=4))
        options = TrainingOptions.of(**found).resolved()
        amounts.parse(options.augmentation.augmentation)
        stride = find(options.model.network).stride
        assert found["input_width"] % stride == found["input_height"] % stride == 0
        assert options.length.validate_every <= options.length.epochs


def test_more_minutes_never_make_photos_smaller_and_keep_their_shape():
    widths = []
    for minutes in (1, 2, 4, 8, 16, 32):
        shape = plan(CARS, LITE, minutes).shape
        widths.append(shape.width)
        assert shape.width / shape.height == pytest.approx(1.5, rel=0.2)
    assert widths == sorted(widths) and widths[0] < widths[-1] <= 768


def test_batches_fit_into_memory():
    found = plan(CARS, LITE, 600, memory=12e9).shape
    assert found.batch == 4 and proposal.memory_of(found) <= 12e9
    assert plan(CARS, LITE, 600, memory=1e6).shape.batch == 1
    assert plan(CARS, LITE, 600, memory=0).shape.batch == 8  # nobody knows how much there is


def test_too_few_minutes_are_refused_with_how_many_are_enough():
    budget = Budget(0.1, 0, proposal.estimated("mobilenet", 2))
    with pytest.raises(UserError, match=r"--minutes=0\.1 is too short.*give --minutes=2") as raised:
        proposal.refuse_short(budget)
    enough = float(str(raised.value).rpartition("--minutes=")[2].split()[0])
    proposal.refuse_short(dataclasses.replace(budget, minutes=enough))


def test_speed_from_one_and_from_two_timings():
    one = proposal.fitted([(2e5, 0.6)], 10, 1)
    assert (one.step(2e5), one.step(4e5)) == pytest.approx((0.6, 1.2))
    two = proposal.fitted([(4e5, 0.7), (2e5, 0.6)], 10, 1)
    assert (two.step(2e5), two.step(4e5), two.step(6e5)) == pytest.approx((0.6, 0.7, 0.8))
    # Disturbed timings neither promise free pixels nor a negative step.
    for timings in ([(2e5, 0.6), (4e5, 0.5)], [(2e5, 0.1), (4e5, 0.9)]):
        speed = proposal.fitted(timings, 10, 1)
        assert speed.per_step >= 0 and speed.per_megapixel > 0
    assert one == Speed(10, 1, 0.0, pytest.approx(3.0), measured=True)


def test_facts_of_masks(make_dataset):
    root = make_dataset(groups=3, views=2, height=40, width=60)
    for number, path in enumerate(sorted((root / "train_masks").iterdir())):
        mask = np.zeros((40, 60), bool)
        mask[2:8, 3:9] = mask[20:26, 30:36] = True  # two objects of 6x6
        path.unlink()
        write_mask(path.with_suffix(".png"), mask if number else np.zeros_like(mask))
    found = facts.measure(find_samples(root / "train", root / "train_masks"), 2, root)
    assert found == Facts(
        photos=6, groups=3, height=40, width=60, least=(40, 60), sizes=1,
        area=pytest.approx(72 / 2400), objects=2, side=pytest.approx(6 / math.sqrt(2400)),
    )  # fmt: skip


def test_facts_are_refused_where_masks_are_empty_or_damaged(make_dataset):
    root = make_dataset(groups=2, views=1)
    samples = find_samples(root / "train", root / "train_masks")
    samples[0].mask.write_bytes(b"GIF89a")
    with pytest.raises(UserError, match="1 files cannot be read, found before a training is plan"):
        facts.measure(samples, 2, root)
    for sample in samples:
        sample.mask.unlink()
        write_mask(sample.mask.with_suffix(".png"), np.zeros((40, 56), bool))
    with pytest.raises(UserError, match="empty"):
        facts.measure(find_samples(root / "train", root / "train_masks"), 2, root)


def test_a_shape_counts_the_pixels_of_a_batch():
    assert Shape("resize", 20, 30, 4).pixels == 2400
