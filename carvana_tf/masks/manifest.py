"""`manifest.json`: what made the masks of a folder."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from carvana_tf.data.dataset import list_images
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.errors import UserError
from carvana_tf.filenames import MANIFEST, PARTS
from carvana_tf.files import claimed, make_folder, read_json, write_json
from carvana_tf.shards import Shard

CHOSEN_BY = "chosen_by"
"""Of a model: the score on its own fold that its epoch was chosen by."""
MASKS, LABELS = "masks", "labels"
"""The tasks; the first is that of folders and model files that name none."""
ENCODING = "grey8 round(255p)"
BINARY = "grey8 0/255"  # how the encoding of masks without probabilities starts
SUFFIXES = (".png", ".webp")
"""Of the files of a folder: cut-outs may be WebP, all else is PNG."""
_END = b"\0\0\0\0IEND\xaeB\x60\x82"  # the last chunk of every PNG, with its checksum
FREE = frozenset({"photos", "photos_digest", "extensions", "version", "cut_for_memory"})
"""What may change while a folder grows: more photos may come; all else must be equal."""
FREE_OF_PARTS = FREE - {"photos", "photos_digest"}
"""What may differ between parts of one folder, which are of the same photos."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """How a folder of probability PNGs came to be.

    Attributes:
        models: For each averaged model: `file` (name), `digest` (SHA-256), `network`,
            `fold` (int, "none" for a model trained on everything, or None if unknown),
            `training_groups` (digest of the sorted ids it was trained on, or None) and
            whatever else decides what it predicts.
        out_of_fold: Whether no model saw a photo of the folder, nor its group.
        tta: The views that were averaged and, where not as probabilities, how.
        engine: What ran the network ("keras", "openvino", …).
        dtype: Compute type of the network.
        photos: How many photos the folder is for; while it holds fewer PNGs, its
            prediction was interrupted or photos were unreadable.
        photos_digest: Digest of their sorted stems; of the file of a listing.
        extensions: The photos' extensions with the stems that have them; [] with the extension
            of all others. None if unknown.
        encoding: How a grey value means a probability.
        version: Of the toolkit.
        ensemble: Of an ensemble, how its folders were combined; None for masks of a network.
        tiles: How photos were cut into tiles; None for whole photos.
        boxes: SHA-256 of the table of boxes outside of which nothing was predicted, or None.
        stacked: Digest of the manifests of the stacked channels, or None without any.
        photo_depth: Bits in use of the photos where a flag named them, else 0.
        conversion: Of 8-bit networks, what identifies the converted network; else None.
        threshold: The grey value above which a pixel is object, where masks were decided by it
            (post-processing, votes, binary masks); None where any threshold may be chosen.
        cut_for_memory: Where memory was not enough: inputs of `pixels` or more may have been
            predicted in tiles of `size` with an `overlap`, for each such rule in their order.
        task: What was predicted.
    """

    models: tuple[dict[str, Any], ...]
    out_of_fold: bool
    tta: str
    engine: str
    dtype: str
    photos: int
    photos_digest: str
    encoding: str
    version: str
    ensemble: dict[str, Any] | None = None
    tiles: str | None = None
    boxes: str | None = None
    stacked: str | None = None
    conversion: str | None = None
    photo_depth: int = 0
    threshold: int | None = None
    extensions: dict[str, list[str]] | None = None
    cut_for_memory: list[dict[str, int]] | None = None
    task: str = MASKS

    def photo_names(self, stems: Iterable[str]) -> dict[str, str]:
        """The file names of photos by stem; those that are not known are left out."""
        known = self.extensions or {}
        default = next((extension for extension, listed in known.items() if not listed), None)
        of_stem = {stem: extension for extension, listed in known.items() for stem in listed}
        found = {stem: of_stem.get(stem, default) for stem in stems}
        return {stem: stem + extension for stem, extension in found.items() if extension}


def extensions_of(photos: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """What a manifest says of the names of photos, each given as stem and extension."""
    by_extension: dict[str, list[str]] = {}
    for stem, extension in photos:
        by_extension.setdefault(extension, []).append(stem)
    most = max(by_extension, key=lambda extension: len(by_extension[extension]), default=None)
    return {name: [] if name == most else stems for name, stems in by_extension.items()}


def write(folder: Path, manifest: Manifest) -> None:
    """Writes a folder's manifest, whole or not at all."""
    write_json(Path(folder) / MANIFEST, dataclasses.asdict(manifest))


