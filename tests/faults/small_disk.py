"""Output folders on a disk that is too small, and is enlarged afterwards.

python tests/faults/small_disk.py

Mounts a tmpfs for each command's output folder, which needs the right to mount, as root has it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from faults import folders
from faults.commands import COMMANDS, OUT, prepare, undisturbed

# Less than the results take: half of them, or room for a single state.
SHARE = 0.5
LARGE = "200m"


class Filled(NamedTuple):
    """What became of a command: the size it had first, what it said, and what was wrong."""

    kilobytes: int
    message: str
    wrong: list[str]


def may_mount(folder: Path) -> bool:
    """Whether this user may mount a tmpfs."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        try:
            _mount(Path(place), "64k")
        except (OSError, subprocess.CalledProcessError):
            return False
        _unmount(Path(place))
    return True


def fill(name: str, work: Path) -> Filled:
    """Runs a command on a disk that is too small, then again on one that is large enough."""
    command = COMMANDS[name]
    out = work / OUT
    _, expected = undisturbed(command, work)
    sizes = [len(value) for value in expected.values() if isinstance(value, bytes)]
    kilobytes = max(int(SHARE * sum(sizes)) // 1024, 32)
    out.mkdir()
    _mount(out, f"{kilobytes}k")
    try:
        said, wrong = [], []
        for size in (None, LARGE):
            if size:
                subprocess.run(["mount", "-o", f"remount,size={size}", str(out)], check=True)
            process = command.start(work)
            process.join()
            said.append((work / "console.log").read_text(errors="replace"))
            wrong += folders.truncated(out)
            if "Traceback" in said[-1] or bool(process.exitcode) != (size is None):
                wrong.append(f"status {process.exitcode}: {said[-1][-800:]}")
        message = next((line for line in said[0].splitlines() if "No space left" in line), "")
        if not message:
            wrong.append(f"does not name the disk: {said[0][-500:]}")
        if left := folders.leftovers(out):
            wrong.append(f"left {left}")
        if folders.contents(out) != expected:
            wrong.append("other results than on a large disk")
    finally:
        _unmount(out)
        out.rmdir()
    return Filled(kilobytes, message, wrong)


def _mount(folder: Path, size: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True)


def main() -> int:
    """Prints a row for each command, and everything that was wrong."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if not may_mount(work):
            print("skipped: this user may not mount a tmpfs")
            return 0
        prepare(work)
        print(f"{'command':<12}{'kB':>8}{'wrong':>7}  message")
        for name in sys.argv[1:] or COMMANDS:
            filled = fill(name, work)
            wrong += [f"{name}: {each}" for each in filled.wrong]
            row = f"{name:<12}{filled.kilobytes:>8}{len(filled.wrong):>7}  {filled.message}"
            print(row, flush=True)
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
