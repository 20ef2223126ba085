"""A dataset resized once: folders of photos, and of their masks, into an output folder.

Sources are read and never written to. `NAME` in the output folder says how each of its folders
was made. A prepared file has the time of modification of its source: where the two differ, the
source was replaced, and the file is made again.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carvana_tf.data import bad_files, names
from carvana_tf.data.dataset import Naming, Sample, find_photos, list_images, list_masks, with_masks
from carvana_tf.data.dataset import why_unmatched as why_none
from carvana_tf.data.images import (
    AS_DECLARED,
    Reading,
    UnreadableImage,
    encode_mask,
    encode_photo,
    read_mask,
    read_photo,
    resize,
    resize_mask,
)
from carvana_tf.errors import UserError
from carvana_tf.failures import named
from carvana_tf.files import Group, held, make_folder, read_json, write_json
from carvana_tf.interrupt import Interrupt, interruptible
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

NAME = "prepared.json"
AREA, BILINEAR = "area", "bilinear"
INTERPOLATIONS = (AREA, BILINEAR)
FORMATS = {"jpg": (".jpg", ".jpeg"), "png": (".png",)}
"""Of prepared photos: the extensions that keep, by the format's name; the first is a new one."""

_VERSION = 1  # other results from equal settings need another
_SAME_TIME = 1_000  # nanoseconds; file systems keep times in steps


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a prepared photo: one of three kinds, the others are 0.

    Attributes:
        shorter_side: Its shorter side in pixels; the aspect ratio is kept.
        longer_side: Its longer side; the aspect ratio is kept.
        exact: (height, width), whatever the aspect ratio.
    """

    shorter_side: int = 0
    longer_side: int = 0
    exact: tuple[int, int] = (0, 0)

    def of(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of a photo that has `height` x `width` pixels."""
        if any(self.exact):
            return self.exact
        reference = min(height, width) if self.shorter_side else max(height, width)
        factor = (self.shorter_side or self.longer_side) / reference

        def scaled(side: int) -> int:
            return max(round(factor * side), 1)

        return scaled(height), scaled(width)

    def __str__(self) -> str:
        if any(self.exact):
            return f"{self.exact[1]}x{self.exact[0]}"
        side, pixels = ("shorter", self.shorter_side) if self.shorter_side else ("longer", 0)
        return f"{side} side {pixels or self.longer_side}"


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """How photos and masks are prepared.

    Attributes:
        size: Of the results.
        interpolation: Of photos that shrink, one of `INTERPOLATIONS`.
        photo_format: A key of `FORMATS`.
        quality: Of JPEG, 1..100.
        reading: How sources are understood.
    """

    size: Size
    interpolation: str = AREA
    photo_format: str = "jpg"
    quality: int = 95
    reading: Reading = AS_DECLARED

    def of_photos(self) -> dict[str, Any]:
        """All that decides a prepared photo."""
        quality = {"quality": self.quality} if self.photo_format == "jpg" else {}
        return {
            "version": _VERSION,
            "size": str(self.size),
            "interpolation": self.interpolation,
            "photo_format": self.photo_format,
            **quality,
            "photo_depth": self.reading.photo_depth,
        }

    def of_masks(self) -> dict[str, Any]:
        """All that decides a prepared mask."""
        return {
            "version": _VERSION,
            "size": str(self.size),
            "mask_values": self.reading.mask_values.text,
        }

    def photo_name(self, name: str) -> str:
        """The file name of a prepared photo, from its source's."""
        extension = names.extension(name)
        kept = FORMATS[self.photo_format]
        return name if extension.lower() in kept else name.removesuffix(extension) + kept[0]


@dataclasses.dataclass(frozen=True)
class Source:
    """A folder to prepare.

    Attributes:
        photos: Where the photos are, also in folders inside it.
        name: Of their folder in the output folder.
        masks: Where their masks are, in the same folders inside it; None without.
        masks_name: Of the masks' folder in the output folder.
    """

    photos: Path
    name: str
    masks: Path | None = None
    masks_name: str = ""


