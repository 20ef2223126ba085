"""tools/decode_submission.py: rows become masks again, in either order of pixels."""

import numpy as np
import pytest
from absl import flags as absl_flags

from carvana_tf import commands, flags
from carvana_tf.data.dataset import Naming
from carvana_tf.data.images import read_mask, write_mask, write_photo, write_probability
from carvana_tf.errors import UserError
from carvana_tf.evaluation import rows
from carvana_tf.masks import rle, submission


@pytest.fixture
def decode(monkeypatch, tmp_path):
    """Runs the command in this process: `decode("--flag=1", ...)`."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: commands.find("decode_submission").call(arguments)


@pytest.fixture
def masks(tmp_path):
    """Masks of two sizes, photos of theirs, and the submission in both orders."""
    random = np.random.default_rng(0)
    found, lines = {}, {order: ["img,rle_mask"] for order in rle.ORDERS}
    for i, stem in enumerate(["a_1", "scan_1.5", "b_1"]):
        mask = random.random((5 + i, 7)) > 0.5
        found[stem] = mask
        write_photo(tmp_path / f"photos/{stem}.png", np.zeros((*mask.shape, 3), np.uint8))
        for order, pixels in zip(rle.ORDERS, (mask, mask.T), strict=True):
            lines[order].append(f"{stem}.jpg,{rle.encode_text(np.ascontiguousarray(pixels))}")
    for order, text in lines.items():
        (tmp_path / f"{order}.csv").write_text("\n".join(text) + "\n")
    return found


@pytest.mark.parametrize("order", rle.ORDERS)
def test_masks_come_back(decode, masks, tmp_path, order):
    assert decode(
        f"--submission={order}.csv", f"--order={order}", "--test_data_dir=photos", "--out_dir=out"
    ) == 0  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{stem}.png" for stem in masks
    )
    for stem, mask in masks.items():
        assert np.array_equal(read_mask(tmp_path / f"out/{stem}.png"), mask)


def test_named_rows_alone_by_a_given_size(decode, masks, tmp_path):
    given = ("--submission=row-major.csv", "--img_width=7", "--img_height=5")
    assert decode(*given, "--out_dir=out", "--images=a_1") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_1.png"]
    with pytest.raises(UserError, match=r"holds 1 of these files already \(a_1\.png\)"):
        decode(*given, "--out_dir=out", "--images=a_1.jpg")
    with pytest.raises(UserError, match=r"no row for 1 of --images: x\.jpg"):
        decode(*given, "--out_dir=out", "--images=x.jpg")


def test_a_bad_row_is_named_and_the_rest_is_done(decode, masks, tmp_path, capsys):
    with (tmp_path / "row-major.csv").open("a") as stream:
        stream.write("unknown.jpg,1 1\n")
    with pytest.raises(UserError, match=r"1 rows of .row-major\.csv. have no mask"):
        decode("--submission=row-major.csv", "--test_data_dir=photos", "--out_dir=out")
    assert "'unknown.jpg': there is no such photo in 'photos'" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_rows_that_would_be_one_file_are_refused(decode, tmp_path):
    (tmp_path / "s.csv").write_text("img,rle_mask\nx/a.jpg,\ny/a.png,\n")
    with pytest.raises(UserError, match="would be one file"):
        decode("--submission=s.csv", "--img_width=7", "--img_height=5", "--out_dir=out")


def test_everything_that_is_missing_is_named(decode):
    with pytest.raises(UserError, match=r"--submission is .*--out_dir is .*--img_height"):
        decode()


def test_what_was_encoded_is_decoded(decode, tmp_path):
    grey = np.random.default_rng(1).integers(0, 256, (9, 11), dtype=np.uint8)
    write_probability(tmp_path / "m/a.png", grey)
    submission.write(tmp_path / "s.csv.gz", submission.rows_of_folder(tmp_path / "m", ".jpg"))
    decode("--submission=s.csv.gz", "--img_width=11", "--img_height=9", "--out_dir=out")
    assert np.array_equal(read_mask(tmp_path / "out/a.png"), grey > 127)


@pytest.mark.parametrize("order", rle.ORDERS)
def test_scores_of_either_order_and_a_hint(masks, tmp_path, order):
    for stem, mask in masks.items():
        write_mask(tmp_path / f"truth/{stem}_mask.png", mask)
    truths = {stem: tmp_path / f"truth/{stem}_mask.png" for stem in masks}
    other = next(name for name in rle.ORDERS if name != order)
    right = rows.score(tmp_path / f"{order}.csv", truths, Naming(), order=order)
    assert right.photos["dice"].tolist() == [1.0] * 3
    wrong = rows.score(tmp_path / f"{other}.csv", truths, Naming(), order=order)
    assert wrong.other_order[1] == 1.0 > wrong.other_order[0]


def test_published_command_lines_are_understood():
    registry = absl_flags.FlagValues()
    absl_flags.DEFINE_list("dirs_to_ensemble", [], "", registry)
    absl_flags.DEFINE_string("folds_dir", "", "", registry)

    def words(*arguments):
        return flags.joined(registry, arguments)

    assert words("--dirs_to_ensemble", "a", "b", "c", "--folds_dir", "x") == [
        "--dirs_to_ensemble=a,b,c", "--folds_dir", "x",
    ]  # fmt: skip
    assert words("--dirs_to_ensemble=a", "b") == ["--dirs_to_ensemble=a,b"]
    assert words("--folds_dir", "x", "y", "--other", "z") == [
        "--folds_dir", "x", "y", "--other", "z",
    ]  # fmt: skip
    assert words("--", "--dirs_to_ensemble", "a") == ["--", "--dirs_to_ensemble", "a"]


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--overwrite=yes"], True),
        (["--overwrite", "no"], False),
        (["--overwrite=Off"], False),
        (["--overwrite", "1"], True),
        (["--nooverwrite"], False),
        (["--overwrite"], True),
    ],
)
def test_yes_and_no_are_words(arguments, value):
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Group:
        overwrite: bool = flags.option(False, "Whether.")

    assert flags.parse((Group,), arguments)[Group].overwrite is value
    with pytest.raises(UserError, match="neither yes nor no"):
        flags.parse((Group,), ["--overwrite=perhaps"])
