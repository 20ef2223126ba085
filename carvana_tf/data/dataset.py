"""What a sample is, and which samples a folder holds."""

import collections
import dataclasses
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path

import numpy as np

from carvana_tf.data import names
from carvana_tf.data.images import AS_DECLARED, Reading
from carvana_tf.data.names import MASK_SUFFIXES, PHOTO_SUFFIXES
from carvana_tf.errors import UserError, absent
from carvana_tf.failures import first_few

DEFAULT_GROUP_PATTERN = r"^(.+)_\d+$"
EACH_ITS_OWN = "(.+)"
"""The pattern that makes each photo its own group."""


@dataclasses.dataclass(frozen=True)
class Naming:
    """How file names say which mask belongs to a photo and which photos belong together.

    Attributes:
        mask_suffix: What a mask's stem adds to its photo's: `<stem>_mask.gif`.
        mask_extension: The masks' extension (".gif"); empty means any image extension.
        group_pattern: Regular expression searched in a photo's stem; its first
            parenthesis is the group (the car). A stem without a match is its own group.
    """

    mask_suffix: str = "_mask"
    mask_extension: str = ""
    group_pattern: str = DEFAULT_GROUP_PATTERN

    def __post_init__(self) -> None:
        if self.mask_extension and self.mask_extension.lower() not in MASK_SUFFIXES:
            raise UserError(
                f"--mask_extension='{self.mask_extension}' is none of {', '.join(MASK_SUFFIXES)}; "
                "write it with its dot, or leave the flag out to read any of them."
            )
        try:
            pattern = re.compile(self.group_pattern)
        except re.error as error:
            raise UserError(
                f"--group_pattern '{self.group_pattern}' is no regular expression: {error}."
            ) from error
        if pattern.groups < 1:
            raise UserError(
                f"--group_pattern '{self.group_pattern}' needs a parenthesis around the "
                f"group, as in '{DEFAULT_GROUP_PATTERN}'."
            )

    def group(self, stem: str) -> str:
        """The group of a photo, for example `fff9b3a5373f` for `fff9b3a5373f_07`."""
        match = re.search(self.group_pattern, stem, re.DOTALL)  # names may hold line ends
        return (match.group(1) if match else None) or stem


@dataclasses.dataclass(frozen=True)
class Sample:
    """One photo and what belongs to it.

    Attributes:
        stem: The photo's `names.stem`; unique in a folder.
        group: What must not be split over folds (the car).
        photo: The photo's file.
        mask: The mask's file, or None for a photo to be predicted.
        stacked: Grey images that enter the network as further channels.
        soft: Whether the mask is a probability PNG rather than two values.
        reading: How the values in photo and mask are understood.
        target: What a task without masks knows of the photo, as the ids of its classes.
        pixels: The photo, `uint8[H, W, 3]` RGB, where it is in memory; `photo` names it then.
        url: Where the photo is, if it is no local file; `photo` has its file name then.
    """

    stem: str
    group: str
    photo: Path
    mask: Path | None = None
    stacked: tuple[Path, ...] = ()
    soft: bool = False
    reading: Reading = AS_DECLARED
    target: tuple[int, ...] | None = None
    pixels: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)
    url: str | None = None

    @property
    def source(self) -> Path | str:
        """What messages call the photo."""
        return self.url or self.photo


