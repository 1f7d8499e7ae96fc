"""A bounded queue between two stages that cannot outlive either of them."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """The pipeline is ending because another stage failed; never reaches a user."""


class Channel(Generic[T]):
    """Hands items from one thread to another, in order.

    Args:
        capacity: items it holds at most.
        drop_oldest: a full channel forgets its oldest item in favour of the new one (live sources) instead of making
            the giver wait (files).
    """

    def __init__(self, capacity: int, drop_oldest: bool = False) -> None:
        self._items: deque[T] = deque()
        self._capacity, self._drop_oldest = capacity, drop_oldest
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self.dropped = 0

    def put(self, item: T) -> None:
        """Add an item, waiting for room unless old ones may be dropped.

        Raises:
            Stopped: the pipeline is ending, or this channel has ended.
        """
        with self._changed:
            if self._drop_oldest and len(self._items) >= self._capacity:
                self._items.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: self._stopped or self._ended or len(self._items) < self._capacity)
            if self._stopped or self._ended:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T | None:
        """The next item; None when there will be no more.

        Raises:
            Stopped: the pipeline is ending.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._ended or bool(self._items))
            if self._stopped:
                raise Stopped
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def end(self) -> None:
        """No more items will come; what is in it is still handed out."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Wake whoever waits, with ``Stopped``."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
