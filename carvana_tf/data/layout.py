"""How a dataset is laid out, found by looking: folders, names of masks, groups.

Nothing is guessed that two answers would fit: then an error names both, and the flag that
settles it.
"""

import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from carvana_tf.data import labels as label_tables
from carvana_tf.data import mask_values, names
from carvana_tf.data.dataset import DEFAULT_GROUP_PATTERN, EACH_ITS_OWN, Naming, mask_endings
from carvana_tf.data.decoding import Picture, UnreadableImage, decode
from carvana_tf.data.folds import read_folds
from carvana_tf.data.names import PHOTO_SUFFIXES
from carvana_tf.errors import UserError
from carvana_tf.filenames import FOLDS, MANIFEST, SAMPLE_SUBMISSION

PHOTOS, MASKS, TEST, SUFFIX, FOLD_COUNT = "train", "train_masks", "test", "_mask", 5
USUAL = {
    "photos": PHOTOS,
    "masks": MASKS,
    "test_photos": TEST,
    "sample_submission": SAMPLE_SUBMISSION,
    "labels": "train_labels.csv",
    "mask_suffix": SUFFIX,
    "mask_extension": "",
    "group_pattern": DEFAULT_GROUP_PATTERN,
    "folds_source": FOLDS,
}
"""What commands take where nothing says otherwise: the layout of the competition."""

GIVEN = "given"
"""How a value was found that nobody looked for."""

FLAGS = {"photos": "train_data_dir_name", "masks": "train_mask_dir_name"}
"""The flags of keys that are called otherwise."""

_DEEPEST, _MOST_FOLDERS = 2, 64
_COMPARED, _DECODED = 300, 3  # names and files of a folder that are looked at
_MOST_VALUES, _LOOKED_AT = 32, 250_000  # of a mask; pixels that are looked at
_FEW = 10  # photos of which a group may have more than half

_OTHERS = re.compile(r"(^|[^a-z])(test|val|valid|validation|holdout|unlabel|pred|submission)")
_MASK_WORD = re.compile("mask|label|annot|segm|truth|target|matte|(^|[^a-z])gt([^a-z]|$)")


