"""Writes the box around the object of every mask in a folder.

python tools/find_bounding_boxes.py --pred_mask_dir=predicted_masks --boxes_csv=boxes.csv
"""

import dataclasses
from dataclasses import astuple
from pathlib import Path

from carvana_tf.cli import Command
from carvana_tf.data.images import read_grey
from carvana_tf.data.tables import write_table
from carvana_tf.data.threshold import HIGHEST_THRESHOLD
from carvana_tf.errors import Problems
from carvana_tf.flags import Values, option
from carvana_tf.masks.boxes import (
    HEADER,
    PUBLISHED_HEADER,
    PUBLISHED_MULTIPLE,
    find_box,
    published_row,
)
from carvana_tf.masks.open_folder import choose_threshold, open_complete, record_forced
from carvana_tf.options import ImageOptions
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

# The 4th-place solution's: lower than that of masks, so that unsure edges are inside the box too.
THRESHOLD = 100


@dataclasses.dataclass(frozen=True)
class BoxOptions:
    """The masks, and the table of their boxes."""

    pred_mask_dir: str = option("predicted_masks", "Folder of the probability PNGs.")
    boxes_csv: str = option("boxes.csv", "Table to write: id, left, top, width, height.")
    threshold: int | None = option(
        None,
        "A grey value greater than this is object; by default the one that the masks were "
        f"post-processed at, else {THRESHOLD}.",
        lower=0,
        upper=HIGHEST_THRESHOLD,
    )
    margin: int = option(64, "Pixels added on each side.", lower=0)
    multiple: int = option(64, "Both sides of a box become multiples of it.", lower=1)
    format: str = option(
        "boxes",
        "Columns of the table. published: filename, y_start, y_end, x_start, x_end, in pixels of "
        f"the frame padded to multiples of {PUBLISHED_MULTIPLE}, as the 4th-place solution "
        "published them.",
        choices=("boxes", "published"),
    )
    test_data_dir: str | None = option(
        None, "Folder of the photos, for their names in --format=published."
    )
    image_extension: str | None = option(
        None, "The extension of all photos (.jpg), where nothing else has their names."
    )
    img_width: int | None = option(None, "Accepted and ignored: sizes are read from each mask.")
    img_height: int | None = option(None, "Accepted and ignored: sizes are read from each mask.")
    threads: int = option(4, "Threads that read masks.", lower=1)
    force: bool = option(
        False,
        "Go on where the folder is not what its manifest.json says; <boxes_csv>.forced.json "
        "records it.",
    )


def validate(values: Values, problems: Problems) -> None:
    """Adds a multiple that the format has not."""
    options = values[BoxOptions]
    if options.format == "published" and options.multiple != PUBLISHED_MULTIPLE:
        problems.add(
            f"--format=published has boxes in multiples of {PUBLISHED_MULTIPLE}; leave --multiple="
            f"{options.multiple} out, or the format."
        )


def run(values: Values) -> None:
    """Reads every mask and writes one row for each."""
    options = values[BoxOptions]
    published = options.format == "published"
    folder = open_complete(Path(options.pred_mask_dir), binary=True, force=options.force)

    threshold, problems = choose_threshold(
        folder.path, folder.manifest, options.threshold, THRESHOLD, force=options.force
    )

    header = PUBLISHED_HEADER if published else HEADER
    photos = Path(options.test_data_dir) if options.test_data_dir else None
    ids = folder.photo_names(options.image_extension, photos) if published else list(folder.masks)

    def one(mask: tuple[str, Path]) -> list[str | int]:
        name, path = mask
        grey = read_grey(path)
        box = find_box(grey, threshold=threshold, margin=options.margin, multiple=options.multiple)
        return published_row(name, box, *grey.shape) if published else [name, *astuple(box)]

    found = ordered_map(one, zip(ids, folder.masks.values(), strict=True), options.threads)
    rows = bar(found, total=len(folder.masks), unit="mask")
    write_table(Path(options.boxes_csv), header, rows)
    record_forced(Path(options.boxes_csv), [*folder.forced, *problems])
    print(f"{len(folder.masks)} boxes -> {options.boxes_csv}")


COMMAND = Command(__doc__, (BoxOptions, ImageOptions), run, validate)
