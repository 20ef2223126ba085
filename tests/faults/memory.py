"""The most memory that something takes, in megabytes, where Linux can say it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")


class Growth:
    """What was taken beyond what the process held before."""

    megabytes = 0.0


@contextmanager
def growth() -> Iterator[Growth]:
    """Measures the block; its result is there after it."""
    held = Growth()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is held now
    except OSError:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    else:
        before = _status("VmRSS")
    try:
        yield held
    finally:
        held.megabytes = _peak() - before


def _peak() -> float:
    if _STATUS.is_file():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status(key: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024
