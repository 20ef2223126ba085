"""Which mask a row of a submission stands for, found by other code than wrote it.

A mistake in `data.names` must show here, so nothing here uses it.
"""

import collections
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

_IMAGE = re.compile(r"(?s)(.+)\.(?:jpe?g|png|bmp|tiff?|webp|gif)", re.IGNORECASE)


def misfits(images: Sequence[str], masks: Sequence[Path]) -> list[str]:
    """What is wrong with the masks chosen for the images, one sentence each.

    Args:
        images: The first column of a submission.
        masks: The PNG chosen for each.
    """
    problems = []
    available = {_bare(mask.name) for mask in masks}
    for image, mask in zip(images, masks, strict=True):
        name = _bare(mask.name)
        closest = next((form for form in _forms(image) if form in available), None)
        fits = {*map(_composed, _forms(image))} & {*map(_composed, _forms(name))}
        if not fits or closest not in (None, name):
            problems.append(f"'{image}' would get the mask '{mask.name}'")
    shared = [mask for mask, count in collections.Counter(masks).items() if count > 1]
    return problems + [f"'{mask.name}' would be the mask of several images" for mask in shared]


class Masks:
    """The PNGs of a folder, to be claimed by rows one after another."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = {_bare(path.name): path for path in files}
        self._alike: dict[str, set[str]] = {}
        for name in self._files:
            for form in _forms(name):
                self._alike.setdefault(_composed(form), set()).add(name)
        self._owners: dict[str, str] = {}
        self._doubts: list[tuple[str, str]] = []

    def claim(self, image: str) -> Path | str:
        """The mask of a row's image, or what is wrong with the row."""
        exact = [form for form in _forms(image) if form in self._files]
        alike = (self._alike.get(_composed(form), set()) for form in _forms(image))
        found = exact or sorted(next((names for names in alike if names), set()))
        if not found:
            return f"'{image}' has no mask in the folder"
        owner = self._owners.setdefault(found[0], image)
        if owner != image:
            return f"'{image}' and '{owner}' stand for one mask"
        self._doubts += [(image, other) for other in found[1:]]
        return self._files[found[0]]

    def doubts(self) -> list[str]:
        """Which rows may have meant another mask, once all rows have claimed theirs."""
        return [
            f"'{image}' may stand for '{self._owned(image)}' or '{self._files[other].name}'"
            for image, other in self._doubts
            if other not in self._owners
        ]

    def unclaimed(self) -> tuple[str, ...]:
        """Names of the PNGs that no row stands for."""
        return tuple(path.name for name, path in self._files.items() if name not in self._owners)

    def _owned(self, image: str) -> str:
        return next(self._files[name].name for name, one in self._owners.items() if one == image)


def _bare(name: str) -> str:
    return re.sub(r"(?i)\.png\Z", "", name)


def _forms(name: str) -> list[str]:
    """A name as it is, without its folder, and without an image's extension."""
    base = os.path.basename(name)
    image = _IMAGE.fullmatch(base)
    return list(dict.fromkeys([name, base, image[1] if image else base]))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