@dataclasses.dataclass(frozen=True)
class Layout:
    """What was found.

    Attributes:
        values: By key of `description.KEYS`.
        how: How each was found, in a few words; also why one was not.
        unclear: What two answers would fit, though a usual one is taken; as sentences.
    """

    values: Mapping[str, Any]
    how: Mapping[str, str]
    unclear: Sequence[str]


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A folder with images: its path inside the dataset ("." is the dataset's own) and names."""

    name: str
    path: Path
    files: tuple[str, ...]

    @property
    def photos(self) -> dict[str, str]:
        """The names of what may be photos, by stem."""
        known = (f for f in self.files if names.extension(f).lower() in PHOTO_SUFFIXES)
        return {names.stem(f): f for f in known}


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Folders that fit each other.

    Attributes:
        photos: One.
        masks: The other, or the same.
        suffix: What most of the masks' names add.
        count: How many of the names that were compared do.
        looks: How well the files look as what they should be, from 0 to 2.
    """

    photos: _Folder
    masks: _Folder
    suffix: str
    count: int
    looks: int


def find(root: Path, given: Mapping[str, Any]) -> Layout:
    """Looks at the folders, names and some files of a dataset.

    Args:
        root: Its folder.
        given: Values that are known, by key; they are taken as they are.

    Raises:
        UserError: No folders fit, or several do; the message names the flag that settles it.
    """
    root, found = Path(root), _Found(given)
    folders = list(_image_folders(root))
    photos, masks = _find_pair(root, folders, found)
    _find_naming(photos, masks, found)
    _find_groups(_without_masks(photos, masks, found.values["mask_suffix"]), found)
    _find_test(root, folders, photos, masks, found)
    _find_tables(root, photos, found)
    return Layout(found.values, found.how, found.unclear)


class _Found:
    """A layout while it is found."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.values: dict[str, Any] = dict(given)
        self.how: dict[str, str] = dict.fromkeys(given, GIVEN)
        self.unclear: list[str] = []

    def add(self, key: str, value: Any, how: str) -> None:
        """Records a value, unless it is given."""
        if key not in self.values:
            self.values[key], self.how[key] = value, how


def _image_folders(root: Path) -> Iterator[_Folder]:
    """The folders of a dataset that hold images, sorted; those of predictions are left out."""
    waiting, count = collections.deque([(root, 0)]), 0
    while waiting and count < _MOST_FOLDERS:
        path, depth = waiting.popleft()
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError:
            continue
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        if any(entry.name == MANIFEST for entry in entries):
            continue
        if depth < _DEEPEST:
            waiting += [(Path(entry.path), depth + 1) for entry in entries if entry.is_dir()]
        files = [e.name for e in entries if names.extension(e.name) and e.is_file()]
        if files:
            count += 1
            yield _Folder(path.relative_to(root).as_posix(), path, tuple(files))


def _folder_of(root: Path, name: str) -> _Folder | None:
    """A folder that a flag names: inside the dataset or anywhere; None where there is none."""
    inside = root / name
    path = inside if inside.is_dir() else Path(name)
    if not path.is_dir():
        return None
    files = sorted(f for f in os.listdir(path) if names.extension(f) and not f.startswith("."))
    return _Folder(name, path, tuple(files))


def _find_pair(root: Path, folders: Sequence[_Folder], found: _Found) -> tuple[_Folder, _Folder]:
    """The folders of photos and masks."""
    given = {key: found.values.get(key) for key in ("photos", "masks")}
    usual = {
        key: _folder_of(root, given[key] or name)
        for key, name in (("photos", PHOTOS), ("masks", MASKS))
    }
    for key, folder in usual.items():
        if folder is None and given[key] is not None:
            raise UserError(f"the folder '{given[key]}' does not exist; correct --{FLAGS[key]}.")
    suffix = found.values.get("mask_suffix")
    photos, masks = usual["photos"], usual["masks"]
    # The working folder may have folders of these names, of another dataset.
    ours = all(folder.path == root / folder.name for folder in usual.values() if folder)
    fits = photos is not None and masks is not None and _fits(photos, masks, suffix)
    if not (fits and ours) and not all(given.values()):
        choice = {key: [f] if f and given[key] is not None else folders for key, f in usual.items()}
        pairs = [
            pair
            for one in choice["photos"]
            for other in choice["masks"]
            if (pair := _compare(one, other, suffix)) is not None
        ]
        if best := _best(pairs):
            return _only(root, best, found)
    if photos is None or masks is None:
        raise _nothing_fits(root, folders)
    found.add("photos", photos.name, "the usual name")
    found.add("masks", masks.name, "the usual name")
    return photos, masks


def _only(root: Path, best: Sequence[_Pair], found: _Found) -> tuple[_Folder, _Folder]:
    """The folders of the only pair.

    Raises:
        UserError: There are several.
    """
    for key, options in (
        ("photos", {pair.photos.name: None for pair in best}),
        ("masks", {pair.masks.name: None for pair in best}),
    ):
        if len(options) > 1:
            raise UserError(
                f"several folders of '{root}' may be the {key}: {', '.join(options)}; name the "
                f"right one with --{FLAGS[key]}."
            )
    (pair,) = best
    photos, masks = pair.photos, pair.masks
    found.add("photos", photos.name, f"names there fit those in '{masks.name}'")
    found.add("masks", masks.name, "its images look like masks and are named as the photos")
    return photos, masks


def _fits(photos: _Folder, masks: _Folder, suffix: str | None) -> bool:
    """Whether a mask has the name of a photo, with the usual suffix where none is given."""
    stems, suffix = photos.photos, SUFFIX if suffix is None else suffix
    marked = (s for f in masks.files if (s := names.stem(f)).endswith(suffix))
    return any(stem.removesuffix(suffix) in stems for stem in marked)


def _compare(photos: _Folder, masks: _Folder, suffix: str | None) -> _Pair | None:
    """How well two folders fit; None where they do not."""
    same = photos.path == masks.path
    stems = photos.photos
    compared = _spread(masks.files, _COMPARED)
    counts = collections.Counter(
        ending
        for file, ending in mask_endings(compared, stems.keys(), mixed=same)
        if _may_end(ending, suffix)
    )
    if not counts:
        return None
    ending, count = counts.most_common(1)[0]
    marked = [f for f, e in mask_endings(compared, stems.keys(), mixed=same) if e == ending]
    ours = [stems[names.stem(f).removesuffix(ending)] for f in marked]
    drawn, seen = _are_masks(masks.path, marked), _are_masks(photos.path, ours)
    if drawn is False or (seen and not _MASK_WORD.search(masks.name.lower())):
        return None
    return _Pair(photos, masks, ending, count, bool(drawn) + (seen is False))


def _may_end(ending: str, suffix: str | None) -> bool:
    if suffix is not None:
        return ending == suffix
    return not ending[:1].isdigit()  # that is another number


def _best(pairs: Sequence[_Pair]) -> list[_Pair]:
    """Those of the pairs that no other one beats: one, or several that nothing distinguishes."""
    left = list(pairs)
    most = max((pair.count for pair in pairs), default=0)
    for rule in (
        lambda p: not _OTHERS.search(p.photos.name.lower() + "/" + p.masks.name.lower()),
        lambda p: p.looks,
        lambda p: 2 * p.count >= most,
        lambda p: bool(_MASK_WORD.search(p.masks.name.lower())),
        lambda p: not _MASK_WORD.search(p.photos.name.lower()),
        lambda p: p.photos.path != p.masks.path,
        lambda p: p.photos.name == PHOTOS,
        lambda p: p.masks.name == MASKS,
    ):
        top = max(map(rule, left), default=0)
        left = [pair for pair in left if rule(pair) == top]
    return left


def _nothing_fits(root: Path, folders: Sequence[_Folder]) -> UserError:
    flags = " and ".join(f"--{flag}" for flag in FLAGS.values())
    if not folders:
        return UserError(f"'{root}' has no folder with images; name those of others with {flags}.")
    listed = ", ".join(f"{folder.name} ({len(folder.files)})" for folder in folders[:8])
    return UserError(
        f"in '{root}' no folder's images are masks with the names of another one's photos (there "
        f"are images in {listed}); name the folders with {flags}, or see --mask_suffix."
    )


def _are_masks(folder: Path, files: Sequence[str]) -> bool | None:
    """Whether most of some files look as masks do; None where none can be read."""
    votes = []
    for file in _spread(files, _DECODED):
        try:
            votes.append(_is_mask(decode(folder / file)))
        except UnreadableImage:
            continue
    return 2 * sum(votes) > len(votes) if votes else None


def _is_mask(picture: Picture) -> bool:
    """Whether a picture has so few values as masks and labels have, or is surely a mask."""
    step = max(1, int((picture.values.shape[0] * picture.values.shape[1] / _LOOKED_AT) ** 0.5))
    some = picture.values[::step, ::step]
    flat = some.reshape(some.shape[0] * some.shape[1], -1)
    if len(np.unique(flat, axis=0) if flat.shape[1] > 1 else np.unique(flat)) <= _MOST_VALUES:
        return True
    try:
        mask_values.interpret(picture, mask_values.AUTOMATIC)
    except mask_values.Ambiguous:
        return False
    return True


def _find_naming(photos: _Folder, masks: _Folder, found: _Found) -> None:
    """The masks' suffix and extension."""
    stems = photos.photos
    same = photos.path == masks.path
    suffix = found.values.get("mask_suffix")
    endings = [
        (file, ending)
        for file, ending in mask_endings(masks.files, stems.keys(), mixed=same)
        if _may_end(ending, suffix)
    ]
    counts = collections.Counter(ending for _, ending in endings)
    if suffix is None:
        suffix = _choose_suffix(counts, masks)
        belong = len(_without_masks(photos, masks, suffix))
        how = f"so {counts[suffix]} masks belong to {belong} photos" if counts else "the usual"
        found.add("mask_suffix", suffix, how)
    extension = found.values.get("mask_extension")
    if extension is None:
        kinds = collections.Counter(
            names.extension(file).lower() for file, ending in endings if ending == suffix
        )
        of_stem = collections.Counter(names.stem(f) for f, ending in endings if ending == suffix)
        if same and not suffix:
            found.add("mask_extension", ".gif", "the photos are in the same folder")
        elif any(count > 1 for count in of_stem.values()):
            options = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())
            raise UserError(
                f"photos have several masks in '{masks.path}', of the types {options}; choose one "
                "with --mask_extension, as '.png'."
            )
        else:
            found.add("mask_extension", "", f"all are {'/'.join(sorted(kinds)) or 'absent'}")


