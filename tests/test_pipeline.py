"""The pipeline against a loop in NumPy, and how it stops."""

import _thread
import dataclasses
import re
import signal
import threading
import time
import types
from queue import SimpleQueue

import cv2
import keras
import numpy as np
import pytest

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import equalise, read_grey, write_photo, write_probability
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory
from carvana_tf.filenames import SUBMISSION
from carvana_tf.inference import pipeline
from carvana_tf.inference.engines import Engine, keras_engine
from carvana_tf.inference.engines.base import NotANumber
from carvana_tf.inference.pipeline import Cancelled, Channel
from carvana_tf.inference.predictor import PipelineSettings as Settings
from carvana_tf.inference.tiling import Tiling
from carvana_tf.masks import rle, submission
from carvana_tf.masks.boxes import Box
from carvana_tf.masks.cutouts.cutter import Cutter
from carvana_tf.masks.cutouts.options import CutoutOptions
from carvana_tf.tasks.masks import writers
from carvana_tf.tasks.masks.writers import probabilities

PAD = Resizer("pad", 0, 0, 8)
SIZES = [(24, 31), (24, 31), (16, 16), (24, 31), (9, 40)]
# Taps of a horizontal convolution that a mirror image changes.
TAPS = np.array([[0.9, -0.2, 0.1], [0.3, 0.8, -0.5], [-0.4, 0.1, 0.2]])


def make_samples(folder, sizes=SIZES, stacked=0):
    random = np.random.default_rng(1)
    samples = []
    for i, size in enumerate(sizes):
        # Lossless photos: the reference must see what the pipeline sees.
        photo = cv2.resize(random.integers(0, 256, (4, 4, 3), np.uint8), size[::-1])
        path = folder / f"car{i}_01.png"
        write_photo(path, photo)
        extra = []
        for j in range(stacked):
            extra.append(folder / str(j) / path.name)
            write_probability(extra[-1], random.integers(0, 256, size, np.uint8))
        samples.append(Sample(path.stem, f"car{i}", path, stacked=tuple(extra)))
    return samples


def make_model(taps, bias):
    """sigmoid(1 x 3 convolution of the photo / 255 + bias)."""
    photo = keras.Input((None, None, taps.shape[1]))
    x = keras.layers.Rescaling(1 / 255)(photo)
    convolution = keras.layers.Conv2D(1, (1, 3), padding="same", activation="sigmoid")
    model = keras.Model(photo, convolution(x))
    convolution.set_weights([taps[None, :, :, None], np.array([bias])])
    return model


def in_numpy(image, taps, bias):
    """What `make_model` computes, in float64."""
    x = np.pad(image / 255, ((0, 0), (1, 1), (0, 0)))
    width = image.shape[1]
    logits = sum(x[:, i : i + width] @ taps[i] for i in range(3)) + bias
    return 1 / (1 + np.exp(-logits))


