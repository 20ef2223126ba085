"""Which photos to annotate next: those on which masks disagree, spread over groups."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from carvana_tf.data.images import (
    Reading,
    UnreadableImage,
    read_grey,
    read_photo,
    read_size,
)
from carvana_tf.data.loader import check_size
from carvana_tf.evaluation import pictures
from carvana_tf.evaluation.disagreement import Disagreement, measure, shrunk
from carvana_tf.failures import named
from carvana_tf.interrupt import interruptible
from carvana_tf.threads import ordered_map

COLUMNS = ("rank", "photo", "group", "score", "why")
PHOTO = "photo"
"""The column with the file names of the photos."""
MOST = 300
"""Suggestions at most, as a JPEG has at most 65,535 rows."""

_PANEL = 360  # longer side of a picture in the contact sheet
_PAIRS = 2  # photos in a row of it
_DOUBTFUL = 26, 229  # probabilities from 0.1 to 0.9


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A photo without ground truth.

    Attributes:
        stem: Its stem.
        group: Of which no more than a few are suggested.
        photo: Its file.
        masks: Its K masks, `round(255 p)`.
        members: What they are called, K names.
        thresholds: K; a grey value greater than this is object.
    """

    stem: str
    group: str
    photo: Path
    masks: tuple[Path, ...]
    members: tuple[str, ...]
    thresholds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A candidate and its measure."""

    candidate: Candidate
    found: Disagreement

    @property
    def why(self) -> str:
        """What speaks for it, in a few words."""
        names, empty = self.candidate.members, self.found.empty
        if self.found.least is None:
            none = "no object found; " if empty else ""
            where = "of the photo" if empty else "of the pixels near the contour"
            return f"{none}{self.found.unsure:.0%} {where} are unsure (from 0.1 to 0.9)"
        if len(empty) == len(names):
            return "no mask has an object, but they are not equally sure"
        if empty:
            return f"no object in {', '.join(names[i] for i in empty)}, but in others"
        first, second, least = self.found.least
        return f"lowest Dice of two masks {least:.3f} ({names[first]}, {names[second]})"


def scored(
    candidates: Sequence[Candidate], threads: int
) -> Generator[Suggestion | tuple[str, str]]:
    """Measures candidates in threads, in their order.

    Yields:
        A candidate with its measure; or a file that cannot be read, and why.
    """

    def work(candidate: Candidate) -> Suggestion | tuple[str, str]:
        path = candidate.photo
        try:
            size, greys = read_size(path), []
            for path in candidate.masks:
                grey = read_grey(path)
                check_size(path, grey.shape, size)
                greys.append(shrunk(grey))
        except UnreadableImage as error:
            return str(path), str(error)
        with named("measuring the masks of", candidate.photo):
            return Suggestion(candidate, measure(greys, candidate.thresholds))

    return ordered_map(work, candidates, threads)


def choose(found: Iterable[Suggestion], count: int, per_group: int) -> list[Suggestion]:
    """The highest scores, at most `per_group` of a group, highest first; equal ones by stem."""
    chosen: list[Suggestion] = []
    used: Counter[str] = Counter()
    for one in sorted(found, key=lambda one: (-one.found.score, one.candidate.stem)):
        if len(chosen) == count:
            break
        if used[one.candidate.group] < per_group:
            used[one.candidate.group] += 1
            chosen.append(one)
    return chosen


def rows(chosen: Sequence[Suggestion]) -> Iterator[tuple[int, str, str, str, str]]:
    """The rows of the table, in the order of `COLUMNS`."""
    for rank, one in enumerate(chosen, start=1):
        photo, group = one.candidate.photo.name, one.candidate.group
        yield rank, photo, group, f"{one.found.score:.4f}", one.why


def contact_sheet(chosen: Sequence[Suggestion], reading: Reading, threads: int) -> np.ndarray:
    """The photos with the contours of their masks, each next to the part that differs most.

    Args:
        chosen: At least one.
        reading: How photos are understood.
        threads: That draw.

    Returns:
        `uint8[H, W, 3]`.

    Raises:
        UserError: A file cannot be read or drawn.
    """

    def work(ranked: tuple[int, Suggestion]) -> tuple[str, list[np.ndarray]]:
        rank, one = ranked
        with named("drawing", one.candidate.photo):
            title = f"{rank}  {one.candidate.photo.name}  {one.found.score:.3f}"
            return title, _panels(one.candidate, reading)

    tiles = list(interruptible(ordered_map(work, enumerate(chosen, start=1), threads)))
    legend = zip(chosen[0].candidate.members, itertools.cycle(pictures.MEMBERS))
    return pictures.contact_sheet(tiles, _PAIRS, list(legend))


def _panels(candidate: Candidate, reading: Reading) -> list[np.ndarray]:
    """The photo with the contours, and its part where most pixels are in doubt, enlarged."""
    greys = [read_grey(path) for path in candidate.masks]
    masks = [grey > limit for grey, limit in zip(greys, candidate.thresholds, strict=True)]
    photo = read_photo(candidate.photo, reading)
    size = pictures.fit(photo.shape[:2], _PANEL)
    if len(masks) > 1:
        doubtful = np.logical_or.reduce(masks) & ~np.logical_and.reduce(masks)
    else:
        doubtful = cv2.inRange(greys[0], *_DOUBTFUL) > 0
    # A quarter of the sides: a smaller part may lie within an area that is in doubt as a whole.
    part = pictures.busiest(doubtful, *(max(2, n // 2) for n in doubtful.shape))
    return [
        pictures.contours(photo, masks, *size),
        pictures.contours(photo[part], [mask[part] for mask in masks], *size),
    ]
