"""Ctrl-C and SIGTERM as a request that is met where nothing gets lost."""

import _thread
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Self, TypeVar

Result = TypeVar("Result")

_AGAIN = 0.1  # seconds


def repeat_lost_ones() -> None:
    """Sends the process Ctrl-C again where Python ignored the exception of the first.

    It ignores all that is raised in finalisers and in callbacks, as of the garbage collector.
    """
    main = threading.get_ident()

    def send() -> None:
        time.sleep(_AGAIN)  # the main thread is elsewhere then
        signal.pthread_kill(main, signal.SIGINT)

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Not a `threading.Thread`: to start one needs locks the main thread may hold now.
            _thread.start_new_thread(send, ())
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook


class Handler:
    """A context in which Ctrl-C and SIGTERM call `handle`.

    One that is ignored, as in a script's `command &`, stays so; and outside the main thread,
    where signals cannot be handled, nothing is changed.
    """

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def handle(self, number, frame) -> None:
        """Called in the main thread, with the signal's number."""
        raise NotImplementedError


class EndsAtOnce(Handler):
    """Around a call that waits outside of Python: a signal ends the process there, unannounced."""

    handle = signal.SIG_DFL  # type: ignore[assignment]


class Interrupt(Handler):
    """Turns the first Ctrl-C or SIGTERM into a request; a second one acts at once.

    Python's own handler raises wherever the main thread is: while it starts other threads, or
    in a finaliser or callback, where the exception is lost.

    Attributes:
        requested: Whether there was one, or one of another process, for which it is set. The first
            one here is a request then, too: a system sends them to all processes of a job.
    """

    def __init__(self, on_request: Callable[[], object] = lambda: None) -> None:
        """Installs nothing yet; use it as a context.

        Args:
            on_request: Called by the handler; it may only do what is safe in the thread that
                it interrupts, as `queue.SimpleQueue.put` is.
        """
        self.requested = False
        self._received = False
        self._on_request = on_request
        self._at_once = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Where nothing is being changed, the first signal acts at once too."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def handle(self, number, frame) -> None:
        """Notes the request, or raises KeyboardInterrupt."""
        if self._received or self._at_once:
            raise KeyboardInterrupt
        self._received = self.requested = True
        self._on_request()


def interruptible(results: Generator[Result], outer: Interrupt | None = None) -> Iterator[Result]:
    """The same results until the first Ctrl-C or SIGTERM.

    Args:
        results: As of `threads.ordered_map`: it is closed then, which finishes what its threads
            are at and begins nothing more.
        outer: The context around what comes before the first result, which counts too.

    Raises:
        KeyboardInterrupt: There was one.
    """
    with Interrupt() as inner, contextlib.closing(results):
        for result in results:
            yield result
            if inner.requested or (outer is not None and outer.requested):
                raise KeyboardInterrupt
