"""Ctrl-C and SIGTERM as a request that is met where nothing gets lost."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a request; a second one acts at once.

    Attributes:
        requested: Whether there was one.
    """

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        # Signals can only be handled in the main thread; elsewhere there is nothing to do.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Where nothing is being changed, the first signal acts at once too."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _request(self, number, frame) -> None:
        if self.requested or self._at_once:
            raise KeyboardInterrupt
        self.requested = True
