"""Submission files: a folder of probability PNGs as one verified `img,rle_mask` table.

Masks stream through threads in the order of the rows with a bounded look-ahead, so that
memory does not grow with their number.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from carvana_tf.data import bad_files, names
from carvana_tf.data.images import UnreadableImage, read_grey
from carvana_tf.data.tables import ERRORS, format_line, read_sample_table, read_two_columns
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError
from carvana_tf.failures import first_few
from carvana_tf.files import claimed, digest_of_lines
from carvana_tf.interrupt import Interrupt, interruptible
from carvana_tf.masks import rle, rle_parquet, verification
from carvana_tf.masks.growing import Growing, Part, compress
from carvana_tf.masks.open_folder import open_complete
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

COLUMNS = ("img", "rle_mask")

_NAMED = 3  # how many of a list of files a message names


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a submission shall hold.

    Attributes:
        columns: The names of the two columns.
        images: The first column, in order.
        masks: The PNG of each.
        surplus: Names of PNGs that belong to no row.
        forced: Refusals that `--force` turned into warnings.
    """

    columns: tuple[str, str]
    images: tuple[str, ...]
    masks: tuple[Path, ...]
    surplus: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Timings:
    """Seconds spent by all threads together."""

    read: float
    encode: float
    verify: float


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """A line of the table, or why there is none."""

    line: Part | str
    timings: Timings


def read_rows(path: Path) -> Iterator[tuple[str, str]]:
    """The image and the run lengths of each row of a submission, one row in memory at once.

    Args:
        path: A `.csv` or `.csv.gz` file of two columns, or a folder of `rle_parquet` parts.

    Raises:
        UserError: The file is damaged or has no row, or an image appears twice.
    """
    seen: set[str] = set()
    for row in read_two(path)[1]:
        if row[0] in seen:
            raise UserError(f"'{path}' has the image '{row[0]}' more than once; keep one.")
        seen.add(row[0])
        yield row
    if not seen:
        raise UserError(f"'{path}' has no rows; write it again.")


def read_columns(path: Path) -> tuple[str, str]:
    """The names of the two columns.

    Raises:
        UserError: The file is damaged, or has another number of columns.
    """
    return read_two(path)[0]


def read_sample(path: Path) -> tuple[tuple[str, str], list[str]]:
    """The column names and images of a sample submission.

    Raises:
        UserError: The file is damaged or has no row, or an image appears twice.
    """
    return read_sample_table(path, COLUMNS)


def rows_of_folder(
    mask_dir: Path,
    extension: str | None = None,
    photo_dir: Path | None = None,
    *,
    force: bool = False,
) -> Rows:
    """One row for each PNG of a folder, sorted by name, with the name of its photo.

    Args:
        mask_dir: The folder of masks.
        extension: That of all photos (".jpg").
        photo_dir: Where the photos are, for their names; without either, the manifest has them.
        force: Whether the folder may hold other photos than its manifest says.

    Raises:
        UserError: The folder is missing or holds no PNG, the names of the photos are unknown,
            or, without `force`, its manifest is for other photos.
    """
    folder = open_complete(mask_dir, binary=True, force=force)
    images = tuple(folder.photo_names(extension, photo_dir))
    return Rows(COLUMNS, images, tuple(folder.masks.values()), forced=folder.forced)


def rows_of_sample(mask_dir: Path, sample_csv: Path, *, force: bool = False) -> Rows:
    """The rows of a sample submission with their masks.

    Args:
        mask_dir: The folder of masks.
        sample_csv: The sample.
        force: Whether the folder may hold other photos than its manifest says.

    Raises:
        UserError: The folder or the sample is missing or damaged, a row has no mask, or,
            without `force`, the folder's manifest is for other photos.
    """
    folder = open_complete(mask_dir, binary=True, force=force)
    masks = folder.masks
    columns, images = read_sample(sample_csv)
    stems = names.match(images, masks, f"'{sample_csv}'")
    missing = [image for image in images if image not in stems]
    if len(missing) == len(images):
        raise UserError(
            f"'{sample_csv}' names no image of '{mask_dir}' (the first is '{images[0]}'); give "
            "the sample that belongs to the folder."
        )
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(images)} images of '{sample_csv}' have no mask in "
            f"'{mask_dir}': {first_few(missing)}; predict them first."
        )
    used = set(stems.values())
    surplus = tuple(path.name for stem, path in masks.items() if stem not in used)
    paths = tuple(masks[stems[image]] for image in images)
    return Rows(columns, tuple(images), paths, surplus, folder.forced)


