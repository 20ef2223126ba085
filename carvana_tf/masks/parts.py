"""A submission in parts, one for each shard, and one submission made of them."""

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from carvana_tf import files, shards
from carvana_tf.data import names
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError
from carvana_tf.filenames import MANIFEST, SUBMISSION
from carvana_tf.files import claimed, digest_of_lines
from carvana_tf.interrupt import Interrupt, interruptible
from carvana_tf.masks import manifest, rle, rle_parquet, submission
from carvana_tf.masks.growing import Growing, Part
from carvana_tf.masks.submission import Rows, Timings
from carvana_tf.progress import bar
from carvana_tf.shards import Shard
from carvana_tf.threads import ordered_map


def of_shard(rows: Rows, shard: Shard) -> Rows:
    """The rows whose masks are in a shard."""
    kept = [
        (image, mask)
        for image, mask in zip(rows.images, rows.masks, strict=True)
        if shard.has(names.stem(mask.name))
    ]
    images, masks = tuple(image for image, _ in kept), tuple(mask for _, mask in kept)
    return dataclasses.replace(rows, images=images, masks=masks, surplus=())


def write(
    folder: Path, rows: Rows, shard: Shard, threads: int, threshold: int = DEFAULT_THRESHOLD
) -> Timings:
    """Writes the part of a shard, every row decoded back, into `Shard.folder` of a folder.

    Args:
        folder: That of the submissions.
        rows: Of all shards.
        shard: Which of them.
        threads: As of `submission.write`.
        threshold: As of `submission.write`.

    Raises:
        UserError, RuntimeError: As of `submission.write`.
    """
    mine, own = of_shard(rows, shard), shard.folder(folder)
    shards.begin(folder, shard)
    masks = _masks(mine, threshold)  # before: they may be made again meanwhile
    spent = submission.write(own / SUBMISSION, mine, threads, threshold)
    shards.finish(folder, shard, masks=masks, digest=files.digest(own / SUBMISSION))
    return spent


def merge(path: Path, folder: Path, rows: Rows, count: int, threads: int, threshold: int) -> None:
    """Makes one submission of all parts that `write` has written, in the order of the rows.

    Its bytes are those that `submission.write` gives for all rows.

    Args:
        path: The submission.
        folder: That of the parts.
        rows: Of all shards.
        count: How many shards there are.
        threads: That compress.
        threshold: Grey values above it are object.

    Raises:
        UserError: A part is missing, damaged, or older than its masks, or has other rows.
    """
    parts = _complete(folder, count)
    for shard, part in parts.items():
        known = files.read_json(part.parent / shards.RECORD)
        if known.get("masks") != _masks(of_shard(rows, shard), threshold):
            raise UserError(
                f"'{part}' was made of other masks, or by another --threshold, than those of "
                f"'{rows.masks[0].parent}' now; encode --shard={shard.number} again."
            )
        if known.get("digest") != files.digest(part):
            raise UserError(f"'{part}' has changed; encode --shard={shard.number} again.")
    stems = [names.stem(mask.name) for mask in rows.masks]
    order = zip((shards.shard_of(stem, count) for stem in stems), rows.images, strict=True)
    _write(path, rows.columns, _in_order(list(order), parts), len(stems), threads)


def merge_predicted(path: Path, folder: Path, count: int, threads: int) -> int:
    """Makes one submission of the parts that a prediction with --output=rle has written.

    Its bytes are those of the submission that one process writes. Returns how many rows it has.

    Args:
        path: The submission.
        folder: That of the prediction.
        count: How many shards there are.
        threads: That compress.

    Raises:
        UserError: A part is missing or damaged, or photos have no row.
    """
    parts = _complete(folder, count)
    found = [
        (image, shard.number)
        for shard, part in parts.items()
        for image, _ in submission.read_two(part)[1]
    ]
    order = [(number, image) for image, number in sorted(found)]
    stems = [names.stem(image) for _, image in order]
    wrong = [
        s
        for (number, _), s in zip(order, stems, strict=True)
        if shards.shard_of(s, count) != number
    ]
    if wrong:
        raise UserError(f"'{wrong[0]}' is in the wrong part of '{folder}'; predict it again.")
    made = manifest.read(folder)
    if made is None or made.photos_digest != digest_of_lines(stems):
        photos = "unknown" if made is None else made.photos
        raise UserError(
            f"the parts of '{folder}' have {len(stems)} rows, but '{Path(folder) / MANIFEST}' is "
            f"for {photos} photos; see the bad_files.csv of the shards, and predict the rest."
        )
    _write(path, submission.COLUMNS, _in_order(order, parts), len(order), threads)
    return len(order)


