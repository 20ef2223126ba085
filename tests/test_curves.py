"""Learning curves and pictures of training samples."""

import shutil

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure

from carvana_tf import commands
from carvana_tf.data.dataset import find_samples
from carvana_tf.data.images import read_grey, read_mask, read_photo
from carvana_tf.data.loader import TrainingSet
from carvana_tf.data.presets import Augmentation
from carvana_tf.data.resizing import Resizer
from carvana_tf.errors import UserError
from carvana_tf.tasks import MASKS
from carvana_tf.tasks.masks.losses import weights as weights_of
from carvana_tf.training import curves, debug

BLUE, RED = (0, 114, 178), (213, 94, 0)


def row(epoch, **validation):
    return {"epoch": epoch, "loss": 1 / epoch, "dice": 0.5, "learning_rate": 0.1} | validation


def colours(path):
    picture = read_photo(path)
    return {tuple(colour) for colour in picture.reshape(-1, 3)}


def test_the_picture_has_a_line_for_what_there_is(tmp_path):
    path = tmp_path / "curves.png"
    curves.draw([curves.Curve("run", [row(1), row(2)])], path, title="run")
    assert BLUE in colours(path)
    assert RED not in colours(path)
    # Validated every second epoch only.
    validated = row(2, val_loss=1.0, val_dice=0.4)
    curves.draw([curves.Curve("run", [row(1), validated])], path)
    assert {BLUE, RED} <= colours(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["curves.png"]
    # Of a column of the validation there is nothing else.
    curves.draw([curves.Curve("run", [row(1), validated])], path, columns=["val_dice"])
    assert RED in colours(path)
    assert BLUE not in colours(path)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        curves.draw([curves.Curve("run", [row(1)])], tmp_path / "file" / "curves.png")


@pytest.fixture
def runs(tmp_path):
    """The logs of two runs, one of which validated every second epoch."""
    for name, every in (("a", 1), ("b", 2)):
        lines = ["epoch,loss,dice,val_loss,val_dice,learning_rate"]
        for epoch in range(1, 5):
            validation = f"{0.5 / epoch},{0.9 + epoch / 100}" if epoch % every == 0 else ","
            lines.append(f"{epoch},{1 / epoch},{0.8 + epoch / 50},{validation},0.001")
        (tmp_path / f"{name}-fold_0").mkdir()
        (tmp_path / f"{name}-fold_0" / "log.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def plot(capsys, *flags):
    """Output of the command, run here."""
    commands.find("plot_curves").call(flags)
    return capsys.readouterr().out


def axes_of(monkeypatch):
    """Keeps every figure that is drawn, to look at its axes."""
    figures = []

    class Kept(Figure):
        def savefig(self, *arguments, **settings):
            figures.append(self)
            super().savefig(*arguments, **settings)

    monkeypatch.setattr(curves, "Figure", Kept)
    return figures


def test_several_runs_in_one_picture(runs, capsys, monkeypatch):
    figures = axes_of(monkeypatch)
    out = runs / "curves.svg"
    names = f"--runs={runs}/a-fold_0,{runs}/b-fold_0/log.csv"
    limits = ("--xlim=2..4", "--ylim=dice=0.9..0.95,loss=..1")
    expected_message = plot(capsys, names, "--columns=dice,loss", *limits, f"--out={out}")
    assert f"2 runs, dice, loss -> {out}" in expected_message
    (figure,) = figures
    dice, loss = figure.axes
    assert (dice.get_ylabel(), loss.get_ylabel()) == ("Dice", "loss")
    assert dice.get_ylim() == pytest.approx((0.9, 0.95))
    assert loss.get_ylim()[1] == 1
    assert loss.get_xlim() == dice.get_xlim() == (2, 4)
    lines = {line.get_label(): line for line in dice.lines}
    assert list(lines) == [f"{run}-fold_0, {p}" for run in "ab" for p in ("training", "validation")]
    np.testing.assert_allclose(lines["b-fold_0, validation"].get_xydata(), [[2, 0.92], [4, 0.94]])
    colours = [line.get_color() for line in dice.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    first = out.read_bytes()
    assert first.startswith(b"<?xml")
    plot(capsys, names, "--columns=dice,loss", *limits, f"--out={out}")
    assert out.read_bytes() == first


def test_one_limit_for_all_and_runs_of_one_name(runs, capsys, monkeypatch):
    figures = axes_of(monkeypatch)
    (runs / "other").mkdir()
    shutil.copytree(runs / "a-fold_0", runs / "other" / "a-fold_0")
    monkeypatch.chdir(runs)
    plot(capsys, "--runs=a-fold_0,other/a-fold_0", "--ylim=0..2", "--out=curves.PNG")
    assert [axis.get_ylim() for axis in figures[0].axes] == [(0, 2)] * 3
    labels = [line.get_label() for line in figures[0].axes[0].lines]
    assert labels[::2] == ["a-fold_0, training", "other/a-fold_0, training"]
    assert read_photo(runs / "curves.PNG").shape == (900, 800, 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--runs is required"),
        (["--runs=absent"], "'absent' does not exist"),
        (["--runs=a-fold_0", "--out=curves.pdf"], "--out must end in .png or .svg"),
        (["--runs=a-fold_0", "--columns=dise"], "Did you mean 'dice'.*val_loss"),
        (["--runs=a-fold_0", "--columns="], "--columns is empty; known: loss, dice"),
        (["--runs=a-fold_0", "--xlim=4..2"], "--xlim='4..2' must be low..high"),
        (["--runs=a-fold_0", "--xlim=4"], "--xlim='4' must be low..high"),
        (["--runs=a-fold_0", "--ylim=dice=0..nan"], "--ylim='0..nan' must be"),
        (["--runs=a-fold_0", "--ylim=accuracy=0..1"], "the column 'accuracy' is unknown"),
        (["--runs=folds.csv"], "no column 'epoch' of numbers.*columns: id, fold"),
        (["--runs=empty.csv"], "'empty.csv' is no CSV file"),
    ],
)
def test_mistakes_of_plots_are_reported_in_one_line(runs, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(runs)
    (runs / "folds.csv").write_text("id,fold\na,0\n")
    (runs / "empty.csv").write_text("")
    with pytest.raises(UserError, match=message) as caught:
        plot(capsys, *flags)
    assert "\n" not in str(caught.value)
    assert not list(runs.glob("curves*"))


@pytest.fixture
def training(make_dataset):
    root = make_dataset()
    samples = find_samples(root / "train", root / "train_masks")
    whole = Resizer("pad", 0, 0, 8)
    return TrainingSet(samples, whole, Augmentation(), MASKS, batch_size=1, seed=3)


@pytest.mark.parametrize("loss", ["bce_dice", *weights_of.WEIGHTS])
def test_the_first_samples_are_drawn_as_the_network_sees_them(training, tmp_path, loss):
    debug.write_pictures(tmp_path / "debug", training, MASKS, loss, 2)
    kinds = ["mask", "overlay", "photo", *(["weights"] if loss in weights_of.WEIGHTS else [])]
    samples = [training.samples[training.pick(g)[1]] for g in range(2)]
    assert sorted(path.name for path in (tmp_path / "debug").iterdir()) == [
        f"{g:03d}_{sample.stem}_{kind}.png" for g, sample in enumerate(samples) for kind in kinds
    ]
    stem = tmp_path / "debug" / f"000_{samples[0].stem}"
    photo, mask = read_photo(f"{stem}_photo.png"), read_grey(f"{stem}_mask.png")
    np.testing.assert_array_equal(photo, read_photo(samples[0].photo))
    np.testing.assert_array_equal(mask > 127, read_mask(samples[0].mask))
    overlay = read_photo(f"{stem}_overlay.png").astype(int)
    np.testing.assert_array_equal(overlay[mask == 0], photo[mask == 0])
    red = np.array((255, 0, 0))
    assert (abs(overlay - (photo + red) / 2)[mask == 255] <= 0.5).all()
    if loss in weights_of.WEIGHTS:
        weights = read_grey(f"{stem}_weights.png")
        assert weights.max() == 255
        # Along the contour they are higher than in the corner.
        assert weights[mask == 255].max() > weights[0, 0]


def test_pixel_weights_are_those_of_the_flag():
    truth = np.zeros((1, 32, 32, 1), np.float32)
    truth[:, :, 16:] = 1
    for loss, share in (("weighted_bce_dice", 3), ("weighted_bce_dice:boundary_weight=7", 7)):
        weights = np.asarray(weights_of.pixel_weights(loss)(truth))
        assert weights.max() / weights.min() == pytest.approx(share)
    assert weights_of.pixel_weights("dice:smooth=2") is None


def test_nothing_is_drawn_unasked(training, tmp_path):
    debug.write_pictures(tmp_path / "debug", training, MASKS, "bce_dice", 0)
    assert not (tmp_path / "debug").exists()


def test_distance_weights_are_those_of_the_loss():
    """With p = 1/2, cross-entropy is ln 2 in each pixel: only the weights are left."""
    from carvana_tf.tasks.masks import losses

    truth = np.zeros((1, 30, 40, 1), np.float32)
    truth[:, 10:20, 5:30] = 1
    half = np.full_like(truth, 0.5)
    weights = keras.ops.convert_to_numpy(weights_of.pixel_weights("distance_weighted")(truth))
    value = float(keras.ops.convert_to_numpy(losses.get("distance_weighted")(truth, half))[0])
    dice = float(keras.ops.convert_to_numpy(losses.get("dice")(truth, half))[0])
    assert value - dice == pytest.approx(np.log(2) * weights.mean(), rel=1e-5)
