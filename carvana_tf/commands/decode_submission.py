"""Turns the rows of a submission back into mask PNGs.

python tools/decode_submission.py --submission=submission.csv.gz --test_data_dir=input/test \\
    --out_dir=decoded

The photos give the sizes, which run lengths do not hold; without them give --img_width and
--img_height. The Parquet files of a prediction hold them: name their folder alone. With
--images=a_01.jpg,b_02.jpg those rows alone are decoded.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from carvana_tf.cli import Command
from carvana_tf.data import names
from carvana_tf.data.dataset import list_images
from carvana_tf.data.images import encode_mask, read_size
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.failures import SystemFailure, first_few, named
from carvana_tf.files import Group
from carvana_tf.filling import filling, state_of
from carvana_tf.flags import Values, option
from carvana_tf.interrupt import interruptible
from carvana_tf.masks import rle, rle_parquet
from carvana_tf.masks.submission import read_rows
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

# They do not change what the masks hold.
_FREE = ("threads", "overwrite", "out_dir")


@dataclasses.dataclass(frozen=True)
class DecodeOptions:
    """The submission, and where its masks go."""

    submission: str | None = option(
        None,
        "The submission to decode, .csv or .csv.gz, or the folder of a prediction with "
        "--output=rle-parquet.",
    )
    out_dir: str | None = option(None, "Folder for the masks, '<stem>.png' of 0 and 255.")
    images: tuple[str, ...] = option((), "Rows to decode, comma-separated; all by default.")
    test_data_dir: str | None = option(None, "Folder of the photos, for their sizes.")
    img_width: int | None = option(None, "Width of every mask, without photos.", lower=1)
    img_height: int | None = option(None, "Height of every mask, without photos.", lower=1)
    order: str = option(
        rle.ROWS,
        "Whether pixels are counted along the rows (Carvana) or down the columns, as other "
        "competitions do.",
        choices=rle.ORDERS,
    )
    overwrite: bool = option(False, "Replace masks that --out_dir holds already.")
    threads: int = option(4, "Threads that decode and write.", lower=1)


def run(values: Values) -> int:
    """Decodes the rows; those that are wrong are listed, and the rest is done."""
    options = values[DecodeOptions]
    path, out = Path(options.submission or ""), Path(options.out_dir or "")
    stems = _stems(path, options)
    photos = list_images(Path(options.test_data_dir)) if options.test_data_dir else {}
    photo_of = names.match(stems, photos, f"'{path}'") if photos else {}
    targets = {image: out / f"{stem}.png" for image, stem in stems.items()}
    parts = rle_parquet.complete(path) if path.is_dir() else []
    read = [part.path for part in parts] or [path]
    settings = {
        **{key: value for key, value in dataclasses.asdict(options).items() if key not in _FREE},
        "inputs": state_of([*read, *photos.values()]),
    }

    def present() -> list[Path]:
        return [target for target in targets.values() if target.exists()]

    def one(row: tuple[str, str, tuple[int, int] | None]) -> str | None:
        image, text, size = row
        try:
            size = size or _size(image, photos, photo_of, options)
            mask = rle.decode(text, *size, order=options.order)
        except SystemFailure:
            raise
        except UserError as error:
            return f"'{image}': {error}"
        with named("writing", targets[image]):
            group.write_bytes(targets[image], encode_mask(mask))
        return None

    into = filling(out, settings, present, flag="out_dir", overwrite=options.overwrite)
    with into as made, Group() as group:
        done = {*made}
        todo = {image for image in stems if targets[image] not in done}
        wanted = (row for row in _rows(path, parts) if row[0] in todo)
        results = interruptible(ordered_map(one, wanted, options.threads))
        shown = bar(results, total=len(stems), initial=len(done), unit="mask")
        wrong = [problem for problem in shown if problem is not None]
    for problem in wrong:
        print(names.printable(problem), file=sys.stderr)
    print(f"{len(stems) - len(wrong)} masks -> {out}")
    if without := sum(part.unreadable for part in parts):
        print(f"{without} photos of '{path}' could not be read and have none.", file=sys.stderr)
    if wrong:
        raise UserError(f"{len(wrong)} rows of '{path}' have no mask, see above.")
    return 0


def _rows(
    path: Path, parts: Sequence[rle_parquet.Known]
) -> Iterator[tuple[str, str, tuple[int, int] | None]]:
    """The image, the run lengths and, of parts, the (height, width) of each row."""
    if not parts:
        yield from ((image, text, None) for image, text in read_rows(path))
        return
    for row in rle_parquet.rows(parts):
        if row.rle is not None:
            yield row.image, row.rle, (row.height or 0, row.width or 0)


def validate(values: Values, problems: Problems) -> None:
    """Adds what is missing or contradicts."""
    options = values[DecodeOptions]
    parts = bool(options.submission and rle_parquet.list_parts(Path(options.submission)))
    if options.submission is None:
        problems.add("--submission is missing; name the file to decode.")
    elif not parts and not Path(options.submission).is_file():
        problems.add(f"--submission='{options.submission}' {absent(options.submission)}")
    if options.out_dir is None:
        problems.add("--out_dir is missing; name the folder for the masks.")
    sizes = [options.img_width, options.img_height]
    if parts and options.order != rle.ROWS:
        problems.add(
            f"the Parquet files count pixels along the rows; leave --order={options.order}."
        )
    if parts and (options.test_data_dir is not None or sizes != [None, None]):
        problems.add(
            "the Parquet files hold the sizes; leave --test_data_dir, --img_width and --img_height "
            "out."
        )
    elif not parts and options.test_data_dir is None and None in sizes:
        problems.add(
            "run lengths hold no size; give the folder of the photos as --test_data_dir, or "
            "--img_width and --img_height."
        )
    if options.test_data_dir is not None:
        if sizes != [None, None]:
            problems.add("--test_data_dir gives the sizes; leave --img_width and --img_height out.")
        if not Path(options.test_data_dir).is_dir():
            problems.add(f"the folder '{options.test_data_dir}' {absent(options.test_data_dir)}")


def _stems(path: Path, options: DecodeOptions) -> dict[str, str]:
    """The stem of each image to decode.

    Raises:
        UserError: One is not in the table, or two of them would be one file.
    """
    images = [image for image, _ in read_rows(path)]
    if options.images:
        found = names.match(options.images, images, "--images")
        missing = [image for image in options.images if image not in found]
        if missing:
            raise UserError(
                f"'{path}' has no row for {len(missing)} of --images: {first_few(missing)} (the "
                f"first row is '{images[0]}'); correct the names."
            )
        images = list(found.values())
    owner: dict[str, str] = {}
    for image in images:
        stem = names.stem(image)
        if not stem or stem in owner:
            other = f"and '{owner[stem]}' would be one file" if stem in owner else "names no file"
            raise UserError(f"'{path}': '{image}' {other}; leave one out with --images.")
        owner[stem] = image
    return {image: stem for stem, image in owner.items()}


def _size(
    image: str, photos: dict[str, Path], photo_of: dict[str, str], options: DecodeOptions
) -> tuple[int, int]:
    if options.test_data_dir is None:
        return options.img_height or 0, options.img_width or 0
    if image not in photo_of:
        raise UserError(f"there is no such photo in '{options.test_data_dir}'; add it.")
    return read_size(photos[photo_of[image]])


COMMAND = Command(__doc__, (DecodeOptions,), run, validate)
