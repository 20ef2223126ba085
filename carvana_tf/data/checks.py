"""Everything wrong with a dataset, each finding with its fix.

An error would break a run, a warning makes its result worse or is likely a mistake, a
note is worth knowing.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from carvana_tf.data import digests, names
from carvana_tf.data.dataset import Naming, Sample, why_unmatched
from carvana_tf.data.decoding import TooManyPixels
from carvana_tf.data.duplicates import Fingerprint, find_copies, fingerprint
from carvana_tf.data.folds import by_id, find_folds, read_folds
from carvana_tf.data.images import (
    AS_DECLARED,
    AmbiguousDepth,
    AmbiguousMask,
    Reading,
    UnreadableImage,
    decode_mask,
    guess_depth,
    read_photo,
)
from carvana_tf.data.names import MASK_SUFFIXES, PHOTO_SUFFIXES
from carvana_tf.data.tables import write_table
from carvana_tf.errors import UserError, absent
from carvana_tf.failures import named
from carvana_tf.filenames import DATASET
from carvana_tf.progress import bar

SEVERITIES = ("error", "warning", "note")
COLUMNS = ("severity", "file", "what", "fix")

# Kinds of `images.Mask` that are worth a line; "0/255" is what a mask should be.
_MASK_KINDS = {
    "0/1": ("note", "mask is written as 0/1", "none needed: read as background and object"),
    "two values": ("note", "mask has a non-white object", "none needed: all but black is object"),
    "alpha": ("note", "mask is an alpha channel", "none needed: read as the mask"),
    "soft": (
        "warning",
        "mask has more than two values, cut in the middle of the range",
        "save it as GIF or PNG with two values; JPEG blurs masks",
    ),
    "empty": ("warning", "mask is empty", "draw it, or keep it if the photo shows no object"),
    "full": ("warning", "mask covers the whole photo", "check that it is not inverted"),
    "around": (
        "warning",
        "mask has the object along the photo's edges, around the background",
        "check that it is not inverted",
    ),
    "outline": (
        "warning",
        "mask encloses more background than it has object",
        "check that it is no outline of the object; fill it then",
    ),
}
# Kinds of masks of 0 and one other value, where --mask_values does not say what these mean.
_TWO_VALUED = ("0/1", "0/255", "two values")
# Of the pixels along a photo's edges; no real object here has as many.
_MOST_EDGE = 0.9


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        severity: One of `SEVERITIES`.
        kind: What findings of the same sort share, for counting.
        file: The file or folder.
        what: What is wrong with it.
        fix: What to do.
    """

    severity: str
    kind: str
    file: str
    what: str
    fix: str


@dataclasses.dataclass(frozen=True)
class _Inspected:
    findings: tuple[Finding, ...]
    most: float | None = None
    mask: str | None = None
    mark: str = ""
    size: tuple[int, int] | None = None
    print: Fingerprint | None = None


def check_dataset(
    photo_dir: Path,
    mask_dir: Path,
    naming: Naming,
    folds: Path | None,
    threads: int = 4,
    reading: Reading = AS_DECLARED,
) -> list[Finding]:
    """Reads every photo and mask of a dataset and lists what is wrong.

    Args:
        photo_dir: Folder of the photos.
        mask_dir: Folder of their masks.
        naming: Which mask belongs to which photo, and what a group is.
        folds: The folds file, or None where there is none yet.
        threads: Threads that decode.
        reading: How the values in photos and masks are understood.

    Returns:
        The findings, errors first.

    Raises:
        UserError: A folder is missing.
    """
    photos, findings = scan(photo_dir, PHOTO_SUFFIXES)
    masks, mask_findings = _scan_masks(mask_dir, naming)
    if photo_dir == mask_dir and naming.mask_suffix:
        photos, mask_findings = _told_apart(photos, masks, mask_findings)
    try:
        of_stem = names.rekey(masks, photos, f"'{mask_dir}'")
    except UserError as error:
        what, fix = "names are ambiguous", "rename or remove one of the two"
        findings.append(Finding("error", what, str(mask_dir), str(error), fix))
        of_stem = {stem: masks[stem] for stem in photos if stem in masks}
    samples = [
        Sample(stem, naming.group(stem), path, of_stem.get(stem), reading=reading)
        for stem, path in photos.items()
    ]
    findings += [*mask_findings, *_check_pairs(samples, masks, naming, photo_dir, mask_dir)]
    return with_photos(findings, samples, photo_dir, folds, threads, mask_dir)


