"""Which format an export has, and what it holds."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from carvana_tf.annotations import coco, cvat, label_studio, labelme, supervisely, voc, yolo
from carvana_tf.annotations.documents import read_json
from carvana_tf.annotations.model import Export
from carvana_tf.errors import UserError, absent
from carvana_tf.progress import bar

AUTO = "auto"
_JSON: dict[str, Any] = {
    "coco": coco,
    "labelme": labelme,
    "label_studio": label_studio,
    "supervisely": supervisely,
}
_OTHER = ("cvat", "yolo", "voc")
FORMATS = (*_JSON, *_OTHER)
TITLES = {
    "coco": "COCO",
    "labelme": "LabelMe",
    "label_studio": "Label Studio",
    "supervisely": "Supervisely",
    "cvat": "CVAT for images",
    "yolo": "YOLO segmentation",
    "voc": "Pascal VOC segmentation",
}
_SUFFIXES = (".json", ".xml", ".txt", ".yaml", ".yml", ".png", ".names")
_LOOKED_AT = 20  # files that are looked at before a folder is called unknown


@dataclasses.dataclass(frozen=True)
class _Source:
    """A file or folder, and its files by suffix, sorted."""

    path: Path
    files: dict[str, list[Path]]

    @property
    def root(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def of(self, *suffixes: str) -> list[Path]:
        return [path for suffix in suffixes for path in self.files.get(suffix, [])]


def read(path: Path, wanted: str = AUTO, threads: int = 1) -> tuple[str, Export]:
    """Reads an export.

    Args:
        path: Its file, or the folder of its files.
        wanted: One of `FORMATS`, or `AUTO`: by what the files hold.
        threads: Threads that decode, where masks are images.

    Returns:
        The name of the format, and what was read. Of several files those that cannot be read are
        listed in it.

    Raises:
        UserError: The format is not known, or nothing could be read.
    """
    source = _source(path)
    documents: dict[Path, Any] = {}
    name = _detect(source, documents) if wanted == AUTO else wanted
    if name in _JSON:
        export = _read_json(source, name, documents)
    elif name == "cvat":
        export = _read_each(source, source.of(".xml"), cvat.parse_file)
    elif name == "yolo":
        configs = source.of(".yaml", ".yml")
        export = yolo.read(source.of(".txt", ".names"), configs, source.root)
    else:
        export = voc.read(source.of(".png"), source.root, threads)
    if not export.photos:
        why = f": {export.bad[0][1]}" if export.bad else "; name the file or folder of the export."
        raise UserError(f"'{path}' holds no {TITLES[name]} annotation of a photo{why}")
    return name, export


def _source(path: Path) -> _Source:
    if not path.exists():
        raise UserError(f"--annotations='{path}' {absent(path)}")
    if path.is_file():
        if path.suffix.lower() == ".zip":
            raise UserError(f"'{path}' is packed; unpack it and name the folder.")
        if path.suffix.lower() not in (".yaml", ".yml"):
            return _Source(path, {path.suffix.lower(): [path]})
        path = path.parent  # of YOLO: its labels lie next to it
    files: dict[str, list[Path]] = {}
    for folder, folders, found in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(found):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in _SUFFIXES and not name.startswith("."):
                files.setdefault(suffix, []).append(Path(folder) / name)
    return _Source(path, files)


def _detect(source: _Source, documents: dict[Path, Any]) -> str:
    """The format of an export by what its files hold.

    Raises:
        UserError: It has none of them.
    """
    if {voc.CLASSES, voc.OBJECTS} & {path.parent.name for path in source.of(".png")}:
        return "voc"
    failed = None
    for path in _xml_first(source):
        try:
            if path.suffix.lower() == ".json":
                document = documents[path] = read_json(path)
                found = [name for name, module in _JSON.items() if module.recognises(document)]
                if found:
                    return found[0]
            else:
                cvat.parse_file(path)
                return "cvat"
        except UserError as error:
            failed = failed or error
    if yolo.config_of(source.of(".yaml", ".yml")) is not None:
        return "yolo"
    texts = yolo.label_files(source.of(".txt"), source.root)
    if any(map(yolo.looks_like, texts[:_LOOKED_AT])):
        return "yolo"
    if any(map(voc.looks_like, source.of(".png")[:_LOOKED_AT])):
        return "voc"
    if failed is not None:
        raise failed
    raise UserError(
        f"'{source.path}' is of no known format ({', '.join(TITLES.values())}); name the file or "
        "folder that the tool exported, or its --format."
    )


def _xml_first(source: _Source) -> list[Path]:
    """Files to look at; one annotations.xml is enough, and photos may lie next to it."""
    texts = [path for path in source.of(".xml") if path.name != label_studio.CONFIG]
    return [*texts[:1], *source.of(".json")[:_LOOKED_AT]]


def _read_json(source: _Source, name: str, documents: dict[Path, Any]) -> Export:
    module, declared = _JSON[name], Export()

    def one(path: Path) -> Export:
        document = documents.pop(path) if path in documents else read_json(path)
        if name == "supervisely" and path.name == supervisely.META:
            declared.classes = supervisely.classes_of(document)
            return Export()
        if not module.recognises(document):
            raise UserError(
                f"'{path}' is no {TITLES[name]} file; move it, or name another --format."
            )
        return module.parse(document, path)

    declared.add(_read_each(source, source.of(".json"), one))
    return declared


def _read_each(source: _Source, files: Sequence[Path], one: Callable[[Path], Export]) -> Export:
    """What several files hold together; of a single one, its error is raised."""
    if source.path.is_file() and files:
        return one(files[0])
    export = Export()
    for path in bar(files, desc="reading", unit="file"):
        try:
            export.add(one(path))
        except UserError as error:
            export.bad.append((str(path), str(error)))
    return export
