"""A watcher whose source is HTTP requests.

Source: cn-infra ``datasync/restsync``; contract C1, C2.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from queue import Queue
from typing import Any

from datasync.events import ChangeValue, KeyVal
from datasync.restsync.app.replay_buffer import HISTORY, ReplayBuffer
from datasync.restsync.encoding import check_sendable
from datasync.runtime.closing import Closable
from datasync.runtime.threads import ForkGuard
from datasync.syncbase.futures import PropagationFuture
from datasync.syncbase.registration import Registration
from datasync.syncbase.registry import Registry
from datasync.syncbase.status import TransportStatus


class _SendableRegistry(Registry):
    """The registry of an adapter: ``InvalidArgumentError`` for a value without bytes, and then nothing is applied."""

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

    def __init__(self, name: str = "rest", *, history: int = HISTORY) -> None:
        #: The state, for local reads: ``registry.get(key)``, ``registry.items(prefix)``.
        self.registry: Registry = _SendableRegistry(name)
        self.replay_buffer = ReplayBuffer(history)
        #: Distinguishes the revisions of this process from those of an earlier or later one.
        self.instance = uuid.uuid4().hex[:8]
        self.guard = ForkGuard(f"the REST adapter {name!r}")
        self.closed = False
        self.registry.observe(self.replay_buffer.add)

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
