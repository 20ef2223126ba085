"""A folder of 100,064 tiny photos: how soon commands begin, and what memory they take.

python tests/faults/many_photos.py [COUNT]

Start-up is measured without the import of TensorFlow, up to the first photo. Next to the time
stands that of the processor, which other programs do not change.
"""

import os
import re
import shutil
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import numpy as np
import processes
from conftest import draw_pair
from faults.commands import COMMANDS, OUT, Command, finish, prepare
from faults.memory import growth

from carvana_tf.data.dataset import find_photos
from carvana_tf.data.images import write_photo, write_probability

FEW, MANY = 1_000, 100_064
MISSING = 64
DISTINCT = 32  # files; most file systems allow some 65,000 links to each
ENCODING = Command(
    "generate_encoded_submission.py",
    (f"--pred_mask_dir={OUT}", "--submissions_dir=submissions", "--pred_sample_csv="),
    "",
)


class Measured(NamedTuple):
    """Seconds until the first photo, those of the processor, and the peak of memory."""

    seconds: float
    processor: float
    megabytes: float


def fill(folder: Path, stems: list[str], suffix: str) -> None:
    """Photos of 8 by 8 pixels, or masks, most of them links."""
    folder.mkdir(exist_ok=True)
    for number, stem in enumerate(stems):
        target = folder / f"{stem}{suffix}"
        if number >= DISTINCT:
            os.link(folder / f"{stems[number % DISTINCT]}{suffix}", target)
        elif suffix == ".jpg":
            write_photo(target, draw_pair(8, 8, number)[0])
        else:
            write_probability(target, np.full((8, 8), number, np.uint8))


def measure(work: Path, count: int) -> dict[str, Measured]:
    """Lists photos, goes on with their prediction, and encodes their masks.

    Args:
        work: A new folder next to the model `a.keras`.
        count: How many photos.
    """
    work.mkdir()
    shutil.copy(work.parent / "a.keras", work)
    stems = [f"p{number:06d}" for number in range(count)]
    fill(work / "photos", stems, ".jpg")
    found = {"listing": _listing(work / "photos")}
    prediction = COMMANDS["prediction"]
    begun = prediction.start(work)
    while not (work / OUT / "manifest.json").is_file():
        assert begun.is_alive(), (work / "console.log").read_text()
        time.sleep(0.01)
    processes.kill_group(begun)
    for path in (work / OUT).glob("*.png"):
        path.unlink()
    fill(work / OUT, stems[MISSING:], ".png")
    found["resume of a prediction"] = _command(prediction, work, "predicting")
    said = (work / "console.log").read_text(errors="replace")
    assert f"{count - MISSING} already predicted" in said, said
    assert len(list((work / OUT).glob("*.png"))) == count
    found["encoding"] = _command(ENCODING, work, "encoding")
    return found


def _listing(folder: Path) -> Measured:
    start, processor = time.perf_counter(), time.process_time()
    with growth() as held:
        samples = find_photos(folder)
    times = time.perf_counter() - start, time.process_time() - processor
    assert samples
    return Measured(*times, held.megabytes)


def _command(command: Command, work: Path, first: str) -> Measured:
    """Runs a command, whose progress bar begins with `first`, to its end."""
    log, peak, begun = work / "console.log", 0.0, None
    log.unlink(missing_ok=True)  # of the command before
    start = time.perf_counter()
    process = command.start(work)
    while process.is_alive():
        peak = max(peak, _peak(process))
        if begun is None and log.is_file() and f"{first}:" in log.read_text(errors="replace"):
            begun = time.perf_counter() - start, _processor_time(process)
        time.sleep(0.02)
    finish(process, work)
    assert begun is not None
    return Measured(*begun, peak)


def _peak(process: BaseProcess) -> float:
    """The most memory of a process so far, in MB; 0 where it has ended."""
    text = _about(process, "status")
    found = re.search(r"VmHWM:\s*(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


def _processor_time(process: BaseProcess) -> float:
    words = _about(process, "stat").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _about(process: BaseProcess, name: str) -> str:
    try:
        return Path(f"/proc/{process.pid}/{name}").read_text()
    except OSError:
        return ""


def main() -> int:
    """Prints a row for each command."""
    counts = (FEW, int(sys.argv[1]) if len(sys.argv) > 1 else MANY)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), photos=0, masks=1)
        few, many = (measure(Path(folder) / str(count), count) for count in counts)
    print(f"{counts[1]} photos; in brackets {counts[0]}")
    print(f"{'':<24}{'s to the first':>20}{'of the processor':>20}{'peak MB':>20}")
    for name, found in many.items():
        pairs = zip(found, few[name], strict=True)
        print(f"{name:<24}" + "".join(f"{f'{a:.1f} ({b:.1f})':>20}" for a, b in pairs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