def with_photos(
    findings: Sequence[Finding],
    samples: Sequence[Sample],
    photo_dir: Path,
    folds: Path | None,
    threads: int,
    mask_dir: Path | None = None,
) -> list[Finding]:
    """Reads photos, and masks where there are, and adds what is wrong with them.

    Args:
        findings: What is known already.
        samples: The photos.
        photo_dir: Their folder.
        folds: As of `check_dataset`.
        threads: As of `check_dataset`.
        mask_dir: Folder of their masks, if any.

    Returns:
        All findings, errors first.
    """
    folders = [photo_dir, *([] if mask_dir is None else [mask_dir])]
    fold_of, fold_findings = _check_folds(samples, folds, has_masks=mask_dir is not None)
    findings = [*findings, *fold_findings]
    with ThreadPoolExecutor(threads) as pool:
        inspected = list(
            bar(pool.map(_inspect, samples), total=len(samples), desc="reading", unit="photo")
        )
    findings += [finding for one in inspected for finding in one.findings]
    findings += _check_sizes(photo_dir, inspected)
    findings += _check_missing(dict.fromkeys(folders))
    findings += _check_depth(photo_dir, inspected)
    findings += _check_objects(folders[-1], inspected)
    findings += _check_copies(samples, [one.print for one in inspected], fold_of, threads)
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def table(findings: Sequence[Finding], examples: int = 3) -> str:
    """The findings as aligned text, the first few of each kind and a count of the rest."""
    by_kind: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        by_kind.setdefault((finding.severity, finding.kind), []).append(finding)
    rows = [COLUMNS]
    for same in by_kind.values():
        # A line that would say "1 more" is better spent on that one.
        shown = same if len(same) <= examples + 1 else same[:examples]
        rows += [(one.severity, one.file, one.what, one.fix) for one in shown]
        if len(shown) < len(same):
            first = same[0]
            rest = f"… and {len(same) - len(shown):,} more"
            rows.append((first.severity, rest, f"{first.kind} ({len(same):,} in all)", first.fix))
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )


def counts(findings: Sequence[Finding]) -> tuple[int, ...]:
    """How many findings of each of the `SEVERITIES` there are."""
    return tuple(sum(f.severity == severity for f in findings) for severity in SEVERITIES)


def write(path: Path, findings: Sequence[Finding]) -> None:
    """Writes every finding into a table, whole or not at all."""
    write_table(path, COLUMNS, ((f.severity, f.file, f.what, f.fix) for f in findings))


def scan(
    folder: Path, suffixes: Sequence[str], wanted: Callable[[str], bool] = lambda stem: True
) -> tuple[dict[str, Path], list[Finding]]:
    """The images of a folder by stem, and what else lies there.

    As `dataset.list_images`, but it goes on after the first file that is wrong.
    """
    if not folder.is_dir():
        raise UserError(f"the folder '{folder}' {absent(folder)}")
    found: dict[str, Path] = {}
    findings = []
    paths = sorted(folder.iterdir())
    images = {names.stem(p.name) for p in paths if names.extension(p.name).lower() in suffixes}
    for path in paths:
        if path.name.startswith(".") or path.name in (digests.NAME, DATASET):
            continue
        stem = names.stem(path.name)
        if path.suffix.lower() == ".json" and path.stem in images:
            continue  # LabelMe keeps its annotations there
        if path.is_dir() or names.extension(path.name).lower() not in suffixes:
            what = "is a folder" if path.is_dir() else "is not of a type looked for"
            findings.append(_stray(path, what, "move it elsewhere; it is skipped"))
        elif not wanted(stem):
            findings.append(
                _stray(path, "is not named as a mask", "see --mask_suffix; it is skipped")
            )
        elif stem in found:
            what = f"has the same stem as '{found[stem].name}'"
            fix = "rename or remove one of the two"
            findings.append(Finding("error", "shares its stem", str(path), what, fix))
        else:
            found[stem] = path
    return found, findings


def _stray(path: Path, what: str, fix: str) -> Finding:
    return Finding("note", what, str(path), what, fix)


def _scan_masks(folder: Path, naming: Naming) -> tuple[dict[str, Path], list[Finding]]:
    suffixes = (naming.mask_extension.lower(),) if naming.mask_extension else MASK_SUFFIXES
    found, findings = scan(folder, suffixes, lambda stem: stem.endswith(naming.mask_suffix))
    return {stem.removesuffix(naming.mask_suffix): path for stem, path in found.items()}, findings


def _told_apart(
    photos: dict[str, Path], masks: dict[str, Path], findings: list[Finding]
) -> tuple[dict[str, Path], list[Finding]]:
    """Photos without the masks that lie between them, and findings without the photos."""
    drawn = {path for stem, path in masks.items() if stem in photos}
    left = {stem: path for stem, path in photos.items() if path not in drawn}
    known = set(map(str, left.values()))
    return left, [finding for finding in findings if finding.file not in known]