@dataclasses.dataclass(frozen=True)
class _Job:
    """One photo, its mask, and where they go."""

    photo: Path
    photo_out: Path
    mask: Path | None = None
    mask_out: Path | None = None

    @property
    def files(self) -> Iterator[tuple[Path, Path]]:
        """Each source with its result."""
        yield self.photo, self.photo_out
        if self.mask is not None and self.mask_out is not None:
            yield self.mask, self.mask_out

    def is_done(self) -> bool:
        """Whether every result is there, and of this source."""
        return all(_is_of(result, source) for source, result in self.files)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was done with the photos of one folder.

    Attributes:
        photos: The prepared photos, sorted.
        written: How many of them this run has made.
        masks: How many of them have a mask.
        without_mask: Photos without one, where masks were asked for.
        bad: Each file that cannot be read, and why; their photos are left out.
    """

    photos: tuple[Path, ...]
    written: int
    masks: int
    without_mask: int
    bad: tuple[tuple[str, str], ...]


def prepare(
    sources: Sequence[Source],
    folder: Path,
    settings: PrepareSettings,
    naming: Naming,
    threads: int,
    *,
    overwrite: bool = False,
) -> list[Outcome]:
    """Resizes folders of photos, and of their masks, into an output folder.

    What is there already, made with the same settings from the same source, is kept. Every photo
    is resized, also one that is smaller, and encoded again. A pair of photo and mask one of which
    cannot be read is left out, and listed in the photos' output folder.

    Args:
        sources: The folders.
        folder: The output folder.
        settings: How.
        naming: Which mask belongs to a photo.
        threads: That decode, resize, encode and write.
        overwrite: Remove first what is there of these folders.

    Returns:
        What was done with each folder.

    Raises:
        UserError: A source holds no photo, or no mask of one; the output folder lies in a source
            or holds something else.
        KeyboardInterrupt: After what was begun was finished.
    """
    folder = Path(folder)
    _refuse_nested(sources, folder)
    jobs = [_plan(source, folder, settings, naming) for source in sources]
    with Interrupt() as interrupt, held(folder):
        for source, planned in zip(sources, jobs, strict=True):
            _begin(source, folder, settings, planned, overwrite=overwrite)
        return [
            _prepare(source, folder, settings, planned, threads, interrupt)
            for source, planned in zip(sources, jobs, strict=True)
        ]


def _prepare(
    source: Source,
    folder: Path,
    settings: PrepareSettings,
    jobs: Sequence[_Job],
    threads: int,
    interrupt: Interrupt,
) -> Outcome:
    """Makes what is missing of one folder."""
    todo = [job for job in jobs if not job.is_done()]
    out = make_folder(folder / source.name)
    with Group() as group:
        results = interruptible(
            ordered_map(lambda job: _resize(job, settings, group.write_bytes), todo, threads),
            interrupt,
        )
        shown = bar(
            results, total=len(jobs), desc=source.name, unit="photo", initial=len(jobs) - len(todo)
        )
        found = list(shown)
    bad = {job: problem for job, problem in zip(todo, found, strict=True) if problem is not None}
    bad_files.record(out, list(bad.values()))
    done = [job for job in jobs if job not in bad]
    if not done:
        _, problem = next(iter(bad.values()))
        raise UserError(
            f"none of the {len(jobs)} photos of '{source.photos}' can be prepared: {problem} All "
            f"are listed in '{out / bad_files.NAME}'."
        )
    masks = sum(job.mask is not None for job in done)
    return Outcome(
        tuple(sorted(job.photo_out for job in done)),
        len(todo) - len(bad),
        masks,
        len(done) - masks if source.masks is not None else 0,
        tuple(bad.values()),
    )


def _resize(
    job: _Job, settings: PrepareSettings, write: Callable[[Path, bytes, int], object]
) -> tuple[str, str] | None:
    """Makes one photo and its mask; or returns the file that is bad, and why."""
    # Before they are read: a source that is replaced meanwhile is newer than its result.
    times = {source: os.stat(source).st_mtime_ns for source, _ in job.files if source.exists()}
    read = job.photo
    try:
        photo = read_photo(job.photo, settings.reading)
        size = photo.shape[:2]
        mask: np.ndarray | None = None
        if job.mask is not None:
            read = job.mask
            mask = read_mask(job.mask, settings.reading)
            if mask.shape != size:
                raise UnreadableImage(
                    f"'{job.mask}' is {mask.shape[1]}x{mask.shape[0]}, its photo '{job.photo}' "
                    f"{size[1]}x{size[0]}; replace one of them."
                )
    except UnreadableImage as error:
        for _, result in job.files:
            result.unlink(missing_ok=True)  # of a source that was whole then
        return str(read), str(error)
    with named("preparing", job.photo):
        height, width = settings.size.of(*size)
        small = resize(photo, height, width, area=settings.interpolation == AREA)
        if mask is not None and job.mask is not None and job.mask_out is not None:
            write(job.mask_out, encode_mask(resize_mask(mask, height, width)), times[job.mask])
        extension = names.extension(job.photo_out.name)
        write(job.photo_out, encode_photo(small, extension, settings.quality), times[job.photo])
    return None


def _is_of(result: Path, source: Path) -> bool:
    try:
        made, now = os.stat(result).st_mtime_ns, os.stat(source).st_mtime_ns
    except OSError:
        return False
    return abs(made - now) < _SAME_TIME


def _plan(source: Source, folder: Path, settings: PrepareSettings, naming: Naming) -> list[_Job]:
    """The photos of a folder and of those inside it, in a fixed order.

    Raises:
        UserError: There is none, or none with a mask; or two would be one file.
    """
    jobs = []
    for inside in _folders(source.photos):
        for sample in _samples(source, inside, naming):
            photo = folder / source.name / inside / settings.photo_name(sample.photo.name)
            mask = None
            if sample.mask is not None:
                mask = folder / source.masks_name / inside / f"{names.stem(sample.mask.name)}.png"
            jobs.append(_Job(sample.photo, photo, sample.mask, mask))
    if not jobs:
        find_photos(source.photos)  # says what it looked for
    if source.masks is not None and all(job.mask is None for job in jobs):
        stems = {names.stem(job.photo.name) for job in jobs}
        raise UserError(
            f"no photo of '{source.photos}' has a mask: {why_none(source.masks, naming, stems)}"
        )
    return jobs


def _samples(source: Source, inside: Path, naming: Naming) -> list[Sample]:
    """The photos of one folder; those that have a mask with it."""
    photos = [
        Sample(stem, stem, path) for stem, path in list_images(source.photos / inside).items()
    ]
    if source.masks is None or not (source.masks / inside).is_dir():
        return photos
    masks = list_masks(source.masks / inside, naming)
    paired = {s.stem: s for s in with_masks(photos, masks, source.masks / inside)}
    return [paired.get(sample.stem, sample) for sample in photos]


def _folders(root: Path) -> Iterator[Path]:
    """A folder as "." and those inside it, sorted; without hidden ones, each once."""
    seen: set[str] = set()
    waiting = [Path()]
    while waiting:
        inside = waiting.pop()
        real = os.path.realpath(root / inside)
        if real in seen:
            continue  # a link to a folder above
        seen.add(real)
        yield inside
        with os.scandir(root / inside) as entries:
            found = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
        waiting += [inside / name for name in sorted(found, reverse=True)]


def _refuse_nested(sources: Sequence[Source], folder: Path) -> None:
    """Refuses to write into a source, and folders that would be prepared twice."""
    pairs = [(source.photos, folder / source.name) for source in sources]
    pairs += [(s.masks, folder / s.masks_name) for s in sources if s.masks is not None]
    for source, _ in pairs:
        for _, result in pairs:
            if _overlap(source, result):
                raise UserError(
                    f"the results in '{result}' would lie among the sources in '{source}'; choose "
                    "another --output_dir."
                )
    for kind, listed in (("sources", [s for s, _ in pairs]), ("results", [r for _, r in pairs])):
        for i, one in enumerate(listed):
            for other in listed[:i]:
                if _overlap(one, other):
                    raise UserError(
                        f"the {kind} '{other}' and '{one}' are the same folder, or one lies in the "
                        "other; name each folder once in --photo_dirs and --mask_dirs."
                    )


def _overlap(one: Path, other: Path) -> bool:
    first, second = Path(os.path.realpath(one)), Path(os.path.realpath(other))
    return first.is_relative_to(second) or second.is_relative_to(first)


def _begin(
    source: Source,
    folder: Path,
    settings: PrepareSettings,
    jobs: Sequence[_Job],
    *,
    overwrite: bool,
) -> None:
    """Makes the output folders of a source ready, whether new, half filled or to be filled again.

    Raises:
        UserError: One holds images that were made in another way, or of other photos.
    """
    record = folder / NAME
    made: dict[str, Any] = read_json(record) if record.is_file() else {}
    if not isinstance(made, dict):
        raise UserError(f"'{record}' is damaged; choose another --output_dir.")
    wanted = {source.name: {"source": os.path.realpath(source.photos), **settings.of_photos()}}
    if source.masks is not None:
        of_masks = {"source": os.path.realpath(source.masks), **settings.of_masks()}
        wanted[source.masks_name] = of_masks
    expected = {result for job in jobs for _, result in job.files}
    for name, now in wanted.items():
        present = list(_images(folder / name))
        if not present:
            continue
        was = made.get(name)
        if not isinstance(was, dict):
            raise UserError(
                f"'{folder / name}' holds images (the first is '{min(present)}') that '{record}' "
                "knows nothing of; choose another --output_dir."
            )
        if overwrite:
            # In this order: images must at no moment lie next to a record that is not theirs.
            write_json(record, made := {key: made[key] for key in made if key != name})
            for path in present:
                path.unlink()
            continue
        for key in now.keys() | was.keys():
            if was.get(key) != now.get(key):
                raise UserError(
                    f"'{folder / name}' was prepared with another {key}: {was.get(key)} there, "
                    f"{now.get(key)} now; use --overwrite, or another --output_dir."
                )
        others = sorted(path for path in present if path not in expected)
        if others:
            raise UserError(
                f"'{folder / name}' holds {len(others)} images of photos that are not in the "
                f"source, the first is '{others[0]}'; remove them, or use --overwrite."
            )
    write_json(record, dict(sorted((made | wanted).items())))


def _images(folder: Path) -> Iterator[Path]:
    """All images in a folder and in those inside it; none where it is missing."""
    if not folder.is_dir():
        return
    for inside in _folders(folder):
        with contextlib.closing(os.scandir(folder / inside)) as entries:
            for entry in entries:
                if names.extension(entry.name) and not entry.name.startswith("."):
                    yield folder / inside / entry.name
