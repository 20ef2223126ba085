"""How many copies of photos `tools/check_data.py` finds, and what it takes for one in error.

CARVANA_DIR=/path/to/carvana NUCLEI_DIR=/path/to/nuclei python benchmarks/copies.py

First all photos of a set as they are, each car a group: what is found then is a false alarm.
Then every photo with a copy of it, in rounds of an eighth of the photos: re-encoded, resized,
cropped, brightened, mirrored, or two of these one after the other. Small sets come several times.
Last, the real cars at half their size in 13 disguises each: how long 4,992 photos at once take.
"""

import dataclasses
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from carvana_tf.cli import Command, main
from carvana_tf.data.dataset import Naming, list_images
from carvana_tf.data.duplicates import Fingerprint, find_copies, fingerprint
from carvana_tf.data.images import read_photo, resize
from carvana_tf.data.synthetic.dataset import DemoSettings, make_dataset
from carvana_tf.errors import UserError, unknown_name
from carvana_tf.flags import Values, option
from results import PlaceOptions, print_table, replace_rows

_ROUNDS = 8
_LEAST_COPIES = 300
_DIFFERENT, _TWO = "different groups", "two of these"


def _jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def encode(photo: np.ndarray) -> np.ndarray:
        data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))

    return encode


def _scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda photo: resize(photo, *(round(factor * side) for side in photo.shape[:2]))


def _cropped(*shares: float) -> Callable[[np.ndarray], np.ndarray]:
    """Takes shares of the height and width off: above, below, left and right."""

    def crop(photo: np.ndarray) -> np.ndarray:
        height, width = photo.shape[:2]
        top, bottom, left, right = np.rint(shares * np.repeat([height, width], 2)).astype(int)
        return photo[top : height - bottom, left : width - right]

    return crop


def _brightened(gain: float, offset: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda photo: cv2.convertScaleAbs(photo, alpha=gain, beta=offset)


DISGUISES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG quality 50": _jpeg(50),
    "JPEG quality 70": _jpeg(70),
    "JPEG quality 90": _jpeg(90),
    "50 % of the size": _scaled(0.5),
    "80 % of the size": _scaled(0.8),
    "150 % of the size": _scaled(1.5),
    "2 % cropped left": _cropped(0, 0, 0.02, 0),
    "2 % cropped below and right": _cropped(0, 0.02, 0, 0.02),
    "1 % cropped on each side": _cropped(0.01, 0.01, 0.01, 0.01),
    "2 % cropped on each side": _cropped(0.02, 0.02, 0.02, 0.02),
    "20 % brighter": _brightened(1.2, 0),
    "25 levels brighter": _brightened(1, 25),
    "20 % darker": _brightened(0.8, 0),
    "mirrored": lambda photo: photo[:, ::-1],
}


@dataclasses.dataclass(frozen=True)
class _Rendered:
    cars: int
    test_cars: int
    width: int
    seed: int


# The demo's own cars; more of them; and as many as the competition's training set has.
RENDERED = {
    "demo": _Rendered(12, 4, 960, 80),
    "rendered_60": _Rendered(60, 0, 480, 81),
    "rendered_318": _Rendered(318, 0, 480, 82),
}
REAL = {
    "real_cars": ("CARVANA_DIR", "train"),
    "nuclei": ("NUCLEI_DIR", "images"),
}


CROWD = "real_cars_in_disguises"


@dataclasses.dataclass(frozen=True)
class CopiesOptions:
    """What only this benchmark needs."""

    sets: tuple[str, ...] = option(
        (),
        f"Sets to measure: {', '.join((*REAL, *RENDERED, CROWD))}; by default all, the real "
        "ones where their variables are set.",
    )
    threads: int = option(2, "Threads that read and compare.", lower=1)


def run(values: Values) -> None:
    """Measures each set and replaces its rows of the table."""
    place, options = values[PlaceOptions], values[CopiesOptions]
    for name in options.sets:
        if name not in (*REAL, *RENDERED, CROWD):
            raise unknown_name("--sets", name, (*REAL, *RENDERED, CROWD))
    for name in options.sets or (*REAL, *RENDERED, CROWD):
        folders = _folders(name, Path(place.work_dir) / "copies")
        if folders is None:
            print(f"{name}: skipped, its variable is not set")
            continue
        measure = _measure_crowd if name == CROWD else _measure
        rows = measure(folders, options.threads)
        print(f"\n{name}")
        print_table(rows)
        replace_rows(Path(place.out_dir) / "copies.csv", rows, {"set": name})


