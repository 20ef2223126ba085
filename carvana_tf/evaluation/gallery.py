"""The photos that a report shows: which ones, and their pictures next to the page."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from carvana_tf.data import names
from carvana_tf.data.dataset import list_images
from carvana_tf.data.images import (
    Reading,
    encode_palette,
    encode_photo,
    read_photo,
    resize,
    resize_mask,
    write_photo,
)
from carvana_tf.errors import UserError
from carvana_tf.evaluation import pictures
from carvana_tf.evaluation.pairs import Pair, read_pair
from carvana_tf.failures import named
from carvana_tf.files import Group, make_folder
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

FOLDER = "report_files"
"""Of the pictures of a report, next to it."""
PHOTOS = 300
"""In the gallery by default."""
SIDE = 1600
"""Longer side of the pictures by default, in pixels."""
THUMBNAIL = 300  # longer side of each of its four panels
_CLOSE_UP = 480  # longer side of twice the part with the most errors
_QUALITY = 82
_TWO_VALUES = pictures.ERRORS[:2]
_DIGITS = 5  # at least, of the number in a file's name


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Photos with pictures in a folder next to the page.

    Attributes:
        folder: Its name.
        layers: The masks of a photo: the names of their files and what they show.
        rows: For each photo its row in the table, in the order of the table.
        worst_part: For each of these the part of the photo with the most wrong pixels, as
            shares of its size: left, top, width, height.
        panels: What the four panels of a thumbnail show.
    """

    folder: str
    layers: tuple[tuple[str, str], ...]
    rows: tuple[int, ...]
    worst_part: tuple[tuple[float, ...], ...]
    panels: str


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How pictures are made.

    Attributes:
        side: Longer side in pixels; smaller photos keep their size.
        threads: That draw.
    """

    side: int = SIDE
    threads: int = 4


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """The files of one photo by name ("errors.png"), and where most pixels are wrong."""

    files: dict[str, bytes]
    worst_part: tuple[float, ...]


def choose(scores: pd.Series, available: Sequence[bool], most: int, seed: int = 80) -> list[int]:
    """Rows of the photos to show: a third the lowest, a third the highest, the rest at random.

    Args:
        scores: Of N photos.
        available: Whether each of them has a photo.
        most: How many; all where there are no more.
        seed: Of the random ones.

    Returns:
        Row numbers, ascending.
    """
    ranked = np.argsort(scores.to_numpy(), kind="stable")
    ranked = ranked[np.asarray(available, bool)[ranked]]
    if len(ranked) <= most:
        return sorted(map(int, ranked))
    lowest, highest = (most + 2) // 3, (most + 1) // 3
    middle = ranked[lowest : len(ranked) - highest]
    drawn = np.random.default_rng(seed).choice(middle, most - lowest - highest, replace=False)
    return sorted(map(int, (*ranked[:lowest], *ranked[len(ranked) - highest :], *drawn)))


def choose_and_draw(
    scores: pd.Series,
    available: Sequence[bool],
    most: int,
    folder: Path,
    draw: Callable[[list[int], Path], Gallery],
) -> Gallery | None:
    """The gallery of the photos of a table; None, and no folder, where none could be drawn.

    Args:
        scores: As of `choose`, like the two after it.
        available: See there.
        most: See there.
        folder: Where the pictures go; those of an earlier run go.
        draw: Draws these rows of the table into the folder.
    """
    rows = choose(scores, available, most)
    shown = draw(rows, folder) if rows else None
    if shown is None:
        clear(folder)
    return shown if shown and shown.rows else None


def find_photos(photo_dir: Path, stems: Iterable[str]) -> dict[str, Path]:
    """The photos of these stems that the folder has."""
    available = list_images(photo_dir) if photo_dir.is_dir() else {}
    return names.rekey(available, stems, f"'{photo_dir}'") if available else {}


def draw(
    pairs: Sequence[Pair],
    rows: Sequence[int],
    photos: dict[str, Path],
    threshold: int,
    folder: Path,
    drawing: Drawing,
) -> Gallery:
    """Draws photos with their ground truth, prediction, errors and outlines.

    Args:
        pairs: The files of each row of the table.
        rows: Those to be drawn.
        photos: By stem.
        threshold: A grey value greater than this is object.
        folder: Where the pictures go; those of an earlier run go.
        drawing: How.
    """

    def work(row: int) -> _Pictures:
        pair = pairs[row]
        grey, truth = read_pair(pair)
        prediction = grey > threshold
        size, photo = _photo(pair, photos, truth, drawing)
        shown, called = (resize_mask(mask, *size) for mask in (truth, prediction))
        errors = pictures.error_classes(truth, prediction, *size)
        files = {
            "photo.jpg": encode_photo(photo, ".jpg", _QUALITY),
            "truth.png": encode_palette(shown.view(np.uint8), _TWO_VALUES),
            "prediction.png": encode_palette(called.view(np.uint8), _TWO_VALUES),
            "errors.png": encode_palette(errors, pictures.ERRORS),
            "outlines.png": encode_palette(
                pictures.outline_classes(shown, called), pictures.OUTLINES
            ),
            "thumb.jpg": _thumbnail(photo, _black_and_white(truth), _black_and_white(prediction),
                                    _errors(truth, prediction)),
        }  # fmt: skip
        return _Pictures(files, _worst_part(truth != prediction))

    layers = (
        ("truth.png", "Ground truth"),
        ("prediction.png", "Prediction"),
        ("errors.png", "Errors"),
        ("outlines.png", "Outlines"),
    )
    panels = "photo, ground truth, prediction, errors"
    return _write(work, lambda row: photos[pairs[row].stem], rows, folder, layers, panels, drawing)


def draw_differences(
    ours: Sequence[Pair],
    other: Sequence[Pair],
    rows: Sequence[int],
    photos: dict[str, Path],
    thresholds: tuple[int, int],
    folder: Path,
    drawing: Drawing,
) -> Gallery:
    """Draws photos with the predictions and errors of two folders.

    Args:
        ours: The files of each row of the table of differences, with the masks here.
        other: The same with the masks there.
        rows: Those to be drawn.
        photos: By stem.
        thresholds: A greater grey value is object: here, and there.
        folder: Where the pictures go; those of an earlier run go.
        drawing: How.
    """

    def work(row: int) -> _Pictures:
        grey, truth = read_pair(ours[row])
        here, there = grey > thresholds[0], read_pair(other[row])[0] > thresholds[1]
        size, photo = _photo(ours[row], photos, truth, drawing)
        files = {"photo.jpg": encode_photo(photo, ".jpg", _QUALITY)}
        files["truth.png"] = encode_palette(resize_mask(truth, *size).view(np.uint8), _TWO_VALUES)
        for name, mask in (("errors", here), ("other_errors", there)):
            classes = pictures.error_classes(truth, mask, *size)
            files[f"{name}.png"] = encode_palette(classes, pictures.ERRORS)
        files["thumb.jpg"] = _thumbnail(
            photo, _black_and_white(truth), _errors(truth, here), _errors(truth, there)
        )
        return _Pictures(files, _worst_part(here != there))

    layers = (
        ("errors.png", "Errors here"),
        ("other_errors.png", "Errors there"),
        ("truth.png", "Ground truth"),
    )
    panels = "photo, ground truth, errors here, errors there"
    return _write(work, lambda row: photos[ours[row].stem], rows, folder, layers, panels, drawing)


def draw_photos(
    photo_of: Callable[[int], Path],
    rows: Sequence[int],
    folder: Path,
    drawing: Drawing,
    reading: Reading,
) -> Gallery:
    """Draws photos alone.

    Args:
        photo_of: The photo of a row of the table.
        rows: Those to be drawn.
        folder: Where the pictures go; those of an earlier run go.
        drawing: How.
        reading: The dataset's.
    """

    def work(row: int) -> _Pictures:
        photo = read_photo(photo_of(row), reading)
        sizes = {"photo.jpg": drawing.side, "thumb.jpg": 2 * THUMBNAIL}
        small = {
            name: resize(photo, *pictures.fit(photo.shape[:2], s)) for name, s in sizes.items()
        }
        files = {name: encode_photo(each, ".jpg", _QUALITY) for name, each in small.items()}
        return _Pictures(files, (0.0, 0.0, 1.0, 1.0))

    return _write(work, photo_of, rows, folder, (), "the photo", drawing)


def draw_examples(
    table: pd.DataFrame,
    pairs: Sequence[Pair],
    photos: dict[str, Path],
    threshold: int,
    target: Path,
) -> None:
    """Writes a picture of the best, median and worst photo.

    Args:
        table: From `scores.per_photo`.
        pairs: The files of each of its photos.
        photos: By stem; where one of the three is missing, nothing is drawn.
        threshold: A grey value greater than this is object.
        target: The picture, JPEG or PNG; what an earlier run left there is removed.

    Raises:
        UserError: One of the files is unreadable, or cannot be drawn.
    """
    target.unlink(missing_ok=True)
    by_stem = {pair.stem: pair for pair in pairs}
    ranked = table.sort_values(["dice", "id"], ignore_index=True)
    shown = {"best": len(ranked) - 1, "median": len(ranked) // 2, "worst": 0}
    if not {str(ranked["id"][i]) for i in shown.values()} <= photos.keys():
        return
    drawn = []
    for rank, i in shown.items():
        stem = str(ranked["id"][i])
        title = f"{rank}: {stem}, Dice {ranked['dice'][i]:.5f}"
        grey, truth = read_pair(by_stem[stem])
        with named("drawing", photos[stem]):
            photo = resize(read_photo(photos[stem], by_stem[stem].reading), *truth.shape)
            drawn.append(pictures.side_by_side(photo, truth, grey > threshold, title=title))
    write_photo(target, np.concatenate(drawn), 90)


def clear(folder: Path) -> None:
    """Removes the pictures of an earlier run, and the folder where it held nothing else."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        number, _, name = path.name.partition("-")
        if number.isdigit() and len(number) >= _DIGITS and name.endswith((".jpg", ".png")):
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _write(
    work: Callable[[int], _Pictures],
    photo_of: Callable[[int], Path],
    rows: Sequence[int],
    folder: Path,
    layers: tuple[tuple[str, str], ...],
    panels: str,
    drawing: Drawing,
) -> Gallery:
    """Draws in threads; a photo that cannot be read is left out with a warning."""

    def attempt(row: int) -> _Pictures | UserError:
        try:
            with named("drawing the pictures of", photo_of(row)):
                return work(row)
        except UserError as error:
            return error

    clear(folder)
    drawn: dict[int, tuple[float, ...]] = {}
    results = ordered_map(attempt, rows, drawing.threads)
    progress = bar(results, total=len(rows), desc="drawing pictures", unit="photo")
    with Group() as group:
        for row, result in zip(rows, progress, strict=True):
            if isinstance(result, UserError):
                print(f"warning: no pictures: {result}", file=sys.stderr)
                continue
            make_folder(folder)
            for name, data in result.files.items():
                group.write_bytes(folder / f"{row:0{_DIGITS}d}-{name}", data)
            drawn[row] = result.worst_part
    return Gallery(folder.name, layers, tuple(drawn), tuple(drawn.values()), panels)


def _photo(
    pair: Pair, photos: dict[str, Path], truth: np.ndarray, drawing: Drawing
) -> tuple[tuple[int, int], np.ndarray]:
    """The size of a photo's pictures, and the photo so."""
    size = pictures.fit(truth.shape, drawing.side)
    return size, resize(read_photo(photos[pair.stem], pair.reading), *size)


def _thumbnail(photo: np.ndarray, *masks: np.ndarray) -> bytes:
    """Four panels in one file."""
    panels = [resize(photo, *masks[0].shape[:2]), *masks]
    return encode_photo(pictures.montage(panels), ".jpg", _QUALITY)


def _black_and_white(mask: np.ndarray) -> np.ndarray:
    return _errors(mask, mask)


def _errors(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    return pictures.error_map(truth, prediction, *pictures.fit(truth.shape, THUMBNAIL))


def _worst_part(wrong: np.ndarray) -> tuple[float, ...]:
    height, width = wrong.shape
    rows, columns = pictures.busiest(wrong, *pictures.fit(wrong.shape, _CLOSE_UP))
    part = (
        *(columns.start / width, rows.start / height),
        *((columns.stop - columns.start) / width, (rows.stop - rows.start) / height),
    )
    return tuple(round(share, 4) for share in part)
