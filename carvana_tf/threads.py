"""Threads that keep order and never run far ahead."""

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int = 0
) -> Generator[Result]:
    """Maps with threads, yields in order, and keeps memory flat.

    Args:
        function: Called in worker threads.
        items: Consumed lazily.
        threads: How many workers.
        ahead: How many results may wait for the consumer; 0 means twice the workers.

    Yields:
        `function(item)` in the order of `items`. An exception of `function` is raised
        at its item's turn; what was not started by then never is.
    """
    pool = ThreadPoolExecutor(threads)
    waiting: collections.deque[Future[Result]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= (ahead or 2 * threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
