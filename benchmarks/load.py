"""How much of the machine other programs used while something was measured (Linux)."""

import dataclasses
import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
# Of /proc/stat: user, nice, system, irq, softirq and steal; idle, iowait and guest (which
# user holds already) are no use of this machine's cores by others.
_BUSY = (0, 1, 2, 5, 6, 7)
# Of /proc/<pid>/stat, counted from the state: utime, stime, cutime, cstime.
_OWN = (11, 12, 13, 14)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Clocks at one moment.

    Attributes:
        wall: Seconds of a monotonic clock.
        busy: Seconds of use of all cores since the start of the machine.
        own: Seconds of use by the watched processes, their descendants included.
    """

    wall: float
    busy: float
    own: float


def snapshot(*pids: int) -> Snapshot | None:
    """Reads the clocks for the process trees of `pids`; None where there is no /proc."""
    if not _STAT.is_file():
        return None
    fields = _STAT.read_text().split("\n", 1)[0].split()[1:]
    tick = os.sysconf("SC_CLK_TCK")
    busy = sum(int(fields[i]) for i in _BUSY) / tick
    return Snapshot(time.monotonic(), busy, _tree_ticks(pids) / tick)


def foreign_share(before: Snapshot | None, after: Snapshot | None, cores: int) -> float:
    """The share of all cores, 0..1, that others used between two snapshots.

    Time stolen by other virtual machines counts as theirs. 0 where nothing is known.
    """
    if before is None or after is None or after.wall <= before.wall:
        return 0.0
    foreign = (after.busy - before.busy) - (after.own - before.own)
    return min(1.0, max(0.0, foreign / ((after.wall - before.wall) * cores)))


def _tree_ticks(pids: tuple[int, ...]) -> int:
    """Processor time of processes and all their descendants, those that ended included."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in parentheses may hold spaces.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        pid = int(path.parent.name)
        ticks[pid] = sum(int(fields[i]) for i in _OWN)
        children.setdefault(int(fields[1]), []).append(pid)
    total, waiting = 0, list(pids)
    while waiting:
        pid = waiting.pop()
        total += ticks.get(pid, 0)
        waiting += children.get(pid, [])
    return total