def merge_parquet(path: Path, parts: Sequence[rle_parquet.Known], threads: int) -> int:
    """Makes one submission of the masks of `rle_parquet` parts, in their order.

    Run lengths are decoded at the size of their mask; a photo without a mask has no row. Memory
    does not grow with their number. Returns how many rows it has.

    Args:
        path: The submission.
        parts: Of `rle_parquet.complete`.
        threads: That decode and compress.

    Raises:
        UserError: A part is damaged.
    """
    total = sum(part.rows - part.unreadable for part in parts)
    rows = (row for row in rle_parquet.rows(parts) if row.rle is not None)

    def line(row: rle_parquet.Row) -> Part:
        try:
            rle.decode_packed(row.rle or "", row.height or 0, row.width or 0)
        except UserError as error:
            raise UserError(f"the part of '{row.path}' is damaged: {error}") from error
        return submission.row_line(row.image, row.rle or "")

    _compress(path, submission.COLUMNS, ordered_map(line, rows, threads), total)
    return total


def is_predicted(folder: Path) -> bool:
    """Whether a folder holds run lengths instead of masks, in parts."""
    made = manifest.read(folder)
    return made is not None and made.encoding.startswith("run lengths")


def _complete(folder: Path, count: int) -> dict[Shard, Path]:
    every = [Shard(number, count) for number in range(count)]
    missing = [
        shard
        for shard in every
        if not all((shard.folder(folder) / name).is_file() for name in (SUBMISSION, shards.RECORD))
    ]
    if missing:
        numbers = ", ".join(str(shard.number) for shard in missing[:5])
        raise UserError(
            f"{len(missing)} of {count} shards have no finished part in "
            f"'{Path(folder) / shards.FOLDER}': {numbers}{', …' if len(missing) > 5 else ''}; run "
            f"them with --num_shards={count} --shard={missing[0].number}."
        )
    return {shard: shard.folder(folder) / SUBMISSION for shard in every}


def _masks(rows: Rows, threshold: int) -> str:
    """What a part depends on: its rows, their masks and the threshold."""
    return digest_of_lines([f"above {threshold}", *submission.stamps(rows)])


def _write(
    path: Path,
    columns: tuple[str, str],
    rows: Iterator[tuple[str, str]],
    total: int,
    threads: int,
) -> None:
    lines = ordered_map(lambda row: submission.row_line(*row), rows, threads)
    _compress(path, columns, lines, total)


def _compress(path: Path, columns: tuple[str, str], lines: Generator[Part], total: int) -> None:
    growing = Growing(path.parent, f"merged-{path.name}", columns, compressed=path.suffix == ".gz")
    with claimed(path), contextlib.ExitStack() as opened:
        growing.discard()
        interrupt = opened.enter_context(Interrupt())
        rows = opened.enter_context(growing)
        merging = interruptible(lines, interrupt)
        for line in bar(merging, total=total, desc="merging", unit="row"):
            rows.add(line)
        rows.finish(path)


def _in_order(
    order: Sequence[tuple[int, str]], parts: dict[Shard, Path]
) -> Iterator[tuple[str, str]]:
    """The rows of all parts; each stream is read once, and what comes too early is kept."""
    streams = {shard.number: submission.read_two(path)[1] for shard, path in parts.items()}
    early: dict[tuple[int, str], str] = {}
    for number, image in order:
        while (number, image) not in early:
            row = next(streams[number], None)
            if row is None:
                raise UserError(f"shard {number} has no row of '{image}'; run it again.")
            rle.parse(row[1])
            early[number, row[0]] = row[1]
        yield image, early.pop((number, image))
    rest = [image for _, image in early]
    rest += [image for stream in streams.values() for image, _ in stream]
    if rest:
        raise UserError(f"the parts have {len(rest)} rows too many, the first is '{rest[0]}'.")
