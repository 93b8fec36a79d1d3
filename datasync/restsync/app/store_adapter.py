"""An adapter in front of a store: reads come from a mirror of the store, and writes go to the store.

So a server shows what every other client of the store writes, and several servers in front of one store agree. A write
is answered when the store has it and the mirror of this process as well.

Source: contract C2, C13, C17, C21.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from datasync.api import DEFAULT_NOTIF_TIMEOUT
from datasync.commits import Batch, Commit
from datasync.errors import ConflictError, NotReadyError, PermissionDenied, UnsupportedError
from datasync.events import ChangeValue, KeyVal, Op, ResyncReason
from datasync.keyval.api import Store
from datasync.keyval.reader import StoreReader
from datasync.keyval.types import Capability, Condition, DeleteOp, PutOp, WriteOp
from datasync.restsync.app.adapter import Adapter, ListedRegistry
from datasync.restsync.encoding import CONTENT_JSON, ReceivedValue, check_sendable, content_of, parse_json
from datasync.restsync.problems import Problem
from datasync.syncbase.futures import Outcome, PropagationFuture

#: The content type of a value that is not JSON: a store keeps none.
_BYTES = "application/octet-stream"


class StoreAdapter(Adapter):
    """The keys of *store* under *prefix*, for ``serve(...)`` or ``wsgi_app(...)``. It does not close the store.

    Args:
      store: Any store.
      prefix: Text in front of every key; the keys of the server are relative to it.
      read_only: Refuse every write.
      name: Name of the source; by default that of the store and the prefix.

    Threads: any.

    .. versionadded:: 1.0
    """

    def __init__(self, store: Store, prefix: str = "", *, read_only: bool = False, name: str | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self._read_only = read_only
        super().__init__(name or (f"{store.name}#{prefix}" if prefix else store.name))
        self._reader = StoreReader(store, prefix, self.registry)
        self._reader.start()

    def close(self) -> None:
        """End the reader and what ``Adapter.close`` ends; the store stays open. May be called twice."""
        if self.guard.forked:
            return
        self._reader.signal()
        super().close()
        self._reader.close()

    def _new_registry(self, name: str) -> ListedRegistry:
        return StoreRegistry(name, self._store, self._prefix, read_only=self._read_only)


class StoreRegistry(ListedRegistry):
    """The registry of a store: what callers submit is written to the store, and comes back through the reader."""

    def __init__(self, name: str, store: Store, prefix: str, *, read_only: bool) -> None:
        numbered = Capability.REVISION in store.capabilities
        super().__init__(name, sourced=True, has_revisions=numbered)
        self._store = store
        self._prefix = prefix
        self._read_only = read_only
        self._numbered = numbered

    def submit_changes(
        self,
        changes: Mapping[str, ChangeValue],
        *,
        timeout: float = DEFAULT_NOTIF_TIMEOUT,
        expected: Mapping[str, int] | None = None,
        **options: Any,
    ) -> PropagationFuture:
        """Write *changes* to the store as one transaction; the future is done when this returns.

        Args:
          timeout: Seconds to wait for the mirror after the write.
          expected: Key to the revision that it must have, 0 where it must not exist.
          options: Without effect: the store has no subscribers, and every key is taken.

        Raises:
          ConflictError: A key does not have its *expected* revision; nothing was written.
          PermissionDenied: The server is read-only.
          StoreError: As ``commit`` of the store.
        """
        check_sendable(changes)
        self._check_writable()
        ops: list[WriteOp] = []
        absent: list[str] = []
        for key, change in changes.items():
            if change.get_change_type() is Op.DELETE:
                ops.append(DeleteOp(self._prefix + key))
                if self.get(key) is None:
                    absent.append(key)
            else:
                ops.append(PutOp(self._prefix + key, content_of(key, change)[0]))
        conditions = [self._condition(key, revision) for key, revision in (expected or {}).items()]
        result = self._store.new_broker().commit(ops, conditions)
        self._wait_for_mirror(result.revision, timeout)
        if not result.succeeded:
            raise ConflictError(f"{self.name}: {next(iter(changes), '')!r} does not have the expected revision")
        # For one key the result of the store is exact; for several deletes it has their number only.
        if len(ops) == 1 and isinstance(ops[0], DeleteOp):
            absent = [] if result.deleted else [next(iter(changes))]
        revision = result.revision or self.revision
        return self._done(Outcome(revision, tuple(absent)), timeout)

    def submit_resync(self, values: Mapping[str, KeyVal], **options: Any) -> PropagationFuture:
        """Raise ``UnsupportedError``: a request must not replace a whole store."""
        raise UnsupportedError(f"{self.name}: the keys of a store are not replaced as a whole: send a transaction")

    def feed_snapshot(self, revision: int, entries: dict[str, tuple[int, bytes]], reason: ResyncReason) -> None:
        payloads = {key: (at, _payload(key, value)) for key, (at, value) in entries.items()}
        super().feed_snapshot(revision, cast("Any", payloads), reason)

    def feed_changes(self, batch: Batch) -> None:
        commits = [
            Commit(revision, cast("Any", [(key, None if data is None else _payload(key, data)) for key, data in ops]))
            for revision, ops in batch.commits
        ]
        super().feed_changes(Batch(batch.revision, commits))

    def _check_writable(self) -> None:
        self._guard.check()
        if self._read_only:
            raise PermissionDenied(f"{self.name} is served read-only")

    def _condition(self, key: str, revision: int) -> Condition:
        """Return the condition that *key* still has *revision*; by its value in a store that compares only values."""
        absolute = self._prefix + key
        if not revision:
            return Condition(absolute, None)
        if self._numbered and Capability.BRANCH in self._store.capabilities:
            return Condition(absolute, None, revision)
        pair = self.get(key)
        if pair is None or pair.revision != revision:
            raise ConflictError(f"{self.name}: {key!r} does not have revision {revision}")
        return Condition(absolute, content_of(key, pair.payload)[0])

    def _wait_for_mirror(self, revision: int, timeout: float) -> None:
        """Wait until the mirror has *revision*, so that a read after the write finds it; the write counts anyway."""
        if self._numbered and revision:
            with suppress(NotReadyError):
                self.wait_for(revision, timeout)

    def _done(self, outcome: Outcome, timeout: float) -> PropagationFuture:
        future = PropagationFuture(lambda: f"{self.name}: write", timeout, self._guard)
        future.expect(outcome, {})
        future.finish()
        return future


def _payload(key: str, data: bytes) -> object:
    """Return a value of the store as the registry keeps it: JSON as bytes, and everything else with its type."""
    try:
        parse_json(data)
    except Problem:
        return ReceivedValue(key, data, _BYTES)
    return ReceivedValue(key, data, CONTENT_JSON)
