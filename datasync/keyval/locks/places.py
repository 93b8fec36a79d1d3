"""The places in lines that one store object holds, which its close gives up."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from datasync.errors import ClosedError

#: Seconds that ``close`` waits for all places together; those of an unreachable store end with their leases.
TIMEOUT = 2.0


class Abandonable(Protocol):
    """A place in a line."""

    def abandon(self) -> None:
        """Begin to give the place up, without waiting."""

    def wait_abandoned(self, timeout: float) -> None:
        """Wait until it is given up, at most *timeout* seconds."""


class Places:
    """The places in lines that one store object holds. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # guards both fields; reentrant, because a finalizer may close a store
        self._places: set[Abandonable] = set()
        self._closed = False

    def add(self, place: Abandonable) -> None:
        """Add *place*. Raises ``ClosedError`` after ``close``."""
        with self._lock:
            if self._closed:
                raise ClosedError("the store is closed")
            self._places.add(place)

    def discard(self, place: Abandonable) -> None:
        with self._lock:
            self._places.discard(place)

    def close(self) -> None:
        """Give all places up, each in its own thread, while the store still works. May be called twice."""
        with self._lock:
            self._closed = True
            places = list(self._places)
            self._places.clear()
        for place in places:
            place.abandon()
        end = time.monotonic() + TIMEOUT
        for place in places:
            place.wait_abandoned(max(end - time.monotonic(), 0.0))