def padded_reference(photo, taps, bias, mirrored=False):
    """Reflected to multiples of 8, half on each side, predicted and cut."""
    height, width = photo.shape[:2]
    margins = [(-n % 8 // 2, -n % 8 - -n % 8 // 2) for n in (height, width)]
    x = np.pad(photo, (*margins, (0, 0)), mode="reflect")
    p = in_numpy(x[:, ::-1], taps, bias)[:, ::-1] if mirrored else in_numpy(x, taps, bias)
    return p[margins[0][0] :, margins[1][0] :][:height, :width]


def shrink(line, length):
    """Means over equal stretches of a line."""
    edges = np.linspace(0, len(line), length + 1)
    sums = np.interp(edges, np.arange(len(line) + 1), np.concatenate([[0], np.cumsum(line)]))
    return np.diff(sums) / np.diff(edges)


def grow(line, length):
    """Linear interpolation between the centres of pixels."""
    centres = (np.arange(length) + 0.5) * len(line) / length - 0.5
    return np.interp(centres, np.arange(len(line)), line)


def scale(image, height, width):
    change = grow if height > len(image) else shrink
    return np.apply_along_axis(change, 1, np.apply_along_axis(change, 0, image, height), width)


def read_photo_by_hand(sample):
    return cv2.imread(str(sample.photo))[..., ::-1]


def assert_rounds(path, probabilities):
    """The PNG holds round(255 p) of float64 probabilities, up to float32's ties."""
    grey = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert grey.dtype == np.uint8
    assert grey.shape == probabilities.shape
    assert np.abs(grey - 255 * probabilities).max() < 0.5 + 1e-3


def fake(predict=lambda batch: batch[..., 0] / np.float32(255), resizer=PAD):
    return Engine(resizer, 3, predict)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_padded_photos_equal_a_loop_in_numpy(tmp_path, batch_size):
    samples = make_samples(tmp_path)
    engine = keras_engine(make_model(TAPS, 0.3), PAD, "cpu:0")
    ticks = []
    settings = Settings(batch_size=batch_size)
    outcome = pipeline.run(
        samples,
        [[engine]],
        probabilities(tmp_path / "out"),
        settings,
        lambda: ticks.append(threading.get_ident()),
    )
    assert (outcome.written, outcome.unreadable) == (5, [])
    assert ticks == [threading.get_ident()] * 5
    for sample in samples:
        expected = padded_reference(read_photo_by_hand(sample), TAPS, 0.3)
        assert_rounds(tmp_path / f"out/{sample.stem}.png", expected)


def test_resized_photos_equal_block_means_and_interpolation(tmp_path):
    (sample,) = make_samples(tmp_path, [(32, 48)])
    engine = keras_engine(make_model(TAPS, -0.5), Resizer("resize", 16, 24, 8), "cpu:0")
    pipeline.run([sample], [[engine]], probabilities(tmp_path / "out"), Settings())
    grey = read_grey(tmp_path / f"out/{sample.stem}.png")
    blocks = read_photo_by_hand(sample).reshape(16, 2, 24, 2, 3).mean((1, 3))
    small = in_numpy(np.floor(blocks + 0.5), TAPS, -0.5)
    expected = scale(small, 32, 48)
    assert np.abs(grey - 255 * expected).max() < 0.5 + 1e-2


def test_hflip_averages_the_photo_and_its_mirror_image(tmp_path):
    samples = make_samples(tmp_path)
    engine = keras_engine(make_model(TAPS, 0.3), PAD, "cpu:0")
    pipeline.run(samples, [[engine]], probabilities(tmp_path / "out"), Settings(2, "hflip"))
    for sample in samples:
        photo = read_photo_by_hand(sample)
        views = [padded_reference(photo, TAPS, 0.3, mirrored) for mirrored in (False, True)]
        assert np.abs(views[0] - views[1]).max() > 4 / 255
        assert_rounds(tmp_path / f"out/{sample.stem}.png", np.mean(views, axis=0))


def test_flips_average_all_four_views(tmp_path):
    samples = make_samples(tmp_path, [(16, 24), (16, 24), (24, 16)])

    def predict(batch):
        """Bright only in the upper left quarter of what it sees."""
        output = np.zeros(batch.shape[:3], np.float32)
        quarter = np.s_[:, : batch.shape[1] // 2, : batch.shape[2] // 2]
        output[quarter] = batch[..., 0][quarter] / np.float32(255)
        return output

    settings = Settings(2, "flips")
    pipeline.run(samples, [[fake(predict)]], probabilities(tmp_path / "out"), settings)
    for sample in samples:
        # Each quarter of the photo is seen there by one of the four.
        expected = read_photo_by_hand(sample)[..., 0] / 255 / 4
        assert_rounds(tmp_path / f"out/{sample.stem}.png", expected)


def test_logits_are_averaged_over_views_and_models(tmp_path):
    samples = make_samples(tmp_path)
    members = [(TAPS, 0.3), (4 * TAPS[::-1], -2)]
    engines = [keras_engine(make_model(taps, bias), PAD, "cpu:0") for taps, bias in members]
    settings = Settings(2, "hflip", average="logit")
    pipeline.run(samples, [engines], probabilities(tmp_path / "out"), settings)
    for sample in samples:
        photo = read_photo_by_hand(sample)
        p = np.array([padded_reference(photo, *m, f) for m in members for f in (False, True)])
        expected = 1 / (1 + np.exp(-np.log(p / (1 - p)).mean(axis=0)))
        assert np.abs(expected - p.mean(axis=0)).max() > 2 / 255
        assert_rounds(tmp_path / f"out/{sample.stem}.png", expected)


@pytest.mark.parametrize("resizer", [PAD, Resizer("resize", 32, 64, 8)])
def test_scales_average_views_of_three_sizes(tmp_path, resizer):
    random = np.random.default_rng(3)
    photo = random.integers(0, 256, (32, 64, 3), np.uint8)
    if resizer.policy == "resize":
        photo = photo.repeat(2, 0).repeat(2, 1)
    height, width = photo.shape[:2]
    write_photo(tmp_path / "car_01.png", photo)
    sample = Sample("car_01", "car", tmp_path / "car_01.png")
    engine = keras_engine(make_model(TAPS, 0.3), resizer, "cpu:0")
    settings = Settings(tta="scales")
    pipeline.run([sample], [[engine]], probabilities(tmp_path / "out"), settings)
    views = []
    for rows, columns in ((24, 48), (32, 64), (40, 80)):
        seen = photo if (rows, columns) == (height, width) else scale(photo, rows, columns)
        views.append(scale(in_numpy(np.rint(seen), TAPS, 0.3), height, width))
    grey = read_grey(tmp_path / "out/car_01.png")
    expected = 255 * np.mean(views, axis=0)
    assert np.abs(expected - 255 * views[1]).max() > 10
    assert np.abs(grey - expected).max() < 1.6  # OpenCV interpolates bytes in fixed point


@pytest.mark.parametrize("tta_name", ["none", "hflip", "flips"])
@pytest.mark.parametrize("average", ["probability", "logit"])
def test_tiles_give_what_whole_photos_give(tmp_path, tta_name, average):
    samples = make_samples(tmp_path, [(24, 31), (24, 31), (16, 16), (50, 41)])
    engines = [keras_engine(make_model(t, 0.3), PAD, "cpu:0") for t in (TAPS, -TAPS)]
    for name, tiling in (("whole", None), ("tiled", Tiling(16, 8))):
        settings = Settings(2, tta_name, average=average, tiling=tiling)
        pipeline.run(samples, [engines], probabilities(tmp_path / name), settings)
    for sample in samples:
        whole = read_grey(tmp_path / f"whole/{sample.stem}.png").astype(int)
        tiled = read_grey(tmp_path / f"tiled/{sample.stem}.png").astype(int)
        assert np.abs(tiled - whole).max() <= 1  # values on the verge of rounding
        assert np.mean(tiled != whole) < 0.01


def test_tiles_of_a_huge_photo_are_cut_batch_by_batch(tmp_path):
    (sample,) = make_samples(tmp_path, [(160, 240)])
    shapes = []

    def predict(batch):
        shapes.append(batch.shape)
        return batch[..., 0] / np.float32(255)

    settings = Settings(3, "flips", tiling=Tiling(32, 8))
    pipeline.run([sample], [[fake(predict)]], probabilities(tmp_path / "out"), settings)
    assert {shape[1:] for shape in shapes} == {(32, 32, 3)}
    assert max(shape[0] for shape in shapes) == 3
    photo = read_photo_by_hand(sample)
    assert_rounds(tmp_path / f"out/{sample.stem}.png", photo[..., 0] / 255)


def test_a_large_batch_of_tiles_is_no_large_batch_of_photos(tmp_path):
    """However many tiles are in a batch, few huge photos are in memory."""
    samples = make_samples(tmp_path, [(48, 64)] * 4)
    shapes = []

    def predict(batch):
        shapes.append(batch.shape)
        return batch[..., 0] / np.float32(255)

    settings = Settings(100, tiling=Tiling(32, 0))
    pipeline.run(samples, [[fake(predict)]], probabilities(tmp_path / "out"), settings)
    assert shapes == [(4, 32, 32, 3)] * 4


def test_only_the_box_is_predicted(tmp_path):
    samples = make_samples(tmp_path, [(24, 31), (24, 31), (30, 20)], stacked=1)
    found = [Box(-1, -1, 16, 24), Box(8, 3, 16, 16), Box(10, 9, 24, 24)]
    by_stem = {sample.stem: box for sample, box in zip(samples, found, strict=True)}
    taps = np.hstack([TAPS, [[0.2], [-0.3], [0.4]]])
    engine = keras_engine(make_model(taps, 0.3), PAD, "cpu:0")
    settings = Settings(2, "hflip", boxes=by_stem)
    pipeline.run(samples, [[engine]], probabilities(tmp_path / "out"), settings)
    for sample, box in zip(samples, found, strict=True):
        photo = np.dstack([read_photo_by_hand(sample), read_grey(sample.stacked[0])])
        height, width = photo.shape[:2]
        rows = slice(max(box.top, 0), min(box.top + box.height, height))
        columns = slice(max(box.left, 0), min(box.left + box.width, width))
        before = (rows.start - box.top, columns.start - box.left)
        after = (box.top + box.height - rows.stop, box.left + box.width - columns.stop)
        margins = [*zip(before, after, strict=True), (0, 0)]
        seen = np.pad(photo[rows, columns], margins, mode="reflect")
        p = np.mean([padded_reference(seen, taps, 0.3, flip) for flip in (False, True)], axis=0)
        expected = np.zeros((height, width))
        inner = p[before[0] :, before[1] :][
            : rows.stop - rows.start, : columns.stop - columns.start
        ]
        expected[rows, columns] = inner
        assert_rounds(tmp_path / f"out/{sample.stem}.png", expected)


def test_contrast_is_equalised_over_the_photo_before_a_box_is_cut(tmp_path):
    (sample,) = make_samples(tmp_path, [(64, 80)])
    box = Box(20, 10, 32, 24)
    engines = [fake(resizer=dataclasses.replace(PAD, clahe=clahe)) for clahe in (False, True)]
    photo = read_photo_by_hand(sample)
    looks = [photo, equalise(photo)]
    assert np.abs(looks[0].astype(int) - looks[1]).max() > 5
    for name, chosen, seen in (
        ("equalised", engines[1:], looks[1]),
        ("both", engines, np.mean(looks, axis=0)),
    ):
        settings = Settings(boxes={sample.stem: box})
        pipeline.run([sample], [chosen], probabilities(tmp_path / name), settings)
        expected = np.zeros((64, 80))
        expected[10:34, 20:52] = seen[10:34, 20:52, 0] / 255
        assert_rounds(tmp_path / name / f"{sample.stem}.png", expected)


def test_a_box_outside_its_photo_stops_all(tmp_path):
    (sample,) = make_samples(tmp_path, [(16, 16)])
    settings = Settings(boxes={sample.stem: Box(16, 0, 8, 8)})
    with pytest.raises(UserError, match=r"car0_01\.png.*lies outside"):
        pipeline.run([sample], [[fake()]], probabilities(tmp_path / "out"), settings)


def test_bytes_of_the_device_are_taken_where_nothing_is_averaged(tmp_path):
    samples = make_samples(tmp_path)
    calls = []

    def predict_uint8(batch):
        calls.append(batch.shape)
        return 255 - batch[..., 1]

    engine = dataclasses.replace(fake(fail), predict_uint8=predict_uint8)
    settings = Settings(2, average="logit")
    pipeline.run(samples, [[engine]], probabilities(tmp_path / "out"), settings)
    assert calls
    for sample in samples:
        grey = read_grey(tmp_path / f"out/{sample.stem}.png")
        np.testing.assert_array_equal(grey, 255 - read_photo_by_hand(sample)[..., 1])


@pytest.mark.parametrize(
    ("settings", "members", "resizer"),
    [
        (Settings(tta="hflip"), 1, PAD),
        (Settings(tta="scales"), 1, PAD),
        (Settings(tiling=Tiling(16, 8)), 1, PAD),
        (Settings(), 2, PAD),
        (Settings(), 1, Resizer("resize", 16, 16, 8)),
    ],
)
def test_bytes_of_the_device_are_not_averaged(tmp_path, settings, members, resizer):
    samples = make_samples(tmp_path, [(24, 31)])
    engine = dataclasses.replace(fake(resizer=resizer), predict_uint8=fail)
    outcome = pipeline.run(samples, [[engine] * members], probabilities(tmp_path / "out"), settings)
    assert outcome.written == 1


def test_cutouts_have_the_pixels_of_the_whole_photo(tmp_path):
    samples = make_samples(tmp_path, stacked=1)
    by_stem = {sample.stem: Box(2, 3, 8, 8) for sample in samples}
    with writers.create("cutout", tmp_path / "out", samples) as output:
        pipeline.run(samples, [[fake()]], output, Settings(2, boxes=by_stem))
    for sample in samples:
        photo = read_photo_by_hand(sample)
        alpha = np.zeros(photo.shape[:2], np.uint8)
        alpha[3:11, 2:10] = photo[3:11, 2:10, 0]
        data = (tmp_path / f"out/{sample.stem}.png").read_bytes()
        assert data == Cutter(CutoutOptions()).encode(alpha, photo)


def test_a_submission_lacks_no_photo(tmp_path):
    samples = make_samples(tmp_path, SIZES * 3)
    path = tmp_path / "out" / SUBMISSION
    with writers.create("rle", tmp_path / "out", samples) as output:
        pipeline.run(samples, [[fake()], [fake()]], output, Settings(2))
    rows = list(submission.read_rows(path))
    assert [image for image, _ in rows] == [sample.photo.name for sample in samples]
    for sample, (_, text) in zip(samples, rows, strict=True):
        red = read_photo_by_hand(sample)[..., 0]
        np.testing.assert_array_equal(rle.decode(text, *red.shape), red > 127)
    path.unlink()
    samples[7].photo.write_bytes(b"")
    with writers.create("rle", tmp_path / "out", samples) as output:
        outcome = pipeline.run(samples, [[fake()]], output, Settings(2))
    assert [problem for _, problem in outcome.unreadable if "0 bytes" in problem]
    left = [sample.photo.name for sample in samples if sample is not samples[7]]
    assert [image for image, _ in submission.read_rows(path)] == left


def test_models_of_different_resizers_are_averaged_as_floats(tmp_path):
    samples = make_samples(tmp_path)
    wide = Resizer("pad", 0, 0, 32)
    members = [(TAPS, 0.3, PAD), (TAPS[::-1], -0.2, PAD), (-TAPS, 0.1, wide)]
    engines = [keras_engine(make_model(t, b), resizer, "cpu:0") for t, b, resizer in members]
    pipeline.run(samples, [engines], probabilities(tmp_path / "out"), Settings(3))
    for sample in samples:
        photo = read_photo_by_hand(sample)
        parts = [padded_reference(photo, taps, bias) for taps, bias, _ in members]
        inner = np.s_[:, 1:-1]  # the zeros next to the padded photo differ with the stride
        grey = read_grey(tmp_path / f"out/{sample.stem}.png")
        assert np.abs(grey - 255 * np.mean(parts, axis=0))[inner].max() < 0.5 + 1e-3


def test_stacked_channels_follow_rgb_where_a_model_takes_them(tmp_path):
    samples = make_samples(tmp_path, [(16, 16), (24, 8)], stacked=2)
    seen = []

    def predict(batch):
        seen.append(batch.shape[-1])
        return batch[..., -1] / np.float32(255)

    engines = [Engine(PAD, 5, predict), Engine(PAD, 3, predict)]
    pipeline.run(samples, [engines], probabilities(tmp_path / "out"), Settings())
    assert seen == [5, 3] * 2
    for sample in samples:
        last = read_grey(sample.stacked[1]) / 2 + read_photo_by_hand(sample)[..., 2] / 2
        assert_rounds(tmp_path / f"out/{sample.stem}.png", last / 255)


def test_bytes_do_not_depend_on_threads_and_devices(tmp_path):
    samples = make_samples(tmp_path, SIZES * 4)
    produced = []
    for name, devices, threads in (("one", 1, 1), ("many", 2, 3)):
        engines = [
            [keras_engine(make_model(t, 0.3), PAD, "cpu:0") for t in (TAPS, -TAPS)]
            for _ in range(devices)
        ]
        settings = Settings(2, "hflip", threads, threads)
        pipeline.run(samples, engines, probabilities(tmp_path / name), settings)
        paths = sorted((tmp_path / name).iterdir())
        produced.append({path.name: path.read_bytes() for path in paths})
    assert len(produced[0]) == len(samples)
    assert produced[0] == produced[1]


def test_every_stream_of_an_engine_gets_a_thread(tmp_path):
    together = threading.Barrier(2, timeout=30)

    def predict(batch):
        together.wait()  # passes only where two threads are in here
        return batch[..., 0] / np.float32(255)

    samples = make_samples(tmp_path, SIZES[:1] * 4)
    engine = dataclasses.replace(fake(predict), streams=2)
    outcome = pipeline.run(samples, [[engine]], probabilities(tmp_path / "out"), Settings())
    assert outcome.written == 4
    assert {row["threads"] for row in outcome.stages if row["pool"] == "network"} == {2}


def test_batches_hold_equal_shapes_and_every_photo_once(tmp_path):
    samples = make_samples(tmp_path, SIZES * 2)
    shapes = []

    def predict(batch):
        shapes.append(batch.shape)
        return batch[..., 0] / np.float32(255)

    pipeline.run(
        samples, [[fake(predict)]], probabilities(tmp_path / "out"), Settings(4, readers=1)
    )
    assert sum(shape[0] for shape in shapes) == 10
    assert max(shape[0] for shape in shapes) == 3
    assert {shape[1:] for shape in shapes} == {(24, 32, 3), (16, 16, 3), (16, 40, 3)}


def test_unreadable_photos_are_reported_and_the_rest_is_done(tmp_path):
    samples = make_samples(tmp_path, SIZES)
    samples[1].photo.write_bytes(b"")
    samples[3].photo.unlink()
    outcome = pipeline.run(samples, [[fake()]], probabilities(tmp_path / "out"), Settings(2))
    assert outcome.written == 3
    assert [path.stem for path in sorted((tmp_path / "out").iterdir())] == [
        samples[i].stem for i in (0, 2, 4)
    ]
    assert len(outcome.unreadable) == 2
    assert [file for file, _ in outcome.unreadable] == [str(samples[i].photo) for i in (1, 3)]
    assert "0 bytes" in outcome.unreadable[0][1]


def test_a_stacked_channel_of_another_size_is_reported(tmp_path):
    samples = make_samples(tmp_path, [(16, 16)] * 2, stacked=1)
    write_probability(samples[0].stacked[0], np.zeros((8, 8), np.uint8))
    outcome = pipeline.run(samples, [[fake()]], probabilities(tmp_path / "out"), Settings())
    assert outcome.written == 1
    assert "is 8x8 but its photo is 16x16" in outcome.unreadable[0][1]


class Broken(Exception):
    pass


def fail(*_):
    raise Broken


class InternalError(Exception):
    """As TensorFlow's."""


LOST = InternalError("CUDA error: the device is lost")


class Devices:
    """Devices of which some fail at their n-th batch, while the others wait for that.

    Attributes:
        seen: The batches that each device finished, in bytes.
        failures: What `pipeline.run` reports.
    """

    def __init__(self, broken, error=LOST, count=2):
        self.seen = [[] for _ in range(count)]
        self.failures = []
        self._broken, self._error = broken, error
        self._gone = [threading.Event() for _ in broken]

    def engine(self, number):
        def predict(batch):
            at = self._broken.get(number)
            if at is None:
                assert all(gone.wait(30) for gone in self._gone)
            elif at <= len(self.seen[number]):
                self._gone.pop().set()
                raise self._error
            self.seen[number].append(batch.tobytes())
            return batch[..., 0] / np.float32(255)

        return dataclasses.replace(fake(predict), device=f"gpu:{number}")

    def run(self, samples, out, settings=None):
        engines = [[self.engine(number)] for number in range(len(self.seen))]
        return pipeline.run(
            samples,
            engines,
            probabilities(out),
            settings or Settings(),
            on_failure=self.failures.append,
        )


@pytest.mark.parametrize("batches", [4, 12])
def test_other_devices_do_the_photos_of_one_that_fails(tmp_path, batches):
    """Also where nothing but the batch of the failed device is left."""
    samples = make_samples(tmp_path, [(8, 8)] * batches)
    pipeline.run(samples, [[fake()]], probabilities(tmp_path / "one"), Settings())
    devices = Devices({1: min(2, batches - 2)})
    outcome = devices.run(samples, tmp_path / "two")
    assert (outcome.written, outcome.unreadable) == (batches, [])
    (failure,) = devices.failures
    assert failure.device == "gpu:1"
    assert failure.error == "InternalError: CUDA error: the device is lost"
    done = [*devices.seen[0], *devices.seen[1]]
    assert len(devices.seen[1]) == 2
    assert len(done) == len(set(done)) == batches
    for sample in samples:
        name = f"{sample.stem}.png"
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_the_last_batch_comes_back_to_devices_that_had_nothing_left(tmp_path):
    samples = make_samples(tmp_path, [(8, 8)])
    idle = threading.Event()
    calls = []

    def predict(batch):
        calls.append(1)
        if len(calls) == 1:
            idle.wait(0.3)  # the other one waits for a batch by now, and must not have ended
            raise InternalError
        return batch[..., 0] / np.float32(255)

    engines = [[dataclasses.replace(fake(predict), device=name)] for name in ("a", "b")]
    outcome = pipeline.run(samples, engines, probabilities(tmp_path / "out"), Settings())
    assert outcome.written == 1


def test_when_all_devices_have_failed_so_has_the_run(tmp_path):
    samples = make_samples(tmp_path, [(8, 8)] * 12)
    devices = Devices({0: 2, 1: 2})
    with pytest.raises(UserError, match=r"car\d+_01\.png' failed: Internal.* 1 of 2 devices"):
        devices.run(samples, tmp_path / "out")
    assert len(devices.failures) <= 1  # the second one is the error itself
    assert len(list((tmp_path / "out").glob("*.png"))) <= 4


def test_a_batch_that_fails_on_two_devices_ends_the_run(tmp_path):
    """It is hardly their fault, and would take all others with it."""
    samples = make_samples(tmp_path, [(8, 8)] * 6)
    bad = read_photo_by_hand(samples[3])
    calls = []

    def predict(batch):
        if (batch[0] == bad).all():
            calls.append(1)
            raise InternalError
        return batch[..., 0] / np.float32(255)

    engines = [[dataclasses.replace(fake(predict), device=f"gpu:{i}")] for i in range(4)]
    with pytest.raises(UserError, match=r"car3_01\.png' failed: InternalError"):
        pipeline.run(samples, engines, probabilities(tmp_path / "out"), Settings())
    assert len(calls) == 2


def test_a_device_with_too_little_memory_for_one_photo_leaves_it_to_others(tmp_path):
    samples = make_samples(tmp_path, [(8, 8)] * 8)
    devices = Devices({1: 1}, MemoryError())
    outcome = devices.run(samples, tmp_path / "out")
    assert outcome.written == 8
    (failure,) = devices.failures
    assert failure.memory
    assert re.fullmatch(r"out of memory while predicting '.*_01\.png'", failure.error)


@pytest.mark.parametrize("settings", [Settings(2), Settings(tta="hflip")])
def test_where_batches_can_be_smaller_no_device_is_given_up(tmp_path, settings):
    samples = make_samples(tmp_path, [(8, 8)] * 8)
    devices = Devices({1: 0}, MemoryError())
    with pytest.raises(OutOfMemory):
        devices.run(samples, tmp_path / "out", settings)
    assert not devices.failures


@pytest.mark.parametrize("error", [ValueError("shapes do not match"), UserError("NaN")])
def test_what_is_no_fault_of_a_device_stops_all_of_them(tmp_path, error):
    samples = make_samples(tmp_path, [(8, 8)] * 12)
    devices = Devices({1: 0}, error)
    with pytest.raises(UserError, match=str(error)):
        devices.run(samples, tmp_path / "out")
    assert not devices.failures


@pytest.mark.parametrize("pool", ["reader", "network", "writer"])
def test_a_failure_in_any_pool_stops_all(tmp_path, monkeypatch, pool):
    samples = make_samples(tmp_path, [(8, 8)] * 40)
    engines = [[fake()], [fake()]]
    if pool == "reader":
        monkeypatch.setattr(pipeline, "read_channels", fail)
    elif pool == "network":
        engines[1] = [fake(fail)]
    else:
        monkeypatch.setattr(writers, "write_bytes", fail)
    raised = []

    def call():
        try:
            pipeline.run(samples, engines, probabilities(tmp_path / "out"), Settings())
        except UserError as error:
            raised.append(str(error))

    before = threading.active_count()
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "the pipeline hangs"
    (message,) = raised
    assert re.search(r"car\d+_01\.png.* failed: Broken", message)
    assert threading.active_count() == before


def test_a_failure_frees_pools_that_wait_on_full_channels(tmp_path, monkeypatch):
    samples = make_samples(tmp_path, [(8, 8)] * 60)
    gate = threading.Event()

    def late(*_):
        gate.wait(30)
        raise Broken

    monkeypatch.setattr(writers, "write_bytes", late)
    threading.Timer(0.5, gate.set).start()  # by then readers and network wait for space
    start = time.monotonic()
    with pytest.raises(UserError, match="Broken"):
        pipeline.run(samples, [[fake()]], probabilities(tmp_path / "out"), Settings())
    assert time.monotonic() - start < 25


def test_a_network_that_gives_nan_is_refused(tmp_path):
    (sample,) = make_samples(tmp_path, [(8, 8)])
    engine = fake(lambda batch: np.full(batch.shape[:3], np.nan, np.float32))
    with pytest.raises(UserError, match=r"NaN.*car0_01"):
        pipeline.run([sample], [[engine]], probabilities(tmp_path / "out"), Settings())
    assert not list((tmp_path / "out").glob("*.png"))


class Interrupts:
    """Interrupts the main thread where Python ignores all exceptions."""

    def __del__(self):
        _thread.interrupt_main()


@pytest.mark.parametrize("deleted", [False, True])
def test_an_interrupt_stops_all_and_keeps_what_is_written(tmp_path, deleted):
    samples = make_samples(tmp_path, [(8, 8)] * 50)
    calls = []

    def predict(batch):
        time.sleep(0.02)
        calls.append(1)
        return batch[..., 0] / np.float32(255)

    seen = []

    def on_photo():
        seen.append(1)
        if len(seen) == 3:
            # The one is deleted as soon as it is made.
            Interrupts() if deleted else _thread.interrupt_main()

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(
            samples,
            [[fake(predict)]],
            probabilities(tmp_path / "out"),
            Settings(),
            on_photo,
        )
    assert threading.active_count() == before
    assert len(calls) < 50
    written = list((tmp_path / "out").iterdir())
    assert 3 <= len(written) < 50
    assert all(read_grey(path).shape == (8, 8) for path in written)


@pytest.mark.parametrize("signals", [1, 2])
def test_an_interrupt_during_the_start_leaves_no_thread_behind(tmp_path, monkeypatch, signals):
    samples = make_samples(tmp_path, [(8, 8)] * 50)
    started = []

    class Interrupting(threading.Thread):
        def start(self):
            super().start()
            started.append(self)
            if len(started) <= signals:
                _thread.interrupt_main()

    threads = types.SimpleNamespace(**vars(threading) | {"Thread": Interrupting})
    monkeypatch.setattr(pipeline, "threading", threads)

    def predict(batch):
        time.sleep(0.02)
        return batch[..., 0] / np.float32(255)

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(samples, [[fake(predict)]], probabilities(tmp_path / "out"), Settings())
    assert len(started) >= signals
    assert not any(thread.is_alive() for thread in started)
    assert len(list((tmp_path / "out").glob("*"))) < 50


def test_an_interrupt_just_before_the_main_thread_waits_is_not_lost(tmp_path, monkeypatch):
    """The handler runs in the thread that is to be woken, which does not wait yet."""
    samples = make_samples(tmp_path, [(8, 8)] * 50)
    main, waits = threading.current_thread(), []

    class Queue(SimpleQueue):
        def get(self):
            if threading.current_thread() is main:
                waits.append(1)
                if len(waits) == 4:
                    _thread.interrupt_main()
            return super().get()

    monkeypatch.setattr(pipeline, "SimpleQueue", Queue)
    late = []
    rescue = threading.Timer(30, lambda: (late.append(1), _thread.interrupt_main()))
    rescue.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(samples, [[fake()]], probabilities(tmp_path / "out"), Settings())
    finally:
        rescue.cancel()
    assert not late


def test_an_interrupt_after_the_last_photo_undoes_nothing(tmp_path):
    samples = make_samples(tmp_path, [(8, 8)] * 3)
    seen = []

    def on_photo():
        seen.append(1)
        if len(seen) == 3:
            _thread.interrupt_main()

    output = probabilities(tmp_path / "out")
    assert pipeline.run(samples, [[fake()]], output, Settings(), on_photo).written == 3


def test_an_ignored_signal_stays_ignored(tmp_path):
    samples = make_samples(tmp_path, [(8, 8)] * 3)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        output = probabilities(tmp_path / "out")
        outcome = pipeline.run(samples, [[fake()]], output, Settings(), _thread.interrupt_main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.written == 3


def test_stages_add_up_to_the_time_of_their_threads(tmp_path):
    samples = make_samples(tmp_path, [(8, 8)] * 10)

    def predict(batch):
        time.sleep(0.03)
        return batch[..., 0] / np.float32(255)

    outcome = pipeline.run(samples, [[fake(predict)]], probabilities(tmp_path / "out"), Settings())
    seconds = {(row["pool"], row["stage"]): row["seconds"] for row in outcome.stages}
    assert seconds["network", "network"] >= 0.3
    assert all(value >= 0 for value in seconds.values())
    for pool, stages in pipeline.POOLS.items():
        assert {stage for p, stage in seconds if p == pool} == {*stages, pipeline.WAITING}
        threads = next(row["threads"] for row in outcome.stages if row["pool"] == pool)
        assert sum(v for (p, _), v in seconds.items() if p == pool) <= outcome.seconds * threads
    assert "network" in pipeline.format_times(outcome.stages, 10)


def test_a_channel_ends_after_its_last_producer():
    channel = Channel(3, producers=2)
    channel.put("a")
    channel.finish()
    channel.put("b")
    channel.finish()
    assert [channel.get(), channel.get(), channel.get()] == ["a", "b", None]


def test_a_full_channel_holds_its_producer_back():
    channel = Channel(1, producers=1)
    channel.put(0)
    passed = threading.Event()
    thread = threading.Thread(target=lambda: (channel.put(1), passed.set()), daemon=True)
    thread.start()
    assert not passed.wait(0.1)
    assert channel.get() == 0
    assert passed.wait(10)
    assert channel.get() == 1


def test_a_cancelled_channel_frees_all_who_wait():
    full, empty = Channel(0, producers=1), Channel(1, producers=1)
    freed = []

    def wait(call):
        try:
            call()
        except Cancelled:
            freed.append(1)

    threads = [
        threading.Thread(target=wait, args=(call,), daemon=True)
        for call in (lambda: full.put(1), empty.get)
    ]
    for thread in threads:
        thread.start()
    full.cancel()
    empty.cancel()
    for thread in threads:
        thread.join(10)
    assert len(freed) == 2
    with pytest.raises(Cancelled):
        empty.put(1)


@pytest.mark.parametrize("again", [True, False])
def test_nan_is_reported_with_photos_whether_or_not_it_comes_again(tmp_path, again):
    """Engines that round to bytes say only that there was NaN: the batch is computed again."""
    samples = make_samples(tmp_path)[:2]

    def rounded(batch):
        raise NotANumber

    def predict(batch):
        output = batch[..., 0] / np.float32(255)
        output[-1] = np.nan if again else 0
        return output

    engine = Engine(PAD, 3, predict, predict_uint8=rounded, path="m.keras")
    with pytest.raises(UserError) as caught:
        pipeline.run(samples, [[engine]], probabilities(tmp_path), Settings(batch_size=2))
    first, second = (str(sample.photo) for sample in samples)
    assert second in str(caught.value)
    assert (first in str(caught.value)) != again  # which of the two is not known then
    assert ("not a second time" in str(caught.value)) != again


class Numbers:
    """An output of a task whose predictions are a few numbers per photo."""

    shows_photo = False
    takes_uint8 = False

    def __init__(self):
        self.found = {}

    def restore(self, output, resizer, size):
        return output

    def encode(self, prediction, photo, path=None):
        assert photo is None
        return prediction.tobytes()

    def write(self, sample, data):
        self.found[sample.stem] = np.frombuffer(data, np.float32)

    def skip(self, sample, problem):
        raise AssertionError


def mean_and_left():
    """A network that gives the means of the photo and of its left half, of 8 x 16."""
    photo = keras.Input((8, 16, 3))
    x = keras.layers.Rescaling(1 / 51)(photo)  # up to 5: no probabilities
    means = [keras.ops.mean(y, axis=(1, 2, 3), keepdims=True) for y in (x, x[:, :, :8])]
    return keras.Model(photo, keras.layers.Flatten()(keras.ops.concatenate(means, axis=-1)))


@pytest.mark.parametrize("tta_name", ["none", "hflip"])
def test_numbers_per_photo_are_predicted_as_masks_are(tmp_path, tta_name):
    """The pipeline and its engines know no mask: another output makes another task."""
    samples = make_samples(tmp_path, [(8, 16), (8, 16), (8, 16)])
    engine = keras_engine(mean_and_left(), Resizer("resize", 8, 16, 8), "cpu:0")
    output = Numbers()
    pipeline.run(samples, [[engine]], output, Settings(2, tta_name))
    for sample in samples:
        photo = read_photo_by_hand(sample) / 51
        left = photo[:, :8].mean()
        if tta_name == "hflip":
            left = (left + photo[:, 8:].mean()) / 2
        np.testing.assert_allclose(output.found[sample.stem], [photo.mean(), left], rtol=1e-5)
    assert output.found.keys() == {sample.stem for sample in samples}
