"""What a folder of results holds, and whether every file in it is whole."""

import csv
import gzip
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image

# These depend on the time. In log.csv and state.npz only the seconds do.
LOGS, TIMINGS, EPOCHS, STATE = "logs", "timings.json", "log.csv", "state.npz"
REPORT = "report.html"
_TIMES = re.compile('(?s)<section id="times">.*?</section>|"times": {.*?}}')
PREVIOUS = "state.previous.npz"  # of another step after a kill


def files(folder: Path) -> list[Path]:
    """Those under a final name; temporary ones are hidden."""
    found = sorted(folder.rglob("*"))
    return [path for path in found if path.is_file() and not path.name.startswith(".")]


def leftovers(folder: Path) -> list[Path]:
    """Files under temporary names, and of locks."""
    return [path for path in sorted(folder.rglob(".*")) if path.is_file()]


def contents(folder: Path) -> dict[str, object]:
    """Every file by its name, hidden ones too, without what depends on the time."""
    held: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith(LOGS) or path.name in (TIMINGS, PREVIOUS):
            continue
        if path.name == EPOCHS:
            rows = csv.DictReader(io.StringIO(path.read_text()))
            held[name] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        elif path.name == STATE:
            held[name] = _state(path)
        elif path.name == REPORT:
            held[name] = _TIMES.sub("", path.read_text())
        else:
            held[name] = path.read_bytes()
    return held


def _state(path: Path) -> object:
    with np.load(path) as arrays:
        values = {key: arrays[key].tolist() for key in arrays.files}
    del values["digest"]  # of the seconds, too
    about = json.loads(values.pop("about"))
    for progress in (about["progress"], about["end"]):
        for clock in (progress, *progress["rows"]):
            del clock["seconds"]
    return about, values


def truncated(folder: Path) -> list[str]:
    """Files under final names that are not whole, each with what is wrong."""
    return [f"{path}: {wrong}" for path in files(folder) if (wrong := _wrong(path))]


def _wrong(path: Path) -> str | None:
    try:
        match path.suffix:
            case ".png" | ".gif" | ".jpg":
                with PIL.Image.open(path) as image:
                    image.load()
            case ".keras" | ".npz":
                with zipfile.ZipFile(path) as archive:
                    return archive.testzip()
            case ".json":
                json.loads(path.read_text())
            case ".gz":
                gzip.decompress(path.read_bytes())
            case ".csv":
                return None if path.read_bytes().endswith(b"\n") else "ends amid a line"
            case ".log":
                return None  # grows with what a command prints
            case _:
                return None if path.stat().st_size else "empty"
    except FileNotFoundError:
        return None  # removed since the folder was listed
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
