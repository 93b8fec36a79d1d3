"""Replays of a history: a store whose snapshot is empty at an early revision, so that everything is streamed."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from typing import Any

from datasync.events import ResyncEvent
from datasync.keyval.api import Store
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.types import CommitResult, Condition, KeyValue, WriteOp
from datasync.kvdbsync.plugin import Plugin
from datasync.syncbase.events import QueuedResync

#: Seconds that a run may take.
PATIENCE = 120.0


class EmptyScan(Scan):
    """An empty snapshot at *revision*."""

    def __init__(self, revision: int) -> None:
        self.revision = revision

    def __iter__(self) -> Iterator[KeyValue]:
        return iter(())


class From(Store):
    """*store* with an empty snapshot at *revision*, from which everything later is streamed."""

    def __init__(self, store: Store, revision: int) -> None:
        self.capabilities = store.capabilities  # type: ignore[misc]  # the instance's own
        self.idle_limit = store.idle_limit
        self._store = store
        self._revision = revision

    @property
    def name(self) -> str:
        return self._store.name

    def check(self) -> None:
        self._store.check()

    def read(self, key: str) -> KeyValue | None:
        return self._store.read(key)

    def scan(self, prefix: str, *, keys_only: bool = False) -> Scan:
        return EmptyScan(self._revision)

    def commit(self, ops: Sequence[WriteOp], conditions: Sequence[Condition] = ()) -> CommitResult:
        return self._store.commit(ops, conditions)

    def stream(self, prefix: str, after: int) -> Stream:
        return self._store.stream(prefix, after)

    def close(self) -> None:
        self._store.close()


class Consumer:
    """Counts the changes under *prefix* and acknowledges each event."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._events: queue.Queue[Any] = queue.Queue()
        self.plugin = Plugin(kv=store, prefix=prefix)
        self.plugin.watch("bench", self._events, self._events, "")
        self.overflows = 0

    def first_resync(self) -> ResyncEvent:
        """Start, and take the first event, which the caller acknowledges."""
        self.plugin.after_init()
        event: ResyncEvent = self._events.get(timeout=PATIENCE)
        return event

    def count(self, wanted: int, last_revision: int = 0) -> tuple[float, float]:
        """Take *wanted* changes; the times at which the first and the last event came.

        A RESYNC in place of some is counted in ``overflows``; then the event with *last_revision* is the end.
        """
        counted, first, revision = 0, 0.0, -1
        while counted < wanted and not revision >= last_revision > 0:
            event = self._events.get(timeout=PATIENCE)
            first = first or time.perf_counter()
            if isinstance(event, QueuedResync):
                self.overflows += 1
                revision = event.revision
            else:
                changes = event.get_changes()
                counted += len(changes)
                revision = changes[-1].get_revision()
            event.done()
        return first, time.perf_counter()

    def take(self) -> Any:
        """The next event."""
        return self._events.get(timeout=PATIENCE)

    def close(self) -> None:
        self.plugin.close()
