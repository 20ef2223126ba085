"""Cuts the objects out of photos by masks that were predicted before.

python tools/cut_out.py --photo_dir=input/test --pred_mask_dir=predicted_masks --out_dir=cutouts

The same cut-outs as predict_multithreaded.py --output=cutout, without predicting again. A half
filled folder is completed. See docs/cutouts.md.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from carvana_tf import __version__, files
from carvana_tf.cli import Command
from carvana_tf.data import bad_files
from carvana_tf.data.dataset import photos_of_masks
from carvana_tf.data.images import Reading, UnreadableImage, read_grey, read_photo
from carvana_tf.data.loader import check_size
from carvana_tf.data.names import printable
from carvana_tf.errors import Problems, UserError, absent
from carvana_tf.failures import named
from carvana_tf.flags import Values, option
from carvana_tf.interrupt import interruptible
from carvana_tf.masks import manifest
from carvana_tf.masks.cutouts import cutter
from carvana_tf.masks.cutouts.cutter import Cutter
from carvana_tf.masks.cutouts.matting import centred
from carvana_tf.masks.cutouts.options import CutoutOptions
from carvana_tf.masks.open_folder import MaskFolder, incomplete, open_folder
from carvana_tf.options import ImageOptions
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

_SHOWN = 20  # problems that are printed; the table has all


@dataclasses.dataclass(frozen=True)
class CutOutOptions:
    """The photos, their masks, and where the cut-outs go."""

    photo_dir: str | None = option(None, "Folder of the photos.")
    pred_mask_dir: str | None = option(
        None, "Folder of probability PNGs or of predicted masks, named as the photos."
    )
    out_dir: str | None = option(None, "Folder for the cut-outs; a half filled one is completed.")
    photo_depth: int = option(
        0,
        "Bits in use of photos deeper than 8 bits, as 12 for values of 0..4095 in 16-bit files; "
        "0: as the file declares.",
        lower=0,
        upper=32,
        advanced=True,
    )
    overwrite: bool = option(False, "Make the cut-outs again that are in --out_dir.")
    threads: int = option(2, "Threads that read, cut and write.", lower=1)


def validate(values: Values, problems: Problems) -> None:
    """Adds what is missing or does not exist."""
    options = values[CutOutOptions]
    for flag, what in (("photo_dir", "the photos"), ("pred_mask_dir", "the masks")):
        path = getattr(options, flag)
        if path is None:
            problems.add(f"--{flag} is missing; name the folder of {what}.")
        elif not Path(path).is_dir():
            problems.add(f"--{flag}='{path}' {absent(path)}")
    if options.out_dir is None:
        problems.add("--out_dir is missing; name the folder for the cut-outs.")
    elif Path(options.out_dir).resolve() in [
        Path(path).resolve() for path in (options.photo_dir, options.pred_mask_dir) if path
    ]:
        problems.add(f"--out_dir='{options.out_dir}' holds what is read; name another folder.")
    values[CutoutOptions].check(problems)


def run(values: Values) -> int:
    """Makes the cut-outs that are not there yet; files that cannot be read are listed."""
    options = values[CutOutOptions]
    masks = open_folder(Path(options.pred_mask_dir or ""), binary=True)
    if masks.manifest is None:
        # One that is not complete yet will do; one without probabilities will not.
        for problem in incomplete(masks):
            raise UserError(f"{problem}.")
    photos = photos_of_masks(Path(options.photo_dir or ""), masks.masks, masks.path)
    folder = Path(options.out_dir or "")
    with files.held(folder):
        return _fill(folder, masks, photos, options, values[CutoutOptions])


def _fill(
    folder: Path,
    masks: MaskFolder,
    photos: dict[str, Path],
    options: CutOutOptions,
    cutouts: CutoutOptions,
) -> int:
    stems = list(photos)
    origin = _origin(masks, stems, cutouts)
    present = manifest.begin(
        folder, origin, stems, overwrite=options.overwrite, suffix=cutouts.suffix
    )
    todo = [stem for stem in stems if stem not in present]
    with files.Group() as group:
        work = _work(
            masks, photos, folder, group, Reading(photo_depth=options.photo_depth), cutouts
        )
        results = interruptible(ordered_map(work, todo, options.threads))
        shown = bar(
            results, total=len(stems), initial=len(present), desc="cutting out", unit="photo"
        )
        bad = [problem for problem in shown if problem is not None]
    bad_files.record(folder, bad)
    print(f"{len(todo) - len(bad)} cut-outs, {len(present)} were there -> {folder}")
    for _, problem in bad[:_SHOWN]:
        print(f"unreadable: {printable(problem)}", file=sys.stderr)
    if bad:
        raise UserError(
            f"{len(bad)} photos have no cut-out; all are listed in '{folder / bad_files.NAME}'; "
            "replace the files, and run the same command again."
        )
    return 0


def _work(
    masks: MaskFolder,
    photos: dict[str, Path],
    folder: Path,
    group: files.Group,
    reading: Reading,
    cutouts: CutoutOptions,
) -> Callable[[str], tuple[str, str] | None]:
    """What makes the cut-out of a stem; it returns a file that cannot be read, and why."""
    made = Cutter(cutouts)

    def work(stem: str) -> tuple[str, str] | None:
        photo_file, mask_file = photos[stem], masks.masks[stem]
        path = photo_file
        try:
            photo = read_photo(path, reading)
            path = mask_file
            grey = read_grey(path)
            check_size(path, grey.shape, photo.shape[:2])
        except UnreadableImage as error:
            return str(path), str(error)
        if masks.threshold is not None:
            grey = centred(grey, masks.threshold)
        with named("cutting out", photo_file):
            data = made.encode(grey, photo, photo_file)
        group.write_bytes(folder / f"{stem}{cutouts.suffix}", data)
        return None

    return work


def _origin(masks: MaskFolder, stems: list[str], cutouts: CutoutOptions) -> manifest.Manifest:
    """The manifest: that of the masks, as far as it is known, with another encoding."""
    unknown = manifest.Manifest(
        models=(),
        out_of_fold=False,
        tta="unknown",
        engine="unknown",
        dtype="unknown",
        photos=0,
        photos_digest="",
        encoding="",
        version="",
    )
    return dataclasses.replace(
        masks.manifest or unknown,
        photos=len(stems),
        photos_digest=files.digest_of_lines(stems),
        encoding=cutter.describe(cutouts),
        version=__version__,
    )


COMMAND = Command(__doc__, (CutOutOptions, CutoutOptions, ImageOptions), run, validate)