def read(folder: Path) -> Manifest | None:
    """A folder's manifest, or None where it has none (masks made by another program).

    Raises:
        UserError: There is one, but it is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        return of_values(read_json(path))
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"'{path}' is no manifest that this version can read ({error}); use the version that "
            "wrote it, or predict into another folder."
        ) from error


def of_values(values: dict[str, Any]) -> Manifest:
    """The manifest whose fields were written as JSON.

    Raises:
        TypeError, KeyError, AttributeError: They are no such fields.
    """
    made = Manifest(**{**values, "models": tuple(values["models"])})
    ensemble = made.ensemble or {}
    # Versions before wrote no threshold: it was always the same.
    decided = ensemble.get("postprocess") or ensemble.get("strategy") == "vote"
    if decided and "threshold" not in values:
        made = dataclasses.replace(made, threshold=DEFAULT_THRESHOLD)
    return made


def check_encoding(folder: Path, made: Manifest | None, *, binary: bool = False) -> None:
    """Ensures that grey values are probabilities.

    Args:
        folder: With masks.
        made: Its manifest; masks of unknown origin are accepted.
        binary: Whether masks of two values do too.

    Raises:
        UserError: The manifest says that they mean something else.
    """
    if made is None or made.encoding == ENCODING:
        return
    if binary and made.encoding.startswith(BINARY):
        return
    raise UserError(
        f"'{Path(folder) / MANIFEST}' says the masks are encoded as '{made.encoding}', expected "
        f"'{ENCODING}'; predict them with --output=probability into another folder."
    )


def begin(
    folder: Path,
    manifest: Manifest,
    stems: Collection[str],
    *,
    overwrite: bool = False,
    rows: Collection[str] = (),
    suffix: str = ".png",
    shard: Shard | None = None,
) -> set[str]:
    """Makes a folder ready for masks, whether new, half filled or to be filled again.

    The manifest is written first, so that a run that is killed can be resumed and shows
    as unfinished.

    Args:
        folder: Where the PNGs will be.
        manifest: What will have made them.
        stems: Of all photos the folder is for.
        overwrite: Remove the PNGs of these photos that are there.
        rows: The stems of photos whose run lengths are there instead of a PNG.
        suffix: Of the files; cut-outs may be no PNGs.
        shard: Fills the folder together with others: only its own photos are looked at, and
            the first shard's manifest is that of all.

    Returns:
        The stems whose whole PNG or row is there already and need not be made.

    Raises:
        UserError: The folder cannot be written to, or holds masks of other photos, of an
            unknown origin or made in another way, or run lengths in Parquet files.
    """
    folder = make_folder(folder)
    if any(folder.glob(PARTS)):
        raise UserError(
            f"'{folder}' holds run lengths in Parquet files, which its {MANIFEST} is for; choose "
            "another folder."
        )
    present = list_images(folder, SUFFIXES)
    kind = suffix[1:].upper()
    other = [stem for stem in (*present, *rows) if stem not in stems]
    if other:
        raise UserError(
            f"'{folder}' holds {len(other)} {kind}s of other photos, the first is "
            f"'{other[0]}{suffix}'; choose another folder."
        )
    if shard is not None:
        present = {stem: path for stem, path in present.items() if shard.has(stem)}
        join(folder, manifest, shard)
        if overwrite:
            for path in present.values():
                path.unlink()
            present = {}
        return {*_whole(present, suffix), *rows}
    if overwrite:
        # In this order: PNGs must at no moment lie next to a manifest that is not theirs.
        (folder / MANIFEST).unlink(missing_ok=True)
        for path in present.values():
            path.unlink()
        present = {}
    _refuse_other_origin(folder, manifest, bool(present or rows))
    write(folder, manifest)
    return {*_whole(present, suffix), *rows}


def join(folder: Path, manifest: Manifest, shard: Shard | None) -> None:
    """Takes part in a folder as its manifest says, or writes the first one.

    Args:
        folder: Where masks are made a part at a time, by one process or by several.
        manifest: What will have made them.
        shard: What this process does, None for all.

    Raises:
        UserError: Other shards, or this process before, began with other settings or photos.
    """
    with claimed(folder / MANIFEST, wait=True):
        old = read(folder)
        if old is None:
            _refuse_other_origin(folder, manifest, bool(list_images(folder, SUFFIXES)))
            write(folder, manifest)
            return
        what, fix = f"'{folder}'", "use --overwrite, or another folder."
        if shard is not None:
            what = f"{shard} differs from those before: {what}"
            fix = "give all shards the same flags and photos, or remove the folder."
        refuse_difference(what, old, manifest, FREE_OF_PARTS, fix)
        rules = old.cut_for_memory or []
        rules = [*rules, *(rule for rule in manifest.cut_for_memory or [] if rule not in rules)]
        if rules != (old.cut_for_memory or []):
            write(folder, dataclasses.replace(old, cut_for_memory=rules))


def _whole(present: Mapping[str, Path], suffix: str) -> Iterator[str]:
    return (stem for stem, path in present.items() if path.suffix == suffix and _is_whole(path))


def _is_whole(path: Path) -> bool:
    """Whether a file has its end; a full disk or a power cut leaves others without one."""
    with open(path, "rb", buffering=0) as handle:
        if path.suffix == ".webp":
            # RIFF says after 4 bytes how many come after 8.
            size = int.from_bytes(handle.read(8)[4:], "little")
            return handle.seek(0, os.SEEK_END) >= size + 8 > 8
        if handle.seek(0, os.SEEK_END) < len(_END):
            return False
        handle.seek(-len(_END), os.SEEK_END)
        return handle.read() == _END


def _refuse_other_task(folder: Path, manifest: Manifest) -> None:
    """Refuses the folder of another task, whose predictions are other files."""
    old = None
    with contextlib.suppress(UserError):  # of an empty folder, a damaged one is replaced
        old = read(folder)
    if old is not None and old.task != manifest.task:
        raise UserError(
            f"'{folder / MANIFEST}' says that the folder holds {old.task}, not {manifest.task}; "
            "use --overwrite, or another folder."
        )


def _refuse_other_origin(folder: Path, manifest: Manifest, filled: bool) -> None:
    if not filled:
        _refuse_other_task(folder, manifest)
        return
    fix = "use --overwrite, or another folder."
    old = read(folder)
    if old is None:
        raise UserError(f"'{folder}' holds PNGs but no {MANIFEST} that says what made them; {fix}")
    refuse_difference(f"'{folder}'", old, manifest, FREE, fix)


def refuse_difference(
    what: str, old: Manifest, manifest: Manifest, free: Collection[str], fix: str
) -> None:
    """Refuses masks that were made in another way.

    Args:
        what: Which they are, for the message.
        old: What made them.
        manifest: What would make them now.
        free: Fields that may differ.
        fix: The end of the message.

    Raises:
        UserError: Another field differs.
    """
    was, now = _plain(old), _plain(manifest)
    for name in now:
        if name not in free and not _agree(was[name], now[name]):
            raise UserError(
                f"{what} was made with other {name}: {_brief(was[name])} there, "
                f"{_brief(now[name])} now; {fix}"
            )


def _agree(was: Any, now: Any) -> bool:
    """Whether values are equal; of two dictionaries, their common keys."""
    if isinstance(was, dict) and isinstance(now, dict):
        return all(was[name] == now[name] for name in was.keys() & now.keys())
    return was == now


def _plain(manifest: Manifest) -> dict[str, Any]:
    """As JSON holds it: tuples are lists."""
    return json.loads(json.dumps(dataclasses.asdict(manifest)))


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{model.get('file')} ({model.get('digest', '')[:8]})" for model in value)
    return str(value)
