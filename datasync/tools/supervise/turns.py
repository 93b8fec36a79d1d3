"""The turn of one instance of a command among many: no more than some of them restart at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datasync.errors import ClosedError
from datasync.keyval.api import Store
from datasync.keyval.locks.lock import Lock
from datasync.runtime.closing import Closable

#: Seconds after which the turn of an instance that died is another's.
TTL = 15.0


class Turns(Closable):
    """Lets *most* of the clients of the lock *name* go on at a time. Threads: one; ``close`` any.

    Args:
      connect: Opens the store of the lock, at the first use.
    """

    def __init__(self, connect: Callable[[], Store], name: str, most: int, ttl: float = TTL) -> None:
        self._connect = connect
        self._name = name
        self._most = most
        self._ttl = ttl
        self._mutex = threading.Lock()  # guards the three below
        self._store: Store | None = None
        self._lock: Lock | None = None
        self._closed = False

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for a turn, and have it for the block.

        Raises:
          StoreError: The store cannot be reached.
          ClosedError: ``close`` was called.
        """
        lock = self._opened()
        if not lock.acquire():
            raise ClosedError(f"the turn {self._name!r} is not waited for any more")
        try:
            yield
        finally:
            lock.release()

    def close(self) -> None:
        """End a wait, and close the store, which ends one that is about to begin. May be called twice."""
        with self._mutex:
            self._closed = True
            store, lock = self._store, self._lock
        if lock is not None:
            lock.cancel()
        if store is not None:
            store.close()

    def _opened(self) -> Lock:
        with self._mutex:
            if self._lock is not None:
                return self._lock
        store = self._connect()
        try:
            lock = store.lock(self._name, self._ttl, n=self._most)
            with self._mutex:
                if self._closed:
                    raise ClosedError(f"the turn {self._name!r} is not waited for any more")
                self._store, self._lock = store, lock
        except BaseException:
            store.close()
            raise
        return lock