def _check_pairs(
    samples: Sequence[Sample],
    masks: dict[str, Path],
    naming: Naming,
    photo_dir: Path,
    mask_dir: Path,
) -> Iterator[Finding]:
    used = {sample.mask for sample in samples}
    if used <= {None}:
        what = "no photo has a mask" if samples else "the folder holds no photo"
        fix = "name the folder of the photos with --train_data_dir_name"
        if samples:
            fix = why_unmatched(mask_dir, naming, {sample.stem for sample in samples})
        yield Finding("error", what, str(photo_dir), what, fix)
        return
    for sample in samples:
        if sample.mask is None:
            what = "has no mask"
            fix = f"add '{sample.stem}{naming.mask_suffix}.gif'; training skips the photo"
            yield Finding("warning", what, str(sample.photo), what, fix)
    for stem, path in masks.items():
        if path not in used:
            what = "is a mask without photo"
            fix = f"add the photo '{stem}', or remove the mask; it is skipped"
            yield Finding("warning", what, str(path), what, fix)


def _check_folds(
    samples: Sequence[Sample], path: Path | None, *, has_masks: bool
) -> tuple[dict[str, int] | None, list[Finding]]:
    """The fold of each stem (None where there are no folds) and what is wrong with them."""
    command = "make_folds.py" if has_masks else "tools/prepare_dataset.py, see its --val_ratio"
    again = f"make the folds again with {command}"
    if path is None:
        what = "there is no folds file of this dataset"
        return None, [Finding("note", what, "-", what, f"make it with {command}")]
    try:
        folds = read_folds(path)
        fold_of = find_folds({sample.stem: sample.group for sample in samples}, by_id(folds))
    except UserError as error:
        return None, [Finding("error", "bad folds file", str(path), str(error), again)]
    unknown = dict.fromkeys(
        sample.group
        for sample in samples
        if (sample.mask is not None or not has_masks) and sample.stem not in fold_of
    )
    keys = {sample.group for sample in samples} | {sample.stem for sample in samples}
    known = names.match(folds["id"], keys, f"'{path}'")
    findings = [
        Finding("error", "id is not in the folds", str(path), f"'{name}' is missing", again)
        for name in unknown
    ]
    findings += [
        Finding("note", "id has no photo", str(path), f"'{name}' has no photo", "none needed")
        for name in folds["id"]
        if name not in known
    ]
    return fold_of, findings


def _inspect(sample: Sample) -> _Inspected:
    """Decodes one photo and its mask."""
    findings = []
    size = print_ = most = kind = None
    mark = ""
    try:
        photo = read_photo(sample.photo, sample.reading)
        with named("checking", sample.photo):
            size, print_ = photo.shape[:2], fingerprint(photo)
    except AmbiguousDepth as error:
        most = error.most
        findings.append(
            Finding("error", "depth is unknown", str(sample.photo), str(error), "--photo_depth")
        )
    except UnreadableImage as error:
        findings.append(_unreadable("photo", sample.photo, error))
    if sample.mask is not None:
        kind, mark, found = _inspect_mask(sample.mask, size, sample.reading)
        findings += found
    return _Inspected(tuple(findings), most, kind, mark, size, print_)


def _unreadable(what: str, path: Path, error: UnreadableImage) -> Finding:
    if isinstance(error, TooManyPixels):
        return Finding("error", f"{what} is too large", str(path), str(error), "--max_pixels")
    fix = "replace the file, or remove it"
    return Finding("error", f"{what} is unreadable", str(path), str(error), fix)


def _inspect_mask(
    path: Path, size: tuple[int, int] | None, reading: Reading
) -> tuple[str | None, str, list[Finding]]:
    """The mask's kind, None where it cannot be read, its mark, and what is wrong with it."""
    try:
        mask = decode_mask(path, reading)
    except AmbiguousMask as error:
        finding = Finding("error", "mask is ambiguous", str(path), str(error), "--mask_values")
        return None, "", [finding]
    except UnreadableImage as error:
        return None, "", [_unreadable("mask", path, error)]
    kind = mask.kind
    if not mask.pixels.any():
        kind = "empty"
    elif mask.pixels.all():
        kind = "full"
    found = []
    for name in (kind, _doubtful_shape(mask.pixels)):
        if name in _MASK_KINDS:
            severity, what, fix = _MASK_KINDS[name]
            if name == "around" and kind in _TWO_VALUED:
                fix = f"{fix}; where all are, --mask_values=object:0 turns them over"
            found.append(Finding(severity, what, str(path), what, fix))
    if size is not None and mask.pixels.shape != size:
        what = f"mask is {_times(mask.pixels.shape)}, its photo {_times(size)}"
        fix = "draw the mask on the photo's own pixels"
        found.append(Finding("error", "mask and photo differ in size", str(path), what, fix))
    return kind, mask.mark, found


