"""A bounded queue between groups of threads that ends, and that anyone can cut.

`queue.Queue` can do neither before Python 3.13: a thread blocked on it never learns that
the other side has died.
"""

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Cut(Exception):
    """The channel was cut while, or before, a thread used it."""


class Channel(Generic[Item]):
    """Passes items from producers to consumers, first in, first out.

    Args:
        capacity: How many items may wait; a producer blocks while it is full.
        producers: How many times `finish` is called before the channel ends.
    """

    def __init__(self, capacity: int, producers: int) -> None:
        self._capacity = capacity
        self._producers = producers
        self._items: deque[Item] = deque()
        self._cut = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> None:
        """Adds an item, waiting for space.

        Raises:
            Cut: The channel was cut.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._cut or len(self._items) < self._capacity)
            if self._cut:
                raise Cut
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Item | None:
        """The next item, waiting for one; None when every producer has finished.

        Raises:
            Cut: The channel was cut.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._cut or self._items or not self._producers)
            if self._cut:
                raise Cut
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def finish(self) -> None:
        """Says that one producer will put no more."""
        with self._changed:
            self._producers -= 1
            self._changed.notify_all()

    def cut(self) -> None:
        """Makes every call on the channel, waiting or to come, raise `Cut`."""
        with self._changed:
            self._cut = True
            self._changed.notify_all()
