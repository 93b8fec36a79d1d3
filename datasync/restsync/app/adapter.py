"""A watcher whose source is HTTP requests.

Source: cn-infra ``datasync/restsync``; contract C1, C2.
"""

from __future__ import annotations

import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from itertools import takewhile
from queue import Queue
from typing import Any

from datasync.events import ChangeValue, KeyVal
from datasync.restsync.app.replay_buffer import HISTORY, ReplayBuffer
from datasync.restsync.encoding import check_sendable
from datasync.runtime.closing import Closable
from datasync.runtime.threads import ForkGuard
from datasync.syncbase.change import StateKeyVal
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.state import FrozenState
from datasync.syncbase.status import TransportStatus


class ListedRegistry(Registry):
    """The registry of an adapter: every value has bytes, and pages of its keys are in order.

    ``submit_changes`` and ``submit_resync`` raise ``InvalidArgumentError`` for a value without bytes; then nothing is
    applied.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        # A copy of the state and its keys in order, while a client reads page after page. Sorting all keys for each
        # page would take time by the square of their number. A thread that loses a race sorts once more.
        self._listed: tuple[FrozenState, list[str]] | None = None

    def submit_changes(self, changes: Mapping[str, ChangeValue], **options: Any) -> PropagationFuture:
        check_sendable(changes)
        return super().submit_changes(changes, **options)

    def submit_resync(self, values: Mapping[str, KeyVal], **options: Any) -> PropagationFuture:
        check_sendable(values)
        return super().submit_resync(values, **options)

    def page(self, prefix: str, after: str, limit: int) -> tuple[int, list[StateKeyVal], bool]:
        """Return the revision, at most *limit* pairs under *prefix* whose keys follow *after*, and whether more do.

        Time: by the number of pairs on the page while the state stays the same, and by that of all keys after a change.
        """
        self._guard.check()
        with self._lock:
            revision, state = self._state.revision, self._state.freeze()
        listed = self._listed
        keys = listed[1] if listed is not None and listed[0] is state else sorted(state)
        start = max(bisect_left(keys, prefix), bisect_right(keys, after))
        found = list(takewhile(lambda key: key.startswith(prefix), keys[start : start + limit + 1]))
        more = len(found) > limit
        self._listed = (state, keys) if more else None  # nothing is kept for a client that has read everything
        return revision, [self._state.view(key, state[key]) for key in found[:limit]], more


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

    def __init__(self, name: str = "rest", *, history: int = HISTORY) -> None:
        #: The state, for local reads: ``registry.get(key)``, ``registry.items(prefix)``.
        self.registry = self._new_registry(name)
        self.replay_buffer = ReplayBuffer(history)
        #: Distinguishes the revisions of this process from those of an earlier or later one.
        self.instance = uuid.uuid4().hex[:8]
        self.guard = ForkGuard(f"the REST adapter {name!r}")
        self.closed = False
        self.registry.observe(self.replay_buffer.add)

    def _new_registry(self, name: str) -> ListedRegistry:
        return ListedRegistry(name)

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
        """Return at once: the adapter needs no connection to a source."""
        self.registry.wait_ready(timeout)

    def close(self) -> None:
        """End the subscriptions and the event streams; pending requests get 503. May be called twice."""
        if self.guard.forked:
            return
        self.closed = True
        self.registry.close()
        self.replay_buffer.wake()  # event streams end
