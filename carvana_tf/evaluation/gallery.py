"""The photos a report shows, drawn small, and the comparison picture."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from carvana_tf.data import names
from carvana_tf.data.dataset import list_images
from carvana_tf.data.images import read_grey, read_mask, read_photo, resize, write_photo
from carvana_tf.evaluation import pictures
from carvana_tf.evaluation.pairs import Pair
from carvana_tf.failures import named

THUMBNAIL = 480
WORST = 10


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """One photo of the gallery.

    Attributes:
        title: Which photo, why it is shown, and its score.
        thumbnails: Pictures of it by what they are ("error map"), `uint8[h, w, 3]` each.
    """

    title: str
    thumbnails: Mapping[str, np.ndarray]


def exhibit(title: str, photo: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> Exhibit:
    """Draws one photo of the gallery from `uint8[H, W, 3]` and two `bool[H, W]`."""
    size = _size(truth)
    thumbnails = {
        "outlines": pictures.outlines(photo, truth, prediction, *size),
        "error map": pictures.error_map(truth, prediction, *size),
        "close-up": pictures.closeup(photo, truth, prediction, *size),
    }
    return Exhibit(title, thumbnails)


def comparison(
    title: str, photo: np.ndarray, truth: np.ndarray, ours: np.ndarray, other: np.ndarray
) -> Exhibit:
    """Draws where two predictions differ most: the photo and the errors of either."""
    size = _size(truth)
    part = pictures.busiest(ours != other, *size)
    photo, truth, ours, other = photo[part], truth[part], ours[part], other[part]
    thumbnails = {
        "truth": pictures.outline(
            resize(photo, *size), pictures.enlarged(truth, *size), pictures.TRUTH
        ),
        "errors here": pictures.error_map(truth, ours, *size),
        "errors of the other": pictures.error_map(truth, other, *size),
    }
    return Exhibit(title, thumbnails)


def find_photos(photo_dir: Path, stems: Iterable[str]) -> dict[str, Path]:
    """The photos of these stems; empty where the folder lacks any of them."""
    available = list_images(photo_dir) if photo_dir.is_dir() else {}
    stems = set(stems)
    found = {stem: available[key] for stem, key in names.match(stems, available, "").items()}
    return found if len(found) == len(stems) else {}


def draw(
    table: pd.DataFrame, pairs: list[Pair], photo_dir: Path, threshold: int, target: Path
) -> list[Exhibit]:
    """The worst photos and the median; writes a picture of the best, median and worst.

    Args:
        table: From `scores.per_photo`.
        pairs: The files of each of its photos.
        photo_dir: The photos; where one is missing, nothing is drawn.
        threshold: A grey value greater than this is object.
        target: The picture, JPEG or PNG; what an earlier run left there is removed.
    """
    target.unlink(missing_ok=True)
    by_stem = {pair.stem: pair for pair in pairs}
    ranked = table.sort_values(["dice", "id"], ignore_index=True)
    shown = {f"worst {i + 1}": i for i in range(min(WORST, len(ranked)))}
    shown |= {"median": len(ranked) // 2, "best": len(ranked) - 1}
    photos = find_photos(photo_dir, {str(ranked["id"][i]) for i in shown.values()})
    if not photos:
        return []
    exhibits: list[Exhibit] = []
    rows: dict[str, np.ndarray] = {}
    for rank, i in shown.items():
        stem = str(ranked["id"][i])
        title = f"{rank}: {stem}, Dice {ranked['dice'][i]:.5f}"
        truth = read_mask(by_stem[stem].truth, by_stem[stem].reading)
        prediction = read_grey(by_stem[stem].prediction) > threshold
        photo = read_photo(photos[stem], by_stem[stem].reading)
        with named("drawing", photos[stem]):
            photo = resize(photo, *truth.shape)
            if rank != "best":
                exhibits.append(exhibit(title, photo, truth, prediction))
            if rank in ("best", "median", "worst 1"):
                rows[rank] = pictures.side_by_side(photo, truth, prediction, title=title)
    write_photo(target, np.concatenate([rows[r] for r in ("best", "median", "worst 1")]), 90)
    return exhibits


def draw_differences(
    table: pd.DataFrame,
    ours: list[Pair],
    other: list[Pair],
    photo_dir: Path,
    thresholds: tuple[int, int],
    most: int = 4,
) -> list[Exhibit]:
    """The photos where two folders differ most, from `compare.per_photo`, if photos are there.

    `thresholds` are those of the masks here and there.
    """
    first, second = ({pair.stem: pair for pair in pairs} for pairs in (ours, other))
    rows = table[table["dice_difference"] != 0].head(most)
    photos = find_photos(photo_dir, rows["id"])
    exhibits = []
    for row in rows.to_dict("records") if photos else []:
        stem = str(row["id"])
        truth = read_mask(first[stem].truth, first[stem].reading)
        called = [
            read_grey(pairs[stem].prediction) > threshold
            for pairs, threshold in zip((first, second), thresholds, strict=True)
        ]
        photo = read_photo(photos[stem], first[stem].reading)
        title = (
            f"{stem}: Dice {row['dice']:.5f} here, {row['dice_other']:.5f} there "
            f"({row['dice_difference']:+.5f})"
        )
        with named("drawing", photos[stem]):
            exhibits.append(comparison(title, resize(photo, *truth.shape), truth, *called))
    return exhibits


def _size(truth: np.ndarray) -> tuple[int, int]:
    scale = THUMBNAIL / max(truth.shape)
    height, width = (max(2, round(n * scale)) for n in truth.shape)
    return height, width