def write(path: Path, rows: Rows, threads: int = 4, threshold: int = DEFAULT_THRESHOLD) -> Timings:
    """Encodes every mask, decodes it back, compares, and writes the table.

    Args:
        path: The `.csv.gz` or `.csv` file; it appears whole or not at all.
        rows: What to write.
        threads: Threads that read, encode, compress and verify.
        threshold: Grey values above it are object.

    Raises:
        UserError: A PNG is unreadable (all of them are counted, the first few named), the
            file cannot be written, or another process writes it.
        RuntimeError: A text does not decode to its mask, or a row has the mask of another
            image: a fault of this program.
    """
    wrong = verification.misfits(rows.images, rows.masks)
    if wrong:
        raise RuntimeError(f"{len(wrong)} rows have a wrong mask: {'; '.join(wrong[:_NAMED])}.")
    bad: list[tuple[str, str]] = []
    total = np.zeros(3)

    def work(row: tuple[str, Path]) -> _Encoded:
        return _encode_file(*row, threshold)

    with claimed(path), Interrupt() as interrupt, _growing(path, rows, threshold) as growing:
        done = len(growing.done)
        if done:
            print(f"{done} of {len(rows.images)} rows were encoded before; going on there")
        todo = zip(rows.images[done:], rows.masks[done:], strict=True)
        encoded = interruptible(ordered_map(work, todo, threads), interrupt)
        shown = bar(encoded, total=len(rows.masks), initial=done, desc="encoding", unit="mask")
        try:
            for mask, row in zip(rows.masks[done:], shown, strict=True):
                total += dataclasses.astuple(row.timings)
                if isinstance(row.line, str):
                    bad.append((str(mask), row.line))
                elif not bad:
                    growing.add(row.line)
        except RuntimeError:
            growing.discard()  # rows of an encoder that errs are not to be trusted
            raise
        bad_files.record(path.parent, bad)
        problems = [problem for _, problem in bad]
        _raise_if_any(problems, "masks are unreadable; no submission was written")
        growing.finish(path)
    return Timings(*total.tolist())


def _growing(path: Path, rows: Rows, threshold: int) -> Growing:
    """The rows of a submission, which an interrupted run may have begun.

    Its name may hold the time, so it is identified by the folder of the masks.
    """
    folders = sorted({str(mask.parent.resolve()) for mask in rows.masks})
    return Growing(
        path.parent,
        f"submission-{digest_of_lines(folders)[:16]}",
        rows.columns,
        compressed=path.suffix == ".gz",
        identity=f"above {threshold}",
        stamps=stamps(rows),
    )


def stamps(rows: Rows) -> list[str]:
    """What each row depends on: its names, and the size and time of its mask."""
    stats = [mask.stat() for mask in rows.masks]
    return [
        f"{image} {mask.name} {stat.st_size} {stat.st_mtime_ns}"
        for image, mask, stat in zip(rows.images, rows.masks, stats, strict=True)
    ]


