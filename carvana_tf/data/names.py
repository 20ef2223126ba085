"""Names of photos: what a stem is, and which file a name in a table or folder stands for.

Every reader of a table or a folder compares names here, so that all of them agree. A stem
is a file name without a known image extension: that of `scan_1.5` is `scan_1.5`, and that of
`scan_1.5.JPG` too. Names are text as `os.fsdecode` gives it, so they may hold any bytes.
"""

import csv
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from carvana_tf.errors import UserError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".gif", *PHOTO_SUFFIXES)

Value = TypeVar("Value")


def extension(name: str) -> str:
    """The known image extension of a file name as it is written (".JPG"), or ""."""
    base = name.rpartition("/")[2]
    start = base.rfind(".")
    # A dot in front hides a file, it starts no extension.
    return base[start:] if start > 0 and base[start:].lower() in MASK_SUFFIXES else ""


def stem(name: str) -> str:
    """A file name without its folder and without a known image extension."""
    return name.rpartition("/")[2].removesuffix(extension(name))


def match(ids: Iterable[str], keys: Collection[str], where: str) -> dict[str, str]:
    """Which key each id stands for.

    An id stands for the key that is equal to it, or to its stem; else for the one that is so in
    Unicode's composed form (NFC); else for the one whose own stem is.

    Args:
        ids: Names in a table or folder, each once.
        keys: Stems, groups or what else is looked for.
        where: What holds the ids, for the message.

    Returns:
        The keys by id, in the order of the ids; ids that stand for none are left out.

    Raises:
        UserError: An id may stand for two keys, or two ids stand for one.
    """
    ids = list(ids)
    composed: dict[str, set[str]] = {}
    shortened: dict[str, set[str]] = {}
    for key in keys:
        composed.setdefault(compose(key), set()).add(key)
        shortened.setdefault(compose(stem(key)), set()).add(key)
    found: dict[str, str] = {}
    owner: dict[str, str] = {}
    named = set(ids)
    for name in ids:
        forms = list(dict.fromkeys((name, name.rpartition("/")[2], stem(name))))
        candidates = [form for form in forms if form in keys] or next(
            (
                sorted(table[compose(form)])
                for table in (composed, shortened)
                for form in forms
                if compose(form) in table
            ),
            [],
        )
        if not candidates:
            continue
        key, *others = candidates
        # A key that another id names exactly is not meant here.
        others = [other for other in others if other not in named]
        if others:
            raise UserError(
                f"'{name}' in {where} may stand for '{key}' or '{others[0]}'; rename one of the "
                "two files."
            )
        if key in owner:
            raise UserError(
                f"{where} has '{owner[key]}' and '{name}', which both stand for '{key}'; keep one."
            )
        found[name], owner[key] = key, name
    return found


def rekey(values: Mapping[str, Value], keys: Iterable[str], where: str) -> dict[str, Value]:
    """Values by the key that their name stands for, in the order of the keys.

    Args:
        values: By name, as `match` takes them.
        keys: What is looked for; those without a value are left out.
        where: What holds the names, for the message.

    Raises:
        UserError: As of `match`.
    """
    keys = dict.fromkeys(keys)
    name_of = {key: name for name, key in match(values, keys, where).items()}
    return {key: values[name_of[key]] for key in keys if key in name_of}


def printable(text: str) -> str:
    """The text with what a terminal or page cannot show, as bytes that are no UTF-8, escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def compose(name: str) -> str:
    """A name in Unicode's composed form (NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def join_list(values: Iterable[object]) -> str:
    """Values as one text for a flag that takes several; those with commas are quoted, as in CSV."""
    texts = map(str, values)
    return ",".join(
        '"' + text.replace('"', '""') + '"' if re.search('[,"]', text) else text for text in texts
    )


def split_list(text: str) -> list[str]:
    """The values of `join_list`, stripped; a text that is the path of a file or folder is one.

    Raises:
        UserError: A quotation mark has no end.
    """
    if not text.strip():
        return []
    if os.path.lexists(text):
        return [text]
    # Line ends are no ends here.
    plain = text.translate({10: "\ue00a", 13: "\ue00d"})
    try:
        (values,) = csv.reader([plain], strict=True)
    except csv.Error as error:
        raise ValueError(f'\'{text}\' is no list ({error}); write a,b or "a","b"') from error
    return [value.translate({0xE00A: 10, 0xE00D: 13}).strip() for value in values]
