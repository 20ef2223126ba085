"""Where the time of a pipeline went: seconds per stage, summed over threads."""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WAITING = "waiting"


class Timings:
    """Adds up seconds by (room, stage); any thread may measure.

    A room is a group of threads that do the same work ("readers"), a stage one kind of
    work in it ("prepare"), or `WAITING` for the other rooms.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[tuple[str, str], float] = defaultdict(float)

    @contextlib.contextmanager
    def measure(self, room: str, stage: str) -> Iterator[None]:
        """Adds the time the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            with self._lock:
                self._seconds[room, stage] += elapsed

    def seconds(self, room: str, stage: str) -> float:
        """Seconds measured so far."""
        with self._lock:
            return self._seconds[room, stage]


def table(
    timings: Timings, rooms: Mapping[str, Sequence[str]], threads: Mapping[str, int], wall: float
) -> list[dict[str, Any]]:
    """One row per room and stage, waiting last.

    Args:
        timings: What was measured.
        rooms: The stages of each room, without waiting.
        threads: How many threads each room had.
        wall: Seconds from start to end.

    Returns:
        Rows with `room`, `threads`, `stage`, `seconds` (summed over threads) and `share`
        (of the room's thread time, 0..1).
    """
    return [
        {
            "room": room,
            "threads": threads[room],
            "stage": stage,
            "seconds": round(timings.seconds(room, stage), 4),
            "share": round(timings.seconds(room, stage) / max(wall * threads[room], 1e-9), 4),
        }
        for room, stages in rooms.items()
        for stage in (*stages, WAITING)
    ]


def format_table(rows: Sequence[Mapping[str, Any]], photos: int) -> str:
    """The rows of `table` as aligned text, with milliseconds per photo."""
    lines = [
        f"{'room':<10}{'threads':>8}  {'stage':<10}{'seconds':>10}{'share':>8}{'ms/photo':>10}"
    ]
    for row in rows:
        each = 1000 * row["seconds"] / max(photos, 1)
        lines.append(
            f"{row['room']:<10}{row['threads']:>8}  {row['stage']:<10}{row['seconds']:>10.2f}"
            f"{row['share']:>8.0%}{each:>10.1f}"
        )
    return "\n".join(lines)
