"""Faults of a store, on request: the memory store of a test.

Source: contract C13, C17, C23.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from datasync.errors import DatasyncError, InvalidArgumentError, StoreConnectionError, UnknownOutcome
from datasync.keyval.broker import BytesBroker
from datasync.keyval.driver import StoreDriver
from datasync.keyval.memory import MemoryStore
from datasync.keyval.urls import connect
from datasync.runtime.closing import Closable
from datasync.runtime.timeouts import check_seconds


class Faults(Closable):
    """Faults of one memory store, for every handle on it: those of the program that is tested, too.

    Args:
      store: A memory store, or its URL with a name, such as ``memory://test``.

    Threads: any. ``close`` ends every fault.
    """

    def __init__(self, store: StoreDriver | str) -> None:
        found = connect(store) if isinstance(store, str) else store
        if not isinstance(found, MemoryStore):
            raise InvalidArgumentError(f"only a memory store has faults on request, not {found.name}")
        self._data = found.data
        if isinstance(store, str):
            found.close()
        #: Another store on the same data, which no fault concerns: that of another writer.
        self.store = MemoryStore(found.name.removeprefix("memory://"), data=self._data)
        self._data.spared.add(self.store.owner)

    def writer(self, prefix: str = "") -> BytesBroker:
        """Return a broker of another writer, whom no fault concerns: it commits also while the source is lost."""
        return self.store.new_broker(prefix)

    @contextmanager
    def lost(self, error: DatasyncError | None = None) -> Iterator[None]:
        """Lose the store for the time of the block: every call and stream raises *error*.

        That is ``StoreConnectionError`` by default; give ``PermissionDenied(…)`` for a store that lets nobody in.
        """
        with self._data.changed:
            before, self._data.failure = self._data.failure, error or StoreConnectionError("the store is lost")
            self._data.changed.notify_all()
        try:
            yield
        finally:
            with self._data.changed:
                self._data.failure = before
                self._data.changed.notify_all()

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Make the store slow for the time of the block: each call, and each batch of a stream, takes *seconds*."""
        check_seconds("seconds", seconds)
        with self._data.changed:
            before, self._data.delay = self._data.delay, seconds
        try:
            yield
        finally:
            with self._data.changed:
                self._data.delay = before
                self._data.changed.notify_all()

    def resync(self) -> None:
        """Force a RESYNC (``COMPACTED``): the history is lost, so that every reader lists again. No value changes."""
        with self._data.changed:
            self._data.lose_history()

    def compact(self) -> None:
        """Drop the history so far. A reader that is in step notices nothing; one that was away must list again."""
        self.store.compact()

    def rewind(self) -> None:
        """Lose all data and begin again at revision 1, as a server does whose disk was wiped (``REWOUND``)."""
        self.store.rewind()

    def fail_commits(self, *errors: DatasyncError) -> None:
        """Raise each of *errors* from one of the next commits, which is not applied."""
        with self._data.changed:
            self._data.commit_failures.extend((error, False) for error in errors)

    def lose_outcome(self, *, applied: bool) -> None:
        """Raise ``UnknownOutcome`` from the next commit, which is *applied* nevertheless, or not."""
        with self._data.changed:
            self._data.commit_failures.append((UnknownOutcome("the connection was lost during a commit"), applied))

    def close(self) -> None:
        """End every fault. May be called twice."""
        with self._data.changed:
            self._data.failure, self._data.delay = None, 0.0
            self._data.commit_failures.clear()
            self._data.changed.notify_all()
        self.store.close()
