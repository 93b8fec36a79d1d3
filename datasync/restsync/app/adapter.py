"""A watcher whose source is HTTP requests.

Source: cn-infra ``datasync/restsync``; contract C1, C2.
"""

from __future__ import annotations

import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from contextvars import Context
from itertools import islice, takewhile
from queue import Queue
from typing import Any

from datasync.events import ChangeValue, KeyVal
from datasync.restsync.app.replay_buffer import HISTORY, ReplayBuffer
from datasync.restsync.encoding import check_sendable
from datasync.runtime.closing import Closable
from datasync.runtime.threads import ForkGuard
from datasync.syncbase.change import DEFAULT_SERIALIZER, StateKeyVal
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.state import FrozenState
from datasync.syncbase.status import TransportStatus


class SendableRegistry(Registry):
    """The registry of an adapter: every value has bytes.

    ``submit_changes`` and ``submit_resync`` raise ``InvalidArgumentError`` for a value without bytes; then nothing is
    applied.
    """

    def submit_changes(self, changes: Mapping[str, ChangeValue], **options: Any) -> PropagationFuture:
        check_sendable(changes)
        return super().submit_changes(changes, **options)

    def submit_resync(self, values: Mapping[str, KeyVal], **options: Any) -> PropagationFuture:
        check_sendable(values)
        return super().submit_resync(values, **options)


class Adapter(Closable):
    """A source that clients ``PUT`` to and ``DELETE`` from; ``done`` of an event answers the client's request.

    The adapter is one source with one state, shared by all clients. It does not listen by itself: pass it to
    ``serve(...)`` or to ``wsgi_app(...)``. The state is the requested state, as in every source: a change that a
    subscriber rejects stays in it, and the client receives the rejection (C6).

    Args:
      name: Name of the source; ``datasync.current_source`` has it while an event is handled.
      history: Transactions over which a disconnected event stream can resume.

    Threads: any.
    """

    #: True when every process with such an adapter has the same keys.
    shared = False
    #: True when a change of a key without a subscriber is rejected.
    only_watched = True
    #: True when every write is refused.
    read_only = False

    def __init__(self, name: str = "rest", *, history: int = HISTORY) -> None:
        self._show(SendableRegistry(name), history)

    def _show(self, registry: Registry, history: int = HISTORY) -> None:
        """Make *registry* the one that the application shows."""
        #: The state, for local reads: ``registry.get(key)``, ``registry.items(prefix)``.
        self.registry = registry
        self.replay_buffer = ReplayBuffer(history)
        self.guard = ForkGuard(f"the REST adapter {registry.name!r}")
        self._random = uuid.uuid4().hex[:8]
        self._closed = False
        # The state in order, while a client reads page after page: it is shared only as long as somebody has it.
        self._listed: FrozenState | None = None
        self._stop_observing = registry.observe(self.replay_buffer.add)
        self.replay_buffer.begin(registry.revision)  # what came before was not observed

    @property
    def instance(self) -> str:
        """Distinguishes the revisions of this history from those of another process, or from before a rewind."""
        rewinds = self.registry.position.rewinds
        return f"{self._random}.{rewinds}" if rewinds else self._random

    @property
    def closed(self) -> bool:
        """True after ``close``."""
        return self._closed or self.registry.closed

    def watch(
        self,
        resync_name: str,
        change_queue: Queue[Any] | None,
        resync_queue: Queue[Any] | None,
        *key_prefixes: str,
        in_flight: int = 1,
    ) -> Registration:
        """Subscribe; see :meth:`datasync.syncbase.registry.Registry.watch`."""
        return self.registry.watch(resync_name, change_queue, resync_queue, *key_prefixes, in_flight=in_flight)

    def status(self) -> TransportStatus:
        """Return the state of the source and of its subscriptions (C18)."""
        return self.registry.status()

    def wait_ready(self, timeout: float) -> None:
        """Wait until the source was read; an adapter without a store has none to wait for."""
        self.registry.wait_ready(timeout)

    def close(self) -> None:
        """End the subscriptions and the event streams; pending requests get 503. May be called twice."""
        if self.guard.forked:
            return
        self._closed = True
        self._end()
        self.replay_buffer.wake()  # event streams end

    def _end(self) -> None:
        self.registry.close()

    # For the application.

    def get(self, key: str) -> StateKeyVal | None:
        """Return the pair of *key*; None when there is none."""
        return self.registry.get(key)

    def page(self, prefix: str, after: str, limit: int) -> tuple[int, list[StateKeyVal], bool]:
        """Return the revision, at most *limit* pairs under *prefix* whose keys follow *after*, and whether more do.

        Time: by the number of pairs on the page while the state stays the same, and by that of all keys after a change.
        """
        revision, state = self.registry.frozen()
        keys = state.sorted_keys
        start = max(bisect_left(keys, prefix), bisect_right(keys, after))
        found = list(takewhile(lambda key: key.startswith(prefix), islice(keys, start, start + limit + 1)))
        more = len(found) > limit
        self._listed = state if more else None  # nothing is kept for a client that has read everything
        return revision, [StateKeyVal(key, *state[key], DEFAULT_SERIALIZER) for key in found[:limit]], more

    def tag(self, revision: int, content: bytes) -> str:
        """Return the entity tag of a key with *revision* and *content*; after its last dash is a number."""
        return f"{self.instance}-{revision}"

    def submit_changes(
        self,
        changes: Mapping[str, ChangeValue],
        *,
        ctx: Context,
        timeout: float,
        expected: Mapping[str, StateKeyVal | None] | None = None,
    ) -> PropagationFuture:
        """Apply *changes* as one transaction; see :meth:`datasync.syncbase.registry.Registry.submit_changes`.

        Args:
          expected: Key to the pair that ``get`` returned, and which must still be there.
        """
        revisions = None
        if expected is not None:
            revisions = {key: 0 if pair is None else pair.revision for key, pair in expected.items()}
        return self.registry.submit_changes(changes, ctx=ctx, timeout=timeout, expected=revisions, only_watched=True)

    def submit_resync(self, values: Mapping[str, KeyVal], *, ctx: Context, timeout: float) -> PropagationFuture:
        """Make *values* the whole state; see :meth:`datasync.syncbase.registry.Registry.submit_resync`."""
        return self.registry.submit_resync(values, ctx=ctx, timeout=timeout)
