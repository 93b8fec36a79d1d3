"""Adapters in front of a store: reads come from a mirror of the store, and writes go to the store.

So a server shows what every other client of the store writes, and several servers in front of one store agree: a read
of one key asks the store, while it can be reached, and an entity tag is the same in all of them. A write is answered
when the store has it and the mirror of this process as well.

Source: contract C2, C13, C17, C21.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from contextvars import Context
from typing import Protocol, runtime_checkable

from datasync.errors import (
    ClosedError,
    ConflictError,
    InvalidArgumentError,
    NotReadyError,
    PermissionDenied,
    StoreConnectionError,
    UnsupportedError,
)
from datasync.events import ChangeValue, KeyVal, Op
from datasync.keyval.api import Store
from datasync.keyval.reader import StoreReader
from datasync.keyval.types import Capability, Condition, DeleteOp, PutOp, WriteOp
from datasync.restsync.app.adapter import Adapter
from datasync.restsync.encoding import check_sendable, content_of
from datasync.syncbase.change import DEFAULT_SERIALIZER, StateKeyVal
from datasync.syncbase.futures import Outcome, PropagationFuture
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import TransportStatus

#: Hex digits of the digest in an entity tag.
_DIGITS = 20


@runtime_checkable
class StoreTransport(Protocol):
    """A transport over a store that is read and written, such as ``kvdbsync.Plugin``."""

    registry: Registry

    @property
    def store(self) -> Store: ...

    @property
    def prefix(self) -> str: ...

    def status(self) -> TransportStatus: ...


class _StoreFront(Adapter):
    """The keys of *store* under *prefix*, which *registry* mirrors."""

    only_watched = False

    def __init__(self, store: Store, prefix: str, registry: Registry, *, read_only: bool) -> None:
        self._store = store
        self._prefix = prefix
        self.read_only = read_only
        self.shared = store.shared
        self._numbered = Capability.REVISION in store.capabilities
        self._show(registry)

    def get(self, key: str) -> StateKeyVal | None:
        """Return the pair of *key* in the store; while that is out of reach, the last known one.

        The mirror alone would not do: what another process has written may not be in it yet.
        """
        self.guard.check()
        mirrored = self.registry.get(key)
        if self.registry.lost:
            return mirrored
        try:
            found = self._store.new_broker(self._prefix).get_value(key)
        except StoreConnectionError:
            return mirrored
        if not found.found:
            return None
        known = 0 if mirrored is None else mirrored.revision
        return StateKeyVal(key, found.revision if self._numbered else known, found.value or b"", DEFAULT_SERIALIZER)

    def tag(self, revision: int, content: bytes) -> str:
        """Return the tag, the same in every process: the revision where the store has one, and a digest of the value.

        The digest tells a store that was emptied and has reached the same revision again.
        """
        digest = hashlib.sha256(content).hexdigest()[:_DIGITS]
        return f"{digest}-{revision if self._numbered else 0}"

    def submit_changes(
        self,
        changes: Mapping[str, ChangeValue],
        *,
        ctx: Context,
        timeout: float,
        expected: Mapping[str, StateKeyVal | None] | None = None,
    ) -> PropagationFuture:
        """Write *changes* to the store as one transaction; the future is done when this returns.

        Args:
          ctx: Without effect: the change comes back from the store.
          timeout: Seconds to wait for the mirror after the write.
          expected: Key to the pair that ``get`` returned, and which must still be there.

        Raises:
          ConflictError: An *expected* pair is not there any more; nothing was written.
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
                if self.registry.get(key) is None:
                    absent.append(key)
            else:
                ops.append(PutOp(self._prefix + key, content_of(key, change)[0]))
        conditions = [self._condition(key, pair) for key, pair in (expected or {}).items()]
        result = self._store.new_broker().commit(ops, conditions)
        self._wait_for_mirror(result.revision, timeout)
        if not result.succeeded:
            raise ConflictError(f"{self.registry.name}: {next(iter(changes), '')!r} has changed")
        # For one key the result of the store is exact; for several deletes it has their number only.
        if len(ops) == 1 and isinstance(ops[0], DeleteOp):
            absent = [] if result.deleted else [next(iter(changes))]
        future = PropagationFuture(lambda: f"{self.registry.name}: write", timeout, self.guard)
        future.expect(Outcome(result.revision or self.registry.revision, tuple(absent)), {})
        future.finish()
        return future

    def submit_resync(self, values: Mapping[str, KeyVal], *, ctx: Context, timeout: float) -> PropagationFuture:
        """Raise ``UnsupportedError``: a request must not replace a whole store."""
        raise UnsupportedError(
            f"{self.registry.name}: the keys of a store are not replaced as a whole: send a transaction"
        )

    def _check_writable(self) -> None:
        self.guard.check()
        if self.closed:
            raise ClosedError(f"{self.registry.name} is closed")
        if self.read_only:
            raise PermissionDenied(f"{self.registry.name} is served read-only")

    def _condition(self, key: str, pair: StateKeyVal | None) -> Condition:
        """Return the condition that *pair* is still there; by its value in a store that compares only values."""
        absolute = self._prefix + key
        if pair is None:
            return Condition(absolute, None)
        if self._numbered and Capability.BRANCH in self._store.capabilities:
            return Condition(absolute, None, pair.revision)
        return Condition(absolute, content_of(key, pair.payload)[0])

    def _wait_for_mirror(self, revision: int, timeout: float) -> None:
        """Wait until the mirror has *revision*, so that a list after the write has it; the write counts anyway."""
        if self._numbered and revision:
            with suppress(NotReadyError):
                self.registry.wait_for(revision, timeout)


class StoreAdapter(_StoreFront):
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
        name = name or (f"{store.name}#{prefix}" if prefix else store.name)
        registry = Registry(name, sourced=True, has_revisions=Capability.REVISION in store.capabilities)
        super().__init__(store, prefix, registry, read_only=read_only)
        self._reader = StoreReader(store, prefix, registry, source=name)
        self._reader.start()

    def _end(self) -> None:
        """End the reader and the subscriptions; the store stays open."""
        self._reader.signal()
        self.registry.close()
        self._reader.close()


class PluginAdapter(_StoreFront):
    """The keys of *plugin*, a transport over a store: its own mirror, subscriptions and rejected keys are shown.

    ``wsgi_app(plugin)`` and ``serve(address, plugin)`` make one. It closes neither the plugin nor its store, and its
    event streams end when the plugin is closed.

    Args:
      plugin: Such as ``kvdbsync.Plugin``; it may be started later.
      read_only: Refuse every write.

    Threads: any.

    .. versionadded:: 1.0
    """

    def __init__(self, plugin: StoreTransport, *, read_only: bool = False) -> None:
        self._plugin = plugin
        super().__init__(plugin.store, plugin.prefix, plugin.registry, read_only=read_only)

    def status(self) -> TransportStatus:
        """Return the status of the plugin (C18)."""
        return self._plugin.status()

    def _end(self) -> None:
        self._stop_observing()


def adapter_of(source: object) -> Adapter:
    """Return *source* if it is an adapter, or an adapter over it. Raises ``InvalidArgumentError``."""
    if isinstance(source, Adapter):
        return source
    if isinstance(source, StoreTransport):
        return PluginAdapter(source)
    raise InvalidArgumentError(
        f"an application needs a restsync.Adapter or the plugin of a store, not a {type(source).__name__}"
    )