def list_images(folder: Path, suffixes: Sequence[str] = PHOTO_SUFFIXES) -> dict[str, Path]:
    """The image files of a folder by stem, sorted; hidden files and other types are skipped.

    Raises:
        UserError: The folder is missing, or two files share a stem.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the folder '{folder}' {absent(folder)}")
    found: dict[str, Path] = {}
    # Names rather than paths: making and comparing those takes seconds with 100,000 files.
    for name in sorted(os.listdir(folder)):
        if name.startswith(".") or names.extension(name).lower() not in suffixes:
            continue
        stem = names.stem(name)
        if stem in found:
            raise UserError(
                f"'{found[stem]}' and '{name}' differ in their extension alone, so one mask "
                "would stand for both; rename or remove one."
            )
        found[stem] = folder / name
    return found


def list_masks(folder: Path, naming: Naming) -> dict[str, Path]:
    """The mask files of a folder by the stem of their photo, sorted.

    Raises:
        UserError: The folder is missing, or two files would be one photo's mask.
    """
    suffixes = (naming.mask_extension.lower(),) if naming.mask_extension else MASK_SUFFIXES
    return {
        stem.removesuffix(naming.mask_suffix): path
        for stem, path in list_images(folder, suffixes).items()
        if stem.endswith(naming.mask_suffix)
    }


def find_photos(
    photo_dir: Path, naming: Naming | None = None, reading: Reading = AS_DECLARED
) -> list[Sample]:
    """Every photo of a folder as a sample without mask, sorted by stem.

    Raises:
        UserError: The folder is missing or holds no photo.
    """
    naming = naming or Naming()
    samples = [
        Sample(stem, naming.group(stem), path, reading=reading)
        for stem, path in list_images(photo_dir).items()
    ]
    if not samples:
        raise UserError(
            f"the folder '{photo_dir}' holds no photo (looked for {', '.join(PHOTO_SUFFIXES)}); "
            "name the folder the photos are in themselves."
        )
    return samples


def photos_of_masks(
    photo_dir: Path, stems: Collection[str], mask_dir: Path, flag: str = "photo_dir"
) -> dict[str, Path]:
    """The photo of each mask, by the mask's stem and in the order of the stems.

    Args:
        photo_dir: Where the photos are.
        stems: Those of the masks.
        mask_dir: Where the masks are, for the message.
        flag: That of `photo_dir`, for the message.

    Raises:
        UserError: A mask has none.
    """
    found = names.rekey(list_images(photo_dir), stems, f"'{photo_dir}'")
    missing = [stem for stem in stems if stem not in found]
    if missing:
        raise UserError(
            f"{len(missing)} masks of '{mask_dir}' have no photo in '{photo_dir}' "
            f"({first_few(missing)}); add the photos, remove the masks, or correct --{flag}."
        )
    return found


def find_samples(
    photo_dir: Path,
    mask_dir: Path,
    naming: Naming | None = None,
    reading: Reading = AS_DECLARED,
) -> list[Sample]:
    """Every photo of a folder that has a mask, sorted by stem.

    Raises:
        UserError: A folder is missing, or no photo has a mask.
    """
    naming = naming or Naming()
    photos = find_photos(photo_dir, naming, reading)
    samples = with_masks(photos, list_masks(mask_dir, naming), mask_dir)
    if not samples:
        stems = {sample.stem for sample in find_photos(photo_dir, naming)}
        raise UserError(
            f"no photo of '{photo_dir}' has a mask: {why_unmatched(mask_dir, naming, stems)}"
        )
    return samples


def why_unmatched(mask_dir: Path, naming: Naming, stems: Set[str]) -> str:
    """Why no mask of a folder belongs to a photo, and the flag that changes it.

    Args:
        mask_dir: The folder.
        naming: By which none was found.
        stems: Of the photos, at least one.
    """
    files = sorted(path.name for path in mask_dir.iterdir() if not path.name.startswith("."))
    images = [name for name in files if names.extension(name)]
    if not images:
        return f"'{mask_dir}' holds no image; name the folder of the masks."
    suffix = naming.mask_extension.lower()
    fitting = [name for name in images if not suffix or names.extension(name).lower() == suffix]
    if not fitting:
        return (
            f"'{mask_dir}' holds {len(images)} images, but none ends in "
            f"--mask_extension={suffix} (the first is '{images[0]}'); leave the flag out."
        )
    counts = collections.Counter(ending for _, ending in mask_endings(fitting, stems))
    for rest, count in counts.most_common(1):
        return (
            f"names in '{mask_dir}' do not end as --mask_suffix='{naming.mask_suffix}' says (the "
            f"first is '{fitting[0]}'); --mask_suffix='{rest}' fits {count} of {len(stems)} photos."
        )
    looked = f"{min(stems)}{naming.mask_suffix}{naming.mask_extension or '.png'}"
    return (
        f"'{mask_dir}' holds masks of other photos (the first is '{fitting[0]}', looked for was "
        f"'{looked}'); name the folder of these photos' masks, or see --mask_suffix."
    )


def mask_endings(
    files: Iterable[str], stems: Set[str], *, mixed: bool = False
) -> Iterator[tuple[str, str]]:
    """What the names of masks add to those of photos.

    Args:
        files: Names of masks.
        stems: Of the photos.
        mixed: Whether they are in the masks' folder, where no mask is its own photo.

    Yields:
        A name and its ending after the longest stem that fits; other names are left out.
    """
    for file in files:
        name = names.stem(file)
        itself = mixed and names.extension(file).lower() in PHOTO_SUFFIXES
        for end in range(len(name) - itself, 0, -1):
            if name[:end] in stems:
                yield file, name[end:]
                break


def with_masks(
    samples: Sequence[Sample], masks: Mapping[str, Path], mask_dir: Path
) -> list[Sample]:
    """Those of the samples that have a mask, with it.

    Args:
        samples: Photos.
        masks: By the stem of their photo.
        mask_dir: Where the masks are, for the message.

    Raises:
        UserError: Two masks may be one photo's, or one mask two photos'.
    """
    of_stem = names.rekey(masks, [sample.stem for sample in samples], f"'{mask_dir}'")
    return [
        dataclasses.replace(sample, mask=of_stem[sample.stem])
        for sample in samples
        if sample.stem in of_stem
    ]


def stacked_folders(folder: Path | None, channels: int) -> list[Path]:
    """The mask folder of each stacked channel.

    Args:
        folder: A folder with the subfolders 0, 1, ...; or the mask folders themselves,
            joined by commas.
        channels: How many.

    Raises:
        UserError: No folder was given, or another number of folders.
    """
    if channels == 0:
        if folder is not None:
            raise UserError(
                f"--stacked_channels_dir='{folder}' is given, but the network takes no stacked "
                "channels; leave it out, or train with --stacked_channels."
            )
        return []
    if folder is None:
        raise UserError(
            f"--stacked_channels={channels} needs --stacked_channels_dir: the folder with their "
            "masks in 0/, 1/, ..., or that many mask folders."
        )
    named = [Path(name) for name in names.split_list(str(folder))]
    if len(named) == 1 and not any(named[0].glob("*.png")):
        return [Path(folder) / str(i) for i in range(channels)]
    if len(named) != channels:
        raise UserError(
            f"--stacked_channels={channels} but --stacked_channels_dir names {len(named)} mask "
            f"folders, the first is '{named[0]}'; name one for each channel."
        )
    return named


def with_stacked_channels(
    samples: Sequence[Sample], folder: Path | None, channels: int
) -> list[Sample]:
    """Adds the `<stem>.png` of each of the `stacked_folders` to each sample.

    Raises:
        UserError: No folder was given, or a file is missing.
    """
    folders = stacked_folders(folder, channels)
    stems = [sample.stem for sample in samples]
    listed = [list_images(each, (".png",)) if each.is_dir() else {} for each in folders]
    found = [
        names.rekey(masks, stems, f"'{each}'") for each, masks in zip(folders, listed, strict=True)
    ]
    missing = [
        each / f"{stem}.png"
        for each, masks in zip(folders, found, strict=True)
        for stem in stems
        if stem not in masks
    ]
    if missing:
        raise UserError(
            f"{len(missing)} stacked channels are missing, the first is '{missing[0]}'; "
            "predict them first."
        )
    return [
        dataclasses.replace(sample, stacked=tuple(masks[sample.stem] for masks in found))
        for sample in samples
    ]