def _choose_suffix(counts: Mapping[str, int], masks: _Folder) -> str:
    """The ending that most masks have.

    Raises:
        UserError: Another one is nearly as frequent.
    """
    ranked = sorted(counts, key=lambda ending: (-counts[ending], ending))
    if not ranked:
        return SUFFIX
    rivals = [ending for ending in ranked if 2 * counts[ending] > counts[ranked[0]]]
    named = [ending for ending in rivals if "mask" in ending.lower()]
    rivals = named or rivals
    if len(rivals) > 1:
        options = ", ".join(f"'{ending}' ({counts[ending]})" for ending in rivals)
        raise UserError(
            f"photos have several masks in '{masks.path}', whose names add {options}; choose one "
            "with --mask_suffix."
        )
    return rivals[0]


def _without_masks(photos: _Folder, masks: _Folder, suffix: str) -> list[str]:
    """The stems of photos, without those of masks in the same folder."""
    stems = photos.photos
    if photos.path != masks.path:
        return list(stems)
    endings = mask_endings(photos.files, stems.keys(), mixed=True)
    drawn = {names.stem(file) for file, ending in endings if suffix and ending == suffix}
    return [stem for stem in stems if stem not in drawn]


def _find_groups(stems: Sequence[str], found: _Found) -> None:
    """The pattern of groups: the usual one, unless all photos would be one group."""
    pattern = found.values.get("group_pattern", DEFAULT_GROUP_PATTERN)
    naming = Naming(group_pattern=pattern)
    groups = collections.Counter(map(naming.group, stems))
    if "group_pattern" not in found.values and len(groups) == 1 < len(stems):
        how = f"by '{pattern}' all {len(stems)} photos would be one group, so each is its own"
        found.add("group_pattern", EACH_ITS_OWN, how)
        groups = collections.Counter(stems)
    elif "group_pattern" not in found.values:
        (name, largest), *_ = groups.most_common(1) or [("", 0)]
        how = f"the usual one: {len(stems)} photos in {len(groups)} groups of at most {largest}"
        if len(groups) == len(stems):
            how = f"the usual one: each of the {len(stems)} photos is a group of its own"
        if largest > max(_FEW, len(stems)) / 2 and len(groups) < len(stems):
            found.unclear.append(
                f"group_pattern: by '{pattern}' {largest} of {len(stems)} photos are one group, "
                f"'{name}'; give --group_pattern='{EACH_ITS_OWN}' where each shows another thing, "
                "or a pattern for the thing's name"
            )
        found.add("group_pattern", pattern, how)
    most = max(2, min(FOLD_COUNT, len(groups)))
    found.add("n_folds", most, f"at most {FOLD_COUNT}, and no more than groups")


