"""Faults of a store, on request: the memory store of a test.

Source: contract C13, C17, C23.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from datasync.errors import DatasyncError, InvalidArgumentError, StoreConnectionError, UnknownOutcome
from datasync.keyval.broker import BytesBroker
from datasync.keyval.driver import StoreDriver
from datasync.keyval.memory import MemoryStore
from datasync.keyval.urls import connect
from datasync.runtime.closing import Closable
from datasync.runtime.timeouts import check_seconds

ValueT = TypeVar("ValueT")


class Faults(Closable):
    """Faults of one memory store, for every handle on it: those of the program that is tested, too.

    Args:
      store: A memory store, or its URL with a name, such as ``memory://test``.

    Threads: any. ``close`` ends the faults of this object.
    """

    def __init__(self, store: StoreDriver | str) -> None:
        found = connect(store) if isinstance(store, str) else store
        if not isinstance(found, MemoryStore):
            raise InvalidArgumentError(f"only a memory store has faults on request, not {found.name}")
        self._data = found.data
        self._marks: set[object] = set()  # of the blocks that run; guarded by ``_data.changed``, as the next one
        self._commit_failures: list[tuple[DatasyncError, bool]] = []
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
        failures = self._data.failures
        with self._noted(failures, error or StoreConnectionError("the store is lost")):
            yield

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Make the store slow for the time of the block: each call, and each batch of a stream, takes *seconds*."""
        check_seconds("seconds", seconds)
        with self._noted(self._data.delays, seconds):
            yield

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
            for error in errors:
                self._fail_locked((error, False))

    def lose_outcome(self, *, applied: bool) -> None:
        """Raise ``UnknownOutcome`` from the next commit, which is *applied* nevertheless, or not."""
        with self._data.changed:
            self._fail_locked((UnknownOutcome("the connection was lost during a commit"), applied))

    def close(self) -> None:
        """End every fault of this object. May be called twice."""
        with self._data.changed:
            for mark in self._marks:
                self._data.failures.pop(mark, None)
                self._data.delays.pop(mark, None)
            left = [one for one in self._data.commit_failures if one not in self._commit_failures]
            self._data.commit_failures.clear()
            self._data.commit_failures.extend(left)
            self._data.changed.notify_all()
        self.store.close()

    @contextmanager
    def _noted(self, faults: dict[object, ValueT], fault: ValueT) -> Iterator[None]:
        """Have *fault* among *faults* for the time of the block: the newest counts, in whatever order blocks end."""
        mark = object()
        try:
            with self._data.changed:
                self._marks.add(mark)
                faults[mark] = fault
                self._data.changed.notify_all()
            yield
        finally:
            with self._data.changed:
                self._marks.discard(mark)
                faults.pop(mark, None)
                self._data.changed.notify_all()

    def _fail_locked(self, failure: tuple[DatasyncError, bool]) -> None:
        self._commit_failures.append(failure)
        self._data.commit_failures.append(failure)