def validate(
    path: Path,
    mask_dir: Path,
    threads: int = 4,
    threshold: int = DEFAULT_THRESHOLD,
    *,
    force: bool = False,
) -> tuple[int, tuple[str, ...]]:
    """Compares every row of an existing submission with the mask it must stand for.

    Args:
        path: A `.csv` or `.csv.gz` file of two columns, image and run lengths.
        mask_dir: The folder of probability PNGs.
        threads: Threads that read and decode.
        threshold: Grey values above it are object.
        force: As of `rows_of_sample`.

    Returns:
        How many rows were compared, and the names of masks that have no row.

    Raises:
        UserError: The file is damaged or has no row, an image appears twice, rows
            differ from their masks (all are counted, the first few named), or, without
            `force`, the folder's manifest is for other photos.
    """
    files = open_complete(mask_dir, binary=True, force=force).masks.values()
    masks = verification.Masks(files)
    count = 0

    def claimed() -> Iterator[tuple[str, str, Path | str]]:
        nonlocal count
        for image, text in read_rows(path):  # in this thread: claims are in the order of rows
            count += 1
            yield image, text, masks.claim(image)

    def compare(row: tuple[str, str, Path | str]) -> str | None:
        return _compare(*row, threshold)

    results = ordered_map(compare, claimed(), threads)
    progress = bar(results, total=len(files), desc="checking", unit="mask")
    bad = [problem for problem in progress if problem is not None] + masks.doubts()
    _raise_if_any(bad, f"rows of '{path}' are wrong; write it again")
    return count, masks.unclaimed()


def check_names(path: Path, sample_csv: Path) -> int:
    """Compares the columns and images of a submission with a sample, whatever their order.

    Args:
        path: A `.csv` or `.csv.gz` file of two columns.
        sample_csv: The sample submission, which names every image once.

    Returns:
        How many rows both have.

    Raises:
        UserError: A file is damaged, the columns are named otherwise, or an image is
            missing, extra or there twice (all are counted, the first few named).
    """
    columns, wanted = read_sample(sample_csv)
    found = read_columns(path)
    if found != columns:
        raise UserError(
            f"'{path}' has the columns {','.join(found)}, but '{sample_csv}' has "
            f"{','.join(columns)}; write it again with that sample."
        )
    images = {image for image, _ in read_rows(path)}
    missing = [image for image in wanted if image not in images]
    extra = sorted(images.difference(wanted))
    problems = [
        f"{len(names)} images are {what}: {first_few(names)}"
        for names, what in ((missing, "missing"), (extra, "not in the sample"))
        if names
    ]
    if problems:
        raise UserError(f"'{path}' does not fit '{sample_csv}': {'; '.join(problems)}.")
    return len(images)


def read_two(path: Path) -> tuple[tuple[str, str], Iterator[tuple[str, str]]]:
    """The two column names and an iterator over the rows; of a folder, those of its parts."""
    if Path(path).is_dir():
        return COLUMNS, rle_parquet.images(path)
    columns, rows = read_two_columns(path, COLUMNS)
    return columns, (cells for _, cells in rows)


def _encode_file(image: str, path: Path, threshold: int) -> _Encoded:
    start = time.perf_counter()
    try:
        grey = read_grey(path)
    except UnreadableImage as error:
        return _Encoded(str(error), Timings(time.perf_counter() - start, 0.0, 0.0))
    was_read = time.perf_counter()
    bits = rle.pack(grey, threshold)
    text = rle.to_text(rle.encode_packed(bits, grey.size))
    line = row_line(image, text)
    was_encoded = time.perf_counter()
    rle.verify(text, bits, *grey.shape)
    verified = time.perf_counter()
    timings = Timings(was_read - start, was_encoded - was_read, verified - was_encoded)
    return _Encoded(line, timings)


def row_line(first: str, second: str) -> Part:
    """One line of the table; only the first cell may need quotation marks."""
    cell = format_line([first]).removesuffix("\n")
    return compress(f"{cell},{second}\n".encode(errors=ERRORS))


def _compare(image: str, text: str, path: Path | str, threshold: int) -> str | None:
    """What is wrong with one row, whose mask was found or not, or None."""
    if isinstance(path, str):
        return path
    try:
        grey = read_grey(path)
        same = np.array_equal(rle.decode_packed(text, *grey.shape), rle.pack(grey, threshold))
    except UnreadableImage as error:
        return str(error)
    except UserError as error:
        return f"'{image}': {error}"
    return None if same else f"'{image}' differs from its mask"


def _raise_if_any(problems: list[str], what: str) -> None:
    if problems:
        named = "; ".join(problem.rstrip(".") for problem in problems[:_NAMED])
        raise UserError(f"{len(problems)} {what}: {named}.")