def _folders(name: str, work: Path) -> list[Path] | None:
    """The folders of a set's photos; rendered where need be."""
    if name in REAL or name == CROWD:
        variable, folder = REAL["real_cars" if name == CROWD else name]
        return [Path(os.environ[variable]) / folder] if variable in os.environ else None
    row = RENDERED[name]
    settings = DemoSettings(row.cars, row.test_cars, 16, row.width, row.width * 2 // 3, row.seed)
    make_dataset(work / name, settings, os.cpu_count() or 1)
    return [work / name / split for split in ("train", "test")[: 2 if row.test_cars else 1]]


def _measure(folders: list[Path], threads: int) -> list[dict[str, Any]]:
    paths = [path for folder in folders for path in list_images(folder).values()]
    if not paths:
        raise UserError(f"'{folders[0]}' holds no photo.")
    names = [Naming().group(path.stem) for path in paths]
    _, groups = np.unique(names, return_inverse=True)
    with ThreadPoolExecutor(threads) as pool:
        prints = list(pool.map(lambda path: fingerprint(read_photo(path)), paths))
        start = time.perf_counter()
        alarms = find_copies(prints, groups[:, None], threads)
        seconds = time.perf_counter() - start
        for one in alarms:
            print(f"taken for a copy: '{paths[one.first]}' and '{paths[one.second]}'")
        planted: Counter[str] = Counter()
        found: Counter[str] = Counter()
        wrong: Counter[str] = Counter()
        random = np.random.default_rng(80)
        passes = -(-_LEAST_COPIES // len(paths))
        for number in range(passes * _ROUNDS):
            originals = list(range(number % _ROUNDS, len(paths), _ROUNDS))
            drawn = [_draw(random) for _ in originals]
            copies = list(
                pool.map(_disguised, [paths[i] for i in originals], [names for _, names in drawn])
            )
            for kind, right, others in _round(prints, groups, originals, drawn, copies, threads):
                planted[kind] += 1
                found[kind] += right
                wrong[kind] += others
    common = {"photos": len(paths), "groups": int(groups.max()) + 1}
    first = {"pairs_of": _DIFFERENT, "planted": 0, "found": 0, "false_alarms": len(alarms)}
    return [{**common, **first, "seconds": round(seconds, 1)}] + [
        {
            **common,
            "pairs_of": kind,
            "planted": planted[kind],
            "found": found[kind],
            "false_alarms": wrong[kind],
        }
        for kind in (*DISGUISES, _TWO)
    ]


def _measure_crowd(folders: list[Path], threads: int) -> list[dict[str, Any]]:
    """All photos in all disguises at once, each a group of its own."""
    paths = [path for folder in folders for path in list_images(folder).values()]
    names = list(DISGUISES)[: 5000 // len(paths)]

    def disguised(path: Path) -> list[Fingerprint]:
        photo = read_photo(path)
        photo = resize(photo, photo.shape[0] // 2, photo.shape[1] // 2)
        return [fingerprint(np.ascontiguousarray(DISGUISES[name](photo))) for name in names]

    with ThreadPoolExecutor(threads) as pool:
        prints = [each for one in pool.map(disguised, paths) for each in one]
    start = time.perf_counter()
    pairs = [(one.first, one.second) for one in find_copies(prints, threads=threads)]
    seconds = time.perf_counter() - start
    same = [pair for pair in pairs if pair[0] // len(names) == pair[1] // len(names)]
    return [
        {
            "photos": len(prints),
            "groups": len(prints),
            "pairs_of": f"{len(names)} copies of each photo",
            "planted": len(prints),
            "found": len({number for pair in same for number in pair}),
            "false_alarms": len(pairs) - len(same),
            "seconds": round(seconds, 1),
        }
    ]


def _draw(random: np.random.Generator) -> tuple[str, list[str]]:
    """What is done to a photo: the row it counts in, and one disguise or two others."""
    count = int(random.integers(1, 3))
    names = [str(name) for name in random.choice(list(DISGUISES), count, replace=False)]
    return (names[0] if count == 1 else _TWO), names


def _disguised(path: Path, names: list[str]) -> Fingerprint:
    photo = read_photo(path)
    for name in names:
        photo = np.ascontiguousarray(DISGUISES[name](photo))
    return fingerprint(photo)


def _round(
    prints: list[Fingerprint],
    groups: np.ndarray,
    originals: list[int],
    drawn: list[tuple[str, list[str]]],
    copies: list[Fingerprint],
    threads: int,
) -> Iterator[tuple[str, int, int]]:
    """For each copy its kind, whether its original was found, and photos of other groups."""
    count = len(prints)
    # The second column keeps originals from being compared with one another, copies likewise.
    labels = np.zeros((count + len(copies), 2), int)
    labels[:, 0] = [*groups, *range(groups.max() + 1, groups.max() + 1 + len(copies))]
    labels[count:, 1] = 1
    pairs = [(one.first, one.second) for one in find_copies([*prints, *copies], labels, threads)]
    for number, (original, (kind, _)) in enumerate(zip(originals, drawn, strict=True)):
        mates = [first for first, second in pairs if second == count + number]
        others = sum(groups[mate] != groups[original] for mate in mates)
        yield kind, int(original in mates), int(others)


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, CopiesOptions), run)))