def _find_test(
    root: Path,
    folders: Sequence[_Folder],
    photos: _Folder,
    masks: _Folder,
    found: _Found,
) -> None:
    """The folder of the photos to predict."""
    stems = photos.photos.keys()
    others = [
        folder
        for folder in folders
        if folder.path not in (photos.path, masks.path, root)
        and folder.photos
        and not _MASK_WORD.search(folder.name.lower())
    ]
    named = [folder for folder in others if _OTHERS.search(folder.name.lower())]
    named = [folder for folder in named if folder.name == TEST] or named
    fresh = [folder for folder in others if not stems & folder.photos.keys()]
    candidates = [
        folder
        for folder in named or fresh
        if not _are_masks(folder.path, list(folder.photos.values()))
    ]
    if len(candidates) == 1:
        (folder,) = candidates
        found.add("test_photos", folder.name, f"{len(folder.photos)} photos without masks")
    elif "test_photos" not in found.values:
        listed = ", ".join(folder.name for folder in candidates)
        found.how["test_photos"] = f"several may be: {listed}" if listed else "there is none"


def _find_tables(root: Path, photos: _Folder, found: _Found) -> None:
    """The sample submission, the labels and the folds."""
    tables = sorted(path.name for path in root.glob("*.csv*") if path.is_file())
    samples = [name for name in tables if re.search("sample.*submission", name.lower())]
    samples = [name for name in samples if name == SAMPLE_SUBMISSION] or samples
    _add_only(found, "sample_submission", samples)
    labels = [name for name in tables if "label" in name.lower() and name not in samples]
    _add_only(found, "labels", [name for name in labels if _has_labels(root / name, photos)])
    table = found.values.get("folds_source", FOLDS)
    if not (root / table).is_file():
        found.add("folds_source", table, "not there yet; make_folds.py writes it")
        return
    found.add("folds_source", table, "it is there")
    try:
        count = len(set(read_folds(root / table)["fold"]))
    except UserError:
        return  # the check says so
    if found.how["n_folds"] != GIVEN and count > 1:
        found.values["n_folds"], found.how["n_folds"] = count, f"as many as '{table}' has"


def _add_only(found: _Found, key: str, tables: Sequence[str]) -> None:
    if len(tables) == 1:
        found.add(key, tables[0], "by its name")
    elif key not in found.values:
        found.how[key] = f"several may be: {', '.join(tables)}" if tables else "there is none"


def _has_labels(path: Path, photos: _Folder) -> bool:
    try:
        return bool(label_tables.match(label_tables.read(path), photos.files).labels)
    except UserError:
        return False


def _spread(items: Iterable[str], most: int) -> list[str]:
    """At most so many of the items, from all over."""
    items = list(items)
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]