def _doubtful_shape(mask: np.ndarray) -> str | None:
    """What the shape of `bool[H, W]` may be a mistake by: a key of `_MASK_KINDS`, or None."""
    if mask.all():
        return None
    edges = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if edges.mean() > _MOST_EDGE:
        return "around"
    # What is no object and cannot be reached from outside.
    outside = np.pad(mask.view(np.uint8), 1)
    cv2.floodFill(outside, None, (0, 0), 1)
    enclosed = outside.size - cv2.countNonZero(outside)
    return "outline" if enclosed > np.count_nonzero(mask) else None


def _check_missing(folders: Iterable[Path]) -> Iterator[Finding]:
    for folder in folders:
        for name in digests.missing(folder):
            what = f"is in '{folder / digests.NAME}', but not in the folder"
            fix = "restore it, or record the dataset again with --write"
            yield Finding("error", "recorded file is missing", str(folder / name), what, fix)


def _check_depth(photo_dir: Path, inspected: Sequence[_Inspected]) -> Iterator[Finding]:
    """The depth that the photos of unknown depth have together."""
    values = [one.most for one in inspected if one.most is not None]
    if values:
        what = f"{len(values)} photos of unknown depth have values up to {max(values):g}"
        fix = f"look up the camera's depth and give it to every script: {guess_depth(max(values))}"
        yield Finding("error", "depth of the photos", str(photo_dir), what, fix)


def _check_objects(mask_dir: Path, inspected: Sequence[_Inspected]) -> Iterator[Finding]:
    kinds = [one.mask for one in inspected if one.mask is not None]
    if kinds and set(kinds) == {"empty"}:
        what = f"all {len(kinds)} masks are empty"
        fix = "check that they are the right files, and see --mask_values"
        yield Finding("error", "all masks are empty", str(mask_dir), what, fix)
    # With --mask_values the object is named.
    marks = collections.Counter(one.mark for one in inspected if one.mask in _TWO_VALUED)
    if len(marks) > 1:
        listed = ", ".join(f"{mark or '1 or white'} ({n})" for mark, n in marks.most_common(4))
        more = ", …" if len(marks) > 4 else ""
        what = f"masks mark their object by different values: {listed}{more}"
        fix = (
            "if they are classes, name the object's with --mask_values (object:… or colour:…); if "
            "all are object, --mask_values=nonzero says so"
        )
        yield Finding("warning", "objects of different values", str(mask_dir), what, fix)


def _check_sizes(photo_dir: Path, inspected: Sequence[_Inspected]) -> Iterator[Finding]:
    counts = collections.Counter(one.size for one in inspected if one.size is not None)
    if len(counts) > 1:
        common = [f"{_times(size)} ({count})" for size, count in counts.most_common(3)]
        more = ", …" if len(counts) > len(common) else ""
        what = f"photos have {len(counts)} sizes: {', '.join(common)}{more}"
        yield Finding("note", "mixed sizes", str(photo_dir), what, "none needed")


def _check_copies(
    samples: Sequence[Sample],
    prints: Sequence[Fingerprint | None],
    fold_of: dict[str, int] | None,
    threads: int,
) -> Iterator[Finding]:
    """Photos of one fold that are seen again in another, where they inflate the score."""
    known = [(s, p) for s, p in zip(samples, prints, strict=True) if p is not None]
    if fold_of is not None:  # photos of no fold are neither trained on nor scored
        known = [(sample, one) for sample, one in known if sample.stem in fold_of]
    if not known:
        return
    labels = [_numbered([sample.group for sample, _ in known])]
    if fold_of is not None:
        labels.append([fold_of[sample.stem] for sample, _ in known])
    for copy in find_copies([one for _, one in known], np.transpose(labels), threads):
        first, second = known[copy.first][0], known[copy.second][0]
        where = "of another group"
        if fold_of is not None:
            where = f"in folds {fold_of[second.stem]} and {fold_of[first.stem]}"
        kind = "a mirrored or turned copy" if copy.turned else "a copy"
        what = f"is {kind} of '{first.photo.name}', {where}"
        fix = "remove one, or put both in one fold: scores on it would be too good"
        yield Finding("warning", "is a copy of a photo elsewhere", str(second.photo), what, fix)


def _numbered(names: Sequence[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


def _times(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"
